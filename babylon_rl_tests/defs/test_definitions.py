"""The definitions as a whole: what is there, how it is declared, and how light it is to load."""

import subprocess
import sys

import dagster as dg

from babylon_rl.definitions import build_defs
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.defs.partitions import HOURS
from babylon_rl.settings import REPOSITORY

ASSETS = (*DATA_ASSETS, "trained_checkpoints", "checkpoint_evaluations")
HEAVY = ("art", "torch", "transformers", "litellm", "wandb", "matplotlib", "peft")


def test_definitions_hang_together():
    definitions = build_defs()
    dg.Definitions.validate_loadable(definitions)
    names = {key.to_user_string() for key in definitions.resolve_all_asset_keys()}
    assert names == {*ASSETS, "recorded_trajectories"}
    (check,) = definitions.resolve_asset_graph().asset_check_keys
    assert (check.asset_key, check.name) == (dg.AssetKey("trained_checkpoints"), "learning_is_steady")
    assert not definitions.resolve_asset_graph().get(check).blocking


def test_every_asset_is_declared_alike_on_the_one_grid_of_hours():
    graph = build_defs().resolve_asset_graph()
    for name in (*ASSETS, "recorded_trajectories"):
        node = graph.get(dg.AssetKey(name))
        assert node.partitions_def == HOURS and node.description and node.kinds and node.group_name
        assert node.is_materializable == (name in ASSETS)
    for name in ASSETS:
        node = graph.get(dg.AssetKey(name))
        assert node.backfill_policy == dg.BackfillPolicy.single_run()
        assert node.owners and node.code_version


def test_the_data_flow_in_the_order_of_the_design():
    graph = build_defs().resolve_asset_graph()
    parents = {name: {key.path[-1] for key in graph.get(dg.AssetKey(name)).parent_keys} for name in ASSETS}
    assert parents == {
        "windows": {"recorded_trajectories"},
        "market_outcomes": {"recorded_trajectories"},
        "scored_trajectories": {"windows", "market_outcomes"},
        "art_groups": {"windows", "scored_trajectories"},
        "trained_checkpoints": {"art_groups", "trained_checkpoints"},
        "checkpoint_evaluations": {"trained_checkpoints", "recorded_trajectories"},
    }


def test_there_is_one_described_job_for_each_human_task():
    jobs = {job.name: job for job in build_defs().resolve_all_job_defs() if job.name != "__ASSET_JOB"}
    assert set(jobs) == {
        *("materialize_windows", "train_checkpoint", "evaluate_checkpoint", "promote_checkpoint", "clean_up"),
    }
    assert all(job.description and len(job.description) > 80 for job in jobs.values())


def test_the_last_partition_is_a_closed_hour_and_the_sensor_is_off_until_someone_starts_it():
    assert HOURS.end_offset == 0
    sensor = build_defs().resolve_sensor_def("window_readiness")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED


LOAD = """
import sys, time
start = time.monotonic()
import babylon_rl.definitions
print(f"loaded in {time.monotonic() - start:.1f} s", file=sys.stderr)
print([name for name in sys.argv[1:] if name in sys.modules])
"""


def test_the_code_location_loads_without_the_heavy_libraries():
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *HEAVY], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    print(done.stderr)
    assert done.stdout.strip() == "[]"
