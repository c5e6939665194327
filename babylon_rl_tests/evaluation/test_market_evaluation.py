"""A checkpoint in the simulated market: paired by seed, in memory, and not played twice."""

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import market_evaluations
from babylon_rl.database.window_rows import write_rows
from babylon_rl.evaluation import market_evaluation
from babylon_rl.evaluation.asking import Asked
from babylon_rl.evaluation.market_evaluation import MarketPlan, earned, evaluate_in_market, play_arm
from babylon_rl.evaluation.paired import paired_effect
from babylon_rl.evaluation.summary import standing
from babylon_rl.market.endpoint import Endpoint
from babylon_rl.market.play import play_fixed_unrecorded
from babylon_rl.market.policies import POLICIES
from babylon_rl.training.runs import promote
from babylon_rl_tests.evaluation.asked import COPY, OTHER, RUN, TRAINED, informed
from babylon_rl_tests.market.scripted import endpoint

PLAN = MarketPlan(windows=12, agents=4)


def evaluate(database, settings, window_ids, plan=PLAN):
    said = []
    rows = evaluate_in_market(database, settings, window_ids, plan, said.append)
    with database.connect() as connection:
        return rows, write_rows(connection, market_evaluations, rows), said


def test_a_copy_of_the_base_model_plays_exactly_as_it_does_and_another_does_not(database, booked):
    rows, _, _ = evaluate(database, booked, list(TRAINED.values()))
    frame = rows.frame.set_index(["candidate", "baseline"])
    copy = frame.loc[COPY, f"{RUN}@0"]
    assert (copy["effect"], copy["low"], copy["high"]) == (0.0, 0.0, 0.0)
    assert frame.loc[OTHER, f"{RUN}@0"]["effect"] == frame.loc[OTHER, COPY]["effect"] != 0.0
    assert set(frame.loc[COPY].index) == {f"{RUN}@0", *POLICIES}
    assert (frame["windows"] == PLAN.windows).all() and (frame["valid"] == 1.0).all()
    assert frame.loc[COPY, "hold"]["baseline_value"] == 0.0
    with database.connect() as connection:
        for table in ('"trajectories"', "babylon_rl.recorded_calls", '"StockPrice"'):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        stood = {one.baseline: one for one in standing(connection, OTHER)}
    assert stood[COPY].effect == frame.loc[OTHER, COPY]["effect"] and stood[COPY].windows == PLAN.windows


def test_the_same_again_plays_nothing_and_writes_nothing_and_another_seed_does(database, booked, monkeypatch):
    ids = [TRAINED[COPY]]
    first, wrote, _ = evaluate(database, booked, ids)
    assert wrote.written == 1 + len(POLICIES)

    def never(*_):
        raise AssertionError("played again")

    with monkeypatch.context() as patch:
        patch.setattr(market_evaluation, "play_unrecorded", never)
        again, wrote, said = evaluate(database, booked, ids)
    assert wrote.written == 0 and wrote.unchanged == tuple(ids) and "stand as they are" in said[0]
    assert again.frame["effect"].tolist() == first.frame["effect"].tolist()
    other, wrote, _ = evaluate(database, booked, ids, PLAN._replace(seed=5))
    assert wrote.written == 1 + len(POLICIES) and set(other.frame["seed"]) == {5}


def test_what_is_promoted_meanwhile_is_compared_with_when_it_is_asked_again(database, booked):
    ids = [TRAINED[COPY]]
    evaluate(database, booked, ids)
    with database.connect() as connection:
        promote(connection, RUN, OTHER, "test", "test", {})
    rows, wrote, _ = evaluate(database, booked, ids)
    assert OTHER in set(rows.frame["baseline"]) and wrote.written
    assert "(promoted)" in rows.frame.set_index("baseline").loc[OTHER, "reason"]


def test_an_informed_policy_comes_out_better_than_doing_nothing_and_the_fixed_policies():
    hours = PLAN.hours()
    with endpoint(informed([window for _, window in hours], PLAN.agents)) as script:
        asked = Asked(Endpoint(script.base_url, "informed"), ours=True)
        own = earned(play_arm(asked, hours, PLAN, 1.0, lambda _: None, "informed"))
    for policy in ("hold", "random"):
        assert paired_effect(own, earned(play_fixed_unrecorded(policy, hours, PLAN.agents)), 0).above_zero
    assert own.tolist() == earned(play_fixed_unrecorded("follow_news", hours, PLAN.agents)).tolist()


def test_hours_without_an_update_have_no_row_and_a_deleted_checkpoint_fails_by_itself(database, booked):
    with database.connect() as connection:
        connection.execute(
            "UPDATE babylon_rl.checkpoints SET state = 'deleted', path = NULL WHERE checkpoint_id = %s", (OTHER,)
        )
    rows, _, _ = evaluate(database, booked, ["2025-01-15T00:00", *TRAINED.values()])
    assert set(rows.failed) == {TRAINED[OTHER]} and "deleted" in rows.failed[TRAINED[OTHER]].detail
    assert set(rows.frame["window_id"]) == {TRAINED[COPY]}
    with database.connect() as connection:
        stored = read_frame(connection, current_rows(market_evaluations))
    assert set(stored["candidate"]) == {COPY}


def test_a_window_without_anything_writes_nothing(database, booked):
    rows, wrote, said = evaluate(database, booked, ["2025-02-15T00:00"])
    assert rows.frame.empty and wrote.written == 0 and said == []
