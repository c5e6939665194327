"""Training for the command line: which run is started or goes on, and the Dagster jobs that make its updates.

The jobs are those that the UI launches, `materialize_windows` and `train_checkpoint`, run in this process.
"""

import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime

import msgspec
import psycopg

from babylon_rl.database.connect import Database
from babylon_rl.errors import EmptyWindowError, SettingsError, TrainingError
from babylon_rl.groups.dropout import MAX_DROPOUT, TARGET
from babylon_rl.groups.provenance import STALE_DAYS, admit_of
from babylon_rl.loop import corpus, recent_enough
from babylon_rl.materializing import Materializer, Stage
from babylon_rl.readiness.buckets import anything_recorded
from babylon_rl.scoring.rescored import windows_to_score
from babylon_rl.settings import Settings
from babylon_rl.settings.old_names import is_hub_name
from babylon_rl.training.backends.seam import resolved
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.batches import BATCHES, Choice, Wanted, add_batch, batches_of, choose, unfinished
from babylon_rl.training.due import DueUpdate, due_updates
from babylon_rl.training.policy import precision_of
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import TrainingRun, list_runs, load_run, run_of_window, start_run
from babylon_rl.windows import neighbours, parse_window_id, shift_window, window_of, window_range

# ART's own default, for its models are larger and its trainer is not ours.
ART_LEARNING_RATE = 5e-6
# Names of models: they are parts of folders and of a service's addresses.
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_WINDOWS = 168  # of one Dagster run
LOOKS = 30.0  # seconds between two looks for a due update
DEFAULT_ESS_FLOOR = Settings.model_fields["ess_floor"].default


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asks of a model that is trained; None: the default."""

    name: str
    seed: int = 0
    learning_rate: float | None = None
    target_trajectories: int = TARGET
    max_dropout: float = MAX_DROPOUT


# --- runs ------------------------------------------------------------------------------------------


def recipe_of(settings: Settings, model: Model, windows: int, backend: str) -> Recipe:
    """The recipe of updates over so many windows. SettingsError where a setting contradicts what a loss may take."""
    changes: dict[str, object] = {}
    if model.learning_rate is not None:
        if not (math.isfinite(model.learning_rate) and model.learning_rate > 0):
            raise SettingsError(f"A learning rate of {model.learning_rate:g} changes nothing; name one above 0.")
        changes["learning_rate"] = model.learning_rate
    if model.target_trajectories != TARGET:
        changes["dropout_target"] = model.target_trajectories
    if model.max_dropout != MAX_DROPOUT:
        changes["max_dropout"] = model.max_dropout
    if settings.stale_days != STALE_DAYS:
        changes["stale_days"] = settings.stale_days
    if settings.ess_floor != DEFAULT_ESS_FLOOR:
        changes["ess_floor"] = settings.ess_floor
    if (admit := admit_of(settings.admit)) is not msgspec.UNSET:
        changes["admit"] = admit
    if backend == "torch" and precision_of(settings.precision, settings.device) is not None:
        changes["precision"] = "bfloat16"
    if backend != "torch":  # ART's trainer takes sampled answers and their window's own baseline
        changes |= {"advantages": "leave_one_out", "balanced_answers": None}
        changes.setdefault("learning_rate", ART_LEARNING_RATE)
    return Recipe(
        windows_per_update=windows, minibatches=min(4, windows), stale_limit=settings.stale_updates, **changes
    )


def run_of(settings: Settings, model: Model, windows: int) -> TrainingRun:
    """A run of the model, with neither windows nor schedule yet. SettingsError where backend and base do not fit."""
    if not NAMES.fullmatch(model.name):
        raise SettingsError(
            f"A model cannot be called {model.name!r}: folders, and models at a service, are named after it. Letters, "
            "digits, '.', '_' and '-' make a name, 100 at most and a letter or a digit first (--name, or MODEL_NAME)."
        )
    backend = resolved(settings)
    if backend == "torch" and is_hub_name(settings.base_model):
        raise SettingsError(
            f"BASE_MODEL={settings.base_model} is a name on a hub, and nothing is downloaded: name a folder with its "
            "weights, smollm2-135m or tiny. TRAINING_BACKEND=wandb trains a hosted base model of that name."
        )
    return TrainingRun(
        training_run=model.name,
        base_model=settings.wandb_base_model if backend == "wandb" else settings.base_model,
        seed=model.seed,
        recipe=recipe_of(settings, model, windows, backend),
        schedule={},
        first_window="",
        last_window=None,
        state="running",
        backend=backend,
    )


def prepare_base(settings: Settings, run: TrainingRun) -> None:
    """Make the base model on this machine; a hosted one is the service's."""
    if run.backend != "wandb":
        prepare_base_model(run.base_model, settings.home, run.seed, corpus())


