"""Whatever is recorded, in whatever order and pieces it is read: no row is lost, none doubled, and nothing raises."""

import json
import random

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from babylon_rl.database.connect import Recordings
from babylon_rl.database.tables import windows
from babylon_rl.database.window_rows import write_rows
from babylon_rl.recording import catalog, pieces
from babylon_rl.recording.accounting import count_recorded
from babylon_rl.recording.decoding import Refusal, decode_steps
from babylon_rl.recording.reader import read_window
from babylon_rl.recording.reasons import FOR_SCORING, FOR_TRAINING
from babylon_rl.recording.summary import summarize_windows
from babylon_rl.recording.survey import survey
from babylon_rl.scoring.windows import score_windows
from babylon_rl.windows import shift_window
from babylon_rl_tests.recording.awkward import GOOD, call, log, step, steps
from babylon_rl_tests.recording.runs import WINDOW, add_agents, add_row

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["agentPnL", "llmCalls", "action", "x"]) | st.text(max_size=4), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def altered(value, chosen: random.Random, other):
    """The value with something in it replaced by `other`, or left out, at a place that is chosen."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or chosen.random() < 0.15:
        return other
    key = chosen.choice(inside)
    copy = dict(value) if isinstance(value, dict) else list(value)
    if isinstance(copy, dict) and chosen.random() < 0.2:
        del copy[key]
    else:
        copy[key] = altered(copy[key], chosen, other)
    return copy


@st.composite
def mutated(draw) -> str:
    """Steps as they are recorded, with something else in some places, or cut or patched as text."""
    whole = [step(0, 100.0, calls=[call(callId="c")]), step(1, 104.0)]
    chosen = draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(0, 3))):
        whole = altered(whole, chosen, draw(VALUES))
    text = json.dumps(whole)
    cut, end = sorted((chosen.randint(0, len(text)), chosen.randint(0, len(text))))
    patched = [text, text, text[:cut], text[:cut] + text[end:], text[:cut] + "\x01?" + text[cut:]]
    return chosen.choice(patched)


TEXTS = st.text() | VALUES.map(json.dumps) | st.lists(VALUES, max_size=3).map(json.dumps) | mutated()


@given(TEXTS | st.binary())
@settings(max_examples=300, deadline=None)
def test_any_text_gives_steps_or_a_reason(text):
    for given_as in (text, text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else (text,):
        try:
            assert decode_steps(given_as).steps
        except Refusal as refusal:
            assert refusal.reason in FOR_SCORING and refusal.detail


@given(mutated())
@settings(max_examples=300, deadline=None)
def test_who_leaves_texts_unread_is_told_the_same_of_all_else(text):
    found = []
    for texts in (True, False):
        try:
            read = decode_steps(text, texts=texts)
            found.append(
                (read.said, [(s.timestamp, s.environment_state, s.action, len(s.llm_calls)) for s in read.steps])
            )
        except Refusal as refusal:
            found.append((refusal.reason, refusal.detail))
    assert found[0] == found[1]


@given(st.lists(TEXTS, min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_row_holds_it_is_used_or_rejected(database, texts, chosen):
    with database.connect() as connection, connection.transaction(force_rollback=True):
        add_agents(connection, "agent-1")
        for number, text in enumerate(texts):
            storable = text.replace("\x00", "").encode("utf-8", "replace").decode()
            name = chosen.choice([None, WINDOW, "label", "2025-01-15T10:30"])
            add_row(
                connection, f"t{number}", stepsJson=storable, windowId=name, finalPnL=chosen.choice([None, 0.0, 1.0])
            )
        recordings = Recordings.of(connection)
        window = read_window(recordings, WINDOW)
        surveyed = {row.trajectory_id: row for row in survey(recordings)}
        assert count_recorded(recordings, [WINDOW]) == {WINDOW: window.recorded}
        names = [row.trajectory_id for row in (*window.usable, *window.rejected)]
        assert len(set(names)) == len(names) and len(surveyed) == len(texts)
        assert set(names) == {name for name, row in surveyed.items() if row.window_id == WINDOW}
        assert all(row.reason in FOR_SCORING and row.detail for row in window.rejected)
        assert all(row.not_trainable is None or row.not_trainable in FOR_TRAINING for row in window.usable)


def _recordings(connection, seed: int) -> list[str]:
    """A few hundred rows in some hours, of both origins, some in both, in an order that the seed decides."""
    ids = [shift_window(WINDOW, hour) for hour in range(8)]
    shape, order = random.Random(7), random.Random(seed)
    rows = []
    for number in range(160):
        hour = ids[number % 8]
        told = [step(k, shape.random() * 100, hour=hour, calls=None if shape.random() < 0.7 else []) for k in range(3)]
        end = told[0]["timestamp"] / 1000 + 60
        rows.append((f"t{number:03}", {
            "windowId": shape.choice([hour, hour, None, "label", ids[0]]), "stepsJson": shape.choice([
                steps(*told), steps(*told), steps(*told)[:-3], "null"]), "finalPnL": shape.choice([None, 3.0]),
            "endTime": pd.Timestamp(end, unit="s", tz="UTC").to_pydatetime()}, shape.random()))  # fmt: skip
    order.shuffle(rows)
    for name, row, origin in rows:
        add_row(connection, name, f"agent-{int(name[1:]) % 5}", **row)
        if origin < 0.3:
            connection.execute(
                'INSERT INTO babylon_rl.trajectories SELECT * FROM trajectories WHERE "trajectoryId" = %s', (name,)
            )
        if origin < 0.15:
            connection.execute('DELETE FROM trajectories WHERE "trajectoryId" = %s', (name,))
    return ids


def _frames(database, ids, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    outcomes = pd.DataFrame({"window_id": [], "instrument": [], "kind": [], "change": [], "revision": []})
    return (
        summarize_windows(database, ids, 2, **options).frame,
        score_windows(database, ids, outcomes, "alpha", **options).frame,
    )


def test_order_pieces_and_workers_change_no_row_and_no_digest(database, new_database, _template, monkeypatch):
    other = new_database(template=_template)
    for one, seed in ((database, 1), (other, 2)):
        with one.connect() as connection:
            add_agents(connection, *(f"agent-{n}" for n in range(5)))
            ids = _recordings(connection, seed)
    summary, scores = _frames(database, ids)
    assert summary["recorded"].sum() == 160 and summary["rejected"].sum() > 20 and len(scores) > 60
    assert (summary["recorded"] == summary["usable"] + summary["rejected"]).all()
    again = [_frames(database, ids, workers=2), _frames(other, ids)]
    for rows, size, batch in ((1, 1, 1), (3, 4000, 7)):
        monkeypatch.setattr(pieces, "PIECE_ROWS", rows)
        monkeypatch.setattr(pieces, "PIECE_BYTES", size)
        monkeypatch.setattr(catalog, "BATCH", batch)
        again.append(_frames(other, ids))
    for other_summary, other_scores in again:
        pd.testing.assert_frame_equal(other_summary, summary)
        pd.testing.assert_frame_equal(other_scores, scores)


def test_a_trajectory_of_both_origins_is_the_applications_wherever_ours_ended(database):
    with database.connect() as connection:
        add_agents(connection, "agent-1")
        add_row(connection, "both", stepsJson=GOOD, finalPnL=110.0)
        connection.execute("INSERT INTO babylon_rl.trajectories SELECT * FROM trajectories")
        connection.execute("""UPDATE babylon_rl.trajectories SET "finalPnL" = 0, "windowId" = NULL,
                              "endTime" = "endTime" + interval '1 hour'""")
        recordings, later = Recordings.of(connection), shift_window(WINDOW, 1)
        assert [t.window_pnl for t in read_window(recordings, WINDOW).usable] == [10.0]
        assert read_window(recordings, later).recorded == 0
        assert count_recorded(recordings, [WINDOW, later]) == {WINDOW: 1, later: 0}
        assert [row.window_id for row in survey(recordings)] == [WINDOW]
        connection.execute("DELETE FROM trajectories")
        assert [t.trajectory_id for t in read_window(recordings, later).usable] == ["both"]


def _as_javascript(told: list) -> str:
    """What JSON.stringify(JSON.parse(…)) makes of what Python wrote."""
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False).replace("100.0", "100").replace("2.0", "2")


@pytest.mark.parametrize(
    "respelled",
    [
        lambda told: json.dumps(told, indent=1, ensure_ascii=False),
        lambda told: _as_javascript(told),
        lambda told: json.dumps([{**one, "reward": 7.5} for one in told]),
        lambda told: json.dumps(told).replace("100.0", "100").replace("2.0", "2"),
    ],
)
def test_the_revision_is_of_what_was_written_and_not_of_its_spelling(database, respelled):
    told = [step(0, 100.0, action={"result": {"shares": 2.0, "é": [2.0]}}, calls=[call(response="é\n")])]
    with database.connect() as connection:
        add_agents(connection, "agent-1")
        add_row(connection, "t", stepsJson=json.dumps(told))
        before = read_window(Recordings.of(connection), WINDOW).revision
        connection.execute('UPDATE trajectories SET "stepsJson" = %s', (respelled(told),))
        assert read_window(Recordings.of(connection), WINDOW).revision == before
        told[0]["llmCalls"][0]["response"] = "e\n"
        connection.execute('UPDATE trajectories SET "stepsJson" = %s', (json.dumps(told),))
        assert read_window(Recordings.of(connection), WINDOW).revision != before


def test_what_belongs_to_no_window_is_kept_once_until_it_reads_otherwise(database):
    def materialize(window_ids: list[str], min_agents: int) -> None:
        with database.connect() as connection:
            write_rows(connection, windows, summarize_windows(database, window_ids, min_agents))

    def kept() -> list[tuple]:
        with database.connect() as connection:
            return connection.execute(
                "SELECT trajectory_id, reason, ended_in, superseded_at IS NULL FROM babylon_rl.rejected_trajectories "
                "WHERE window_id IS NULL ORDER BY row_id"
            ).fetchall()

    with database.connect() as connection:
        add_agents(connection, "agent-1")
        add_row(connection, "odd", windowId="2025-01-15T10:30")
    for _ in range(2):
        materialize([WINDOW], 1)
        assert kept() == [("odd", "off_hour_window", WINDOW, True)]
    materialize([shift_window(WINDOW, 1)], 1)  # not of this hour
    assert kept()[0][3]
    with database.connect() as connection:
        connection.execute("""UPDATE trajectories SET "endTime" = 'infinity'""")
    materialize([shift_window(WINDOW, 5)], 1)
    assert kept() == [("odd", "off_hour_window", WINDOW, False), ("odd", "impossible_time", None, True)]
    with database.connect() as connection:
        connection.execute("DELETE FROM trajectories")
    materialize([WINDOW], 1)
    assert [current for *_, current in kept()] == [False, False]


def test_rows_that_training_used_are_refused_and_leave_the_revision_as_it_was(database):
    with database.connect() as connection:
        add_agents(connection, "agent-1")
        add_row(connection, "t", stepsJson=GOOD)
        before = read_window(Recordings.of(connection), WINDOW)
        connection.execute('UPDATE trajectories SET "usedInTraining" = true')
        after = read_window(Recordings.of(connection), WINDOW)
    assert [r.reason for r in after.rejected] == ["used_in_training"] and not after.usable
    assert after.revision == before.revision


def test_calls_of_the_log_fill_bare_steps_in_their_order_from_either_origin(database):
    with database.connect() as connection:
        add_agents(connection, "agent-1")
        add_row(connection, "t", stepsJson=steps(step(0, 0, calls=[], stepId="uuid-0"), step(1, 0, calls=[])))
        for table, rows in (
            ("llm_call_logs", [log("t", 0, 1, response="second"), log("t", 0, 0, response="first")]),
            ("babylon_rl.llm_call_logs", [log("t", 0, 0, response="first"), log("t", 1, stepId="t-step-1")]),
        ):
            for row in rows:
                row = {"id": row["callId"], "trajectoryId": "t", **row}
                columns = ", ".join(f'"{name}"' for name in row)
                connection.execute(
                    f"INSERT INTO {table} ({columns}, timestamp) VALUES ({', '.join(['%s'] * len(row))}, now())",
                    list(row.values()),
                )
        (read,) = read_window(Recordings.of(connection), WINDOW).usable
        assert [[c.response for c in s.llm_calls] for s in read.steps] == [["first", "second"], ['{"action":"trade"}']]
        connection.execute("UPDATE babylon_rl.llm_call_logs SET response = 'other' WHERE \"callId\" = 't-call-0-0'")
        (refused,) = read_window(Recordings.of(connection), WINDOW).rejected
        assert refused.reason == "conflicting_calls" and "t-call-0-0" in refused.detail
