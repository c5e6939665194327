"""Single stages of the loop for the command line: play some windows, find what to serve, train a range."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from babylon_rl.database.connect import Database
from babylon_rl.errors import EmptyWindowError, ServingError, SettingsError
from babylon_rl.loop import corpus, free_hour, prepare, recent_enough
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import PlayedWindow, play_live, play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.materializing import Materializer, Stage
from babylon_rl.readiness.buckets import anything_recorded
from babylon_rl.recording.reader import whole_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.serving.process import running_endpoint
from babylon_rl.settings import Settings
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.checkpoint_store import check_base, local_folder, refuse_deleted
from babylon_rl.training.recipe import Recipe
from babylon_rl.training.runs import (
    TrainingRun,
    base_checkpoint,
    list_runs,
    load_checkpoint,
    load_run,
    promoted,
    start_run,
)
from babylon_rl.windows import parse_window_id, shift_window, window_range


def served_checkpoint(settings: Settings, checkpoint: str) -> tuple[Path, str, dict[str, str]]:
    """Base folder, the base model's name, and the adapters (name to folder) of base, promoted, or a checkpoint."""
    if checkpoint == "base":
        return prepare_base_model(settings.base_model, settings.home, 0, corpus()), settings.base_model, {}
    with prepare(settings).connect() as connection:
        if checkpoint == "promoted":
            row = promoted(connection)
            if row is None:
                raise ServingError("Nothing is promoted yet; run `make demo`, or serve --checkpoint base.")
            checkpoint = row["to_checkpoint"]
        found = load_checkpoint(connection, checkpoint)
        run = load_run(connection, found.training_run)
    refuse_deleted(found)
    if found.inference_name is not None and found.path is None:
        raise ServingError(
            f"A service serves {found.checkpoint_id} already: ask {found.inference_url} for {found.inference_name}."
        )
    folder = prepare_base_model(found.base_model, settings.home, run.seed if run else 0, corpus())
    base = base_checkpoint(found.training_run)
    if found.path is None:
        return folder, base, {}
    check_base(found, folder, settings.home)
    return folder, base, {found.checkpoint_id: str(local_folder(found, settings.home))}


def play_command(
    settings: Settings,
    stage: Stage,
    windows: int,
    agents: int,
    first: str | None,
    duration: float | None,
    seed: int,
    endpoint: str | None,
    checkpoint: str,
) -> str:
    """Play windows of the past, or the open hour live; the sentence that tells what came of it."""
    database = prepare(settings)
    with (
        Recorder(database, settings.home / "spool" / "play.jsonl") as recorder,
        _endpoint(settings, endpoint, checkpoint) as asked,
    ):
        sampling = Sampling(seed=seed, max_tokens=16)
        label = Label(asked.model)
        if duration is not None:
            stage("play the open hour", 1)
            hour = int(datetime.now(UTC).timestamp()) // 3600
            window = make_window(seed, "train", hour)
            played = [
                play_live(
                    database, recorder, asked, window, minutes=duration, agents=agents, label=label, sampling=sampling
                )
            ]
        else:
            played = _play_past(database, recorder, asked, stage, windows, agents, first, seed, label, sampling)
        report = recorder.close()
    if not played:
        return "All of these windows are recorded already; nothing was played."
    mean = sum(p.mean_pnl for p in played) / len(played)
    valid = sum(p.valid_share for p in played) / len(played)
    spooled = (
        "" if report.complete else f" {report.spooled} runs wait in {report.spool_path}: {'; '.join(report.errors)}"
    )
    return (
        f"Played {played[0].window_id} to {played[-1].window_id} with {agents} agents: {mean:+.2f} dollars an agent "
        f"and window, {valid:.0%} valid actions, {report.written} runs recorded.{spooled}"
    )


def _play_past(
    database: Database,
    recorder: Recorder,
    asked: Endpoint,
    stage: Stage,
    windows: int,
    agents: int,
    first: str | None,
    seed: int,
    label: Label,
    sampling: Sampling,
) -> list[PlayedWindow]:
    start = first or free_hour(database)
    parse_window_id(start)
    ids = list(window_range(start, shift_window(start, windows - 1)))
    recent_enough(ids[-1])
    with database.connect() as connection:
        whole = whole_windows(connection, ids, agents)
    pairs = [(w, make_window(seed, "train", i)) for i, w in enumerate(ids) if w not in whole]
    done = stage("play", max(1, len(pairs)))
    return play_windows(
        database, recorder, asked, pairs, agents=agents, label=label, sampling=sampling, progress=lambda _: done()
    )


