"""The agents of a simulated window: who they are, what they own, and which instrument each one covers."""

from dataclasses import dataclass

from babylon_rl.errors import SettingsError
from babylon_rl.market.world import QUESTION, TICKERS, random_stream

CAPITAL_LEVELS = (500, 800, 1000, 1500, 2000)
MIN_AGENTS, MAX_AGENTS = 3, 64


@dataclass(frozen=True)
class AgentState:
    """An agent at the window's start. `capital`: cash, dollars; `holding`: shares of the covered instrument."""

    agent_id: str
    instrument: str
    capital: int
    holding: int


def coverage(count: int) -> tuple[str, ...]:
    """Instrument that each of `count` agents covers.

    Every ticker is covered equally often, so that agents who all buy (or all sell) earn nothing after the market's own
    move is taken out; the question is covered by the rest, and by at least one agent from seven up.
    """
    if not MIN_AGENTS <= count <= MAX_AGENTS:
        raise SettingsError(f"A window has {MIN_AGENTS} to {MAX_AGENTS} agents, not {count}.")
    if count % 4 == 0:
        return ((*TICKERS, QUESTION) * count)[:count]
    per_ticker = count // 3
    if count >= 7 and count % 3 == 0:
        per_ticker -= 1
    return TICKERS * per_ticker + (QUESTION,) * (count - 3 * per_ticker)


def make_agents(seed: int, split: str, index: int, count: int = 8) -> list[AgentState]:
    """The agents of a window; ids stay the same over windows, capital ($500 to $2000) and holdings do not."""
    stream = random_stream(seed, split, index, "agents")
    agents = []
    for number, instrument in enumerate(coverage(count), start=1):
        capital = stream.choice(CAPITAL_LEVELS) + stream.randint(-50, 50)
        capital = min(CAPITAL_LEVELS[-1], max(CAPITAL_LEVELS[0], capital))
        agents.append(AgentState(f"agent-{number}", instrument, capital, stream.randint(0, 5)))
    return agents
