"""The pipeline beside an application: its database is read through a role that may only read, ours is another one."""

from datetime import timedelta

import dagster as dg
import psycopg
import pytest

from babylon_rl.database.application_tables import application_metadata
from babylon_rl.database.connect import Recordings, open_database
from babylon_rl.database.migrate import migrate
from babylon_rl.database.urls import database_name
from babylon_rl.definitions import build_defs
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.loop import prepare
from babylon_rl.materializing import ASSETS
from babylon_rl.recording.reader import read_windows
from babylon_rl.settings import get_settings
from babylon_rl.windows import parse_window_id, shift_window
from babylon_rl_tests.application import make_application
from babylon_rl_tests.defs.ranges import record, span

TABLES = tuple(application_metadata.tables)


@pytest.fixture
def named(monkeypatch):
    """Function that names databases by the environment, as a user does."""

    def name(**variables: str) -> None:
        for variable, url in variables.items():
            monkeypatch.setenv(variable, url)
        get_settings.cache_clear()

    return name


@pytest.fixture
def open_at_once(monkeypatch):
    """Function that counts, from then on, the connections to a database that are open at once: a list that grows."""

    def watch(database: str) -> list[int]:
        connect, made, counts = psycopg.connect, [], []

        def counting(*arguments, **options):
            connection = connect(*arguments, **options)
            if connection.info.dbname == database:
                made.append(connection)
                counts.append(sum(not one.closed for one in made))
            return connection

        monkeypatch.setattr(psycopg, "connect", counting)
        return counts

    return watch


def materialize(instance: dg.DagsterInstance, tags: dict[str, str], assets=DATA_ASSETS):
    return (
        build_defs()
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            instance=instance,
            tags=tags,
            asset_selection=[dg.AssetKey(name) for name in assets],
            raise_on_error=False,
        )
    )


def tick(instance: dg.DagsterInstance, cursor: str | None = None):
    definitions = build_defs()
    # Left open, the context keeps its instance for whatever definitions are loaded next.
    with dg.build_sensor_context(
        instance, cursor, repository_def=definitions.get_repository_def(), resources={"database": DatabaseResource()}
    ) as context:
        return definitions.resolve_sensor_def("window_readiness").evaluate_tick(context)


def sweep(instance: dg.DagsterInstance, last: str):
    definitions = build_defs()
    at = parse_window_id(last) + timedelta(hours=7, minutes=20)
    with dg.build_schedule_context(
        instance,
        scheduled_execution_time=at,
        repository_def=definitions.get_repository_def(),
        resources={"database": DatabaseResource()},
    ) as context:
        return definitions.resolve_schedule_def("hourly_window_sweep").evaluate_tick(context)


def ours(query: str, *values) -> list[tuple]:
    with open_database(get_settings()).connect() as connection:
        return connection.execute(query, values).fetchall()


def test_the_pipeline_runs_beside_a_database_that_it_may_only_read(
    new_database, instance, named, open_at_once, database
):
    application = make_application(new_database)
    ids = record(application.owner, 3)
    assert record(database, 3) == ids
    role = f"reader_of_{database_name(application.owner.url)}"
    own = new_database(embedded=False)
    named(DATABASE_URL=application.reader(role), BABYLON_RL_DATABASE_URL=own.url)
    before = application.content()
    at_once = open_at_once(database_name(application.owner.url))
    migrate(open_database(get_settings()))

    result = materialize(instance, span(ids[0], ids[-1]))
    assert result.success
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    # Runs of random agents hold no text, so there is nothing to train on; all else is as it should be.
    assert len(checks) > 8
    assert [name for name, check in checks.items() if not check.passed] == ["group_is_trainable"]
    found = ours("SELECT window_id, revision, usable FROM babylon_rl.windows ORDER BY 1")
    with database.connect() as connection:
        one = [(w.window_id, w.revision, len(w.usable)) for w in read_windows(Recordings.of(connection), ids)]
    assert found == one
    assert ours("SELECT count(*), count(DISTINCT trajectory_id) FROM babylon_rl.scored_trajectories") == [(24, 24)]
    assert ours("SELECT count(DISTINCT window_id) FROM babylon_rl.market_outcomes WHERE settled") == [(3,)]
    assert application.content() == before

    quiet = tick(instance)
    assert not quiet.run_requests and quiet.skip_message == "Every window is materialized."
    (late,) = record(application.owner, 1, first=shift_window(ids[-1], 2))
    (request,) = tick(instance, quiet.cursor).run_requests
    assert request.partition_key == late
    before = application.content()
    # The model assets too: without a training run they say so, and read nothing of the application's in our database.
    assert materialize(instance, {"dagster/partition": late}, ASSETS).success
    assert not tick(instance).run_requests

    (gap,) = sweep(instance, late).run_requests
    assert gap.partition_key == shift_window(ids[-1], 1)
    assert application.content() == before
    assert len(at_once) > 10 and max(at_once) == 1


def test_one_database_with_a_role_that_owns_our_schema_and_reads_the_rest(new_database, instance, named):
    """The role has the schema's name, so that `$user` of PostgreSQL's default path would find our tables first."""
    application = make_application(new_database, "public")
    ids = record(application.owner, 2)
    reader = application.reader("babylon_rl")
    direct = application.url("babylon_rl", "connection_limit=1")
    named(DATABASE_URL=direct)
    application.sql("CREATE SCHEMA babylon_rl AUTHORIZATION babylon_rl")
    before = application.content()
    made = prepare(get_settings())
    assert (made.url, made.application_url, made.embedded) == (direct, None, False)
    # What is migrated needs no migration, which a pooler could not do.
    named(DATABASE_URL=reader)
    assert prepare(get_settings()).url == reader
    requests = tick(instance).run_requests
    assert [request.partition_key for request in requests] == ids
    assert materialize(instance, span(*ids)).success
    assert not tick(instance).run_requests
    assert ours("SELECT sum(usable) FROM babylon_rl.windows WHERE superseded_at IS NULL") == [(16,)]
    after = application.content()
    assert {name: after[name] for name in TABLES} == {name: before[name] for name in TABLES}
