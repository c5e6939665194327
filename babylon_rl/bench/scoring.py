"""`babylon-rl bench scoring`: trajectories a second that one core scores, from decoded steps to ranked scores.

What is measured is features, scores and ranks; reading and decoding come before it and writing after, and
`bench reading` measures them all. What goes in and out of pandas is measured beside it (the market from the frame of
outcomes, the frame of rows), for it takes the same time for a window of few as for one of some hundred. CPU seconds of
this process: a busy machine does not count as work.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pandas as pd

from babylon_rl.bench.made_rows import TICKERS, recorded_step
from babylon_rl.market.actions import choices, parse_action
from babylon_rl.market.agents import make_agents
from babylon_rl.market.endpoint import Answer, Sampling
from babylon_rl.market.settlement import settle
from babylon_rl.market.trajectories import Asked, Label, make_run, market_id
from babylon_rl.market.world import make_window
from babylon_rl.recording.decoding import decode_steps
from babylon_rl.recording.records import RecordedCall
from babylon_rl.recording.window import UsableTrajectory
from babylon_rl.scoring.features import features, market_of
from babylon_rl.scoring.scorers import WindowScoring, scorer_of
from babylon_rl.windows import parse_window_id

WINDOW = "2025-01-15T00:00"
SCORERS = ("alpha", "heuristic")
WINDOWS = (8, 1_000)  # trajectories in one
STEPS = (1, 3, 20)
LEAST = 50_000  # trajectories a second and core
LIMITED_STEPS = 3  # of a live tick, at most; longer runs are measured and have no limit
AGENTS = 40
QUOTED = "1 step, its answers quoted"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Trajectories of a kind in windows of a size, and CPU seconds of each round over all of them.

    `frame`: of the same, from the frame of outcomes to the frame of rows. A case of features alone has no scorer and
    no window.
    """

    name: str
    scorer: str | None
    window: int | None
    trajectories: int
    limited: bool
    seconds: list[float]
    frame: list[float] | None = None

    @property
    def rate(self) -> float:
        """Trajectories a second, by the median round."""
        return self.trajectories / statistics.median(self.seconds)

    @property
    def reached(self) -> bool:
        """Whether the rate is reached, where there is one."""
        return not self.limited or self.rate >= LEAST


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """All cases."""

    cases: list[Case]

    @property
    def reached(self) -> bool:
        """Whether all reach their rate."""
        return all(case.reached for case in self.cases)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it; seconds."""
        cases = [{**msgspec.to_builtins(c), "rate": c.rate, "reached": c.reached} for c in self.cases]
        return {"least": LEAST, "cases": cases, "reached": self.reached}

    def table(self) -> str:
        """As a person reads it."""
        lines = [f"{'':<54}{'a second':>10}{'range':>20}{'us each':>9}{'with frames':>13}"]
        for case in self.cases:
            name = f"{case.name}, features alone"
            if case.scorer:
                name = f"{case.name}, {case.scorer}, windows of {case.window:,}"
            fast, slow = (case.trajectories / seconds for seconds in (min(case.seconds), max(case.seconds)))
            each = f"{1e6 / case.rate:.1f}"
            framed = f"{1e6 * statistics.median(case.frame) / case.trajectories:.1f}" if case.frame else ""
            verdict = ("" if case.reached else "  MISSED") if case.limited else "  no limit"
            span = f"{slow:,.0f} - {fast:,.0f}"
            lines.append(f"{name:<54}{case.rate:>10,.0f}{span:>20}{each:>9}{framed:>13}{verdict}")
        lines.append(f"{'reached' if self.reached else 'MISSED'}: at least {LEAST:,} a second and core")
        return "\n".join(lines)


def measure_scoring(trajectories: int, rounds: int, seed: int, say: Callable[[str], None]) -> Scored:
    """Score so many trajectories of each kind, in windows of each size, with each scorer."""
    recorded = _recorded_outcomes(seed)
    kinds = {_name(steps): (recorded_runs(trajectories, steps, seed), recorded) for steps in STEPS}
    kinds[QUOTED] = quoted_runs(trajectories, seed)
    cases = []
    for name, (own, outcomes) in kinds.items():
        say(f"{name}: {len(own):,} trajectories")
        limited = len(own[0].steps) <= LIMITED_STEPS
        market = market_of(outcomes)
        alone = _timed(lambda own=own, market=market: [features(one, market) for one in own], rounds)
        cases.append(Case(name=name, scorer=None, window=None, trajectories=len(own), limited=limited, seconds=alone))
        for scorer in SCORERS:
            for size in WINDOWS:
                parts = [own[at : at + size] for at in range(0, len(own), size)]
                cases.append(
                    Case(
                        name=name,
                        scorer=scorer,
                        window=size,
                        trajectories=len(own),
                        limited=limited,
                        seconds=_timed(lambda p=parts, o=outcomes, s=scorer: _rank(p, o, s), rounds),
                        frame=_timed(lambda p=parts, o=outcomes, s=scorer: _frames(p, o, s), max(2, rounds // 3)),
                    )
                )
    return Scored(cases=cases)


def _name(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _rank(windows: Sequence[Sequence[UsableTrajectory]], outcomes: pd.DataFrame, name: str) -> None:
    """The one place that scores; AssertionError unless each trajectory has a score."""
    scoring = WindowScoring(WINDOW, outcomes, scorer_of(name))
    for own in windows:
        if len(scoring.ranked(own)) != len(own):
            raise AssertionError(f"{name} does not score each of {len(own)} trajectories")


def _frames(windows: Sequence[Sequence[UsableTrajectory]], outcomes: pd.DataFrame, name: str) -> None:
    scorer = scorer_of(name)
    for own in windows:
        WindowScoring(WINDOW, outcomes, scorer).scores(own, lambda: "r")


def _timed(work: Callable[[], object], rounds: int) -> list[float]:
    """CPU seconds of each round; one before them is not counted."""
    taken = []
    gc.collect()
    gc.freeze()  # the garbage collector is part of the work, and the made trajectories are not what it works on
    for number in range(-1, rounds):
        begun = time.process_time()
        work()
        if number >= 0:
            taken.append(time.process_time() - begun)
    gc.unfreeze()
    return taken


# --- made trajectories -----------------------------------------------------------------------------


def recorded_runs(count: int, steps: int, seed: int) -> list[UsableTrajectory]:
    """Trajectories of so many steps as another recorder writes them, every third of which trades."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        text = msgspec.json.encode([recorded_step(chance, index, 0) for index in range(steps)])
        made.append(_usable(f"bench-{number:06}", decode_steps(text).steps, chance.gauss(0, 50), []))
    return made


