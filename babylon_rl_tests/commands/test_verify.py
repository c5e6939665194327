"""`babylon-rl verify`: it says what is there and the shortest list of what is missing, and writes nothing."""

import json

import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.commands.verify import lines
from babylon_rl.database.connect import Database
from babylon_rl.recording.findings import Verification
from babylon_rl.recording.verification import NOT_READY, READY, verify
from babylon_rl.settings import Settings
from babylon_rl_tests.commands.strangers import NOW, PASSWORD, WINDOW, add_live_ticks, add_played, reader, with_tables
from babylon_rl_tests.recording.runs import add_agents, add_row


@pytest.fixture
def look(tmp_path):
    """Function that verifies the application's database of a URL; no embedded server is there."""

    def look(url: str, **settings) -> Verification:
        # Not by name: `database_url` is also how DATABASE_URL may be spelled.
        named = {"application_url": SecretStr(url), "home": tmp_path, "database_home": tmp_path / "none", **settings}
        return verify(Settings().model_copy(update=named), NOW)

    return look


def told(found: Verification) -> str:
    return "\n".join(lines(found))


def one_missing(found: Verification) -> str:
    """What is missing, where that is one thing."""
    assert not found.ready and found.verdict == NOT_READY
    assert len(found.missing) == 1, found.missing
    assert found.missing[0].what in told(found) and found.missing[0].remedy in told(found)
    return f"{found.missing[0].what} {found.missing[0].remedy}"


def test_our_simulated_market_is_ready(database, look):
    with database.connect() as connection:
        add_played(connection)
    found = look(database.url)
    assert found.ready and found.verdict == READY and not found.missing
    assert (found.rows.recorded, found.rows.scorable, found.rows.trainable) == (8, 8, 8)
    assert (found.rows.text_share, found.rows.logprobs_share) == (1.0, 1.0)
    assert (found.windows.count, found.windows.ready, found.windows.to_train_on) == (2, 2, 2)
    assert found.our_tables.state == "there"


def test_live_ticks_without_calls_are_scored_and_not_trained(database, look):
    with database.connect() as connection:
        add_live_ticks(connection)
    found = look(database.url)
    assert "llmCalls is empty in all 8 rows" in one_missing(found) and "docs/recording.md" in one_missing(found)
    assert found.rows.by_producer == {"agent_tick": 8}
    assert found.rows.scorable == 8 and found.rows.not_trainable == {"no_llm_call": 8} and found.rows.text_share == 0
    assert found.windows.ready == 2 and found.windows.to_train_on == 0


def test_text_without_log_probabilities_is_not_enough(database, look):
    with database.connect() as connection:
        add_played(connection)
        connection.execute("DELETE FROM babylon_rl.recorded_calls")
    found = look(database.url)
    assert "log-probabilities" in one_missing(found)
    assert (found.rows.text_share, found.rows.logprobs_share) == (1.0, 0.0)


def test_two_independent_holes_are_both_told_and_nothing_else(database, look):
    with database.connect() as connection:
        add_live_ticks(connection, agents=2)
    found = look(database.url)
    assert ["No prompt" in found.missing[0].what, "3 agents" in found.missing[1].what] == [True, True]
    assert len(found.missing) == 2


def test_rows_are_told_by_producer_window_and_reason(database, look):
    with database.connect() as connection:
        add_played(connection, windows=1)
        add_agents(connection, "benched")
        add_row(connection, "empty", "benched", stepsJson="[]")
        add_row(connection, "off", "benched", windowId="2025-01-15T10:30")
    found = look(database.url)
    assert found.ready
    assert found.rows.rejected == {"empty_steps": 1, "off_hour_window": 1}
    assert sum(found.rows.by_producer.values()) == found.rows.recorded == 6
    assert [one.window_id for one in found.windows.listed] == [WINDOW, None]
    assert found.windows.without_window == 1
    for part in ("empty_steps 1", "off_hour_window 1", WINDOW, "without a window: 1"):
        assert part in told(found)


def test_the_newest_rows_are_taken_in_whole_windows(database, tmp_path):
    with database.connect() as connection:
        add_played(connection, windows=3)
    settings = Settings(database_url=SecretStr(database.url), home=tmp_path)
    found = verify(settings, NOW, sample=5)
    assert found.rows.recorded == 8 and found.windows.count == 2 and found.rows.newest == 5
    assert "the newest 5" in told(found)
    everything = verify(settings, NOW, sample=500)
    assert everything.rows.recorded == 12 and everything.rows.newest is None


def test_a_role_that_may_only_read_a_schema_of_its_own_is_enough(new_database, look):
    url = with_tables(new_database())
    with Database(url, embedded=False).connect() as connection:
        add_live_ticks(connection)
    with reader(url, "game") as readers:
        before = _contents(url)
        found = look(readers)
        assert _contents(url) == before
    assert "llmCalls is empty" in one_missing(found) and found.rows.scorable == 8
    assert found.server.schema == "game" and not found.server.may_create_schema and not found.server.our_schema
    assert found.our_tables.state == "unreachable" and "embedded" in found.our_tables.where
    assert all(table.usable and not table.insertable for table in found.catalogue.tables)
    assert not found.catalogue.prisma


