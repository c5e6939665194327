"""Online figures: what each checkpoint did in a window, from the recorded runs alone."""

from datetime import timedelta

import dagster as dg
import pytest

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import market_outcomes, online_evaluations, scored_trajectories
from babylon_rl.database.window_rows import write_rows
from babylon_rl.defs.hourly_online_evaluation import hourly_online_evaluation
from babylon_rl.defs.partitions import range_tags
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.evaluation.online import drawdown, observe_windows, unobserved
from babylon_rl.evaluation.summary import standing
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.recorder import Recorder
from babylon_rl.scoring.windows import score_windows
from babylon_rl.windows import parse_window_id, shift_window
from babylon_rl_tests.market.scripted import completion, endpoint

FIRST = "2025-01-15T05:00"


def arms(body):
    """ACME's and MOON's agents have checkpoint a, which once answers what is no action; the others have b."""
    buy, sell, _ = body["structured_outputs"]["choice"]
    name = buy.partition(" ")[2]
    if name in ("ACME", "MOON"):
        return 200, completion(buy if name == "ACME" else "to the moon", checkpoint="a")
    return 200, completion(sell, checkpoint="b")


@pytest.fixture
def ids(database, tmp_path):
    """Three scored windows that checkpoints a and b played, four agents each."""
    ids = [shift_window(FIRST, n) for n in range(3)]
    pairs = [(w, make_window(3, "train", n)) for n, w in enumerate(ids)]
    with endpoint(arms) as script, Recorder(database, tmp_path / "spool.jsonl") as recorder:
        where = Endpoint(script.base_url, "babylon")
        play_windows(database, recorder, where, pairs, agents=4, label=Label("x"), sampling=Sampling())
        recorder.close()
    outcomes = outcome_windows(database, ids)
    with database.connect() as connection:
        write_rows(connection, market_outcomes, outcomes)
    frame = outcomes.frame
    scores = score_windows(database, ids, frame, "alpha")
    with database.connect() as connection:
        write_rows(connection, scored_trajectories, scores)
    return ids


def observe(database, ids):
    rows = observe_windows(database, ids)
    with database.connect() as connection:
        return rows.frame, write_rows(connection, online_evaluations, rows)


def test_each_checkpoint_has_its_agents_pnl_reward_and_valid_share(database, ids):
    frame, wrote = observe(database, ids)
    assert wrote.written == 6 and observe(database, ids)[1].written == 0
    with database.connect() as connection:
        scores = read_frame(connection, current_rows(scored_trajectories, ids))
    for (window_id, checkpoint), own in scores.groupby(["window_id", "checkpoint"]):
        row = frame[(frame["window_id"] == window_id) & (frame["checkpoint_id"] == checkpoint)].iloc[0]
        assert row["agents"] == row["decisions"] == 2
        assert row["reward_mean"] == pytest.approx(own["reward"].mean())
        assert row["pnl_mean"] == pytest.approx(sum(f["window_pnl"] for f in own["features"]) / 2)
        assert row["valid"] == {"a": 0.5, "b": 1.0}[checkpoint]
        assert row["latency_p95_ms"] > 0 and row["drawdown"] >= 0 and row["experiment_id"] is None
        assert row["scores_digest"] == own["digest"].iloc[0]


def test_the_effect_of_one_over_another_is_over_the_windows_that_both_answered(database, ids):
    frame, _ = observe(database, ids)
    with database.connect() as connection:
        (found,) = standing(connection, "a")
        (early,) = standing(connection, "a", last=ids[0])
    means = frame.pivot(index="window_id", columns="checkpoint_id", values="pnl_mean")
    assert (found.source, found.baseline, found.windows, found.valid) == ("online", "b", 3, 0.5)
    assert found.effect == pytest.approx((means["a"] - means["b"]).mean()) and found.low < found.effect < found.high
    assert (early.windows, early.low) == (1, None)


def test_scored_windows_are_looked_for_until_they_are_observed_and_again_when_their_scores_change(database, ids):
    now = parse_window_id(ids[-1]) + timedelta(hours=2)

    def requested():
        with database.connect() as connection:
            assert unobserved(connection, now + timedelta(days=9)) == []
        resource = DatabaseResource(url=database.url)
        context = dg.build_schedule_context(scheduled_execution_time=now, resources={"database": resource})
        found = hourly_online_evaluation(context)
        return found if isinstance(found, dg.SkipReason) else [(one.partition_key, dict(one.tags)) for one in found]

    assert requested() == [(None, range_tags(ids[0], ids[-1]))]
    observe(database, ids)
    assert isinstance(requested(), dg.SkipReason)
    with database.connect() as connection:
        connection.execute("UPDATE babylon_rl.scored_trajectories SET digest = 'other' WHERE window_id = %s", (ids[1],))
    assert requested() == [(ids[1], {})]


def test_the_experiment_of_a_window_stands_with_it(database, ids):
    with database.connect() as connection:
        connection.execute(
            """INSERT INTO babylon_rl.training_runs (training_run, base_model, seed, settings, schedule, first_window,
               state) VALUES ('r', 'tiny', 0, '{}', '{}', %s, 'running')""",
            (FIRST,),
        )
        connection.execute(
            """INSERT INTO babylon_rl.checkpoints (checkpoint_id, training_run, base_model, step, metrics, state)
               VALUES ('a', 'r', 'tiny', 1, '{}', 'ready'), ('b', 'r', 'tiny', 0, '{}', 'ready')"""
        )
        connection.execute(
            """INSERT INTO babylon_rl.experiments (experiment_id, candidate, baseline, design, share, seed,
               first_window, horizon, settings, forecast, tried, state, reason, who, created_at, ended_at)
               VALUES ('e', 'a', 'b', 'switchback', 0.5, 1, %s, 9, '{}', '{}', 1, 'keep', '', 'x',
                       '2025-01-15 04:50+00', '2025-01-15 06:30+00')""",
            (FIRST,),
        )
    frame, _ = observe(database, ids)
    assert frame.groupby("window_id")["experiment_id"].first().tolist() == ["e", "e", None]


def test_drawdown_is_the_largest_fall_from_a_peak_over_the_capital(database, ids):
    with database.recordings() as recordings:
        run = next(iter(RangeReader(recordings, ids).stream(ids[0], texts=False)))
    import msgspec

    step = run.steps[0]
    state = msgspec.structs.replace(step.environment_state, agentPnL=110.0)
    risen = msgspec.structs.replace(
        run, steps=[msgspec.structs.replace(step, environment_state=state)], first_pnl=100.0, last_pnl=90.0,
        window_pnl=-10.0,
    )  # fmt: skip
    assert drawdown(risen, 1000.0) == pytest.approx(0.02)  # from +10 to -10
    assert drawdown(risen, None) is None
