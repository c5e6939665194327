"""What each arm of an experiment did, window by window, read from the database: results, latency, who was left out.

An arm is told by the checkpoint that answered, as it was recorded, never by the plan; that the two agree is counted.
The runs are those of `scored_trajectories`: what the reader found usable, and a window is seen once it is scored.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import psycopg

from babylon_rl.scoring.seam import NO_CAPITAL
from babylon_rl.serving.routing import ExperimentRoute, candidate_answers

CANDIDATE, BASELINE = "candidate", "baseline"
Metric = Literal["reward", "return"]

# Why an agent's window is in no arm.
MIXED, PINNED, OTHER, UNKNOWN, OTHER_SCORER = "mixed", "pinned", "other_checkpoint", "no_checkpoint", "other_scorer"
WRONG_ARM = "wrong_arm"


class AgentWindow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One agent in one window, over all its runs there.

    `checkpoints`: that answered it; `pinned`: it asked for a checkpoint by name. `pnl` in dollars. `reward`: mean of
    its runs' rewards, None without capital or with another scorer than was asked for; `earned`: P&L over capital.
    `valid`: share of its steps that were legal actions. `drawdown`: its largest fall from a peak within the window, as
    a share of capital, by the P&L that its trades say of themselves.
    """

    window_id: str
    agent_id: str
    checkpoints: frozenset[str]
    pinned: bool
    pnl: float
    reward: float | None
    earned: float | None
    valid: float
    drawdown: float

    def value(self, metric: Metric) -> float | None:
        """The agent's figure in the metric of an experiment; None where there is none."""
        return self.reward if metric == "reward" else self.earned


class ArmWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One arm in one window: means over its agents, who are counted once each.

    `value`: in the experiment's metric, None where no agent has one; `valued`: agents that have; `pnl`: dollars an
    agent; `earned`: P&L over capital, of those with capital; `drawdown`: a share of capital; `latency_ms`: 95th
    percentile of its calls, None where none came through the gateway.
    """

    window_id: str
    arm: str
    agents: int
    valued: int
    value: float | None
    pnl: float
    earned: float
    valid: float
    drawdown: float
    latency_ms: float | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of an experiment.

    `scored`: all its windows that are scored, in order; `arms`: windows by arm; `left_out`: agents' windows that are in
    no arm, by reason. `answered`: by window, agents that the candidate and the baseline answered; `mismatched`: agents
    among them whom the plan gives to the other arm.
    """

    scored: list[str]
    arms: dict[str, dict[str, ArmWindow]]
    left_out: dict[str, int]
    answered: dict[str, tuple[int, int]]
    mismatched: int

    @property
    def agents(self) -> int:
        """Agents' windows that an arm answered."""
        return sum(map(sum, self.answered.values()))


_RUNS = """
    SELECT s.window_id, s.agent_id, s.trajectory_id, s.scorer, s.provenance, s.reward,
           (s.features ->> 'capital')::float8, (s.features ->> 'window_pnl')::float8,
           coalesce((s.features ->> 'steps')::int, 0), coalesce((s.features ->> 'malformed')::int, 0)
               + coalesce((s.features ->> 'trades_tried')::int, 0)
               - coalesce((s.features ->> 'trades_succeeded')::int, 0),
           s.features -> 'trades'
    FROM babylon_rl.scored_trajectories s
    WHERE s.superseded_at IS NULL AND s.window_id = ANY(%s)
    ORDER BY s.window_id, s.agent_id, s.trajectory_id
"""

# A call that failed left nothing in the run, and the agent asked again.
_ANSWERED = """
    WITH runs AS (SELECT DISTINCT trajectory_id FROM babylon_rl.scored_trajectories
                  WHERE superseded_at IS NULL AND window_id = ANY(%(windows)s))
    SELECT trajectory_id, checkpoint, false FROM babylon_rl.recorded_calls JOIN runs USING (trajectory_id)
    UNION
    SELECT trajectory_id, checkpoint_id, arm NOT IN ('promoted', 'candidate')
    FROM babylon_rl.gateway_calls JOIN runs USING (trajectory_id) WHERE status < 400
"""

