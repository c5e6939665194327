"""The loop: play, record, materialize, train, evaluate, promote or keep. The demo is one pass of it.

Every stage asks the database and Dagster what is already there, so an interrupted demo goes on where it was, and one
that has ended is only told again.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from babylon_rl.database.connect import Database, open_database
from babylon_rl.database.migrate import migrate
from babylon_rl.database.urls import redacted
from babylon_rl.errors import BabylonError, SettingsError, TrainingError
from babylon_rl.evaluation.promotion import evidence_of
from babylon_rl.evaluation.schedule import Schedule, candidate_of, make_schedule, schedule_of
from babylon_rl.market.agents import make_agents
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.play import play_fixed, play_windows
from babylon_rl.market.policies import POLICIES
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import MarketWindow, make_window
from babylon_rl.materializing import Materializer, Stage
from babylon_rl.plans import Plan, demo_name
from babylon_rl.recording.reader import list_windows, whole_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.reporting import alarm_lines, evaluation_rows
from babylon_rl.serving.local_gateway import LocalGateway, running_local_gateway
from babylon_rl.settings import Settings
from babylon_rl.training.alarm_log import exploration_for, response_at, standing_checkpoints
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.checkpoint_store import exists, is_remote, local_folder
from babylon_rl.training.runs import (
    Checkpoint,
    TrainingRun,
    base_checkpoint,
    finish_run,
    list_checkpoints,
    load_run,
    promote,
    start_run,
)
from babylon_rl.windows import parse_window_id, shift_window, window_of

FIRST_WINDOW = "2025-01-15T00:00"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a demo ended."""

    training_run: str
    promoted: bool
    reason: str


def corpus(windows: int = 200) -> Iterator[str]:
    """Texts of the simulated market, from which the tiny model's tokenizer learns its words."""
    for index in range(windows):
        window = make_window(0, "train", index)
        for agent in make_agents(0, "train", index):
            yield f"{system_prompt()}\n{observation(window, agent)}\nBUY {agent.instrument}\nSELL\nHOLD"


# --- set-up ----------------------------------------------------------------------------------------


def prepare(settings: Settings, with_application_tables: bool | None = None) -> Database:
    """The database, migrated; DatabaseError where it must not be written to."""
    database = open_database(settings)
    migrate(database, with_application_tables=with_application_tables)
    return database


def run_for(database: Database, base_model: str, seed: int, plan: Plan) -> TrainingRun:
    """The demo's training run, started on its first call, on hours that hold nothing yet."""
    name = demo_name(base_model, seed)
    with database.connect() as connection:
        found = load_run(connection, name)
        if found is not None:
            return found
        schedule = make_schedule(
            free_hour(database),
            plan.agents,
            plan.rounds * plan.recipe.windows_per_update,
            plan.validation,
            plan.test,
            plan.unseen,
        )
        run = TrainingRun(
            training_run=name,
            base_model=base_model,
            seed=seed,
            recipe=plan.recipe,
            schedule=msgspec.to_builtins(schedule),
            first_window=schedule.train[0],
            last_window=schedule.last,
            state="running",
        )
        start_run(connection, run)
    return run


def free_hour(database: Database) -> str:
    """The start of the first day from which on nothing is recorded and no run is planned."""
    with database.connect() as connection:
        last = [str(w) for w in list_windows(connection)["window_id"]]
        last += [
            row[0]
            for row in connection.execute(
                "SELECT last_window FROM babylon_rl.training_runs WHERE last_window IS NOT NULL"
            ).fetchall()
        ]
    if not last or max(last) < FIRST_WINDOW:
        return FIRST_WINDOW
    following = shift_window(max(last), 24)
    return f"{following[:10]}T00:00"


def recent_enough(last: str) -> None:
    """SettingsError where a window is not over yet: Dagster has no partition for it."""
    if parse_window_id(last) >= parse_window_id(window_of(datetime.now(UTC))):
        raise SettingsError(
            f"The hour {last} is not over yet. Name earlier windows; a demo needs an embedded or empty database."
        )


# --- play ------------------------------------------------------------------------------------------


