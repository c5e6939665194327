"""The shipper: each event of the spool is in PostgreSQL once, whatever it meets, and what cannot be is put aside."""

import time

import msgspec
import pytest

from babylon_rl.database.connect import Database
from babylon_rl.errors import DatabaseError
from babylon_rl.serving.gateway.events import EndEvent, GapEvent, StartEvent, StepEvent
from babylon_rl.serving.gateway.files import SHIPPED, SPOOL
from babylon_rl.serving.gateway.shipper import delete_shipped, refused_lines, ship, waiting_bytes
from babylon_rl.serving.gateway.spool import segment_file, segments
from babylon_rl_tests.serving.gateway.agents import call_event, end, recording, spooled, start, step


def rows(database: Database, query: str) -> list[tuple]:
    with database.connect() as connection:
        return connection.execute(query).fetchall()


def calls(database: Database) -> list[str]:
    return [name for (name,) in rows(database, "SELECT call_id FROM babylon_rl.gateway_calls ORDER BY call_id")]


def newest(folder):
    return segment_file(folder / SPOOL, segments(folder / SPOOL)[-1])


def test_a_call_is_written_to_the_letter(database, tmp_path):
    event = call_event("c1", trajectory_id="t1", step_number=3, experiment_id="e1", first_byte_ms=3.5)
    spooled(tmp_path, event, GapEvent(gap_id="g1", since=1.0, until=2.5, calls=7, reason="disk full"))
    assert ship(database, tmp_path) == (2, 0, 0)
    with database.connect() as connection:
        cursor = connection.execute("SELECT * FROM babylon_rl.gateway_calls")
        found = dict(zip([column.name for column in cursor.description], cursor.fetchone(), strict=True))
    written = {**msgspec.structs.asdict(event), "asked_at": found["asked_at"], "written_at": found["written_at"]}
    assert found == {name: value for name, value in written.items() if name not in ("body_sha256", "content_type")}
    assert found["asked_at"].timestamp() == event.asked_at
    assert rows(database, "SELECT gap_id, calls, reason FROM babylon_rl.recording_gaps") == [("g1", 7, "disk full")]


def test_shipping_goes_on_where_it_stopped_and_from_the_beginning_without_a_place(database, tmp_path):
    spooled(tmp_path, call_event("c1"), call_event("c2"))
    assert ship(database, tmp_path).events == 2
    spooled(tmp_path, call_event("c3"))
    assert waiting_bytes(tmp_path) > 0
    assert ship(database, tmp_path) == (1, 0, 0)
    (tmp_path / SHIPPED).unlink()
    assert ship(database, tmp_path) == (3, 0, 0)
    (tmp_path / SHIPPED).write_bytes(b"{torn")
    assert ship(database, tmp_path) == (3, 0, 0)
    assert calls(database) == ["c1", "c2", "c3"]


def test_a_torn_line_waits_for_its_end_while_its_segment_is_open_and_is_passed_over_afterwards(database, tmp_path):
    spooled(tmp_path, call_event("c1"))
    line = msgspec.json.encode(call_event("c2")) + b"\n"
    with newest(tmp_path).open("ab") as file:
        file.write(line[:100])
        file.flush()
        assert ship(database, tmp_path).events == 1
        file.write(line[100:])
    assert ship(database, tmp_path).events == 1
    with newest(tmp_path).open("ab") as file:
        file.write(line[:100])
    spooled(tmp_path, call_event("c3"))
    assert ship(database, tmp_path) == (1, 0, 0)
    assert calls(database) == ["c1", "c2", "c3"]


def test_one_event_that_cannot_be_written_holds_up_no_other_and_is_put_aside_once(database, tmp_path):
    spooled(
        tmp_path,
        call_event("c1"),
        call_event("c2", token_ids=[2**40], logprobs=[0.0]),
        call_event("c3", window_id="2025-01-15T10:30"),
        StepEvent(trajectory_id="nobody", step_number=0, content="{}", call_ids=[], at=1.0),
        call_event("c4"),
    )
    with newest(tmp_path).open("ab") as file:
        file.write(b'{"type":"else"}\nno json\xff\n')
    spooled(tmp_path, call_event("c5"))
    assert ship(database, tmp_path)[:2] == (3, 5)
    (tmp_path / SHIPPED).unlink()
    assert ship(database, tmp_path)[:2] == (3, 5)
    assert calls(database) == ["c1", "c4", "c5"]
    aside = sorted(refused_lines(tmp_path), key=lambda one: (one["segment"], one["offset"]))
    assert len(aside) == 5 and all(one.get("line") or one.get("base64") for one in aside)
    for one, reason in zip(aside, ("out of range", "whole_hour", "no start", "no event", "no event"), strict=True):
        assert reason in one["reason"]


