"""Publishing into the application's own tables: its shapes, all or nothing, once, with two tables' rights only."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from psycopg.rows import dict_row
from typer.testing import CliRunner

from babylon_rl import cli
from babylon_rl.database.application_tables import application_metadata
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import checkpoint_evaluations
from babylon_rl.errors import PublishingError, SettingsError
from babylon_rl.evaluation.compare import COLUMNS
from babylon_rl.groups.snapshots import load_snapshot
from babylon_rl.settings import get_settings
from babylon_rl.training.published_rows import next_version
from babylon_rl.training.publishing import publish
from babylon_rl.training.runs import promote
from babylon_rl_tests.training.rounds import MIXED, OpenRun, Rounds, window

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
TABLES = ("training_batches", "trained_models")


class Application:
    """The application's database in a schema of its own, far from UTC; `url`: of a role with two tables' rights."""

    def __init__(self, database, server) -> None:
        self.owner = database.url
        self.role = database.url.split("?")[0].rsplit("/", 1)[1] + "_publisher"
        engine = database.engine()
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE SCHEMA game"))
            connection.execute(sa.text("SET LOCAL search_path TO game"))
            tables = [application_metadata.tables[name] for name in TABLES]
            application_metadata.create_all(connection, tables, checkfirst=False)
            for statement in (
                f"CREATE ROLE {self.role} LOGIN PASSWORD 'secret-word'",
                f"ALTER ROLE {self.role} SET timezone TO 'America/New_York'",
                f"GRANT USAGE ON SCHEMA game TO {self.role}",
                f"GRANT SELECT, INSERT, UPDATE ON game.trained_models, game.training_batches TO {self.role}",
            ):
                connection.execute(sa.text(statement))
        self.url = (
            database.url.replace("postgres@", f"{self.role}:secret-word@")
            + ("&" if "?" in database.url else "?")
            + "schema=game&connection_limit=5&pgbouncer=true"
        )

    def rows(self, table: str, columns: str = "*") -> list[dict]:
        with psycopg.connect(self.owner, row_factory=dict_row) as connection:
            query = sql.SQL("SELECT {} FROM game.{} ORDER BY id").format(sql.SQL(columns), sql.Identifier(table))
            return connection.execute(query).fetchall()

    def state(self) -> list[list[dict]]:
        """Both tables with the transaction that wrote each row."""
        return [self.rows(table, "*, xmin::text") for table in TABLES]

    def models(self) -> dict[str, dict]:
        return {row["modelId"]: row for row in self.rows("trained_models")}

    def execute(self, statement: str, parameters=None) -> None:
        with psycopg.connect(self.owner) as connection:
            connection.execute(statement, parameters)


@pytest.fixture
def application(new_database, server):
    made = Application(new_database(embedded=False), server)
    yield made
    made.execute("DROP OWNED BY " + made.role)
    made.execute("DROP ROLE " + made.role)


@pytest.fixture
def opened(database, tmp_path) -> OpenRun:
    """A run with two checkpoints, trained one after the other."""
    opened = OpenRun(database, tmp_path)
    opened.play(*range(4))
    opened.compute(window(0), window(3))
    return opened


def serve(opened: OpenRun, checkpoint: str) -> None:
    with opened.database.connect() as connection:
        promote(connection, "run", checkpoint, "an operator", "it earns", {}, again=True)


def evaluate(opened: OpenRun, *rows: tuple) -> None:
    """Store comparisons of (candidate, baseline, split, effect)."""
    frame = pd.DataFrame(
        [
            (window(9), candidate, baseline, split, "paired-by-window", 9, effect, effect - 0.5, effect + 0.5,
             2.0 + effect, 2.0, "promote", "It earned.")
            for candidate, baseline, split, effect in rows
        ],
        columns=list(COLUMNS),
    )  # fmt: skip
    with opened.database.connect() as connection:
        replace_windows(connection, checkpoint_evaluations, [window(9)], frame)


def statuses(application: Application) -> dict[str, str]:
    return {key: row["status"] for key, row in application.models().items()}


def test_checkpoints_and_batches_stand_there_in_the_applications_shapes_with_every_needed_column(opened, application):
    done = publish(opened.database, application.url, NOW)
    first, second = opened.checkpoints().values()
    models = application.models()
    assert all(row["id"].isdecimal() for row in models.values()) and len(done.changes) == 4
    assert set(models) == {first.checkpoint_id, second.checkpoint_id}  # not the base model
    assert [models[c.checkpoint_id]["version"] for c in (first, second)] == ["v1.0.0", "v1.0.1"]
    with opened.database.connect() as connection:
        trained_at, job, began, ended = connection.execute(
            "SELECT c.created_at, a.job_id, a.created_at, a.finished_at FROM babylon_rl.checkpoints c "
            "JOIN babylon_rl.training_attempts a USING (snapshot_id) WHERE checkpoint_id = %s",
            (first.checkpoint_id,),
        ).fetchone()
        snapshot = load_snapshot(connection, first.snapshot_id)
    model = models[first.checkpoint_id]
    assert 0 < int(model["id"]) < 2**63
    assert (model["status"], model["storagePath"], model["baseModel"]) == ("ready", first.path, first.base_model)
    assert model["trainingBatch"] == job and model["agentsUsing"] == model["totalInferences"] == 0
    # Times are UTC on a server that is not, in the milliseconds that the columns hold.
    assert model["createdAt"] == milliseconds(trained_at) and model["updatedAt"] == milliseconds(NOW)
    # Nothing was evaluated: the training data say nothing of the model.
    unknown = ("avgReward", "evalMetrics", "benchmarkScore", "accuracy", "deployedAt", "archivedAt", "wandbRunId")
    assert all(model[name] is None for name in unknown)
    (batch,) = [row for row in application.rows("training_batches") if row["batchId"] == job]
    assert (batch["status"], batch["modelVersion"], batch["error"]) == ("completed", "v1.0.0", None)
    assert batch["scenarioId"] == f"{window(0)}..{window(1)}" and batch["trainingLoss"] == first.metrics["loss"]
    assert [batch[n] for n in ("createdAt", "startedAt", "completedAt")] == [
        milliseconds(t) for t in (began, began, ended)
    ]
    members = {m.trajectory_id: m.reward for group in snapshot.groups for m in group.members}
    ids = json.loads(batch["trajectoryIds"])
    assert ids == sorted(members) and json.loads(batch["rewardsJson"]) == [members[i] for i in ids]
    for ranking in json.loads(batch["rankingsJson"]):
        rewards = [members[i] for i in ranking["ranking"]]
        assert rewards == sorted(rewards, reverse=True) and len(rewards) == len(MIXED)


def milliseconds(moment: datetime) -> datetime:
    naive = moment.astimezone(UTC).replace(tzinfo=None)
    return naive - timedelta(microseconds=naive.microsecond % 1000)


def test_a_second_time_no_row_is_written(opened, application):
    evaluate(opened, *((c, "run@0", "test", 0.1) for c in opened.checkpoints()))
    serve(opened, next(iter(opened.checkpoints())))
    publish(opened.database, application.url, NOW)
    before = application.state()
    again = publish(opened.database, application.url, NOW + timedelta(hours=1))
    assert again.changes == () and again.unchanged == 4
    assert application.state() == before


def test_one_model_at_most_is_deployed_and_what_was_is_ready_again(opened, application):
    first, second = opened.checkpoints()
    application.execute(
        'INSERT INTO game.trained_models (id, "modelId", version, "baseModel", status, "storagePath", '
        "\"updatedAt\") VALUES ('1', 'theirs', 'v3.1.4', 'b', 'deployed', 'p', '2026-01-01')"
    )
    publish(opened.database, application.url, NOW)
    assert statuses(application) == {"theirs": "deployed", first: "ready", second: "ready"}
    assert application.models()[second]["version"] == "v3.1.6"  # the application's count goes on
    for name in (first, second, first):
        serve(opened, name)
        publish(opened.database, application.url, NOW)
        assert statuses(application) == {"theirs": "ready", first: "ready", second: "ready"} | {name: "deployed"}
        assert application.models()[name]["deployedAt"] is not None
    serve(opened, "run@0")
    publish(opened.database, application.url, NOW)
    assert set(statuses(application).values()) == {"ready"}


def test_what_somebody_archived_there_stays_so_unless_it_is_served(opened, application):
    first, second = opened.checkpoints()
    publish(opened.database, application.url, NOW)
    application.execute("UPDATE game.trained_models SET status = 'archived', \"archivedAt\" = '2026-02-01'")
    assert publish(opened.database, application.url, NOW).changes == ()
    serve(opened, second)
    publish(opened.database, application.url, NOW)
    assert statuses(application) == {first: "archived", second: "deployed"}
    assert application.models()[second]["archivedAt"] is None
    with opened.database.connect() as connection:
        connection.execute("UPDATE babylon_rl.checkpoints SET state = 'deleted'")
    publish(opened.database, application.url, NOW)
    assert set(statuses(application).values()) == {"archived"}
    publish(opened.database, application.url, NOW + timedelta(days=1))
    assert application.models()[second]["archivedAt"] == milliseconds(NOW)


def test_figures_are_those_of_the_test_windows_with_effect_and_interval(opened, application):
    first, second = opened.checkpoints()
    evaluate(
        opened,
        (first, "run@0", "validation", 9.0),
        (second, "run@0", "validation", 9.5),
        (second, "hold", "test", 0.25),
        (second, "run@0", "test", 1.0),
    )
    publish(opened.database, application.url, NOW)
    models = application.models()
    assert models[first]["avgReward"] is None and len(models[first]["evalMetrics"]["comparisons"]) == 1
    assert models[second]["avgReward"] == 3.0
    metrics = models[second]["evalMetrics"]
    assert (metrics["effect"], metrics["interval"], metrics["baseline"]) == (1.0, [0.5, 1.5], "run@0")
    assert {c["baseline"]: c["effect"] for c in metrics["comparisons"] if c["split"] == "test"} == {
        "hold": 0.25,
        "run@0": 1.0,
    }


def test_an_update_corrects_what_is_ours_and_keeps_what_is_the_applications(opened, application):
    first, _ = opened.checkpoints().values()
    publish(opened.database, application.url, NOW)
    right = application.models()[first.checkpoint_id]
    application.execute(
        "UPDATE game.trained_models SET \"storagePath\" = 'x', \"trainingBatch\" = 'x', \"baseModel\" = 'x', "
        '"benchmarkScore" = 0.7, accuracy = 0.6, "agentsUsing" = 5, "wandbRunId" = \'w\' WHERE "modelId" = %s',
        (first.checkpoint_id,),
    )
    later = NOW + timedelta(hours=2)
    (change,) = publish(opened.database, application.url, later).changes
    assert set(change.columns) == {"storagePath", "trainingBatch", "baseModel"}
    kept = {"benchmarkScore": 0.7, "accuracy": 0.6, "agentsUsing": 5, "wandbRunId": "w"}
    assert application.models()[first.checkpoint_id] == right | kept | {"updatedAt": milliseconds(later)}


def test_an_attempt_that_failed_has_an_end_and_keeps_its_version_when_it_succeeds(database, tmp_path, application):
    opened = OpenRun(database, tmp_path)
    opened.play(0, 1)
    launch = opened.launch
    opened.launch = lambda request: 1 / 0
    with pytest.raises(ZeroDivisionError):
        opened.compute(window(0), window(1))
    publish(database, application.url, NOW)
    (failed,) = application.rows("training_batches")
    assert failed["status"] == "failed" and "ZeroDivisionError" in failed["error"] and failed["completedAt"]
    assert application.models() == {}
    opened.launch = launch
    opened.compute(window(0), window(1))
    publish(database, application.url, NOW)
    (done,) = application.rows("training_batches")
    assert (done["status"], done["error"], done["id"]) == ("completed", None, failed["id"])
    assert [m["version"] for m in application.models().values()] == [done["modelVersion"]] == [failed["modelVersion"]]


def test_publishers_at_once_come_to_what_one_alone_would(opened, application):
    serve(opened, next(iter(opened.checkpoints())))
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: publish(opened.database, application.url, NOW), range(4)))
    assert sorted(len(each.changes) for each in done) == [0, 0, 0, 4]
    assert sorted(statuses(application).values()) == ["deployed", "ready"]


def test_killed_before_any_statement_both_tables_are_as_they_were_or_as_they_come_to_be(opened, application):
    first, second = opened.checkpoints()
    publish(opened.database, application.url, NOW, checkpoint_id=first)
    serve(opened, second)
    before, seen = application.state(), []
    while not _killed_at(len(seen), opened, application):
        seen.append(application.state())
    after = application.state()
    whole = sum(state == before for state in seen)
    assert whole > 8 and seen == [before] * whole + [after] * (len(seen) - whole)
    assert statuses(application) == {first: "ready", second: "deployed"}
    assert publish(opened.database, application.url, NOW).changes == ()


def _killed_at(number: int, opened: OpenRun, application: Application) -> bool:
    """Publish in a process that is killed before its statement of that number; whether it came to its end first."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    left = [number]

    def counted(original):
        def call(*arguments, **named):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return original(*arguments, **named)

        return call

    psycopg.Cursor.execute = counted(psycopg.Cursor.execute)
    psycopg.Connection.commit = counted(psycopg.Connection.commit)
    try:
        publish(opened.database, application.url, NOW)
    except BaseException:
        os._exit(3)
    os._exit(0)


