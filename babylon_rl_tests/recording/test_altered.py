"""A database that somebody altered by hand: what Prisma forbids is in it, and no row of it stops the others."""

import time
from datetime import UTC, datetime

import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.database.catalogue import catalogue_of
from babylon_rl.database.connect import Database, Recordings
from babylon_rl.database.urls import database_name
from babylon_rl.errors import DatabaseError
from babylon_rl.recording.catalog import count_recorded
from babylon_rl.recording.reader import RangeReader, read_window
from babylon_rl.recording.survey import survey
from babylon_rl.recording.verification import verify
from babylon_rl.settings import Settings
from babylon_rl_tests.application import make_application
from babylon_rl_tests.recording.awkward import AGENTS, HOUR, Awkward, _insert, call, log, step, steps

SAID = {"systemPrompt": "Tu échanges.", "userPrompt": "Über 日本?", "response": "Já"}
ROWS = (
    Awkward("1", row={"stepsJson": steps(step(0, 1.0, calls=[])), "finalPnL": 3.5}, logs=[log("1", **SAID)]),
    Awkward(
        "2", row={"stepsJson": steps(step(0, 1.0, calls=[call(**SAID)])), "finalPnL": 4.5}, logs=[log("2", **SAID)]
    ),
    Awkward("3", row={"stepsJson": steps(step(0, 1.0)), "finalPnL": 5.5}),
)


def fill(connection: psycopg.Connection) -> None:
    connection.execute("SET LOCAL session_replication_role = replica")
    for agent in AGENTS:
        connection.execute('INSERT INTO "User" (id, "updatedAt") VALUES (%s, now())', (agent,))
    for number, awkward in enumerate(ROWS):
        _insert(connection, number, awkward)


@pytest.fixture
def connection(database):
    with database.connect() as connection:
        fill(connection)
        connection.execute("SET LOCAL session_replication_role = DEFAULT")
        yield connection


def altered(connection: psycopg.Connection, *statements: str) -> dict[str, float | str]:
    """P&L or reason by trajectory, after the statements; as many rows as the database counts."""
    for statement in statements:
        connection.execute(statement)
    recordings = Recordings.of(connection)
    read = read_window(recordings, HOUR)
    assert read.recorded == count_recorded(recordings, [HOUR])[HOUR] == len(list(survey(recordings)))
    return {t.trajectory_id: t.window_pnl for t in read.usable} | {r.trajectory_id: r.reason for r in read.rejected}


SOUND = {"1": 2.5, "2": 3.5, "3": 4.5}


@pytest.mark.parametrize(
    ("column", "found"),
    [
        ("agentId", "unknown_agent"),
        ("stepsJson", "text_null"),
        ("finalStatus", "unfinished"),
        ("isTrainingData", "not_training_data"),
        ("startTime", 4.5),
        ("totalReward", 4.5),
        ("usedInTraining", 4.5),
    ],
)
def test_a_null_that_prisma_forbids_concerns_its_row_alone(connection, column, found):
    null = f"""ALTER TABLE trajectories ALTER "{column}" DROP NOT NULL"""
    done = altered(connection, null, f"""UPDATE trajectories SET "{column}" = NULL WHERE "trajectoryId" = '3'""")
    assert done == SOUND | {"3": found}


@pytest.mark.parametrize("column", ["systemPrompt", "userPrompt", "response", "purpose", "model", "callId"])
def test_a_null_in_the_call_log_is_nothing_said(connection, column):
    null = f'ALTER TABLE llm_call_logs ALTER "{column}" DROP NOT NULL'
    done = altered(connection, null, f"""UPDATE llm_call_logs SET "{column}" = NULL WHERE "trajectoryId" = '1'""")
    assert done == SOUND


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("finalPnL", "numeric(30,10)"),
        ("finalPnL", "text"),
        ("finalBalance", "numeric"),
        ("totalReward", "real"),
        ("isTrainingData", "text"),
        ("finalStatus", "finished USING 'completed'::finished"),
        ("stepsJson", 'jsonb USING "stepsJson"::jsonb'),
        ("endTime", "timestamptz"),
    ],
)
def test_another_type_changes_no_number(connection, column, kind):
    connection.execute("CREATE TYPE finished AS ENUM ('completed', 'error')")
    drop = f'ALTER TABLE trajectories ALTER "{column}" DROP DEFAULT'
    assert altered(connection, drop, f'ALTER TABLE trajectories ALTER "{column}" TYPE {kind}') == SOUND


def test_a_flag_that_is_text_is_still_a_flag(connection):
    drop = 'ALTER TABLE trajectories ALTER "isTrainingData" DROP DEFAULT, ALTER "isTrainingData" TYPE text'
    no = """UPDATE trajectories SET "isTrainingData" = 'false' WHERE "trajectoryId" = '3'"""
    assert altered(connection, drop, no) == SOUND | {"3": "not_training_data"}


