"""The loop: play, record, materialize, train, evaluate, promote or keep. The demo is one pass of it.

Every stage asks the database and Dagster what is already there, so an interrupted demo goes on where it was, and one
that has ended is only told again.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from babylon_rl.database.connect import Database, open_database
from babylon_rl.database.embedded import DAGSTER_DATABASE, EmbeddedServer, default_home
from babylon_rl.database.migrate import migrate
from babylon_rl.database.urls import with_driver
from babylon_rl.errors import BabylonError, SettingsError, TrainingError
from babylon_rl.evaluation.schedule import Schedule, candidate_of, make_schedule, schedule_of
from babylon_rl.market.agents import make_agents
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.play import play_fixed, play_windows
from babylon_rl.market.policies import POLICIES
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import MarketWindow, make_window
from babylon_rl.recording.reader import list_windows, whole_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.reporting import alarm_lines, evaluation_rows, evidence_of
from babylon_rl.serving.process import Endpoint as ServedEndpoint
from babylon_rl.serving.process import running_endpoint
from babylon_rl.settings import REPOSITORY, Settings, get_settings
from babylon_rl.training.alarm_log import exploration_for, response_at, standing_checkpoints
from babylon_rl.training.base_models import TINY, prepare_base_model
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import (
    Checkpoint,
    TrainingRun,
    base_checkpoint,
    finish_run,
    load_run,
    promote,
    start_run,
)
from babylon_rl.windows import parse_window_id, shift_window, window_of, window_range

FIRST_WINDOW = "2025-01-15T00:00"
ASSETS = (
    "windows",
    "market_outcomes",
    "scored_trajectories",
    "art_groups",
    "trained_checkpoints",
    "checkpoint_evaluations",
)

# Starts a stage of so many steps; the result is called for each step that is done.
Stage = Callable[[str, int], Callable[[], None]]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Size of a demo: rounds of play and update, windows of each evaluation, the recipe, and the seed by default."""

    seed: int
    rounds: int
    validation: int
    test: int
    unseen: int
    agents: int
    recipe: Recipe


PLANS = {
    TINY: Plan(
        seed=3,
        rounds=3,
        validation=24,
        test=96,
        unseen=16,
        agents=4,
        recipe=Recipe(
            windows_per_update=96,
            minibatches=12,
            epochs=2,
            learning_rate=3e-3,
            decay_steps=72,
            lora_layers=1,
        ),
    ),
    "smollm2-135m": Plan(seed=1, rounds=5, validation=32, test=96, unseen=48, agents=4, recipe=Recipe(decay_steps=40)),
}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a demo ended."""

    training_run: str
    promoted: bool
    reason: str


def plan_of(base_model: str) -> Plan:
    """The plan for a base model; a folder gets that of SmolLM2."""
    return PLANS.get(base_model, PLANS["smollm2-135m"])


def plan_behind(run: TrainingRun) -> Plan | None:
    """The plan that the run was started with, with its own seed; None where it was started without one."""
    schedule = schedule_of(run)
    if schedule is None:
        return None
    return Plan(
        seed=run.seed,
        rounds=len(schedule.windows("train")) // run.recipe.windows_per_update,
        validation=len(schedule.windows("validation")),
        test=len(schedule.windows("test")),
        unseen=len(schedule.windows("unseen")),
        agents=schedule.agents,
        recipe=run.recipe,
    )


def plan_digest(plan: Plan) -> str:
    """SHA-256 of all that a plan says but its seed; one for runs that may be measured together."""
    said = msgspec.to_builtins(plan)
    del said["seed"]
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


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


def dagster_environment(settings: Settings, home: Path | None = None) -> dict[str, str]:
    """Environment of Dagster's processes: its home and its storage, the second database of the embedded server."""
    server = EmbeddedServer(default_home(settings))
    server.up()
    return {
        "DAGSTER_HOME": str(home or REPOSITORY / "dagster_home"),
        "DAGSTER_PG_URL": with_driver(server.url(DAGSTER_DATABASE), "psycopg2"),
        # A run over a range stores an event an asset and window; one by one they cost more than the assets.
        "DAGSTER_EVENT_BATCH_SIZE": "500",
    }


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables and read the settings from them, and put back what was there."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    get_settings.cache_clear()
    try:
        yield
    finally:
        get_settings.cache_clear()
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def demo_name(base_model: str, seed: int) -> str:
    """Name of the demo's training run."""
    return f"demo-{Path(base_model).name}-seed{seed}"


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
    """Plays a run's windows against one endpoint and records them; what is already recorded is not played again."""

    def __init__(
        self, database: Database, recorder: Recorder, served: ServedEndpoint, run: TrainingRun, stage: Stage
    ) -> None:
        schedule = schedule_of(run)
        assert schedule is not None
        self.database, self.recorder, self.served, self.run = database, recorder, served, run
        self.schedule, self.stage = schedule, stage

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
            Endpoint(self.served.base_url, model),
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


