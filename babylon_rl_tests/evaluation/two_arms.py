"""Hours of the simulated market in which two checkpoints answer, recorded and scored as the pipeline does it."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from babylon_rl.database.connect import Database
from babylon_rl.database.tables import market_outcomes, scored_trajectories
from babylon_rl.database.window_rows import write_rows
from babylon_rl.evaluation.experiments import Experiment, load_experiment, route_of
from babylon_rl.evaluation.looks import Look, look
from babylon_rl.evaluation.planning import Asked, plan, start
from babylon_rl.market.actions import choices, parse_action
from babylon_rl.market.agents import AgentState, make_agents
from babylon_rl.market.endpoint import Answer, Sampling
from babylon_rl.market.policies import INFORMED_POLICY, choose
from babylon_rl.market.settlement import settle
from babylon_rl.market.trajectories import Asked as AskedModel
from babylon_rl.market.trajectories import Label, make_run, market_history
from babylon_rl.market.world import MarketWindow, make_window
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.market_history import record_market
from babylon_rl.recording.recorder import write_runs
from babylon_rl.recording.records import Run
from babylon_rl.scoring.windows import score_windows
from babylon_rl.serving.routing import candidate_answers, draw
from babylon_rl.settings import Settings
from babylon_rl.training.runs import Checkpoint, base_checkpoint, promote, save_checkpoint
from babylon_rl.training.trainer import WEIGHTS_FILE, weights_digest
from babylon_rl.windows import parse_window_id, shift_window, window_of
from babylon_rl_tests.training.lineages import start as start_run

NOW = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
BASELINE, CANDIDATE, OTHER = "run@1-aa", "run@2-bb", "run@3-cc"
PAST = 24  # hours before the experiment

# What a checkpoint answers an agent in a window.
Plays = Callable[[MarketWindow, AgentState], str]
Answers = Callable[[str, str], str]  # of agent and window: the checkpoint that answers


def skilled(share: float) -> Plays:
    """Follows the news so often, and answers at random otherwise."""

    def answer(window: MarketWindow, agent: AgentState) -> str:
        informed = draw(7, str(window.index), agent.agent_id, "informed") < share
        return choose(INFORMED_POLICY if informed else "random", window, agent)

    return answer


def malformed(window: MarketWindow, agent: AgentState) -> str:
    return "I would rather not say."


class TwoArms:
    """A run with three checkpoints, of which the first is promoted, and hours that they answer."""

    def __init__(self, database: Database, **settings) -> None:
        self.database, self.settings = database, Settings(**{"experiment_block_hours": 1, **settings})
        self.plays: dict[str, Plays] = {BASELINE: skilled(0.0), CANDIDATE: skilled(0.9), OTHER: skilled(0.0)}

    def train(self, folder: Path) -> None:
        """Book the checkpoints, their weights in the folder, and promote the first."""
        with self.database.connect() as connection:
            start_run(connection)
            for step, name in enumerate((BASELINE, CANDIDATE, OTHER), start=1):
                path = folder / name
                path.mkdir(parents=True)
                (path / WEIGHTS_FILE).write_text(name)
                made = Checkpoint(
                    checkpoint_id=name, training_run="run", parent_id=base_checkpoint("run"), snapshot_id=None,
                    base_model="tiny", step=step, path=str(path), weights_sha256=weights_digest(path),
                    last_window="2025-01-15T01:00", metrics={}, state="ready",
                )  # fmt: skip
                save_checkpoint(connection, made)
            promote(connection, "run", BASELINE, "x", "it earns", {})

    def play(self, windows: Sequence[str], answers: Answers, agents: int = 8) -> None:
        """Record the windows and score them."""
        runs: list[Run] = []
        tickers, questions, names = [], [], {}
        for window_id in windows:
            window = make_window(5, "train", int(parse_window_id(window_id).timestamp()) // 3600)
            state = make_agents(window.seed, window.split, window.index, agents)
            own_tickers, own_questions = market_history(window_id, window)
            tickers, questions = tickers + own_tickers, questions + own_questions
            names |= {agent.agent_id: None for agent in state}
            runs += self._played(window_id, window, state, answers)
        with self.database.connect() as connection:
            record_market(connection, list(names), tickers, questions)
            write_runs(connection, runs)
        self.score(windows)

    def _played(self, window_id: str, window: MarketWindow, state: list[AgentState], answers: Answers) -> list[Run]:
        by = [answers(agent.agent_id, window_id) for agent in state]
        said = [self.plays[name](window, agent) for name, agent in zip(by, state, strict=True)]
        actions = [parse_action(t, window.instrument(a.instrument)) for t, a in zip(said, state, strict=True)]
        return [
            make_run(
                window_id, window, agent, settled, Label("train"),
                AskedModel(Answer(text, "babylon", name, "stop", [1], [2], [-0.1], 5.0), Sampling(),
                           choices(agent.instrument), 1, True),
            )
            for agent, settled, name, text in zip(state, settle(window, state, actions), by, said, strict=True)
        ]  # fmt: skip

    def score(self, windows: Sequence[str]) -> None:
        outcomes = outcome_windows(self.database, list(windows))
        with self.database.connect() as connection:
            write_rows(connection, market_outcomes, outcomes)
        rows = score_windows(self.database, list(windows), outcomes.frame, "alpha", settings=self.settings)
        with self.database.connect() as connection:
            write_rows(connection, scored_trajectories, rows)

    def play_past(self, hours: int = PAST) -> None:
        """Hours before `NOW` in which the baseline answered all."""
        first = shift_window(window_of(NOW), -hours)
        self.play([shift_window(first, hour) for hour in range(hours)], lambda agent, window: BASELINE)

    def start(self, hours: int | None = 40, now: datetime = NOW, **asked) -> Experiment:
        wanted = Asked(**{"candidate": CANDIDATE, "hours": hours, **asked})
        with self.database.connect() as connection:
            return start(connection, plan(connection, wanted, "somebody", self.settings, now, paths=200), now)

    def planned(self, experiment: Experiment) -> Answers:
        """Who answers by the plan."""
        route = route_of(experiment)
        names = {True: experiment.candidate, False: experiment.baseline}
        return lambda agent, window: names[candidate_answers(route, agent, window)]

    def look(self, experiment: Experiment, hours: int) -> Look:
        """A look once so many hours of the experiment are over."""
        now = parse_window_id(shift_window(experiment.first_window, hours)) + timedelta(minutes=5)
        with self.database.connect() as connection:
            return look(connection, experiment, now)

    def follow(
        self,
        experiment: Experiment,
        answers: Answers | None = None,
        hours: int | None = None,
        every: int = 1,
        agents: int = 8,
    ) -> list[Look]:
        """Play so many hours (all), and look each `every` hours until the experiment ends or they are over."""
        hours = hours or experiment.horizon
        windows = [shift_window(experiment.first_window, hour) for hour in range(hours)]
        self.play(windows, answers or self.planned(experiment), agents)
        found: list[Look] = []
        for hour in range(every, hours + 1, every):
            found.append(self.look(experiment, hour))  # which sees nothing of the hours after it
            if self.load(experiment).state != "running":
                break
        return found

    def load(self, experiment: Experiment) -> Experiment:
        with self.database.connect() as connection:
            return load_experiment(connection, experiment.experiment_id)

    def booked(self) -> list[tuple]:
        with self.database.connect() as connection:
            return connection.execute(
                "SELECT from_checkpoint, to_checkpoint, who, kind, experiment_id FROM babylon_rl.promotions "
                "ORDER BY promotion_id"
            ).fetchall()


def changed(experiment: Experiment, **fields) -> Experiment:
    return msgspec.structs.replace(experiment, **fields)
