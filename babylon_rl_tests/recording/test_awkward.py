"""A stranger's database, read with SELECT alone: each row has its window, its reason and its numbers."""

import hashlib

import psycopg
import pytest
from psycopg import sql

from babylon_rl.database.connect import Database
from babylon_rl.database.tables import windows
from babylon_rl.database.window_rows import write_rows
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.accounting import unaccounted
from babylon_rl.recording.reader import read_window
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.recording.survey import survey
from babylon_rl.scoring.windows import score_windows
from babylon_rl_tests.recording.awkward import ROWS, make_application, make_reader

WINDOWS = sorted({row.window for row in ROWS if row.window})
IDS = {row.row.get("trajectoryId", row.name): row for row in ROWS}


def fingerprint(url: str) -> dict[str, str]:
    """Digest of every table of the application, as COPY writes it."""
    found = {}
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, name in sorted(names):
            digest = hashlib.sha256()
            query = sql.SQL("COPY (SELECT * FROM {0} ORDER BY id) TO STDOUT").format(sql.Identifier(schema, name))
            with connection.cursor().copy(query) as copy:
                for block in copy:
                    digest.update(block)
            found[f"{schema}.{name}"] = digest.hexdigest()
    return found


@pytest.mark.parametrize("schema", ["public", "Game state"])
def test_every_awkward_row_is_where_it_belongs_and_the_application_is_left_as_it_was(
    database, new_database, server, schema
):
    there = new_database()
    make_application(there.url, None if schema == "public" else schema, add_on=schema == "public")
    before = fingerprint(there.url)
    role = f"reader_{there.url.rpartition('test_')[2].partition('?')[0]}"
    url = make_reader(there.url, role, schema)
    url += ("&" if "?" in url else "?") + f"schema={schema.replace(' ', '%20')}&connection_limit=5"
    mixed = Database(database.url, embedded=True, application_url=url)
    try:
        _look(mixed)
        assert fingerprint(there.url) == before
    finally:
        with psycopg.connect(there.url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP OWNED BY {0}").format(sql.Identifier(role)))
            connection.execute(sql.SQL("DROP ROLE {0}").format(sql.Identifier(role)))


def _look(database: Database) -> None:
    with database.recordings() as recordings:
        told = list(survey(recordings))
        read = {window_id: read_window(recordings, window_id, texts=False) for window_id in WINDOWS}
    assert sorted(row.trajectory_id for row in told) == sorted(IDS)
    assert {r.trajectory_id: (r.window_id, r.reason, r.not_trainable) for r in told} == {
        name: (row.window, row.reason, row.not_trainable) for name, row in IDS.items()
    }
    usable = {t.trajectory_id: t for window in read.values() for t in window.usable}
    assert {name: (t.window_id, t.window_pnl, t.not_trainable, t.misnamed) for name, t in usable.items()} == {
        name: (row.window, row.pnl, row.not_trainable, row.misnamed)
        for name, row in IDS.items()
        if row.window and not row.reason
    }
    assert all(row.detail for row in told if row.reason or row.not_trainable)
    summary = summarize_windows(database, WINDOWS, 1)
    for row in summary.frame.to_dict("records"):
        own = [one for one in ROWS if one.window == row["window_id"]]
        assert row["recorded"] == len(own) == row["usable"] + row["rejected"]
        assert row["trainable"] == sum(one.reason is None and one.not_trainable is None for one in own)
        assert row["misnamed"] == sum(one.misnamed for one in own)
    with database.connect() as connection:
        write_rows(connection, windows, summary)
        assert unaccounted(connection, WINDOWS).empty
        kept = connection.execute(
            "SELECT trajectory_id, window_id, reason, refused_for FROM babylon_rl.rejected_trajectories "
            "WHERE superseded_at IS NULL"
        ).fetchall()
    assert sorted(kept) == sorted(
        (name, row.window, row.reason or row.not_trainable, "scoring" if row.reason else "training")
        for name, row in IDS.items()
        if row.reason or row.not_trainable
    )
    outcomes = outcome_windows(database, WINDOWS).frame
    scores = score_windows(database, WINDOWS, outcomes, "alpha")
    assert not scores.failed and sorted(scores.frame["trajectory_id"]) == sorted(usable)
