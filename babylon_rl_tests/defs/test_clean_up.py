"""The job `clean_up` on a real instance: a dry run deletes nothing, and what is shown or named is kept."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, TickData, TickStatus
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from babylon_rl.database.urls import libpq_url
from babylon_rl.definitions import build_defs
from babylon_rl.defs import clean_up as module
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl_tests.training.rounds import OpenRun, window

ASSET = dg.AssetKey("checkpoint_evaluations")


def clean(database, instance, **config) -> dict[str, int]:
    definitions = build_defs({"database": DatabaseResource(url=database.url)})
    result = definitions.resolve_job_def("clean_up").execute_in_process(
        instance=instance, run_config={"ops": {"clean": {"config": config}}}
    )
    return result.output_for_node("clean")


def evaluate(database, instance, first: str, last: str) -> str:
    """A run that materializes an asset over a range; its id."""
    definitions = build_defs({"database": DatabaseResource(url=database.url)})
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    result = definitions.resolve_job_def("evaluate_checkpoint").execute_in_process(
        instance=instance, tags=tags, raise_on_error=False
    )
    return result.run_id


def age(instance, days: int = 100) -> None:
    """Make all runs look as if they had ended so long ago."""
    with psycopg.connect(libpq_url(instance.event_log_storage.postgres_url)) as connection:
        connection.execute("UPDATE runs SET update_timestamp = update_timestamp - make_interval(days => %s)", (days,))


def runs(instance) -> set[str]:
    return {run.run_id for run in instance.get_runs() if run.job_name != "clean_up"}


def test_old_runs_go_and_the_latest_of_each_partition_stays(database, instance, monkeypatch):
    monkeypatch.setattr(module, "PAGE", 2)
    replaced = [evaluate(database, instance, window(0), window(2)) for _ in range(4)]
    partly = evaluate(database, instance, window(0), window(3))
    newest = evaluate(database, instance, window(0), window(2))
    going = instance.create_run_for_job(
        build_defs().resolve_job_def("evaluate_checkpoint"), status=dg.DagsterRunStatus.STARTED
    ).run_id
    age(instance)
    shown = instance.get_materialized_partitions(ASSET)
    assert clean(database, instance)["runs"] == 4 and len(runs(instance)) == 7  # a dry run
    assert clean(database, instance, dry_run=False, run_days=200)["runs"] == 0
    assert clean(database, instance, dry_run=False, most_runs=3)["runs"] == 3
    counts = clean(database, instance, dry_run=False)
    assert (counts["runs"], counts["runs kept for what they show"]) == (1, 2)
    assert runs(instance) == {partly, newest, going}
    assert instance.get_materialized_partitions(ASSET) == shown
    assert not instance.all_logs(replaced[0])


def test_a_run_by_which_a_partition_is_shown_as_failed_stays_until_it_succeeds(database, instance, monkeypatch):
    import babylon_rl.defs.checkpoint_evaluations as broken

    with monkeypatch.context() as patch:
        patch.setattr(broken, "evaluate_windows", lambda *_: 1 / 0)
        failed = evaluate(database, instance, window(0), window(1))
    age(instance)
    clean(database, instance, dry_run=False)
    assert runs(instance) == {failed}
    succeeded = evaluate(database, instance, window(0), window(1))
    age(instance)
    clean(database, instance, dry_run=False)
    assert runs(instance) == {succeeded}


def test_dagster_forgets_a_partition_whose_last_run_is_deleted(database, instance):
    # Why clean_up keeps such runs; where this fails, it may delete more.
    run_id = evaluate(database, instance, window(0), window(1))
    instance.delete_run(run_id)
    assert instance.get_materialized_partitions(ASSET) == set()


def pass_days(database, days: int = 10) -> None:
    """Make everything in our tables that much older."""
    with database.connect() as connection:
        connection.execute("SET LOCAL session_replication_role = replica")  # snapshots are immutable
        for statement in (
            "UPDATE babylon_rl.art_groups SET created_at = created_at - %(d)s, superseded_at = superseded_at - %(d)s",
            """UPDATE babylon_rl.trained_checkpoints
               SET created_at = created_at - %(d)s, superseded_at = superseded_at - %(d)s""",
            "UPDATE babylon_rl.snapshots SET created_at = created_at - %(d)s",
        ):
            connection.execute(statement, {"d": timedelta(days=days)})


def versions(database, current: bool) -> dict[str, int]:
    """How many rows of groups each window has, the current one or those before it."""
    with database.connect() as connection:
        return dict(
            connection.execute(
                "SELECT window_id, count(*) FROM babylon_rl.art_groups WHERE (superseded_at IS NULL) = %s GROUP BY 1",
                (current,),
            ).fetchall()
        )


def test_superseded_rows_go_by_age_and_never_those_that_a_snapshot_was_made_from(database, instance, tmp_path):
    opened = OpenRun(database, tmp_path)
    for scale, trains in ((1.0, True), (2.0, False), (3.0, True), (4.0, False)):
        opened.play(0, 1, 2, scale=scale)
        if trains:
            opened.compute(window(0), window(2))  # an update over the first two windows
        pass_days(database)
    opened.play(1, scale=5.0)
    before = versions(database, current=True)
    assert versions(database, current=False) == {window(0): 3, window(1): 4, window(2): 3}

    # Not trained on: the second version, and of window 2 all. The fourth of window 1 was replaced today. The update of
    # window 1 names its snapshot; the row of window 0 was the same both times.
    wanted = {"rows of art_groups": 1 + 1 + 3, "rows of trained_checkpoints": 1}
    for dry_run in (True, True, False):
        counts = clean(database, instance, row_days=1, dry_run=dry_run)
        assert {name: counts[name] for name in wanted} == wanted
    assert versions(database, current=False) == {window(0): 2, window(1): 3}
    assert versions(database, current=True) == before
    assert clean(database, instance, row_days=1, dry_run=False)["rows of art_groups"] == 0


def test_ticks_go_by_age(database, instance):
    origin = RemoteInstigatorOrigin(
        RemoteRepositoryOrigin(InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="x")), "x"), "training_due"
    )
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING)
    instance.add_instigator_state(state)
    named = (state.instigator_origin_id, state.selector_id)
    for days in (1, 50):
        moment = datetime.now(UTC) - timedelta(days=days)
        instance.create_tick(
            TickData(named[0], "training_due", InstigatorType.SENSOR, TickStatus.SKIPPED, moment.timestamp(),
                     selector_id=named[1])
        )  # fmt: skip
    assert [clean(database, instance)["ticks"] for _ in range(2)] == [1, 1]
    assert clean(database, instance, dry_run=False)["ticks"] == 1
    (left,) = instance.get_ticks(*named)
    assert left.timestamp > (datetime.now(UTC) - timedelta(days=2)).timestamp()