# --- materialize -----------------------------------------------------------------------------------


class Materializer:
    """Materializes all assets over a range of windows in one Dagster run of this process."""

    def __init__(self, database: Database, stage: Stage) -> None:
        import dagster as dg

        from babylon_rl.definitions import build_defs

        self.stage, self.database = stage, database
        self.instance = dg.DagsterInstance.get()
        self.job = build_defs().resolve_implicit_global_asset_job_def()

    def materialize(self, first: str, last: str, title: str, again: bool = False) -> None:
        """Materialize the windows from first to last, unless all are (or `again`). TrainingError if it fails."""
        if not again and self._complete(first, last):
            return
        done = self.stage(title, 1)
        self._observe(first, last)
        if first == last:
            where = {"dagster/partition": first}
        else:
            where = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        # By the environment and not as the resource's config, which Dagster stores: the URL may hold a password.
        with environment({"BABYLON_RL_DATABASE_URL": self.database.url}):
            result = self.job.execute_in_process(
                instance=self.instance,
                tags=where,
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
        if not result.success:
            raise TrainingError(_failure(result))
        done()

    def _observe(self, first: str, last: str) -> None:
        """Report on the external asset that these windows were recorded: one event a range, under its last window."""
        import dagster as dg

        self.instance.report_runless_asset_event(
            dg.AssetObservation(
                dg.AssetKey("recorded_trajectories"),
                partition=last,
                metadata={"first window": first, "last window": last},
            )
        )

    def _complete(self, first: str, last: str) -> bool:
        import dagster as dg

        wanted = set(window_range(first, last))
        return all(wanted <= self.instance.get_materialized_partitions(dg.AssetKey(name)) for name in ASSETS)


def _failure(result: object) -> str:
    """The message of the step that failed, without Dagster's stack trace."""
    for event in result.all_events:  # type: ignore[attr-defined]
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return f"{event.step_key}: {data.user_failure_data.description}"
            error = data.error
            while error.cause is not None:
                error = error.cause
            return f"{event.step_key}: {error.message.strip()}"
    return "The Dagster run failed before its first step; see it with `make ui`."


# --- the demo --------------------------------------------------------------------------------------


def run_demo(settings: Settings, database: Database, seed: int, plan: Plan, stage: Stage) -> Outcome:
    """Play, train, evaluate and decide; goes on from whatever an earlier call left. Errors are BabylonErrors."""
    base_folder = prepare_base_model(settings.base_model, settings.home, seed, corpus())
    run = run_for(database, settings.base_model, seed, plan)
    schedule = schedule_of(run)
    assert schedule is not None
    recent_enough(schedule.last)
    spool = settings.home / "spool" / f"{run.training_run}.jsonl"
    base = base_checkpoint(run.training_run)
    with (
        Recorder(database, spool) as recorder,
        running_endpoint(base_folder, base, settings.device, settings.threads) as served,
    ):
        player = Player(database, recorder, served, run, stage)
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


def _train(player: Player, materializer: Materializer) -> None:
    """Rounds of play and update, each with the checkpoint that the one before left; alarms may stop them."""
    run = player.run
    planned = player.schedule.windows("train")
    size = run.recipe.windows_per_update
    for number, start in enumerate(range(0, len(planned), size), start=1):
        windows = planned[start : start + size]
        current = _latest(player.database, run, windows[0])
        if current.path is not None:
            player.served.load(current.checkpoint_id, current.path)
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
    from babylon_rl.training.updates import state_before

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
        if checkpoint.path is not None:
            player.served.load(checkpoint.checkpoint_id, checkpoint.path)
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