def test_our_tables_are_read_where_they_are_and_missed_where_they_are_not(new_database, database, look):
    url = with_tables(new_database())
    with Database(url, embedded=False).connect() as connection:
        add_live_ticks(connection, agents=3, windows=1)
    with database.connect() as connection:
        add_row_of_ours(connection, "imported")
    with reader(url, "game") as readers:
        beside = look(readers, database_url=SecretStr(database.url))
        alone = look(readers, database_url=SecretStr("postgresql://nobody@127.0.0.1:1/nothing"))
    assert (beside.our_tables.state, beside.rows.recorded) == ("there", 4)
    assert (alone.our_tables.state, alone.rows.recorded) == ("unreachable", 3)
    assert "127.0.0.1:1" in alone.our_tables.where and alone.windows.ready == 1


def test_a_right_that_is_missing_is_told_with_its_grant(new_database, look):
    url = with_tables(new_database())
    with reader(url, "game", tables=("User", "llm_call_logs")) as readers:
        found = look(readers)
        said = one_missing(found)
    role = found.server.role
    assert f'GRANT SELECT ON "game"."trajectories" TO "{role}"' in said
    assert f'GRANT USAGE ON SCHEMA "game" TO "{role}"' in said
    assert any('"game"."StockPrice"' in note for note in found.notes)


def test_a_schema_that_may_not_be_used_is_told_apart_from_one_that_is_not_named(new_database, look):
    url = with_tables(new_database())
    with reader(url, "game", usage=False) as readers:
        assert 'GRANT USAGE ON SCHEMA "game"' in one_missing(look(readers))
    assert "?schema=game" in one_missing(look(url.replace("&schema=game", "")))


OPTIONAL = (
    *("User", "llm_call_logs", "StockPrice", "Organization", "PredictionPriceHistory", "Market"),
    *("PerpPosition", "Position"),
)


def test_without_the_tables_that_are_not_required_the_rest_is_told(new_database, look):
    database = new_database()
    url = with_tables(database)
    with Database(url, embedded=False).connect() as connection:
        add_live_ticks(connection)
        for name in (*OPTIONAL, "market_outcomes"):
            connection.execute(f'DROP TABLE "{name}" CASCADE')
    found = look(url)
    assert found.rows is not None and found.rows.recorded == 8, told(found)
    assert {table.table for table in found.catalogue.tables if not table.present} == {*OPTIONAL, "market_outcomes"}
    assert found.market.prices is None and not found.ready
    for name in OPTIONAL:
        assert any(note.startswith(f"{name} (") for note in found.notes)


def test_columns_are_compared_with_the_applications(new_database, look):
    url = with_tables(new_database())
    with Database(url, embedded=False).connect() as connection:
        connection.execute("ALTER TABLE trajectories ADD COLUMN window_id VARCHAR(50), ADD COLUMN window_hours INT")
        connection.execute("CREATE TABLE _prisma_migrations (id text)")
        connection.execute("CREATE TABLE ruler_scores (id text)")
    found = look(url)
    assert "Nothing is recorded" in one_missing(found)
    assert found.catalogue.table("trajectories").snake_case == ["window_id", "window_hours"]
    assert found.catalogue.prisma and found.catalogue.first_system == ["ruler_scores"]
    with Database(url, embedded=False).connect() as connection:
        connection.execute("ALTER TABLE trajectories ALTER \"stepsJson\" TYPE jsonb USING '[]'")
    assert '"stepsJson" is jsonb and not text' in one_missing(look(url))
    with Database(url, embedded=False).connect() as connection:
        connection.execute('ALTER TABLE trajectories DROP "stepsJson", DROP "windowId"')
    assert '"windowId", "stepsJson"' in one_missing(look(url))


def test_an_empty_database_says_where_the_tables_are_looked_for(new_database, look):
    assert "There is no table trajectories" in one_missing(look(new_database().url))


def test_where_nothing_is_named_it_says_what_to_name_and_starts_nothing(tmp_path):
    home = tmp_path / "none"
    found = verify(Settings(home=tmp_path, database_home=home), NOW)
    assert "DATABASE_URL" in one_missing(found) and not home.exists()


def test_the_exit_code_is_the_verdict_and_the_password_stays_unsaid(new_database, database, run, tmp_path):
    url = with_tables(new_database())
    with database.connect() as connection:
        add_played(connection)
    unreachable = f"postgresql://nobody:{PASSWORD}@127.0.0.1:1/nothing"
    with reader(url, "game") as readers:
        for named, code in ((database.url, 0), (readers, 1), (unreachable, 1)):
            for options in ([], ["--json"]):
                done = run("verify", *options, DATABASE_URL=named)
                assert done.returncode == code, done.stderr
                assert PASSWORD not in done.stdout + done.stderr and "Traceback" not in done.stderr
                if options:
                    assert json.loads(done.stdout)["ready"] is (code == 0)
                else:
                    assert (READY if code == 0 else NOT_READY) in done.stdout.splitlines()
    assert not (tmp_path / "none").exists()


def add_row_of_ours(connection: psycopg.Connection, name: str) -> None:
    """A row that was recorded in our schema."""
    add_agents(connection, name)
    add_row(connection, name, name)
    connection.execute("INSERT INTO babylon_rl.trajectories SELECT * FROM trajectories")
    connection.execute("DELETE FROM trajectories")


def _contents(url: str) -> list[tuple]:
    with Database(url, embedded=False).connect() as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        rows = connection.execute("SELECT t::text FROM trajectories t ORDER BY 1").fetchall()
    return sorted(tables) + rows