def as_stored(connection: psycopg.Connection, run: TrainingRun) -> TrainingRun:
    """The run of batches as it is stored, or as it would be. SettingsError where another has its name."""
    wanted = msgspec.structs.replace(run, schedule={BATCHES: []})
    found = load_run(connection, run.training_run)
    if found is None:
        return wanted
    # How many windows an update takes may be another each time.
    recipe = msgspec.structs.replace(
        run.recipe, windows_per_update=found.recipe.windows_per_update, minibatches=found.recipe.minibatches
    )
    alike = (found.base_model, found.seed, found.backend, found.recipe) == (
        run.base_model,
        run.seed,
        run.backend,
        recipe,
    )
    if batches_of(found) is None or not alike:
        raise _taken(found)
    return found


def _taken(found: TrainingRun) -> SettingsError:
    kind = (
        "without an end"
        if found.last_window is None
        else "over chosen windows"
        if batches_of(found)
        else "over a range"
    )
    return SettingsError(
        f"There is a training run {found.training_run} with other settings ({kind}, from {found.first_window}, "
        f"{found.base_model}, {found.backend}, seed {found.seed}, learning rate {found.recipe.learning_rate:g}). Name "
        "another with --name, or repeat the command that started it."
    )


# --- windows ---------------------------------------------------------------------------------------


def looked_back(settings: Settings, hours: float, now: datetime) -> tuple[str, str]:
    """First and last of the closed windows of the last hours that Dagster has partitions for."""
    last = shift_window(window_of(now), -1)
    since = now.timestamp() - hours * 3600
    earliest = parse_window_id(settings.partitions_start)
    first = earliest if since <= earliest.timestamp() else datetime.fromtimestamp(since, UTC)
    return window_of(first), last


def missing_windows(database: Database, first: str, last: str) -> list[str]:
    """Windows in which something is recorded that are not materialized, or were not ready when they were."""
    with database.recordings() as recordings:
        known, unknown = windows_to_score(recordings, first, last)
        ready = {
            window
            for (window,) in recordings.ours.execute(
                """SELECT window_id FROM babylon_rl.windows
                   WHERE superseded_at IS NULL AND status = 'ready' AND window_id = ANY(%s)""",
                (known,),
            )
        }
    return sorted([*unknown, *(window for window in known if window not in ready)])


def nothing_recorded(database: Database, hours: float) -> EmptyWindowError:
    """What to say where the windows looked at hold nothing."""
    with database.recordings() as recordings:
        row = recordings.application.execute('SELECT max("endTime") FROM trajectories').fetchone()
    newest = f" The newest recording ended in {window_of(row[0])}." if row and row[0] else ""
    return EmptyWindowError(
        f"Nothing is recorded in the last {hours:g} hours.{newest} Look further back with --lookback-hours, or name "
        "windows with --window or --from and --to; `babylon-rl play` records some."
    )


