"""The sweep: every closed hour since the first recorded one is explained, in bounded ranges, and then it is quiet."""

from datetime import timedelta

from babylon_rl.database.connect import Recordings
from babylon_rl.readiness import sweep as module
from babylon_rl.readiness.sweep import Range, sweep
from babylon_rl.windows import parse_window_id, shift_window, window_range
from babylon_rl_tests.readiness.conftest import START, World, materialize, run
from babylon_rl_tests.recording.runs import WINDOW


def swept(world: World) -> list[Range]:
    with world.database.connect() as connection:
        return sweep(Recordings.of(connection), world.now, world.waits, START, world.run_states)


def spans(ranges: list[Range]) -> list[tuple[str, str]]:
    return [(found.first, found.last) for found in ranges]


def finish(world: World, ranges: list[Range]) -> None:
    for found in ranges:
        materialize(world, *window_range(found.first, found.last))
        world.runs[found.run_key] = "succeeded"


def at(hours: int) -> str:
    return shift_window(WINDOW, hours)


def test_nothing_is_swept_where_nothing_is_recorded(world):
    assert swept(world) == []


def test_empty_and_thin_hours_are_swept_once_their_wait_is_over_and_ready_ones_are_left_to_the_sensor(world):
    world.window(at(0))
    world.window(at(3), agents=1)
    world.window(at(5))
    world.now = parse_window_id(at(6)) + timedelta(minutes=20)
    found = world.tick()
    assert [r.window_id for r in found.requests] == [at(0), at(5)]
    run(world, found)
    assert swept(world) == []  # six hours of waiting are not over for the first empty hour
    world.now = parse_window_id(at(9)) + timedelta(minutes=20)
    first = swept(world)
    assert spans(first) == [(at(1), at(2))]
    assert swept(world) == []  # requested
    finish(world, first)
    world.now = parse_window_id(at(13)) + timedelta(minutes=20)
    second = swept(world)
    assert spans(second) == [(at(3), at(4)), (at(6), at(6))]
    finish(world, second)
    assert swept(world) == [] and world.ids() == []
    assert set(world.states().values()) == {"materialized"}
    status = dict(world.sql("SELECT window_id, status FROM babylon_rl.windows WHERE superseded_at IS NULL"))
    assert [status[at(hour)] for hour in range(7)] == [
        "ready", "empty", "empty", "too_few_agents", "empty", "ready", "empty"
    ]  # fmt: skip


def test_ranges_and_their_number_are_bounded_and_the_next_sweeps_go_on(world, monkeypatch):
    monkeypatch.setattr(module, "MOST_WINDOWS", 10)
    monkeypatch.setattr(module, "MOST_RANGES", 2)
    world.window(at(0), agents=1)
    world.now = parse_window_id(at(35)) + timedelta(hours=7)
    world.tick()
    ranges = []
    for _ in range(3):
        found = swept(world)
        finish(world, found)
        ranges += spans(found)
        world.now += timedelta(minutes=1)
    assert ranges == [(at(0), at(9)), (at(10), at(19)), (at(20), at(29)), (at(30), at(35))]


def test_late_agents_take_a_swept_window_up_again(world):
    world.window(at(0), agents=1)
    world.now = parse_window_id(at(0)) + timedelta(hours=7, minutes=30)
    world.tick()
    finish(world, swept(world))
    assert world.ids() == [] and world.entry()[0] == "materialized"
    world.row("late", "agent-2")
    run(world, world.tick())
    world.tick()
    assert world.sql("SELECT status FROM babylon_rl.windows WHERE superseded_at IS NULL") == [("ready",)]


def test_rows_that_leave_too_few_agents_are_corrected_by_the_sweep(world):
    world.window(at(0))
    world.now = parse_window_id(at(0)) + timedelta(hours=7, minutes=30)
    run(world, world.tick())
    world.sql("""DELETE FROM trajectories WHERE "agentId" = 'agent-2'""")
    assert world.ids() == []
    assert spans(swept(world)) == [(at(0), at(0))]


def test_a_sweep_that_failed_is_tried_by_later_ones_so_often(world):
    world.window(at(0), agents=1)
    world.now = parse_window_id(at(0)) + timedelta(hours=7, minutes=30)
    world.tick()
    keys = []
    for _ in range(5):
        keys += [found.run_key for found in swept(world)]
        world.runs |= dict.fromkeys(keys, "failed")
        world.now += timedelta(minutes=5)
    assert len(set(keys)) == len(keys) == 3
    assert world.entry()[0] == "failed"


def test_without_the_sensor_the_sweep_takes_every_hour(world):
    for hour in (0, 2):
        world.window(at(hour))
    world.now = parse_window_id(at(2)) + timedelta(hours=7, minutes=30)
    found = swept(world)
    assert spans(found) == [(at(0), at(2))]
    finish(world, found)
    assert swept(world) == [] and set(world.states().values()) == {"materialized"}
    # The sensor, once it runs, finds them done.
    assert world.ids() == []


def test_changes_that_no_tick_has_read_for_a_day_are_swept(world):
    world.window(at(0))
    world.now = parse_window_id(at(0)) + timedelta(minutes=50)
    world.tick()
    assert world.entry()[0] == "changed"
    world.now += timedelta(hours=26)
    assert spans(swept(world)) == [(at(0), at(19))]


def test_names_that_only_look_like_windows_are_not_the_first_hour(world):
    world.row("bad", window=at(0), windowId="2024-02-31T10:00")
    world.row("early", window=at(0), windowId="2023-02-01T10:00")
    world.tick()
    with world.database.connect() as connection:
        assert module.first_recorded_window(Recordings.of(connection), START, at(9)) == at(0)