def test_nul_and_halves_of_surrogate_pairs_are_kept_as_in_all_recordings(database, tmp_path):
    spooled(tmp_path, call_event("c1", request="a\x00b", sampling={"stop": "x\x00y"}))
    line = msgspec.json.encode(call_event("c2", response="HALF")).replace(b"HALF", b"a\\ud800b")
    with newest(tmp_path).open("ab") as file:
        file.write(line + b"\n")
    assert ship(database, tmp_path)[:2] == (2, 0)
    found = rows(database, "SELECT request, response, sampling FROM babylon_rl.gateway_calls ORDER BY call_id")
    assert found[0][0] == "ab" and found[0][2] == {"stop": "xy"} and found[1][1] == "a\ufffdb"


def test_without_a_server_nothing_moves_and_nothing_is_lost(tmp_path, database):
    spooled(tmp_path, call_event("c1"))
    away = Database("postgresql://nobody:hidden@127.0.0.1:1/none", embedded=False)
    with pytest.raises(DatabaseError) as caught:
        ship(away, tmp_path)
    assert "hidden" not in str(caught.value) and not (tmp_path / SHIPPED).exists()
    assert waiting_bytes(tmp_path) > 0 and ship(database, tmp_path).events == 1


def test_a_schema_that_is_missing_is_waited_for_and_no_fault_of_the_events(tmp_path, new_database):
    spooled(tmp_path, call_event("c1"))
    with pytest.raises(DatabaseError, match="babylon-rl db migrate"):
        ship(new_database(), tmp_path)
    assert refused_lines(tmp_path) == [] and waiting_bytes(tmp_path) > 0


def test_segments_go_when_they_are_shipped_and_older_than_what_requests_are_remembered_for(database, tmp_path):
    spooled(tmp_path, call_event("c1"))
    spooled(tmp_path, call_event("c2"))
    spooled(tmp_path, call_event("c3"))
    now, there = time.time(), segments(tmp_path / SPOOL)
    assert delete_shipped(tmp_path, 60, now + 7200) == 0  # nothing is shipped
    ship(database, tmp_path)
    assert delete_shipped(tmp_path, 60, now) == 0  # all is young
    assert delete_shipped(tmp_path, 60, now + 7200) == 2
    assert segments(tmp_path / SPOOL) == there[-1:]  # the newest may still be written to
    spooled(tmp_path, call_event("c4"))
    assert ship(database, tmp_path) == (1, 0, 0)


def test_what_was_said_of_a_trajectory_outlives_its_segments(database, tmp_path):
    with recording(tmp_path) as client:
        assert client.post("/v1/trajectories", json=start()).is_success
        assert client.post("/v1/trajectories/t1/steps", json=step()).is_success
    spooled(tmp_path, call_event("c1"))
    ship(database, tmp_path)
    assert delete_shipped(tmp_path, 60, time.time() + 7200) == 1
    with recording(tmp_path) as client:
        assert client.post("/v1/trajectories/t1/steps", json=step(reward=3.0)).status_code == 409
        assert client.post("/v1/trajectories/t1/end", json=end()).is_success
    ship(database, tmp_path)
    assert rows(database, "SELECT state FROM babylon_rl.gateway_trajectories") == [("ended",)]


def test_what_contradicts_a_trajectory_that_is_there_is_put_aside(database, tmp_path):
    begun = StartEvent(trajectory_id="t1", key_id="k", agent_id="a", body={"startTime": 5}, at=1.0)
    ended = EndEvent(trajectory_id="t1", body={"endTime": 6}, at=2.0)
    taken = StepEvent(trajectory_id="t1", step_number=0, content='{"x":1}', call_ids=[], at=1.5)
    spooled(tmp_path, begun, begun, ended, ended)  # equal ones are one
    assert ship(database, tmp_path)[:2] == (4, 0)
    replace = msgspec.structs.replace
    spooled(tmp_path, replace(begun, agent_id="b"), taken, replace(ended, body={"endTime": 7}), ended, begun)
    assert ship(database, tmp_path)[:2] == (2, 3)
    reasons = [one["reason"] for one in refused_lines(tmp_path)]
    assert ["otherwise" in reasons[0], "no more steps" in reasons[1], "already" in reasons[2]] == [True] * 3