def materialize_missing(
    database: Database, stage: Stage, first: str, last: str, but: Collection[str] = ()
) -> list[str]:
    """Run the job `materialize_windows` over what is recorded and not materialized, `but` these; which windows."""
    missing = [window for window in missing_windows(database, first, last) if window not in but]
    for start, end in neighbours(missing, MOST_WINDOWS):
        launch(database, stage, "materialize_windows", start, end)
    return missing


def launch(database: Database, stage: Stage, job: str, first: str, last: str) -> None:
    """Run a job over a range of windows, as the UI launches it."""
    span = first if first == last else f"{first} to {last}"
    Materializer(database, stage, job=job).materialize(first, last, f"{job} {span}", again=True)


# --- updates ---------------------------------------------------------------------------------------


def train_range(database: Database, settings: Settings, stage: Stage, run: TrainingRun) -> str:
    """One update over the run's range, which is materialized; the sentence that tells what came of it.

    SettingsError where the range's run was started with other settings, or a later run took its last window.
    """
    assert run.last_window is not None
    prepare_base(settings, run)
    with database.connect() as connection:
        start_run(connection, run)
        stored = load_run(connection, run.training_run)
        if stored is not None and msgspec.structs.replace(stored, state=run.state) != run:
            raise _taken(stored)
        _refuse_window_of_another(connection, run, run.last_window)
    launch(database, stage, "train_checkpoint", run.first_window, run.last_window)
    return told(database, run.last_window)


def range_of(database: Database, run: TrainingRun, first: str, last: str) -> TrainingRun:
    """The run over a range of windows. EmptyWindowError, SettingsError where there are none to train on."""
    windows = list(window_range(first, last))
    if not windows:
        raise EmptyWindowError(f"There is no window from {first} to {last}: the first must not be later than the last.")
    recent_enough(last)
    with database.recordings() as recordings:
        if not anything_recorded(recordings, first, last):
            raise EmptyWindowError(
                f"Nothing is recorded from {first} to {last}. `babylon-rl play` records some; or name other windows."
            )
    recipe = msgspec.structs.replace(run.recipe, windows_per_update=len(windows), minibatches=min(4, len(windows)))
    return msgspec.structs.replace(
        run,
        training_run=f"{run.training_run}-{first}-{last}",
        recipe=recipe,
        schedule={"train": [first, last]},
        first_window=first,
        last_window=last,
    )


def planned_range(database: Database, run: TrainingRun, first: str, last: str) -> tuple[TrainingRun, list[list[str]]]:
    """The run over a range, and its one batch. Writes nothing."""
    run = range_of(database, run, first, last)
    return run, [list(window_range(first, last))]


def train_batches(
    database: Database, settings: Settings, stage: Stage, run: TrainingRun, batches: Sequence[Sequence[str]]
) -> Iterator[str]:
    """The updates over the batches, one after the other; what came of each, as soon as it is there.

    A batch that the run has as its last already is tried again and not added.
    """
    prepare_base(settings, run)
    for batch in batches:
        with database.connect() as connection:
            stored = load_run(connection, run.training_run)
            if stored is None:
                start = min(batch)
                start_run(connection, msgspec.structs.replace(run, first_window=start, last_window=batch[-1]))
                stored = load_run(connection, run.training_run)
            assert stored is not None
            if list(batch) not in (batches_of(stored) or []):
                stored = add_batch(connection, stored, batch)
            _refuse_window_of_another(connection, run, batch[-1])  # and the batch is not added
        launch(database, stage, "train_checkpoint", batch[-1], batch[-1])
        yield told(database, batch[-1])


def _refuse_window_of_another(connection: psycopg.Connection, run: TrainingRun, window_id: str) -> None:
    """SettingsError where a later run has the window: what is computed of it would be that run's update."""
    owner = run_of_window(connection, window_id)
    if owner is not None and owner.training_run != run.training_run:
        raise SettingsError(
            f"Window {window_id} is the training run {owner.training_run}'s, which was started later. Train under "
            "another --name, which then takes it."
        )


