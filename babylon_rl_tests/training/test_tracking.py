"""Tracking by the real wandb library, offline: what lies in its files afterwards; and that it is never required."""

import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_rl.groups.snapshots import load_snapshot
from babylon_rl.training import tracking
from babylon_rl.training.tracking import run_id
from babylon_rl_tests.training.rounds import ALL_HOLD, MIXED, Rounds, plant

KEY = "5ec2e7" * 7
BLOCK = 32768  # of the log format that wandb writes its records in, which is LevelDB's


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: after 7 bytes of header, blocks of chunks (checksum, length, type, data)."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


class Kept:
    """What the files under a tracking folder say, file by file in order."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.files = sorted(home.glob("wandb/offline-run-*/*.wandb"))
        found = [list(records(path)) for path in self.files]
        self.runs = [record.run for file in found for record in file if record.HasField("run")]
        kept = [record.request.log_artifact.artifact for file in found for record in file if record.HasField("request")]
        kept += [record.artifact for file in found for record in file]
        self.artifacts = [artifact for artifact in kept if artifact.type == "lora"]  # tables are artifacts too
        self.rows = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for file in found
            for record in file
            if record.HasField("history")
        ]

    def config(self, place: int) -> dict[str, Any]:
        return {update.key: json.loads(update.value_json) for update in self.runs[place].config.update}

    def table(self, row: int, name: str) -> dict[str, Any]:
        path = self.rows[row][f"{name}/path"]
        return json.loads((self.files[row].parent / "files" / path).read_text())

    def bytes(self) -> bytes:
        return b"".join(path.read_bytes() for path in self.home.rglob("*") if path.is_file())


@pytest.fixture
def rounds(database, tmp_path: Path) -> Rounds:
    """A run of two rounds whose updates are tracked."""
    rounds = Rounds(database, tmp_path, rounds=2)
    rounds.settings = rounds.settings.model_copy(update={"tracking": "auto"})
    return rounds


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts a module in wandb's place, for the process that imports it."""
    package = tmp_path / "instead" / "wandb"
    package.mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return (package / "__init__.py").write_text


# What telling needs of the library.
WORKING = """
class Settings:
    def __init__(self, **k): 0
class Table(Settings): 0
class Artifact(Settings):
    def add_file(self, *a, **k): 0
class Run:
    summary = {}
    def log(self, *a, **k): 0
    def log_artifact(self, *a, **k): 0
    def finish(self): 0
def init(**k): return Run()
"""


def told(folder: Path) -> list[str]:
    """State of each checkpoint that is remembered as told."""
    return [json.loads(path.read_text())["state"] for path in folder.glob("tracking/told/*.json")]


def texts_of(rounds: Rounds, snapshot_id: str) -> set[str]:
    """Whole prompts, their lines, and who played: what must not leave by tracking."""
    with rounds.database.connect() as connection:
        members = [member for group in load_snapshot(connection, snapshot_id).groups for member in group.members]
    prompts = [text for m in members for d in m.decisions for text in (d.system_prompt, d.user_prompt)]
    lines = {line.strip() for text in prompts for line in text.splitlines() if len(line.strip()) > 8}
    assert lines
    return {*prompts, *lines, *(m.agent_id for m in members), *(m.trajectory_id for m in members)}


def played(rounds: Rounds, number: int, checkpoint: str, verbs: tuple[str, ...] = MIXED) -> dict:
    rounds.play(number, verbs, checkpoint)
    return rounds.update(number)


def test_two_updates_are_one_run_with_a_step_each_and_nothing_of_it_is_a_text(rounds, tmp_path):
    rounds.play(1, MIXED, "run@0")
    plant(rounds.database, rounds.windows(1)[1:], ALL_HOLD, ["run@0"] * 8, 0.1)
    first = rounds.update(1)
    second = played(rounds, 2, first["checkpoint_id"])
    rounds.update(2)  # the same update again
    kept = Kept(tmp_path / "tracking")

    assert [run.run_id for run in kept.runs] == ["run", "run"] and len(kept.files) == 2
    assert [row["_step"] for row in kept.rows] == [1, 2]
    config = kept.config(0)
    assert config["recipe"]["windows_per_update"] == 2 and config["seed"] == 0 and config["backend"] == "torch"
    assert config["base_model"] == tmp_path.name and config["code_version"]

    assert kept.rows[0]["update/loss"] == 0.1 and kept.rows[1]["update/windows"] == 2
    windows = kept.table(1, "windows")
    assert windows["columns"] == ["window", "members", "reward_mean", "reward_sd"]
    assert [row[0] for row in windows["data"]] == rounds.windows(2)
    assert all(row[1] == 8 and row[3] > 0 for row in windows["data"])
    assert kept.table(1, "optimizer_steps")["data"] == [[1, 0.0, 1.0, 0.5, 0.1, 1.0]]

    assert kept.rows[0]["update/windows"] == first["groups_trained"] == 1
    left_out = dict(kept.table(0, "left_out")["data"])
    assert sum(left_out.values()) == kept.rows[0]["update/left_out"] > 0

    assert [(a.type, a.name) for a in kept.artifacts] == [("lora", "run"), ("lora", "run")]
    assert json.loads(kept.artifacts[1].metadata) == {
        "checkpoint_id": second["checkpoint_id"],
        "snapshot_id": second["snapshot_id"],
        "parent_id": first["checkpoint_id"],
        "last_window": rounds.windows(2)[-1],
        "weights_sha256": json.loads(kept.artifacts[1].metadata)["weights_sha256"],
    }
    assert [entry.path for entry in kept.artifacts[0].manifest.contents] == ["adapter_model.safetensors"]
    said = kept.bytes()
    assert not [text for text in texts_of(rounds, second["snapshot_id"]) if text.encode() in said]