def quoted_runs(count: int, seed: int) -> tuple[list[UsableTrajectory], pd.DataFrame]:
    """Trajectories of one decision whose every answer has a quote, as agents of the simulated market record them.

    They are those of one window again and again, each decoded by itself; with the window's outcomes.
    """
    chance, window = random.Random(seed), make_window(seed, "train", 0)
    agents = make_agents(seed, "train", 0, AGENTS)
    answers = [chance.choice(choices(agent.instrument)) for agent in agents]
    actions = [parse_action(said, window.instrument(a.instrument)) for said, a in zip(answers, agents, strict=True)]
    runs = []
    for agent, said, settlement in zip(agents, answers, settle(window, agents, actions), strict=True):
        answer = Answer(said, "demo", "demo@0", "stop", [1, 2], [3], [-0.5], 1.0)
        asked = Asked(answer, Sampling(), choices(agent.instrument), 0, True)
        runs.append((make_run(WINDOW, window, agent, settlement, Label("demo@0"), asked), settlement.pnl))
    made = []
    for number in range(count):
        run, pnl = runs[number % len(runs)]
        steps = decode_steps(msgspec.json.encode(run.trajectory.steps)).steps
        made.append(_usable(f"quoted-{number:06}", steps, pnl, run.calls))
    rows = [(i.name, "ticker", i.close / i.open - 1, None, "r") for i in window.tickers]
    rows += [
        (market_id(WINDOW, i.name), "question", None, "YES" if i.outcome else "NO", "r")
        for i in window.instruments
        if i.is_question
    ]
    return made, _outcomes(rows)


def _recorded_outcomes(seed: int) -> pd.DataFrame:
    chance = random.Random(seed)
    return _outcomes([(ticker, "ticker", chance.gauss(0, 0.02), None, "r") for ticker in TICKERS])


def _outcomes(rows: list[tuple]) -> pd.DataFrame:
    columns = ["instrument", "kind", "change", "outcome", "revision"]
    return pd.DataFrame(rows, columns=columns).assign(window_id=WINDOW)


def _usable(name: str, steps: list, pnl: float, calls: list[RecordedCall]) -> UsableTrajectory:
    moment = parse_window_id(WINDOW)
    provenance = "logged" if calls else "no_logprobs"
    agent = f"agent-{int(name[-6:]) % AGENTS}"
    return UsableTrajectory(
        name, agent, WINDOW, moment, moment, steps, 0.0, pnl, pnl, 1000 + pnl, calls, provenance, name
    )