BROKEN = (
    ("REVOKE INSERT ON {models} FROM {role}", "GRANT INSERT ON {models} TO {role}", "GRANT SELECT, INSERT, UPDATE"),
    ("REVOKE UPDATE ON {models} FROM {role}", "GRANT UPDATE ON {models} TO {role}", "GRANT SELECT, INSERT, UPDATE"),
    ("ALTER TABLE {models} RENAME TO gone", "ALTER TABLE game.gone RENAME TO trained_models", "schema=…"),
    ("ALTER TABLE {models} ADD more text NOT NULL", "ALTER TABLE {models} DROP more", "report it"),
    (
        "ALTER ROLE {role} SET default_transaction_read_only = on",
        "ALTER ROLE {role} RESET default_transaction_read_only",
        "only reads",
    ),
    ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN", "leave the variable empty"),
)


def test_what_cannot_be_written_is_told_with_its_remedy_and_nothing_is(opened, application):
    names = {"models": "game.trained_models", "role": application.role}
    for broken, mended, remedy in BROKEN:
        application.execute(broken.format(**names))
        with pytest.raises(PublishingError, match="Nothing was published") as raised:
            publish(opened.database, application.url, NOW)
        assert remedy in str(raised.value) and "secret-word" not in str(raised.value)
        application.execute(mended.format(**names))
        assert application.state() == [[], []]
    assert len(publish(opened.database, application.url, NOW).changes) == 4


