"""The training sensor on a real instance: what it requests is run, and what it says when it requests nothing."""

from datetime import timedelta
from pathlib import Path

import dagster as dg
import msgspec
import pandas as pd
import pytest

from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import art_groups
from babylon_rl.definitions import build_defs
from babylon_rl.defs import trained_checkpoints as asset_module
from babylon_rl.defs import training_due as module
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.errors import TrainingError
from babylon_rl.groups.trained_view import digest_of, encode_group
from babylon_rl.settings import Settings
from babylon_rl.training.policy import Policy
from babylon_rl.training.trainer import MANIFEST_FILE, weights_digest
from babylon_rl_tests.training.batches import sampled_groups
from babylon_rl_tests.training.rounds import OpenRun, window

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


class Desk:
    """The sensor and its job on an instance, and a run without an end whose trainer writes nothing, or fails."""

    def __init__(self, opened: OpenRun, instance: dg.DagsterInstance) -> None:
        self.opened, self.instance = opened, instance
        self.resource = DatabaseResource(url=opened.database.url)
        self.definitions = build_defs({"database": self.resource})
        self.fails = False

    def launcher(self, context, client, database):
        def launch(request):
            if self.fails:
                raise TrainingError("The trainer has no memory left. Free some.")
            return self.opened.launch(request)

        return launch

    def tick(self) -> dg.RunRequest | str:
        """What a tick requests, or why it skips."""
        context = dg.build_sensor_context(
            self.instance, repository_def=self.definitions.get_repository_def(), resources={"database": self.resource}
        )
        data = self.definitions.resolve_sensor_def("training_due").evaluate_tick(context)
        assert len(data.run_requests) < 2
        return data.run_requests[0] if data.run_requests else data.skip_message

    def tags(self, request: dg.RunRequest) -> dict[str, str]:
        return {**request.tags, "dagster/run_key": request.run_key, "dagster/sensor_name": "training_due"}

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """The requested run, with the tags that the daemon gives it."""
        job = self.definitions.resolve_job_def("train_checkpoint")
        return job.execute_in_process(instance=self.instance, tags=self.tags(request), raise_on_error=False)


@pytest.fixture
def desk(database, instance, tmp_path, monkeypatch) -> Desk:
    made = Desk(OpenRun(database, tmp_path), instance)
    monkeypatch.setattr(asset_module, "launcher", made.launcher)
    monkeypatch.setattr(asset_module, "get_settings", lambda: Settings(home=tmp_path))
    return made


def test_an_update_is_requested_when_it_is_due_and_never_again_once_it_is_made(desk):
    desk.opened.play(0)
    assert desk.tick() == "run: 1 of 2 new groups."
    desk.opened.play(2)
    request = desk.tick()
    assert [request.tags[name] for name in RANGE] == [window(0), window(2)] and request.partition_key is None
    assert desk.tick().run_key == request.run_key  # nothing has run yet: Dagster starts no second run for this key
    result = desk.run(request)
    assert result.success
    made = desk.instance.get_materialized_partitions(dg.AssetKey("trained_checkpoints"))
    assert made == {window(0), window(1), window(2)} and len(desk.opened.checkpoints()) == 1
    assert desk.tick() == "run: 0 of 2 new groups."


def test_a_range_of_one_window_is_run_as_any_other(desk):
    desk.opened.play(2, 3)
    assert desk.run(desk.tick()).success
    desk.opened.play(0, 1)  # late: the next hour is the only one that is to be computed
    request = desk.tick()
    assert [request.tags[name] for name in RANGE] == [window(4), window(4)]
    assert desk.run(request).success
    assert window(4) in desk.instance.get_materialized_partitions(dg.AssetKey("trained_checkpoints"))
    assert list(desk.opened.batches().values()) == [[window(2), window(3)], [window(0), window(1)]]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
@pytest.mark.parametrize("selection", [None, "trained_checkpoints", "windows"])
def test_while_a_run_of_the_asset_waits_or_runs_nothing_is_requested(desk, status, selection):
    desk.opened.play(0, 1)
    job = desk.definitions.resolve_implicit_global_asset_job_def()
    chosen = None if selection is None else frozenset({dg.AssetKey(selection)})
    desk.instance.create_run_for_job(
        job.get_subset(asset_selection=chosen) if chosen else job, status=status, asset_selection=chosen
    )
    said = desk.tick()
    if selection == "windows":
        assert isinstance(said, dg.RunRequest)
    else:
        assert "one update at a time" in said


def test_a_failed_update_is_tried_three_times_and_then_says_what_to_do(desk, monkeypatch):
    monkeypatch.setattr("babylon_rl.training.due.WAITS", (timedelta(0), timedelta(0)))
    desk.opened.play(0, 1)
    desk.fails = True
    keys = []
    for place in (2, 3, 4):
        request = desk.tick()
        keys.append(request.run_key)
        assert not desk.run(request).success
        desk.opened.play(place)  # what gathers meanwhile makes no other update of it
    assert [key.rpartition(":")[2] for key in keys] == ["1", "2", "3"] and len({k[:-2] for k in keys}) == 1
    said = desk.tick()
    assert "failed 3 times" in said and "mend the cause" in said and "train_checkpoint" in said
    desk.fails = False
    job = desk.definitions.resolve_job_def("train_checkpoint")
    by_hand = dict(zip(RANGE, (window(0), window(4)), strict=True))
    assert job.execute_in_process(instance=desk.instance, tags=by_hand).success
    assert desk.tick() == "run: 1 of 2 new groups."


def test_the_first_wait_is_kept(desk):
    desk.opened.play(0, 1)
    desk.fails = True
    desk.run(desk.tick())
    assert "failed; attempt 2 of 3 after" in desk.tick()


def test_the_sensor_is_off_until_the_settings_say_on():
    sensor = build_defs().resolve_sensor_def("training_due")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED and sensor.minimum_interval_seconds == 120
    assert [job.name for job in sensor.jobs] == ["train_checkpoint"] and module.MOST_KEYS > 3


def test_the_real_trainer_trains_once_and_answers_the_second_time_from_its_folder(
    database, instance, tiny, tmp_path, monkeypatch
):
    opened = OpenRun(database, tmp_path, lora_layers=1)
    opened.play(0, 1)
    rows = []
    for place, group in enumerate(sampled_groups(Policy(tiny), 2)):
        played = msgspec.structs.replace(group, window_id=window(place))
        rows.append({
            "window_id": window(place), "group": encode_group(played), "group_digest": digest_of(played),
            "status": "trainable", "reason": "", "members": 8, "left_out": [], "scorer": "alpha",
        })  # fmt: skip
    with database.connect() as connection:
        replace_windows(connection, art_groups, [window(0), window(1)], pd.DataFrame(rows))
        connection.execute("UPDATE babylon_rl.training_runs SET base_model = %s", (str(tiny),))
    monkeypatch.setattr(asset_module, "get_settings", lambda: Settings(home=tmp_path, threads=1))
    desk = Desk(opened, instance)
    request = desk.tick()
    assert desk.run(request).success
    (checkpoint,) = opened.checkpoints().values()
    manifest = Path(checkpoint.path) / MANIFEST_FILE
    written = manifest.stat().st_mtime_ns
    assert desk.run(request).success
    assert manifest.stat().st_mtime_ns == written and list(opened.checkpoints().values()) == [checkpoint]
    assert weights_digest(manifest.parent) == checkpoint.weights_sha256
