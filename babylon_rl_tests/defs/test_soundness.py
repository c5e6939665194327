"""Failing windows, checks and staleness on a real instance: what is lost, what is told, and what is stopped."""

import dagster as dg
import pytest

from babylon_rl.database import tables
from babylon_rl.database.connect import Recordings
from babylon_rl.database.history import replace_windows
from babylon_rl.database.window_rows import open_failures, write_rows
from babylon_rl.definitions import build_defs
from babylon_rl.defs.checks.results import MOST_WINDOWS
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.defs.staleness import staleness
from babylon_rl.groups.trained_view import decode_group, digest_of
from babylon_rl.groups.verification import altered_groups
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.accounting import unaccounted
from babylon_rl.recording.recorder import write_runs
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.scoring.verification import without_spread
from babylon_rl.scoring.windows import score_windows
from babylon_rl.windows import parse_window_id
from babylon_rl_tests.defs.ranges import materialize, record, span
from babylon_rl_tests.recording.runs import WINDOW, add_agents, add_row, make_run


def rows(database, query: str, *parameters) -> list[tuple]:
    with database.connect() as connection:
        return connection.execute(query, parameters).fetchall()


def change(database, query: str, *parameters) -> None:
    with database.connect() as connection:
        connection.execute(query, parameters)


def current(database, table: str) -> dict[str, int]:
    """Newest current row by window."""
    query = f"SELECT window_id, max(row_id) FROM babylon_rl.{table} WHERE superseded_at IS NULL GROUP BY 1"
    return dict(rows(database, query))


def checked(result, asset: str) -> dict[str, dg.AssetCheckEvaluation]:
    return {e.check_name: e for e in result.get_asset_check_evaluations() if e.asset_key.path[-1] == asset}


def break_window(database, window_id: str) -> None:
    """One agent's capital and order become so small that its reward is infinite."""
    change(
        database,
        """UPDATE trajectories SET "stepsJson" = regexp_replace("stepsJson",
           '"(agentBalance|notional)":[0-9.e+-]+', '"\\1":1e-320', 'g') WHERE "trajectoryId" = (
               SELECT min("trajectoryId") FROM trajectories WHERE "windowId" = %s AND "finalPnL" <> 0)""",
        window_id,
    )


def test_a_window_that_fails_is_told_and_the_others_are_written_until_it_is_mended(database, instance):
    ids = record(database, 4)
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    before = {table: current(database, table) for table in DATA_ASSETS}
    told = rows(database, 'SELECT "trajectoryId", "stepsJson" FROM trajectories WHERE "windowId" = %s', ids[1])
    break_window(database, ids[1])
    change(database, 'DELETE FROM trajectories WHERE "windowId" = %s AND "agentId" = %s', ids[2], "agent-1")
    result = materialize(database, instance, span(ids[0], ids[-1]))
    assert result.success
    after = {table: current(database, table) for table in DATA_ASSETS}
    for table in ("scored_trajectories", "judge_calibration", "art_groups"):
        assert {w for w in ids if after[table][w] != before[table][w]} == {ids[2]}
    evaluation = checked(result, "scored_trajectories")["all_windows_computed"]
    assert not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert evaluation.metadata["window_ids"].value == [ids[1]]
    assert "or the recording where its P&L" in evaluation.metadata["errors"].value
    (waiting,) = checked(result, "art_groups")["all_windows_computed"].metadata["rows"].value.records
    assert f"waits for scored_trajectories of {ids[1]}" in waiting.data["detail"]
    materializations = result.asset_materializations_for_node("scored_trajectories")
    left = {m.partition: m for m in materializations if m.metadata["status"].value == "not computed"}
    assert list(left) == [ids[1]]
    standing = rows(database, "SELECT count(*) FROM babylon_rl.scored_trajectories WHERE window_id = %s", ids[1])
    assert [(left[ids[1]].metadata["dagster/row_count"].value,)] == standing
    # A run of the window alone has nothing to show for it.
    assert not materialize(database, instance, {"dagster/partition": ids[1]}).success
    with database.connect() as connection:
        assert len(open_failures(connection, DATA_ASSETS)) == 3
        for trajectory_id, text in told:
            connection.execute(
                'UPDATE trajectories SET "stepsJson" = %s WHERE "trajectoryId" = %s', (text, trajectory_id)
            )
    mended = materialize(database, instance, {"dagster/partition": ids[1]})
    assert mended.success and checked(mended, "art_groups")["all_windows_computed"].passed
    with database.connect() as connection:
        assert open_failures(connection, DATA_ASSETS).empty
    # What was computed is what stood before: nothing of the window was written again but its summary.
    assert current(database, "scored_trajectories") == after["scored_trajectories"]