def test_the_simulated_market_is_told_of_by_name_only(database, tmp_path, application):
    rounds = Rounds(database, tmp_path)
    rounds.play(1, MIXED, "run@0")
    name = rounds.update(1)["checkpoint_id"]
    left_out = publish(database, application.url, NOW)
    assert left_out.simulated == 1 and application.models() == {}
    with pytest.raises(PublishingError, match="base model is not published"):
        publish(database, application.url, NOW, checkpoint_id="run@0")
    publish(database, application.url, NOW, checkpoint_id=name)
    assert publish(database, application.url, NOW).unchanged == 2  # once told of, it is kept up to date


@pytest.mark.parametrize(
    ("known", "following"),
    [([], "v1.0.0"), (["v1.0.9", "v1.0.10", "v1.0.2"], "v1.0.11"), (["latest", "2.3.99", "v1.9.9"], "v2.3.100")],
)
def test_versions_count_as_the_application_counts(known, following):
    assert next_version(known) == following


def test_the_command_says_what_it_would_write_then_writes_it(opened, application, monkeypatch):
    with pytest.raises(SettingsError, match="BABYLON_RL_PUBLISH_URL"):
        CliRunner().invoke(cli.app, ["publish"], catch_exceptions=False)
    monkeypatch.setenv("BABYLON_RL_PUBLISH_URL", application.url)
    get_settings.cache_clear()
    arguments = ["publish", "--json", "--database", opened.database.url]
    dry = CliRunner().invoke(cli.app, [*arguments, "--dry-run"], catch_exceptions=False).stdout
    assert len(json.loads(dry)["changes"]) == 4 and "secret-word" not in dry
    assert application.state() == [[], []]
    named = [*arguments, "--checkpoint", next(iter(opened.checkpoints()))]
    assert len(json.loads(CliRunner().invoke(cli.app, named, catch_exceptions=False).stdout)["changes"]) == 2
    table = CliRunner().invoke(cli.app, ["publish", *arguments[2:]], catch_exceptions=False).stdout
    assert "2 rows written, 2 as they were" in " ".join(table.split()) and len(application.models()) == 2
