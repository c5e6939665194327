"""Playing windows of the simulated market: agents are asked, their answers settled, and each window recorded whole."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx

from babylon_rl.database.connect import Database
from babylon_rl.errors import ServingError, SettingsError
from babylon_rl.market.actions import choices, parse_action
from babylon_rl.market.agents import AgentState, make_agents
from babylon_rl.market.endpoint import Endpoint, Sampling, ask, connect, context_headers, request_body
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.policies import choose
from babylon_rl.market.settlement import Settlement, settle
from babylon_rl.market.trajectories import Asked, Label, make_run, market_history, trajectory_id
from babylon_rl.market.world import MarketWindow
from babylon_rl.recording.market_history import record_market
from babylon_rl.recording.recorder import Recorder
from babylon_rl.windows import WINDOW_LENGTH, parse_window_id, window_of

# A live play must be over this long before the hour is, so that its runs end in the window they began in.
LIVE_MARGIN = timedelta(seconds=20)

T = TypeVar("T")
Progress = Callable[["PlayedWindow"], None]


@dataclass(frozen=True)
class PlayedDecision:
    """One agent's answer and what it came to, dollars. `logged`: whether it can be trained on."""

    agent_id: str
    instrument: str
    answer: str
    action_type: str
    valid: bool
    pnl: float
    capital: float
    logged: bool
    checkpoint: str | None


@dataclass(frozen=True)
class PlayedWindow:
    """A window that was played and handed to the recorder."""

    window_id: str
    decisions: tuple[PlayedDecision, ...]

    @property
    def pnls(self) -> list[float]:
        return [d.pnl for d in self.decisions]

    @property
    def mean_pnl(self) -> float:
        return sum(self.pnls) / len(self.decisions)

    @property
    def valid_share(self) -> float:
        return sum(d.valid for d in self.decisions) / len(self.decisions)

    @property
    def logged_share(self) -> float:
        """Share of decisions recorded with tokens and log-probabilities."""
        return sum(d.logged for d in self.decisions) / len(self.decisions)


def play_windows(
    database: Database,
    recorder: Recorder,
    endpoint: Endpoint,
    windows: Sequence[tuple[str, MarketWindow]],
    *,
    agents: int = 8,
    label: Label,
    sampling: Sampling,
    concurrency: int = 4,
    progress: Progress | None = None,
) -> list[PlayedWindow]:
    """Play (window id, window) pairs with a model behind `endpoint`, `concurrency` windows at a time.

    All agents of a window are asked at once. A window goes to the recorder whole, when all its agents have answered;
    `progress` is called for each. The result has the order of `windows`. ServingError where the endpoint fails for
    good: windows finished by then are recorded.
    """
    if concurrency < 1:
        raise SettingsError(f"At least one window must be played at a time, not {concurrency}.")
    _record_markets(database, windows, agents)

    def finish(window_id: str, window: MarketWindow, state: list[AgentState], asked: list[Asked]) -> PlayedWindow:
        return _finish(recorder, window_id, window, state, asked, label, progress)

    return _ask_windows(endpoint, windows, agents, label, sampling, concurrency, finish)


def play_unrecorded(
    endpoint: Endpoint,
    windows: Sequence[tuple[str, MarketWindow]],
    *,
    agents: int = 8,
    sampling: Sampling,
    concurrency: int = 4,
    progress: Progress | None = None,
) -> list[PlayedWindow]:
    """As `play_windows`, in memory: nothing is written. A window's id is any name; the calls' seeds are made of it."""

    def finish(window_id: str, window: MarketWindow, state: list[AgentState], asked: list[Asked]) -> PlayedWindow:
        played = _played(window_id, window, state, asked)[0]
        if progress is not None:
            progress(played)
        return played

    return _ask_windows(endpoint, windows, agents, None, sampling, concurrency, finish)


def play_fixed_unrecorded(
    policy: str, windows: Sequence[tuple[str, MarketWindow]], agents: int = 8
) -> list[PlayedWindow]:
    """What a policy of `market.policies` earns in the windows, in memory."""
    played = []
    for window_id, window in windows:
        state = make_agents(window.seed, window.split, window.index, agents)
        played.append(_played(window_id, window, state, [choose(policy, window, agent) for agent in state])[0])
    return played


def _ask_windows(
    endpoint: Endpoint,
    windows: Sequence[tuple[str, MarketWindow]],
    agents: int,
    label: Label | None,
    sampling: Sampling,
    concurrency: int,
    finish: Callable[[str, MarketWindow, list[AgentState], list[Asked]], T],
) -> list[T]:
    """Ask all agents of each window; what `finish` makes of their answers, in the order of `windows`."""

    async def ask_all() -> list[T]:
        room = asyncio.Semaphore(concurrency)
        async with connect(endpoint) as client:

            async def ask_one(window_id: str, window: MarketWindow) -> T:
                async with room:
                    state = make_agents(window.seed, window.split, window.index, agents)
                    asked = await _gather(
                        _ask_agent(client, endpoint, sampling, window_id, window, agent, label) for agent in state
                    )
                    return finish(window_id, window, state, asked)

            return await _gather(ask_one(*pair) for pair in windows)

    return asyncio.run(ask_all())


def play_fixed(
    database: Database,
    recorder: Recorder,
    policy: str,
    windows: Sequence[tuple[str, MarketWindow]],
    *,
    split: str | None,
    agents: int = 8,
    progress: Progress | None = None,
) -> list[PlayedWindow]:
    """Play windows with a policy of `market.policies`, recorded as the arm of its name in the evaluation of `split`.

    Without a split the runs are recorded for training, though no model's tokens are in them.
    """
    _record_markets(database, windows, agents)
    played = []
    for window_id, window in windows:
        state = make_agents(window.seed, window.split, window.index, agents)
        answers = [choose(policy, window, agent) for agent in state]
        played.append(_finish(recorder, window_id, window, state, answers, Label(policy, split), progress))
    return played