def test_warnings_stop_nothing_and_say_which_windows(database, instance, monkeypatch):
    monkeypatch.setenv("MIN_AGENTS_PER_WINDOW", "9")
    ids = record(database, 2)
    change(database, 'UPDATE "Market" SET resolved = false')
    result = materialize(database, instance, span(ids[0], ids[-1]))
    assert result.success and current(database, "art_groups").keys() == set(ids)
    for asset, name in (
        ("windows", "window_is_ready"),
        ("market_outcomes", "outcomes_are_settled"),
        ("art_groups", "group_is_trainable"),
    ):
        evaluation = checked(result, asset)[name]
        assert not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.WARN
        assert evaluation.metadata["window_ids"].value == ids and evaluation.description
    assert checked(result, "windows")["trajectories_accounted_for"].passed


PLANTED = {
    "trajectories_accounted_for": ("windows", "NEW.usable := NEW.usable - 1", "scored_trajectories"),
    "rewards_are_finite": ("scored_trajectories", "NEW.reward := 'NaN'", "art_groups"),
    "trained_text_is_recorded": ("art_groups", "NEW.group_digest := 'x'", "trained_checkpoints"),
}


@pytest.mark.parametrize("check", PLANTED)
def test_corruption_stops_the_next_stage(database, instance, check):
    table, planted, later = PLANTED[check]
    ids = record(database, 1)
    change(
        database,
        f"""CREATE FUNCTION corrupt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {planted}; RETURN NEW; END $$;
            CREATE TRIGGER corrupt BEFORE INSERT ON babylon_rl.{table} FOR EACH ROW EXECUTE FUNCTION corrupt()""",
    )
    result = materialize(database, instance, {"dagster/partition": ids[0]}, [*DATA_ASSETS, "trained_checkpoints"])
    assert not result.success
    evaluation = checked(result, table)[check]
    assert not evaluation.passed and evaluation.metadata["window_ids"].value == ids
    assert current(database, table) and not current(database, later)


def test_stored_text_is_compared_with_the_recorded_text_and_late_data_is_no_damage(database, instance):
    with database.connect() as connection:
        add_agents(connection, "agent-1", "agent-2", "agent-3", "agent-4")
        write_runs(connection, [make_run(f"t{n}", f"agent-{n}", pnl=float(n)) for n in (1, 2, 3)])
    assert materialize(database, instance, {"dagster/partition": WINDOW}).success

    def found() -> list[str]:
        with database.connect() as connection:
            return altered_groups(Recordings.of(connection), [WINDOW])["what"].tolist()

    assert rows(database, "SELECT status, members FROM babylon_rl.art_groups") == [("trainable", 3)] and not found()
    change(
        database,
        """UPDATE babylon_rl.art_groups
           SET "group" = jsonb_set("group", '{members,1,decisions,0,response}', '"SELL"')""",
    )
    assert "does not match its digest" in found()[0]
    # Whoever computes the digest anew is found out by the recording.
    stored = rows(database, 'SELECT "group" FROM babylon_rl.art_groups')[0][0]
    change(database, "UPDATE babylon_rl.art_groups SET group_digest = %s", digest_of(decode_group(stored)))
    assert "response is not what was recorded" in found()[0]
    with database.connect() as connection:
        write_runs(connection, [make_run("t4", "agent-4", pnl=9.0)])
    assert not found()