class Player:
    """Plays a run's windows through one gateway and records them; what is already recorded is not played again.

    `home`: where weights are cached whose store is a URL.
    """

    def __init__(
        self, database: Database, recorder: Recorder, served: LocalGateway, run: TrainingRun, stage: Stage, home: Path
    ) -> None:
        schedule = schedule_of(run)
        assert schedule is not None
        self.database, self.recorder, self.served, self.run = database, recorder, served, run
        self.schedule, self.stage, self.home = schedule, stage, home

    def load(self, checkpoint: Checkpoint) -> None:
        """Have the gateway serve the checkpoint too; the base model it serves as it is."""
        if checkpoint.path is not None:
            self.served.load(checkpoint.checkpoint_id, str(local_folder(checkpoint, self.home)))

    def train(self, window_ids: Sequence[str], checkpoint: Checkpoint, title: str) -> None:
        """Play one round's training windows with the checkpoint, with the round's exploration."""
        label = Label(checkpoint.checkpoint_id)
        with self.database.connect() as connection:
            exploration = exploration_for(connection, self.run, window_ids[0])
        self._play("train", window_ids, label, checkpoint.checkpoint_id, exploration, title)

    def evaluate(self, split: str, checkpoint: Checkpoint, title: str) -> None:
        """Play a split's windows with the checkpoint, without exploration."""
        label = Label(checkpoint.checkpoint_id, split)
        self._play(split, self.schedule.windows(split), label, checkpoint.checkpoint_id, 0.0, title)

    def evaluate_fixed(self, split: str, policy: str) -> None:
        """Play a split's windows with a fixed policy."""
        windows = self._missing(split, self.schedule.windows(split), f"{split}:{policy}")
        if windows:
            play_fixed(self.database, self.recorder, policy, windows, split=split, agents=self.schedule.agents)
            self._written()

    def _play(
        self, split: str, window_ids: Sequence[str], label: Label, model: str, exploration: float, title: str
    ) -> None:
        windows = self._missing(split, window_ids, label.batch_id)
        if not windows:
            return
        done = self.stage(title, len(windows))
        play_windows(
            self.database,
            self.recorder,
            Endpoint(self.served.base_url, model, self.served.api_key),
            windows,
            agents=self.schedule.agents,
            label=label,
            sampling=Sampling(
                temperature=self.run.recipe.temperature, exploration=exploration, seed=self.run.seed, max_tokens=16
            ),
            concurrency=8,
            progress=lambda played: done(),
        )
        self._written()

    def _written(self) -> None:
        """Wait until what was played is in the database. TrainingError where it is not: the next stages need it."""
        self.recorder.flush()

    def _missing(self, split: str, window_ids: Sequence[str], batch_id: str | None) -> list[tuple[str, MarketWindow]]:
        index = {window_id: place for place, window_id in enumerate(self.schedule.windows(split))}
        with self.database.connect() as connection:
            whole = whole_windows(connection, list(window_ids), self.schedule.agents, batch_id)
        return [(w, make_window(self.run.seed, split, index[w])) for w in window_ids if w not in whole]


# --- the demo --------------------------------------------------------------------------------------


def run_demo(settings: Settings, database: Database, seed: int, plan: Plan, stage: Stage) -> Outcome:
    """Play, train, evaluate and decide; goes on from whatever an earlier call left. Errors are BabylonErrors."""
    base_folder = prepare_base_model(settings.base_model, settings.home, seed, corpus())
    run = run_for(database, settings.base_model, seed, plan)
    schedule = schedule_of(run)
    assert schedule is not None
    recent_enough(schedule.last)
    require_files(database, run)
    spool = settings.home / "spool" / f"{run.training_run}.jsonl"
    base = base_checkpoint(run.training_run)
    with (
        Recorder(database, spool) as recorder,
        running_local_gateway(
            database, settings.home, run.training_run, base_folder, base, settings.device, settings.threads
        ) as served,
    ):
        player = Player(database, recorder, served, run, stage, settings.home)
        materializer = Materializer(database, stage)
        _train(player, materializer)
        _evaluate(player)
        report = recorder.close()
        if not report.complete:
            raise BabylonError(
                f"{report.spooled} runs could not be written to the database and wait in {report.spool_path}. "
                "Run the command again: what is missing is played again."
            )
        # Everything after the training range, also the embargoed hours, in one range; evaluations are compared there.
        materializer.materialize(shift_window(schedule.train[1], 1), schedule.last, "compare on later windows")
    return _decide(database, run, schedule)