def play_live(
    database: Database,
    recorder: Recorder,
    endpoint: Endpoint,
    window: MarketWindow,
    *,
    minutes: float,
    agents: int = 8,
    label: Label,
    sampling: Sampling,
    progress: Progress | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> PlayedWindow:
    """Play the hour that is open now: one decision an agent, spread evenly over `minutes`, recorded at the end.

    SettingsError where the hour ends before that. What `window` hides is written with the market's history at the
    end too, when nobody decides any more.
    """
    begun = now()
    window_id = window_of(begun)
    left = parse_window_id(window_id) + WINDOW_LENGTH - begun - LIVE_MARGIN
    if not 0 <= minutes * 60 <= left.total_seconds():
        raise SettingsError(
            f"{minutes:g} minutes do not fit into the hour {window_id}, which can be played for "
            f"{max(0.0, left.total_seconds() / 60):.0f} more. Ask for less, or start after the hour."
        )
    state = make_agents(window.seed, window.split, window.index, agents)

    async def play() -> tuple[list[Asked], list[datetime]]:
        asked, moments = [], []
        async with connect(endpoint) as client:
            for number, agent in enumerate(state):
                turn = begun + timedelta(minutes=minutes) * (number / len(state))
                await asyncio.sleep(max(0.0, (turn - now()).total_seconds()))
                moments.append(now())
                asked.append(await _ask_agent(client, endpoint, sampling, window_id, window, agent, label))
            await asyncio.sleep(max(0.0, (begun + timedelta(minutes=minutes) - now()).total_seconds()))
        return asked, moments

    asked, moments = asyncio.run(play())
    ended = now()
    if window_of(ended) != window_id:
        raise ServingError(
            f"The endpoint was so slow that the hour {window_id} ended meanwhile; nothing is recorded. Ask for less."
        )
    _record_markets(database, [(window_id, window)], agents)
    times = [(moment, max(moment, ended)) for moment in moments]
    return _finish(recorder, window_id, window, state, list(asked), label, progress, times)


async def _gather(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first failure ends the rest before it is raised, so that no request is left behind."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask_agent(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    sampling: Sampling,
    window_id: str,
    window: MarketWindow,
    agent: AgentState,
    label: Label | None,
) -> Asked:
    allowed = choices(agent.instrument)
    seed = call_seed(sampling.seed, window_id, agent.agent_id)
    body = request_body(endpoint, sampling, system_prompt(), observation(window, agent), allowed, seed)
    # What is not recorded belongs to no trajectory.
    context = label and context_headers(agent.agent_id, window_id, trajectory_id(window_id, agent.agent_id, label))
    answer = await ask(client, endpoint, body, context)
    return Asked(answer, sampling, allowed, seed, endpoint.extensions)


def call_seed(seed: int, window_id: str, agent_id: str) -> int:
    """Seed of one call, 31 bits. Two checkpoints that play the same window get the same: their noise is paired."""
    digest = hashlib.sha256(f"{seed}/{window_id}/{agent_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _record_markets(database: Database, windows: Sequence[tuple[str, MarketWindow]], agents: int) -> None:
    """Agents, prices and questions of the windows: before the runs, which refer to them."""
    tickers, questions, names = [], [], {}
    for window_id, window in windows:
        of_tickers, of_questions = market_history(window_id, window)
        tickers += of_tickers
        questions += of_questions
        names |= {agent.agent_id: None for agent in make_agents(window.seed, window.split, window.index, agents)}
    with database.connect() as connection:
        record_market(connection, list(names), tickers, questions)


def _finish(
    recorder: Recorder,
    window_id: str,
    window: MarketWindow,
    state: Sequence[AgentState],
    given: Sequence[Asked | str],
    label: Label,
    progress: Progress | None,
    times: Sequence[tuple[datetime, datetime]] | None = None,
) -> PlayedWindow:
    """Settle the answers, hand the window to the recorder as one, and tell."""
    played, settled = _played(window_id, window, state, given)
    runs = [
        make_run(
            window_id,
            window,
            state[i],
            settled[i],
            label,
            one if isinstance(one, Asked) else None,
            times[i] if times else None,
        )
        for i, one in enumerate(given)
    ]
    recorder.record_together(runs)
    if progress is not None:
        progress(played)
    return played


def _played(
    window_id: str, window: MarketWindow, state: Sequence[AgentState], given: Sequence[Asked | str]
) -> tuple[PlayedWindow, list[Settlement]]:
    """What the answers came to; `given`: of models, or the texts of a fixed policy."""
    answers = [one.answer.text if isinstance(one, Asked) else one for one in given]
    actions = [
        parse_action(answer, window.instrument(agent.instrument)) for agent, answer in zip(state, answers, strict=True)
    ]
    settled = settle(window, state, actions)
    decisions = [
        PlayedDecision(
            agent_id=one.agent_id,
            instrument=one.instrument,
            answer=answers[i],
            action_type=one.action_type,
            valid=one.success,
            pnl=one.pnl,
            capital=one.capital,
            logged=isinstance(asked, Asked) and asked.answer.logged,
            checkpoint=asked.answer.checkpoint if isinstance(asked, Asked) else None,
        )
        for i, (one, asked) in enumerate(zip(settled, given, strict=True))
    ]
    return PlayedWindow(window_id, tuple(decisions)), settled
