"""Single stages of the loop for the command line: play some windows, find what to serve."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from babylon_rl.database.connect import Database
from babylon_rl.errors import ServingError
from babylon_rl.loop import corpus, free_hour, prepare, recent_enough
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import PlayedWindow, play_live, play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.materializing import Stage
from babylon_rl.recording.reader import whole_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.serving.local_gateway import running_local_gateway
from babylon_rl.settings import Settings
from babylon_rl.training.base_models import prepare_base_model
from babylon_rl.training.checkpoint_store import check_base, local_folder, refuse_deleted
from babylon_rl.training.policy import precision_of
from babylon_rl.training.runs import (
    base_checkpoint,
    load_checkpoint,
    load_run,
    promoted,
)
from babylon_rl.windows import parse_window_id, shift_window, window_range


class Served(NamedTuple):
    """What an endpoint serves: base folder, the base model's name, adapters by name, and the precision to compute in,
    which is that of the run that trains on what is sampled."""

    folder: Path
    name: str
    adapters: dict[str, str]
    precision: str | None


def served_checkpoint(settings: Settings, checkpoint: str) -> Served:
    """What `base`, `promoted`, or a checkpoint's id stands for."""
    if checkpoint == "base":
        folder = prepare_base_model(settings.base_model, settings.home, 0, corpus())
        return Served(folder, settings.base_model, {}, precision_of(settings.precision, settings.device))
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
    precision = None if run is None or run.recipe.precision is msgspec.UNSET else run.recipe.precision
    if found.path is None:
        return Served(folder, base, {}, precision)
    check_base(found, folder, settings.home)
    return Served(folder, base, {found.checkpoint_id: str(local_folder(found, settings.home))}, precision)


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
        _endpoint(database, settings, endpoint, checkpoint) as asked,
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
def _endpoint(database: Database, settings: Settings, url: str | None, checkpoint: str) -> Iterator[Endpoint]:
    """The endpoint that was named, or a gateway of our own for the checkpoint."""
    if url is not None:
        import os

        yield Endpoint(url, checkpoint, os.environ.get("OPENAI_API_KEY"))
        return
    folder, name, adapters, precision = served_checkpoint(settings, checkpoint)
    with running_local_gateway(
        database, settings.home, "play", folder, name, settings.device, settings.threads, adapters, precision
    ) as served:
        yield Endpoint(served.base_url, next(iter(adapters), name), served.api_key)
