"""The leak guard over recorded windows: whatever is planted in a prompt leaves its run out, and the others stay."""

import json

import psycopg
import pytest

from babylon_rl.database.connect import Recordings
from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import market_outcomes
from babylon_rl.groups.build import build_group
from babylon_rl.groups.searching import LeakGuard
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.outcomes.outcomes import outcomes_of
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.recorder import Recorder
from babylon_rl.scoring.scorers import score_window
from babylon_rl.windows import shift_window
from babylon_rl_tests.groups.planted import PLANTED, ROWS, STRENGTH, Hour
from babylon_rl_tests.market.scripted import endpoint, first_choice

FIRST = "2025-01-15T10:00"
AGENTS, EACH = 8, 4  # agents of a window, and how many of them get a leak
READY = {"status": "ready", "reason": ""}


def play(database, tmp_path, count: int, seed: int = 5, agents: int = AGENTS) -> dict[str, object]:
    """Windows of the simulated market with their outcomes; the worlds by window."""
    worlds = {shift_window(FIRST, n): make_window(seed, "train", n) for n in range(count)}
    with Recorder(database, tmp_path / "spool.jsonl") as recorder, endpoint(first_choice) as script:
        where, sampling = Endpoint(script.base_url, "policy"), Sampling(temperature=1.0, exploration=0.1, seed=1)
        play_windows(
            database, recorder, where, list(worlds.items()), agents=agents, label=Label("x"), sampling=sampling
        )
        recorder.flush()
    with database.connect() as connection:
        connection.execute("DELETE FROM llm_call_logs")  # they would speak against what is altered
        replace_windows(connection, market_outcomes, list(worlds), outcomes_of(connection, list(worlds)))
    return worlds


def plant(connection: psycopg.Connection, trajectory_id: str, text: str, **columns: str) -> None:
    """Put a text at the end of the run's prompt, and values into its row."""
    (steps,) = connection.execute(
        'SELECT "stepsJson" FROM trajectories WHERE "trajectoryId" = %s', (trajectory_id,)
    ).fetchone()
    value = json.loads(steps)
    value[-1]["llmCalls"][0]["userPrompt"] += f"\n{text}"
    connection.execute(
        """UPDATE trajectories SET "stepsJson" = %(steps)s, "metadataJson" = coalesce(%(metadata)s, "metadataJson"),
           "aiJudgeReasoning" = %(judged)s WHERE "trajectoryId" = %(id)s""",
        {
            "steps": json.dumps(value),
            "metadata": columns.get("metadataJson"),
            "judged": columns.get("aiJudgeReasoning"),
            "id": trajectory_id,
        },
    )


def groups_of(database, window_ids) -> dict[str, dict]:
    with database.connect() as connection:
        recordings = Recordings.of(connection)
        reader, guard = RangeReader(recordings, window_ids), LeakGuard(recordings, window_ids)
        built = {}
        for window_id in window_ids:
            recorded = reader.trainable(window_id)
            scored = score_window(recorded, outcomes_of(connection, [window_id]))
            leaks = guard.leaks(recorded, scored.to_dict("records"))
            built[window_id] = build_group(READY, recorded, scored, leaks=leaks)
    return built


def runs_of(database, window_id: str) -> list[tuple[str, float, float]]:
    with database.connect() as connection:
        return connection.execute(
            'SELECT "trajectoryId", "finalPnL", "finalBalance" FROM trajectories WHERE "windowId" = %s ORDER BY 1',
            (window_id,),
        ).fetchall()


def left_out(row: dict) -> dict[str, str]:
    return {one["trajectory_id"]: one["reason"] for one in row["left_out"]}


@pytest.mark.parametrize("seed", [5, 6])
def test_each_planted_leak_leaves_its_run_out_and_the_others_stay(database, tmp_path, seed):
    assert len(PLANTED) >= 30
    kinds = list(PLANTED)
    worlds = play(database, tmp_path, -(-len(kinds) // EACH), seed)
    assert not any(row["left_out"] for row in groups_of(database, list(worlds)).values())
    planted: dict[str, dict[str, str]] = {window_id: {} for window_id in worlds}
    with database.connect() as connection:
        for number, kind in enumerate(kinds):
            window_id = list(worlds)[number // EACH]
            trajectory_id, pnl, balance = runs_of(database, window_id)[number % EACH * 2]
            hour = Hour(window_id, worlds[window_id], pnl, balance)
            plant(connection, trajectory_id, PLANTED[kind](hour), **ROWS.get(kind, lambda h: {})(hour))
            if kind == "a judge's strength":
                connection.execute(
                    """INSERT INTO reward_judgments (id, "trajectoryId", "judgeModel", "judgeVersion", "overallScore",
                       reasoning, "strengthsJson", "criteriaJson") VALUES ('1', %s, 'm', '1', 1, '', %s, '{}')""",
                    (trajectory_id, json.dumps([STRENGTH])),
                )
            planted[window_id][trajectory_id] = kind
    missed, wrong = [], []
    for window_id, row in groups_of(database, list(worlds)).items():
        found = left_out(row)
        missed += [kind for name, kind in planted[window_id].items() if not found.get(name, "").startswith("leak: ")]
        wrong += [found[name] for name in found.keys() - planted[window_id].keys()]
    assert (missed, wrong) == ([], [])
