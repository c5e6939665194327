"""The definitions as a whole: what is there, how it is declared, and how light it is to load."""

import subprocess
import sys

import dagster as dg

from babylon_rl.definitions import build_defs
from babylon_rl.defs.declarations import hourly_freshness
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.defs.partitions import HOURS
from babylon_rl.settings import REPOSITORY, get_settings

EVALUATIONS = ("checkpoint_evaluations", "market_evaluations", "replay_evaluations", "online_evaluations")
ASSETS = (*DATA_ASSETS, "trained_checkpoints", *EVALUATIONS)
HEAVY = ("art", "torch", "transformers", "litellm", "wandb", "matplotlib", "peft")


def test_definitions_hang_together():
    definitions = build_defs()
    dg.Definitions.validate_loadable(definitions)
    names = {key.to_user_string() for key in definitions.resolve_all_asset_keys()}
    assert names == {*ASSETS, "recorded_trajectories"}


def test_only_corruption_blocks():
    graph = build_defs().resolve_asset_graph()
    checks = {(key.asset_key.path[-1], key.name): graph.get(key).blocking for key in graph.asset_check_keys}
    assert {key for key, blocking in checks.items() if blocking} == {
        ("windows", "trajectories_accounted_for"),
        ("scored_trajectories", "rewards_are_finite"),
        ("art_groups", "trained_text_is_recorded"),
        ("art_groups", "stored_groups_hold_no_leak"),
        ("trained_checkpoints", "snapshot_rebuilds"),
        ("trained_checkpoints", "weights_match"),
        ("replay_evaluations", "windows_are_later"),
    }
    expected = {
        ("windows", "window_is_ready"),
        ("market_outcomes", "outcomes_are_settled"),
        ("scored_trajectories", "rewards_have_spread"),
        ("judge_calibration", "judge_holds_its_floors"),
        ("art_groups", "group_is_trainable"),
        ("art_groups", "agents_act"),
        ("art_groups", "no_leaks"),
        ("trained_checkpoints", "learning_is_steady"),
        *((asset, "all_windows_computed") for asset in ASSETS),
        *((asset, "rows_are_current") for asset in ASSETS[2:]),
    }
    assert {key for key, blocking in checks.items() if not blocking} == expected


def test_every_asset_is_declared_alike_on_the_one_grid_of_hours():
    graph = build_defs().resolve_asset_graph()
    for name in (*ASSETS, "recorded_trajectories"):
        node = graph.get(dg.AssetKey(name))
        assert node.partitions_def == HOURS and node.description and node.kinds and node.group_name
        assert node.is_materializable == (name in ASSETS)
        assert node.owners and node.tags["stage"]
        # The catalog shows the first words as they stand, without Markdown.
        assert node.description.startswith("A row is ")
        for said in ("**A partition**", "?**"):  # what to do when it is not as it should be
            assert said in " ".join(node.description.split())


def test_every_asset_names_its_table_and_the_columns_that_the_database_has(database):
    graph = build_defs().resolve_asset_graph()
    for name in (*ASSETS, "recorded_trajectories"):
        metadata = graph.get(dg.AssetKey(name)).metadata
        table = metadata["dagster/table_name"]
        declared = {c.name: c.constraints.nullable for c in metadata["dagster/column_schema"].columns}
        schema, short = table.split(".") if "." in table else ("public", table)
        with database.connect() as connection:
            found = connection.execute(
                "SELECT column_name, is_nullable = 'YES' FROM information_schema.columns "
                "WHERE table_schema = %s AND table_name = %s",
                (schema, short),
            ).fetchall()
            assert declared == dict(found)
            connection.execute(metadata["look at a window"].value.removeprefix("```sql").removesuffix("```").encode())


def test_a_stage_is_named_where_its_rows_are_read():
    graph = build_defs().resolve_asset_graph()
    for name in (*DATA_ASSETS, "recorded_trajectories"):
        node = graph.get(dg.AssetKey(name))
        for child in node.child_keys:
            assert f"`{child.path[-1]}`" in node.description


def test_hours_are_owed_only_while_sensors_run(monkeypatch):
    assert hourly_freshness() is None
    monkeypatch.setenv("BABYLON_RL_SENSORS", "on")
    get_settings.cache_clear()
    policy = hourly_freshness()
    assert policy.warn_window.to_timedelta() < policy.fail_window.to_timedelta()


def test_all_assets_run_on_one_backfill_policy():
    graph = build_defs().resolve_asset_graph()
    for name in ASSETS:
        node = graph.get(dg.AssetKey(name))
        assert node.backfill_policy == dg.BackfillPolicy.single_run()
        assert node.code_version


def test_the_data_flow_in_the_order_of_the_design():
    graph = build_defs().resolve_asset_graph()
    parents = {name: {key.path[-1] for key in graph.get(dg.AssetKey(name)).parent_keys} for name in ASSETS}
    assert parents == {
        "windows": {"recorded_trajectories"},
        "market_outcomes": {"recorded_trajectories"},
        "scored_trajectories": {"windows", "market_outcomes"},
        "judge_calibration": {"scored_trajectories"},
        "art_groups": {"windows", "scored_trajectories", "judge_calibration"},
        "trained_checkpoints": {"art_groups", "trained_checkpoints"},
        "checkpoint_evaluations": {"trained_checkpoints", "recorded_trajectories"},
        "market_evaluations": {"trained_checkpoints"},
        "replay_evaluations": {"windows", "market_outcomes", "recorded_trajectories"},
        "online_evaluations": {"scored_trajectories", "recorded_trajectories"},
    }


def test_there_is_one_described_job_for_each_human_task():
    jobs = {job.name: job for job in build_defs().resolve_all_job_defs() if job.name != "__ASSET_JOB"}
    assert set(jobs) == {
        *("materialize_windows", "train_checkpoint", "evaluate_checkpoint", "promote_checkpoint", "roll_back"),
        *("evaluate_in_market", "evaluate_by_replay", "evaluate_online", "clean_up"),
        *("look_at_experiments", "guard_what_is_served"),
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
