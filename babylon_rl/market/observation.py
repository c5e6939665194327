"""What an agent is shown: the text of its prompt, and nothing that it could not know at that time.

What agents share (the prices) stands first, so that prompts of a window have a common beginning, which the endpoint and
the trainer compute once. The news stands last, right before the question about it: small models answer to what is near.
"""

from babylon_rl.market.agents import AgentState
from babylon_rl.market.world import MarketWindow

ASK = "Is this good or bad news? BUY if good, SELL if bad."


def system_prompt() -> str:
    """The system message of every agent."""
    return "You trade on news."


def prices_line(window: MarketWindow) -> str:
    """Opening prices of all tickers, whole dollars."""
    return ", ".join(f"{i.name} ${i.open:.0f}" for i in window.tickers) + "."


def news_lines(window: MarketWindow, agent: AgentState) -> str:
    """The news on the instrument that the agent covers; for a question also its text and the probability of YES."""
    covered = window.instrument(agent.instrument)
    if covered.is_question:
        return f"{covered.name}: {covered.question} Yes {covered.open:.0%}.\nNews: {covered.news}."
    return f"News: {covered.name} {covered.news}."


def observation(window: MarketWindow, agent: AgentState) -> str:
    """The user message of one agent."""
    own = f"Cash ${agent.capital}, {agent.holding} {agent.instrument}."
    return "\n".join((prices_line(window), own, news_lines(window, agent), ASK))
