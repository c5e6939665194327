"""Changes: any write of a row is noticed in the windows that it concerns, through the application's own indexes."""

from datetime import timedelta

import psycopg
import pytest

from babylon_rl.database.connect import Database, Recordings
from babylon_rl.readiness import buckets, changes
from babylon_rl.readiness.changes import Walk, changed_windows, misnamed
from babylon_rl.windows import parse_window_id, shift_window
from babylon_rl_tests.readiness.conftest import World
from babylon_rl_tests.recording.runs import WINDOW

OLD = shift_window(WINDOW, -500)


def looked(world: World) -> list[str]:
    with world.database.connect() as connection:
        found, world.walk = changed_windows(Recordings.of(connection), world.walk, world.now, world.look_back_hours)
    return found


def test_a_new_row_is_noticed_once(world):
    assert looked(world) == []
    world.row("a")
    assert looked(world) == [WINDOW]
    assert looked(world) == []


@pytest.mark.parametrize("named", [WINDOW, None, OLD, "window-3", "2025-01-15T10:30", ""])
@pytest.mark.parametrize(
    "write",
    [
        """UPDATE trajectories SET "stepsJson" = reverse("stepsJson")""",
        """UPDATE trajectories SET "usedInTraining" = true""",
        """DELETE FROM trajectories""",
    ],
)
def test_any_write_of_a_row_is_noticed_whatever_the_row_names(world, named, write):
    world.row("a", windowId=named)
    world.row("other", window=shift_window(WINDOW, -1))
    looked(world)
    world.sql(f"""{write} WHERE "trajectoryId" = 'a'""")
    # A row is of the hour in which it ended; the window that it only names is told nothing.
    assert looked(world) == [WINDOW]
    assert looked(world) == []


def test_a_row_that_moves_changes_the_hour_it_left_and_the_one_it_came_to(world):
    world.row("a", windowId=None)
    looked(world)
    world.sql("""UPDATE trajectories SET "startTime" = "startTime" - interval '2 hours',
                 "endTime" = "endTime" - interval '2 hours'""")
    assert looked(world) == [shift_window(WINDOW, -2), WINDOW]


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO babylon_rl.recorded_calls VALUES ('c', 'a', 0, 'm', 'base', '{1}', '{2}', '{-1}', NULL, 1, 1, 0,"
        " NULL, 'stop')",
        'INSERT INTO llm_call_logs (id, "trajectoryId", "stepId", "callId", timestamp, model, purpose, "systemPrompt",'
        ' "userPrompt", response, temperature, "maxTokens") VALUES '
        "('1', 'a', 'a-step-0', 'c', now(), 'm', 'action', '', '', '', 1, 1)",
    ],
)
@pytest.mark.parametrize("named", [WINDOW, None])
def test_a_call_that_comes_after_its_trajectory_is_noticed_in_the_look_back(world, write, named):
    world.row("a", windowId=named)
    looked(world)
    world.sql(write)
    assert looked(world) == [WINDOW]
    assert looked(world) == []


@pytest.mark.parametrize("named", [True, False])
def test_the_walk_comes_round_and_finds_a_change_older_than_the_look_back(world, monkeypatch, named):
    monkeypatch.setattr(changes, "LEAST_SLICE", 5)
    monkeypatch.setattr(changes, "MOST_SLICE", 5)
    ids = [shift_window(OLD, i) for i in range(20)]
    for window_id in ids:
        world.row(window_id, window=window_id, windowId=window_id if named else None)
    seen = [looked(world) for _ in range(8)]
    assert sorted(sum(seen, [])) == ids and max(map(len, seen)) < 20
    world.sql("""UPDATE trajectories SET "finalPnL" = 7 WHERE "trajectoryId" = %s""", ids[11])
    world.sql("""DELETE FROM trajectories WHERE "trajectoryId" = %s""", ids[3])
    assert sorted(sum((looked(world) for _ in range(8)), [])) == [ids[3], ids[11]]
    world.sql("DELETE FROM trajectories")
    assert sorted(sum((looked(world) for _ in range(8)), [])) == [i for i in ids if i != ids[3]]


def test_times_that_no_window_holds_stop_nothing(world):
    world.row("a")
    world.row("b", windowId=None)
    for name, column in (("a", "endTime"), ("b", "startTime")):
        world.sql(f"""UPDATE trajectories SET "{column}" = 'infinity' WHERE "trajectoryId" = %s""", name)
    assert looked(world) == []
    world.sql("""UPDATE trajectories SET "endTime" = '12025-01-01'""")
    assert looked(world) == []
    world.sql("""UPDATE trajectories SET "startTime" = '0001-01-01 BC', "endTime" = '0900-05-05 10:30'""")
    assert looked(world) == ["0900-05-05T10:00"]