def require_files(database: Database, run: TrainingRun) -> None:
    """TrainingError where the database knows checkpoints of the run whose files are gone, and nobody deleted them."""
    with database.connect() as connection:
        checkpoints = list_checkpoints(connection, run.training_run)
    folders = [c.path for c in checkpoints if c.path is not None and c.state != "deleted"]
    gone = [folder for folder in folders if not _complete(folder)]
    if gone:
        raise TrainingError(
            f"The database {redacted(database.url)} knows {len(folders)} checkpoints of this demo, and the files of "
            f"{len(gone)} of them are gone, such as {gone[0]}. Put them back, or begin anew with another seed "
            "(SEED=2) or in another database."
        )


def _complete(place: str) -> bool:
    return exists(place) if is_remote(place) else (Path(place) / "adapter_config.json").is_file()


def _train(player: Player, materializer: Materializer) -> None:
    """Rounds of play and update, each with the checkpoint that the one before left; alarms may stop them."""
    run = player.run
    planned = player.schedule.windows("train")
    size = run.recipe.windows_per_update
    for number, start in enumerate(range(0, len(planned), size), start=1):
        windows = planned[start : start + size]
        current = _latest(player.database, run, windows[0])
        player.load(current)
        player.train(windows, current, f"round {number}: play")
        materializer.materialize(windows[0], windows[-1], f"round {number}: materialize and train")
        with player.database.connect() as connection:
            response = response_at(connection, run, windows[-1])
        if response == "stop":
            break
        # After an alarm the next round is another one: from an earlier state, or with more exploration.
        if response == "none" and _latest(player.database, run, shift_window(windows[-1], 1)).step == current.step:
            raise TrainingError(
                f"Round {number} gave nothing to train on: every agent did the same in all {size} windows. Take "
                "another seed (SEED=2), or a recipe with more exploration."
            )


def _latest(database: Database, run: TrainingRun, window_id: str) -> Checkpoint:
    """The run's checkpoint before a window."""
    from babylon_rl.training.lineage import state_before

    with database.connect() as connection:
        return state_before(connection, run, window_id)


def _evaluate(player: Player) -> None:
    """Validation of the start and the later half of the checkpoints; then the candidate and its rivals."""
    database, run = player.database, player.run
    with database.connect() as connection:
        checkpoints = standing_checkpoints(connection, run)
        alarms = alarm_lines(connection, run)
    last = checkpoints[-1].step
    if last == 0:
        raise TrainingError(
            f"Run {run.training_run} ended without a checkpoint to evaluate: {'; '.join(alarms)}. Take another seed "
            "(SEED=2), or a recipe with a lower learning rate or more exploration."
        )
    checkpoints = [c for c in checkpoints if c.step == 0 or 2 * c.step >= last]
    for checkpoint in checkpoints:
        player.load(checkpoint)
        player.evaluate("validation", checkpoint, f"validate checkpoint {checkpoint.step} of {last}")
    with database.connect() as connection:
        chosen = candidate_of(connection, run, player.schedule)
    assert chosen is not None
    arms = [c for c in checkpoints if c.step == 0 or c.checkpoint_id == chosen[0]]
    for split in ("test", "unseen"):
        for policy in POLICIES if split == "test" else ():
            player.evaluate_fixed(split, policy)
        for checkpoint in arms:
            title = "start" if checkpoint.step == 0 else "candidate"
            player.evaluate(split, checkpoint, f"{split}: play the {title}")


def _decide(database: Database, run: TrainingRun, schedule: Schedule) -> Outcome:
    """Book the decision that the test windows came to; a second call books nothing."""
    with database.connect() as connection:
        evidence = evidence_of(evaluation_rows(connection, schedule), base_checkpoint(run.training_run))
        if evidence is None:
            raise TrainingError("The test windows are not compared yet; run the command again.")
        if evidence["decision"] == "promote":
            promote(connection, run.training_run, evidence["candidate"], "demo", evidence["reason"], evidence)
        finish_run(connection, run.training_run)
    return Outcome(training_run=run.training_run, promoted=evidence["decision"] == "promote", reason=evidence["reason"])