def test_a_service_that_is_not_reached_leaves_files_and_one_warning_and_the_key_nowhere(
    rounds, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 1)
    rounds.settings = rounds.settings.model_copy(update={"wandb_api_key": SecretStr(KEY)})
    assert played(rounds, 1, "run@0")["updated"]
    kept = Kept(tmp_path / "tracking")
    assert [row["_step"] for row in kept.rows] == [1]
    assert len(caplog.records) == 1 and "was not reached" in caplog.text and "wandb sync" in caplog.text
    assert KEY.encode() not in kept.bytes() and KEY not in caplog.text
    assert Path.cwd().joinpath("wandb").exists() is False


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('no module of that name')", "no module of that name"),
        ("", "wandb library is not installed"),  # as a folder called wandb is
        ("import time\ndef init(**given): time.sleep(60)\nclass Settings:\n def __init__(self, **k): 0", "was ended"),
        ("import os\nos.abort()", "without a word"),
    ],
)
def test_wandb_that_is_missing_hangs_or_crashes_is_one_warning_and_the_update_stands(
    rounds, instead, monkeypatch, caplog, source, said
):
    instead(source)
    monkeypatch.setattr(tracking, "TIMEOUT", 1)
    caplog.set_level(logging.WARNING)
    row = played(rounds, 1, "run@0")
    assert row["updated"] and row["checkpoint_id"].startswith("run@1-")
    assert len(caplog.records) == 1 and said in caplog.text and "The update itself is complete" in caplog.text


def test_what_failed_before_it_was_logged_is_told_by_the_next_attempt(rounds, instead, tmp_path):
    instead("raise ImportError")
    played(rounds, 1, "run@0")
    assert not told(tmp_path)
    instead(WORKING)
    rounds.update(1)
    assert told(tmp_path) == ["told"]


def test_an_attempt_that_died_while_it_told_is_a_gap_and_not_the_same_step_twice(rounds, instead, tmp_path, caplog):
    instead(WORKING.replace("def log(self, *a, **k): 0", "def log(self, *a, **k): raise SystemExit"))
    played(rounds, 1, "run@0")
    instead("raise ImportError")  # would be a second warning
    rounds.update(1)
    assert len(told(tmp_path)) == 1 and len(caplog.records) == 1


def test_a_full_disk_is_a_warning_too(rounds, monkeypatch, caplog):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking, "_tell", full)
    assert played(rounds, 1, "run@0")["updated"] and "No space left" in caplog.text


def test_switched_off_nothing_is_written_and_no_process_starts(rounds, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.subprocess, "run", lambda *given, **named: pytest.fail("a process"))
    rounds.settings = rounds.settings.model_copy(update={"tracking": "off"})
    assert played(rounds, 1, "run@0")["updated"]
    assert not (tmp_path / "tracking").exists()


def test_of_the_environment_wandb_gets_its_own_key_and_no_other_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "a-users-own")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:password@host/db")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    assert "WANDB_API_KEY" not in tracking._environment(tmp_path, "")
    given = tracking._environment(tmp_path, KEY)
    assert given["WANDB_API_KEY"] == KEY and given["PATH"]
    assert not {"WANDB_MODE", "DATABASE_URL", "OPENAI_API_KEY"} & set(given)
    assert all(given[name] == str(tmp_path) for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"))


def test_a_run_has_one_id_that_wandb_allows():
    assert run_id("agent-1") == "agent-1" == run_id("agent-1")
    assert run_id("a/b:c") != run_id("a/b/c") and set(run_id("a/b:c")) <= set("abc-0123456789def")
    assert len(run_id("x" * 300)) < 60 and run_id("x" * 300) != run_id("x" * 301)