@contextlib.contextmanager
def _endpoint(settings: Settings, url: str | None, checkpoint: str) -> Iterator[Endpoint]:
    """The endpoint that was named, or one of our own for the checkpoint."""
    if url is not None:
        import os

        yield Endpoint(url, checkpoint, os.environ.get("OPENAI_API_KEY"))
        return
    folder, name, adapters = served_checkpoint(settings, checkpoint)
    with running_endpoint(folder, name, settings.device, settings.threads, adapters) as served:
        yield Endpoint(served.base_url, next(iter(adapters), name))


def train_command(
    settings: Settings, stage: Stage, first: str, last: str | None, follow: bool, name: str, seed: int
) -> str:
    """Train on a range of recorded windows, or follow what is recorded; the sentence that tells what came of it."""
    if follow == (last is not None):
        raise SettingsError(
            "Say either --to WINDOW, for one update over a range, or --follow, for a run without an end."
        )
    parse_window_id(first)
    return _follow(settings, first, name, seed) if last is None else _train(settings, stage, first, last, name, seed)


def _follow(settings: Settings, first: str, name: str, seed: int) -> str:
    """Start a run without an end, whose updates the sensor `training_due` requests."""
    groups = settings.groups_per_update
    run = TrainingRun(
        training_run=name,
        base_model=settings.base_model,
        seed=seed,
        recipe=Recipe(windows_per_update=groups, minibatches=min(4, groups), stale_limit=8),
        schedule={},
        first_window=first,
        last_window=None,
        state="running",
    )
    database = prepare(settings)
    prepare_base_model(settings.base_model, settings.home, seed, corpus())
    with database.connect() as connection:
        found = load_run(connection, name)
        if found is not None and found != run:
            raise SettingsError(
                f"There is a training run {name} with other settings (from {found.first_window}, {found.base_model}, "
                f"seed {found.seed}). Name another with --name, or repeat the command that started it."
            )
        runs = [one for one in list_runs(connection) if one.last_window is None or one.last_window >= first]
        others = [other for other in runs if other.training_run != name]
        start_run(connection, run)
    said = [
        f"Run {name} {'goes on' if found else 'is started'}: windows from {first} on, {settings.base_model}; an update "
        f"whenever {groups} new trainable groups have gathered. `make ui` makes the updates: its sensor training_due "
        "requests them."
    ]
    said += [
        f"Windows from {max(first, other.first_window)} on are {name}'s and no more those of {other.training_run}."
        for other in others
        if not found
    ]
    return " ".join(said)


def _train(settings: Settings, stage: Stage, first: str, last: str, name: str, seed: int) -> str:
    windows = list(window_range(first, last))
    if not windows:
        raise EmptyWindowError(f"There is no window from {first} to {last}: the first must not be later than the last.")
    recent_enough(last)
    database = prepare(settings)
    with database.recordings() as recordings:
        if not anything_recorded(recordings, first, last):
            raise EmptyWindowError(
                f"Nothing is recorded from {first} to {last}. `babylon-rl play` records some; or name other windows."
            )
    prepare_base_model(settings.base_model, settings.home, seed, corpus())
    run = TrainingRun(
        training_run=f"{name}-{first}-{last}",
        base_model=settings.base_model,
        seed=seed,
        recipe=Recipe(windows_per_update=len(windows), minibatches=min(4, len(windows)), stale_limit=8),
        schedule={"train": [first, last]},
        first_window=first,
        last_window=last,
        state="running",
    )
    with database.connect() as connection:
        start_run(connection, run)
    Materializer(database, stage).materialize(first, last, "materialize and train", again=True)
    with database.connect() as connection:
        row = connection.execute(
            """SELECT updated, checkpoint_id, reason FROM babylon_rl.trained_checkpoints
               WHERE window_id = %s AND superseded_at IS NULL""",
            (last,),
        ).fetchone()
    assert row is not None
    return f"{row[1]}: {row[2]}" if row[0] else f"No update: {row[2]}"