_LATENCY = """
    SELECT window_id, checkpoint_id, percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms)
    FROM babylon_rl.gateway_calls
    WHERE window_id = ANY(%s) AND status < 400 AND arm IN ('promoted', 'candidate')
    GROUP BY window_id, checkpoint_id
"""


def agent_windows(
    connection: psycopg.Connection, window_ids: Sequence[str], scorer: str | None = None
) -> list[AgentWindow]:
    """Each agent of each scored window, by window and agent. `scorer`: whose rewards count; None: any."""
    windows = list(window_ids)
    answered: dict[str, set[str]] = defaultdict(set)
    pinned: set[str] = set()
    for trajectory_id, checkpoint, apart in connection.execute(_ANSWERED, {"windows": windows}):
        answered[trajectory_id].add(checkpoint)
        if apart:
            pinned.add(trajectory_id)
    runs: dict[tuple[str, str], list[tuple]] = defaultdict(list)
    for window_id, agent_id, *rest in connection.execute(_RUNS, (windows,)):
        runs[window_id, agent_id].append(tuple(rest))
    return [
        _agent_window(window_id, agent_id, own, answered, pinned, scorer) for (window_id, agent_id), own in runs.items()
    ]


def _agent_window(
    window_id: str,
    agent_id: str,
    runs: list[tuple],
    answered: Mapping[str, set[str]],
    pinned: set[str],
    scorer: str | None,
) -> AgentWindow:
    checkpoints: set[str] = set()
    rewards: list[float] = []
    pnl, steps, illegal, worst, apart = 0.0, 0, 0, 0.0, False
    capital: float | None = None
    for trajectory_id, by, provenance, reward, own_capital, own_pnl, own_steps, own_illegal, trades in runs:
        checkpoints |= answered.get(trajectory_id, set())
        apart = apart or trajectory_id in pinned
        if provenance != NO_CAPITAL and (scorer is None or by == scorer):
            rewards.append(reward)
        capital = capital or own_capital
        pnl += own_pnl or 0.0
        steps += own_steps
        illegal += own_illegal
        worst = max(worst, _fall(trades or (), own_pnl or 0.0))
    return AgentWindow(
        window_id=window_id,
        agent_id=agent_id,
        checkpoints=frozenset(checkpoints),
        pinned=apart,
        pnl=pnl,
        reward=sum(rewards) / len(rewards) if len(rewards) == len(runs) else None,
        earned=pnl / capital if capital else None,
        valid=1 - illegal / steps if steps else 0.0,
        drawdown=worst / capital if capital else 0.0,
    )


def _fall(trades: Iterable[Sequence[Any]], last: float) -> float:
    """Largest fall of the P&L from its peak, dollars; from 0 over the trades, in their order, to the last P&L known."""
    peak = level = fall = 0.0
    for _, pnl, _ in trades:
        level += pnl or 0.0
        peak, fall = max(peak, level), max(fall, peak - level)
    return max(fall, max(peak, last) - last)


def latencies(connection: psycopg.Connection, window_ids: Sequence[str]) -> dict[tuple[str, str], float]:
    """95th percentile of what callers waited, milliseconds, by window and checkpoint; calls through the gateway."""
    found = connection.execute(_LATENCY, (list(window_ids),))
    return {(window_id, checkpoint): float(value) for window_id, checkpoint, value in found}


def scored_windows(connection: psycopg.Connection, first: str, before: str) -> list[str]:
    """Windows from `first` on, before `before`, that are scored, in order."""
    # Window ids sort as their times do, whatever the database's collation: they are digits in the same places.
    found = connection.execute(
        """SELECT DISTINCT window_id FROM babylon_rl.scored_trajectories
           WHERE superseded_at IS NULL AND window_id >= %s AND window_id < %s""",
        (first, before),
    )
    return sorted(window_id for (window_id,) in found)