def told(database: Database, window_id: str) -> str:
    """What became of the update that ends with the window."""
    with database.connect() as connection:
        row = connection.execute(
            """SELECT updated, checkpoint_id, reason FROM babylon_rl.trained_checkpoints
               WHERE window_id = %s AND superseded_at IS NULL""",
            (window_id,),
        ).fetchone()
    assert row is not None
    return f"{row[1]}: {row[2]}" if row[0] else f"No update: {row[2]}"


def next_batches(
    database: Database, run: TrainingRun, wanted: Wanted
) -> tuple[TrainingRun, list[list[str]], Choice | None]:
    """The run as it is stored or would be, and the batches of its next updates. Writes nothing.

    A batch whose update did not end comes first and alone, without a choice; what follows it depends on it.
    """
    with database.connect() as connection:
        run = as_stored(connection, run)
        if (left := unfinished(connection, run)) is not None:
            return run, [left], None
        choice = choose(connection, run, wanted)
    return run, choice.batches, choice


# --- without an end --------------------------------------------------------------------------------


def follow(database: Database, settings: Settings, run: TrainingRun, first: str) -> str:
    """Start a run without an end, or go on with it; what a person should know of it."""
    parse_window_id(first)
    run = msgspec.structs.replace(run, first_window=first)
    prepare_base(settings, run)
    with database.connect() as connection:
        found = load_run(connection, run.training_run)
        if found is not None and found != run:
            raise _taken(found)
        runs = [one for one in list_runs(connection) if one.last_window is None or one.last_window >= first]
        others = [other for other in runs if other.training_run != run.training_run]
        start_run(connection, run)
    said = [
        f"Run {run.training_run} {'goes on' if found else 'is started'}: windows from {first} on, {run.base_model}; an "
        f"update whenever {run.recipe.windows_per_update} new trainable groups have gathered."
    ]
    said += [
        f"Windows from {max(first, other.first_window)} on are {run.training_run}'s and no more those of "
        f"{other.training_run}."
        for other in others
        if not found
    ]
    return " ".join(said)


def due_of(database: Database, settings: Settings, training_run: str, now: datetime) -> DueUpdate | str:
    """The update of the run that is due, or why there is none."""
    with database.connect() as connection:
        due, others = due_updates(connection, now, settings.partitions_start)
    mine = [update for update in due if update.training_run == training_run]
    if mine:
        return mine[0]
    return next((said for said in others if said.startswith(f"{training_run}:")), f"{training_run}: nothing is due.")


def keep_updating(
    database: Database,
    settings: Settings,
    stage: Stage,
    run: TrainingRun,
    say: Callable[[str], None],
    looks: Iterator[None] | None = None,
) -> None:
    """Materialize what is recorded and make each update that is due, until Ctrl-C.

    `looks`: gives one item a look; by default it waits half a minute between two and never ends. Beside `make ui` the
    ledger sees to it that no update is made twice. A failure is said, and the looking goes on.
    """
    last_said, hour = "", ""
    tried: set[str] = set()  # updates; one that found nothing to train on would be due again at once
    looked: set[str] = set()  # windows of which there is nothing new in this hour
    for _ in looks or _for_ever():
        now = datetime.now(UTC)
        if window_of(now) != hour:
            hour = window_of(now)
            looked.clear()
        try:
            looked.update(materialize_missing(database, stage, run.first_window, shift_window(hour, -1), looked))
            while isinstance(due := due_of(database, settings, run.training_run, now), DueUpdate):
                if due.key in tried:
                    break
                tried.add(due.key)
                launch(database, stage, "train_checkpoint", due.first, due.last)
                say(told(database, due.last))
            said = due if isinstance(due, str) else f"{due.said}: tried; it waits for other groups."
        except TrainingError as error:
            said = f"Failed: {error} Mend the cause; `make ui` shows the run, and the same command tries it again."
        if said != last_said:
            say(said)
            last_said = said


def _for_ever() -> Iterator[None]:
    while True:
        yield
        time.sleep(LOOKS)