def test_checks_run_alone_over_the_newest_windows(database, instance):
    ids = record(database, 2)
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    change(database, "UPDATE babylon_rl.scored_trajectories SET reward = 'NaN' WHERE window_id = %s", ids[0])
    definitions = build_defs({"database": DatabaseResource(url=database.url)})
    key = dg.AssetCheckKey(dg.AssetKey("scored_trajectories"), "rewards_are_finite")
    job = definitions.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=[], asset_check_selection={key}
    )
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed and evaluation.metadata["window_ids"].value == [ids[0]]
    assert evaluation.metadata["windows looked at"].value == 2 <= MOST_WINDOWS


def test_an_unchanged_run_has_the_same_data_version(database, instance):
    ids = record(database, 2)

    def versions() -> set[str]:
        result = materialize(database, instance, span(ids[0], ids[-1]), ["windows"])
        return {m.tags["dagster/data_version"] for m in result.asset_materializations_for_node("windows")}

    first = versions()
    assert len(first) == 1 and versions() == first
    change(database, 'DELETE FROM trajectories WHERE "windowId" = %s AND "agentId" = %s', ids[1], "agent-1")
    assert versions() != first


def test_what_became_stale_without_a_run_is_shown_once_and_cleared(database, instance):
    ids = record(database, 3)
    assert materialize(database, instance, span(ids[0], ids[-1])).success
    key = dg.AssetCheckKey(dg.AssetKey("art_groups"), "rows_are_current")

    def tick(cursor):
        with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
            found = staleness(context, database=DatabaseResource(url=database.url))
        if isinstance(found, dg.SkipReason):
            return cursor, 0
        for event in found.asset_events:
            instance.report_runless_asset_event(event)
            assert event.asset_key.path[-1] in found.skip_reason.skip_message
        return found.cursor, len(found.asset_events)

    def shown() -> dg.AssetCheckEvaluation:
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        return record.event.dagster_event.asset_check_evaluation_data

    cursor, _ = tick(None)
    assert tick(cursor) == (cursor, 0) and shown().passed
    change(database, 'DELETE FROM trajectories WHERE "windowId" = %s AND "agentId" = %s', ids[1], "agent-1")
    assert materialize(database, instance, {"dagster/partition": ids[1]}, ["windows"]).success
    cursor, events = tick(cursor)
    assert events == 3 and not shown().passed and shown().severity == dg.AssetCheckSeverity.WARN
    assert shown().metadata["window_ids"].value == [ids[1]]
    before = current(database, "art_groups")
    assert materialize(database, instance, {"dagster/partition": ids[1]}).success and shown().passed
    assert {w for w, row in current(database, "art_groups").items() if row != before[w]} == {ids[1]}
    assert tick(cursor)[1] == 3 and shown().passed


def test_equal_rewards_and_missing_rejected_rows_are_found_in_their_windows(database):
    ids = record(database, 3)
    with database.connect() as connection:
        add_row(connection, "cut", "agent-1", windowId=ids[1], stepsJson="[", endTime=parse_window_id(ids[1]))
    summary = summarize_windows(database, ids, 3)
    outcomes = outcome_windows(database, ids).frame
    with database.connect() as connection:
        write_rows(connection, tables.windows, summary)
        replace_windows(
            connection, tables.scored_trajectories, ids, score_windows(database, ids, outcomes, "alpha").frame
        )
        assert summary.frame["rejected"].tolist() == [0, 1, 0] and unaccounted(connection, ids).empty
        connection.execute("DELETE FROM babylon_rl.rejected_trajectories WHERE window_id = %s", (ids[1],))
        assert unaccounted(connection, ids)["window_id"].tolist() == [ids[1]]
        assert without_spread(connection, ids, 1e-9).empty
        connection.execute("UPDATE babylon_rl.scored_trajectories SET reward = 0.25 WHERE window_id = %s", (ids[2],))
        assert without_spread(connection, ids, 1e-9).values.tolist() == [[ids[2], 8, 0.25]]