def arm_window(
    window_id: str, arm: str, agents: Sequence[AgentWindow], metric: Metric, latency_ms: float | None = None
) -> ArmWindow:
    """Means over the agents of an arm, of whom there is at least one."""
    values = [value for value in (one.value(metric) for one in agents) if value is not None]
    earned = [one.earned for one in agents if one.earned is not None]
    return ArmWindow(
        window_id=window_id,
        arm=arm,
        agents=len(agents),
        valued=len(values),
        value=sum(values) / len(values) if values else None,
        earned=sum(earned) / len(earned) if earned else 0.0,
        pnl=_mean(agents, "pnl"),
        valid=_mean(agents, "valid"),
        drawdown=_mean(agents, "drawdown"),
        latency_ms=latency_ms,
    )


def _mean(agents: Sequence[AgentWindow], name: str) -> float:
    return sum(getattr(one, name) for one in agents) / len(agents)


def windows_of(
    connection: psycopg.Connection, checkpoint_id: str, window_ids: Sequence[str], metric: Metric = "return"
) -> list[ArmWindow]:
    """The windows in which the checkpoint answered agents who met no other there and asked for none, in order."""
    by_window: dict[str, list[AgentWindow]] = defaultdict(list)
    for one in agent_windows(connection, window_ids):
        if one.checkpoints == {checkpoint_id} and not one.pinned:
            by_window[one.window_id].append(one)
    waited = latencies(connection, window_ids)
    return [
        arm_window(window_id, checkpoint_id, agents, metric, waited.get((window_id, checkpoint_id)))
        for window_id, agents in sorted(by_window.items())
    ]


def read_arms(
    connection: psycopg.Connection,
    route: ExperimentRoute,
    candidate: str,
    baseline: str,
    window_ids: Sequence[str],
    metric: Metric,
    scorer: str | None,
    burn_in: frozenset[str] = frozenset(),
) -> Seen:
    """What was seen of an experiment in its scored windows.

    An agent is in the arm of the one checkpoint that answered all its calls of the window. In none is, and is counted:
    who was answered by both (`mixed`), by neither (`other_checkpoint`, `no_checkpoint`), by the other than the plan's
    (`wrong_arm`), who asked for a checkpoint by name (`pinned`), and whose reward is another scorer's (`other_scorer`)
    or unknown (`no_capital`). The last two and those in the wrong arm count among the answered all the same. `burn_in`:
    windows whose results are left out, never their counts.
    """
    arm_of = {candidate: CANDIDATE, baseline: BASELINE}
    members: dict[tuple[str, str], list[AgentWindow]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    answered = {window_id: [0, 0] for window_id in window_ids}
    for one in agent_windows(connection, window_ids, scorer if metric == "reward" else None):
        reason = _not_in_an_arm(one, arm_of)
        if reason is not None:
            left_out[reason] += 1
            continue
        arm = arm_of[next(iter(one.checkpoints))]
        answered[one.window_id][arm == BASELINE] += 1
        planned = CANDIDATE if candidate_answers(route, one.agent_id, one.window_id) else BASELINE
        if arm != planned:
            left_out[WRONG_ARM] += 1
            continue
        if one.value(metric) is None:
            left_out[NO_CAPITAL if one.earned is None else OTHER_SCORER] += 1
        if one.window_id not in burn_in:
            members[arm, one.window_id].append(one)
    waited = latencies(connection, window_ids)
    arms: dict[str, dict[str, ArmWindow]] = {CANDIDATE: {}, BASELINE: {}}
    named = {arm: checkpoint for checkpoint, arm in arm_of.items()}
    for (arm, window_id), agents in sorted(members.items()):
        arms[arm][window_id] = arm_window(window_id, arm, agents, metric, waited.get((window_id, named[arm])))
    return Seen(
        scored=sorted(window_ids),
        arms=arms,
        left_out=dict(sorted(left_out.items())),
        answered={window_id: (ours, theirs) for window_id, (ours, theirs) in answered.items()},
        mismatched=left_out[WRONG_ARM],
    )


def _not_in_an_arm(one: AgentWindow, arm_of: Mapping[str, str]) -> str | None:
    if one.pinned:
        return PINNED
    if not one.checkpoints:
        return UNKNOWN
    if len(one.checkpoints) > 1:
        return MIXED
    return None if next(iter(one.checkpoints)) in arm_of else OTHER