@pytest.mark.parametrize("cursor", ["", None, "0", "[]", '{"started": "soon"}', '{"hours": "x"}', "2025-01-15T10:00"])
def test_a_cursor_that_is_not_a_walks_begins_a_round(cursor):
    assert Walk.of(cursor) == Walk()
    walk = Walk("2025-01-15T10:00", "2024-12-01T00:00", 48)
    assert Walk.of(walk.cursor()) == walk and len(walk.cursor()) < 100


def test_strays_are_the_rows_that_ended_in_the_window_and_do_not_name_it(world):
    world.row("named")
    world.row("null", windowId=None)
    world.row("odd", windowId="window-3")
    world.row("odd-later", windowId="window-3", endTime=parse_window_id(WINDOW) + timedelta(hours=1))
    world.row("null-later", windowId=None, endTime=parse_window_id(WINDOW) + timedelta(hours=1))
    looked(world)
    with world.database.connect() as connection:
        found = misnamed(Recordings.of(connection), [WINDOW, OLD])
    assert {window: sorted(ids) for window, ids in found.items()} == {WINDOW: ["null", "odd"], OLD: []}


MANY = """
    INSERT INTO trajectories
        (id, "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "stepsJson",
         "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus",
         "updatedAt")
    SELECT n::text, n::text, 'agent-' || 1 + n % 9, t, t, 1,
           CASE WHEN n % 2 = 0 THEN to_char(t, 'YYYY-MM-DD"T"HH24:00') END, '[]', '{}', '{}', '{}', 0, 1, 'completed', t
    FROM (SELECT n, timestamp '2024-06-01' + n / 4 * interval '1 hour' AS t FROM generate_series(1, 20000) n) numbered
"""


def plan(connection: psycopg.Connection, query, values: dict) -> str:
    return "\n".join(line for (line,) in connection.execute(psycopg.sql.SQL("EXPLAIN ") + query, values))


@pytest.mark.parametrize("analyzed", [True, False])
def test_every_look_at_the_applications_table_goes_through_an_index(world, analyzed):
    database: Database = world.database
    world.sql(MANY)
    world.sql("INSERT INTO babylon_rl.trajectories SELECT * FROM trajectories")
    if analyzed:
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE trajectories, babylon_rl.trajectories")
    since = parse_window_id("2024-09-01T00:00").replace(tzinfo=None)
    until = since + timedelta(hours=24)
    names = [shift_window("2024-09-01T00:00", i) for i in range(49)]
    ranges = {
        "agents": [f"agent-{n}" for n in range(1, 10)], "since": since, "until": until, "most": 2000,
    }  # fmt: skip
    elsewhere = {"window_ids": names[:3], "named": names[1:4], "started": names[1:4], **ranges}
    looks = {
        "look-back": (buckets.LOOK_BACK, {"names": names}),
        "walk": (buckets.WALK, {"after": "2024-09-01T00:00", "last": "2024-09-04T00:00"}),
        "walk to the end": (buckets.WALK_TO_THE_END, {"after": "2024-09-01T00:00"}),
        "slice": (changes.SLICE_END, {"after": "2024-09-01T00:00", "rows": 300}),
        "agents": (changes.AGENTS, {}),
        "unnamed look-back": (buckets.UNNAMED_LOOK_BACK, ranges),
        "unnamed walk": (buckets.UNNAMED_WALK, ranges),
        "next start": (changes.NEXT_START, ranges),
        "rows started": (changes.ROWS_STARTED, ranges),
        "misnamed": (changes.MISNAMED_NAMED, elsewhere),
        "unnamed misnamed": (changes.MISNAMED_UNNAMED, elsewhere),
    }
    with database.connect() as connection:
        recordings = Recordings.of(connection)
        changes.through_indexes(recordings)
        plans = {
            (origin.name, name): plan(connection, query_of(origin, query), values)
            for origin in buckets.origins_of(recordings)
            for name, (query, values) in looks.items()
        }
    scanned = {name: text for name, text in plans.items() if "Seq Scan on trajectories" in text}
    assert not scanned
    assert all("trajectories_" in text for text in plans.values())


def query_of(origin: buckets.Origin, query: buckets.Look | psycopg.sql.SQL) -> psycopg.sql.Composed:
    if isinstance(query, buckets.Look):
        return query.query(origin, with_ids=query.calls)
    return origin.query(query)
