"""Policies without a model: what a learnt policy must beat, and the informed ceiling it is shown beside."""

import random

from babylon_rl.errors import SettingsError
from babylon_rl.market.actions import choices
from babylon_rl.market.agents import AgentState
from babylon_rl.market.world import MarketWindow

# A candidate is compared with the best of these.
FIXED_POLICIES = ("always_buy", "always_sell", "hold", "random")
# For display only: it reads the hidden meaning of the news, which no agent is told.
INFORMED_POLICY = "follow_news"
POLICIES = (*FIXED_POLICIES, INFORMED_POLICY)


def choose(policy: str, window: MarketWindow, agent: AgentState) -> str:
    """The answer of a policy by name; `random` is the same for the same window and agent. SettingsError if unknown."""
    buy, sell, hold = choices(agent.instrument)
    if policy == "always_buy":
        return buy
    if policy == "always_sell":
        return sell
    if policy == "hold":
        return hold
    if policy == "random":
        # By the agent and not by its place, so that the answer does not depend on how many agents play.
        return random.Random(f"random/{window.seed}/{window.split}/{window.index}/{agent.agent_id}").choice(
            (buy, sell, hold)
        )
    if policy == INFORMED_POLICY:
        return buy if window.instrument(agent.instrument).news_is_good else sell
    raise SettingsError(f"{policy!r} is not a policy; take one of {', '.join(POLICIES)}.")