def test_numbers_of_another_kind_are_as_good(connection):
    connection.execute('ALTER TABLE trajectories ALTER "finalPnL" TYPE numeric(30, 10)')
    connection.execute('ALTER TABLE "Market" ALTER "yesShares" TYPE double precision')
    assert all(table.usable for table in catalogue_of(connection).tables if table.table in ("trajectories", "Market"))


@pytest.mark.parametrize("change", ['DROP "latencyMs"', 'DROP "systemPrompt"', 'ALTER "maxTokens" TYPE text'])
def test_a_call_log_of_another_shape_tells_nothing(connection, change):
    assert altered(connection, f"ALTER TABLE llm_call_logs {change}") == SOUND
    (read,) = [t for t in read_window(Recordings.of(connection), HOUR).usable if t.trajectory_id == "1"]
    assert read.not_trainable == "no_llm_call"


def test_a_row_without_a_time_belongs_to_no_window_and_is_told_of(connection):
    null = 'ALTER TABLE trajectories ALTER "endTime" DROP NOT NULL, ALTER "agentId" DROP NOT NULL'
    connection.execute(null)
    connection.execute("""UPDATE trajectories SET "endTime" = NULL, "agentId" = NULL WHERE "trajectoryId" = '3'""")
    reader = RangeReader(Recordings.of(connection), [HOUR])
    assert [t.trajectory_id for t in reader.read(HOUR).usable] == ["1", "2"]
    assert [row.attribution.reason for row in reader.without_window.values()] == ["impossible_time"]
    assert [row.reason for row in survey(Recordings.of(connection)) if row.window_id is None] == ["impossible_time"]


# --- what a role or a database brings along --------------------------------------------------------


@pytest.fixture
def settings_of_role(new_database):
    """Function that makes a stranger's database and reads it as a role with those settings."""

    def make(*settings: str, before: str = "SELECT") -> Database:
        application = make_application(new_database)
        with application.owner.connect() as connection:
            fill(connection)
        application.sql(before)
        role = f"altered_{database_name(application.owner.url)}"
        url = application.reader(role)
        for setting in settings:
            application.sql(f"ALTER ROLE {{role}} SET {setting}", role=role)
        return Database(new_database().url, embedded=False, application_url=url)

    return make


@pytest.mark.parametrize(
    "settings",
    [
        ["client_encoding = 'LATIN1'"],
        ["client_encoding = 'SQL_ASCII'"],
        ["datestyle = 'German'", "timezone = 'America/New_York'", "bytea_output = 'escape'"],
        ["standard_conforming_strings = off", "default_transaction_read_only = on"],
    ],
)
def test_a_roles_own_settings_change_nothing(settings_of_role, settings):
    with settings_of_role(*settings).recordings_found() as recordings:
        rows = {row.trajectory_id: (row.reason, row.not_trainable, row.has_text) for row in survey(recordings)}
    assert rows == dict.fromkeys(SOUND, (None, None, True))


@pytest.mark.parametrize("limit", ["statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"])
def test_a_time_limit_is_told_with_its_remedy(settings_of_role, limit):
    limited = settings_of_role(f"{limit} = '100ms'")
    with pytest.raises(DatabaseError, match=f"ALTER ROLE .* SET {limit}"), limited.connect_application() as connection:
        if limit == "statement_timeout":
            connection.execute("SELECT pg_sleep(5)")
        time.sleep(0.2)
        connection.execute("SELECT")


def test_bytes_that_are_no_utf8_are_told_with_their_remedy(settings_of_role):
    with pytest.raises(DatabaseError, match="SQL_ASCII"), settings_of_role().connect_application() as connection:
        connection.execute(r"SELECT convert_from('\xff', 'UTF8')")


def test_an_agent_that_row_security_hides_is_not_unknown(settings_of_role):
    hidden = settings_of_role(before='ALTER TABLE {schema}."User" ENABLE ROW LEVEL SECURITY')
    with hidden.recordings_found() as recordings:
        assert {row.reason for row in survey(recordings)} == {None}
        assert [table.table for table in catalogue_of(recordings.application).tables if table.row_security] == ["User"]


def test_rows_that_row_security_hides_are_not_called_unrecorded(settings_of_role):
    hidden = settings_of_role(before="ALTER TABLE {schema}.trajectories ENABLE ROW LEVEL SECURITY")
    settings = Settings(application_url=SecretStr(hidden.application_url), database_url=SecretStr(hidden.url))
    found = verify(settings, datetime.now(UTC))
    (missing,) = found.missing
    assert "row security" in missing.what and 'CREATE POLICY babylon_rl ON "game"."trajectories"' in missing.remedy
