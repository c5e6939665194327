"""Replay: recorded prompts answered again, valued at known prices, never by a checkpoint that was trained on them."""

import math

import pandas as pd
import pytest

from babylon_rl.database.history import replace_windows
from babylon_rl.database.tables import market_outcomes, replay_evaluations
from babylon_rl.database.window_rows import write_rows
from babylon_rl.errors import TrainingError
from babylon_rl.evaluation import replay
from babylon_rl.evaluation.asking import Asked
from babylon_rl.evaluation.policies import DRAWS, Prompt, policies_on
from babylon_rl.evaluation.replay import (
    HOLD,
    RECORDED,
    checkpoints_that_saw,
    refuse_seen,
    replay_over,
    replay_windows,
    replayed_window,
    value_of,
)
from babylon_rl.evaluation.summary import replay_standing
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import play_fixed, play_windows
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.outcomes.windows import outcome_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.windows import shift_window
from babylon_rl_tests.evaluation.asked import COPY, OTHER, RUN, TRAINED, informed
from babylon_rl_tests.market.scripted import endpoint, first_choice

FIRST = "2025-01-15T05:00"  # the first that OTHER, trained up to 03:00, may be asked about
AGENTS = 4


def record(database, folder, count=3, reply=first_choice):
    """Windows from FIRST on that a scripted policy played, with their outcomes."""
    ids = [shift_window(FIRST, n) for n in range(count)]
    worlds = [make_window(3, "train", n) for n in range(count)]
    with endpoint(reply) as script, Recorder(database, folder / "spool.jsonl") as recorder:
        where = Endpoint(script.base_url, "policy")
        pairs = list(zip(ids, worlds, strict=True))
        play_windows(database, recorder, where, pairs, agents=AGENTS, label=Label("x"), sampling=Sampling(seed=4))
        assert recorder.close().complete
    with database.connect() as connection:
        write_rows(connection, market_outcomes, outcome_windows(database, ids))
    return ids, worlds


def evaluate(database, settings, ids, also=()):
    said = []
    rows = replay_windows(database, settings, ids, also, said.append)
    with database.connect() as connection:
        return rows, write_rows(connection, replay_evaluations, rows), said


def test_a_copy_of_the_base_model_is_worth_what_it_is_and_recorded_behaviour_what_was_done(database, booked, tmp_path):
    ids, _ = record(database, tmp_path)
    rows, _, _ = evaluate(database, booked, ids, [COPY])
    assert not rows.failed
    frame = rows.frame.set_index(["candidate", "baseline", "window_id"])
    assert set(rows.frame["candidate"]) == {f"{RUN}@0", COPY, OTHER}  # the newest and its base come by themselves
    assert frame.loc[COPY, f"{RUN}@0"]["effect"].abs().max() < 1e-9
    assert frame.loc[OTHER, COPY]["effect"].abs().max() > 1e-5
    assert (frame["decisions"] == AGENTS).all() and (frame["unvalued"] == 0).all()
    assert frame["low"].isna().all()  # one window has no interval
    with database.recordings() as recordings:
        window = replayed_window(recordings, ids[0])
        stored = recordings.ours.execute("SELECT count(*) FROM trajectories").fetchone()
        over = replay_over(recordings.ours, COPY, f"{RUN}@0", ids)
        stood = {one.baseline: one for one in replay_standing(recordings.ours, OTHER)}
    assert stored == (AGENTS * len(ids),)  # nothing is recorded by an evaluation
    bought = [decision.values[decision.prompt.choices[0]] for decision in window.decisions]
    assert frame.loc[COPY, RECORDED, ids[0]]["baseline_value"] == pytest.approx(sum(bought) / AGENTS)
    assert frame.loc[COPY, HOLD, ids[0]]["baseline_value"] == 0.0
    assert over.windows == len(ids) and over.low <= 0 <= over.high
    assert stood[COPY].windows == len(ids) and stood[COPY].low <= stood[COPY].effect <= stood[COPY].high


def test_the_same_again_asks_nothing_and_writes_nothing(database, booked, tmp_path, monkeypatch):
    ids, _ = record(database, tmp_path, count=1)
    _, wrote, _ = evaluate(database, booked, ids)
    assert wrote.written

    def never(*_):
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(replay, "value_of", never)
        rows, wrote, said = evaluate(database, booked, ids)
    assert wrote.written == 0 and wrote.unchanged == tuple(ids) and "Nothing to ask" in said[0]
    # One that is asked for later adds its rows; the others' stay as they are.
    more, wrote, _ = evaluate(database, booked, ids, [COPY])
    assert set(more.frame["candidate"]) == set(rows.frame["candidate"]) | {COPY}
    again, wrote, _ = evaluate(database, booked, ids)
    assert wrote.written == 0 and COPY in set(again.frame["candidate"])


def test_prices_that_are_known_better_later_are_asked_about_anew(database, booked, tmp_path):
    ids, _ = record(database, tmp_path, count=1)
    before, _, _ = evaluate(database, booked, ids)
    with database.connect() as connection:
        found = connection.execute(
            "SELECT * FROM babylon_rl.market_outcomes WHERE superseded_at IS NULL ORDER BY row_id"
        )
        names = [column.name for column in found.description]
        frame = pd.DataFrame(found.fetchall(), columns=names)
        frame = frame.drop(columns=["row_id", "digest", "created_at", "superseded_at"])
        frame.loc[frame["kind"] == "ticker", "change"] += 0.02 * (frame["instrument"] == "ACME")
        frame["revision"] = frame["revision"] + "x"
        replace_windows(connection, market_outcomes, ids, frame)
    after, wrote, _ = evaluate(database, booked, ids)
    assert wrote.written and before.frame["candidate_value"].tolist() != after.frame["candidate_value"].tolist()


def test_an_informed_policy_is_worth_more_than_doing_nothing_and_than_what_was_done(database, tmp_path):
    ids, worlds = record(database, tmp_path, count=8)
    with database.recordings() as recordings:
        windows = [replayed_window(recordings, window_id) for window_id in ids]
    with endpoint(informed(worlds, AGENTS)) as script:
        found = [value_of(Asked(Endpoint(script.base_url, "informed"), ours=True), window) for window in windows]
        drawn = value_of(Asked(Endpoint(script.base_url, "informed"), ours=False), windows[0])
    with endpoint(informed(worlds, AGENTS, "hold")) as script:
        held = value_of(Asked(Endpoint(script.base_url, "hold"), ours=True), windows[0])
    values = pd.Series([value for value, _ in found])
    assert all(exact for _, exact in found) and held == (pytest.approx(0.0, abs=1e-12), True)
    done = [sum(d.done for d in window.decisions) / AGENTS for window in windows]
    assert replay.paired_effect(values, pd.Series(0.0, index=values.index), 0).above_zero
    assert replay.paired_effect(values, pd.Series(done), 0).above_zero
    # A policy that never varies is known from draws too; they say that they are draws.
    assert drawn == (pytest.approx(found[0][0]), False)


def test_no_checkpoint_is_asked_about_what_it_was_trained_on_or_the_embargo_after_it(database, booked, tmp_path):
    with database.connect() as connection:
        for early in ("2025-01-15T00:00", TRAINED[OTHER], shift_window(TRAINED[OTHER], 1)):
            with pytest.raises(TrainingError, match=f"{OTHER} was trained on windows up to {TRAINED[OTHER]}"):
                refuse_seen(connection, OTHER, early)
        refuse_seen(connection, OTHER, shift_window(TRAINED[OTHER], 2))
        refuse_seen(connection, f"{RUN}@0", "2025-01-15T00:00")
        # A branch from it with an older last window has seen all that its parent has.
        connection.execute(
            """INSERT INTO babylon_rl.checkpoints (checkpoint_id, training_run, parent_id, base_model, step,
               last_window, metrics, state) VALUES ('branch', %s, %s, 'tiny', 3, '2025-01-15T00:00', '{}', 'ready')""",
            (RUN, OTHER),
        )
        with pytest.raises(TrainingError, match="branch was trained on windows up to 2025-01-15T03:00"):
            refuse_seen(connection, "branch", TRAINED[OTHER])


def test_a_window_that_a_checkpoint_was_trained_on_fails_by_itself_and_is_found_where_it_got_in(
    database, booked, tmp_path
):
    ids, _ = record(database, tmp_path, count=1)
    early = TRAINED[OTHER]
    rows, _, _ = evaluate(database, booked, [early, *ids], [OTHER])
    assert set(rows.failed) == {early} and "judged by what it was told" in rows.failed[early].detail
    assert set(rows.frame["window_id"]) == set(ids)
    with database.connect() as connection:
        assert checkpoints_that_saw(connection, [early, *ids]).empty
        connection.execute(
            "UPDATE babylon_rl.checkpoints SET last_window = %s WHERE checkpoint_id = %s", (ids[0], OTHER)
        )
        found = checkpoints_that_saw(connection, ids)
    assert found["checkpoint"].tolist() == [OTHER] and found["trained_until"].tolist() == ids
    again, _, _ = evaluate(database, booked, ids)  # which leaves it out
    assert OTHER not in {*again.frame["candidate"], *again.frame["baseline"]}


def test_prompts_without_a_value_are_counted_and_a_window_of_them_has_no_row(database, booked, tmp_path):
    with Recorder(database, tmp_path / "spool.jsonl") as recorder:
        play_fixed(database, recorder, "random", [(FIRST, make_window(3, "train", 0))], split=None, agents=AGENTS)
        recorder.close()
    rows, wrote, _ = evaluate(database, booked, [FIRST])
    assert rows.frame.empty and not rows.failed and wrote.written == 0


def test_probabilities_are_exact_whatever_the_draws_and_a_lying_endpoint_is_found():
    choices = ("BUY", "SELL", "HOLD", "WAIT")
    policy = dict(zip(choices, (0.97, 0.02, 0.01, 0.0), strict=True))
    prompts = [Prompt(f"p{n}", "s", "u", choices, 1.0) for n in range(5)]

    def reply(body, scale=1.0):
        import numpy as np

        from babylon_rl_tests.market.scripted import completion

        share = body.get("exploration", 0.0)
        mixed = [(1 - share) * policy[c] + share / 4 for c in choices]
        drawn = int(np.random.default_rng(body["seed"]).choice(4, p=mixed))
        told = {"content": [{"token": "token_id:1", "logprob": scale * math.log(mixed[drawn])}]}
        return 200, completion(choices[drawn], logprobs=told, token_ids=[1])

    with endpoint(reply) as script:
        exact = policies_on(Asked(Endpoint(script.base_url, "m"), ours=True), prompts, 1)
        drawn = policies_on(Asked(Endpoint(script.base_url, "m"), ours=False), prompts, 1)
    for one in exact:
        assert one.exact and one.probabilities == pytest.approx(policy, abs=1e-9)
    for one in drawn:
        assert not one.exact and one.probabilities["BUY"] == pytest.approx(0.97, abs=4 * 0.5 / math.sqrt(DRAWS))
    with (
        endpoint(lambda body: reply(body, scale=0.1)) as script,
        pytest.raises(Exception, match="another distribution"),
    ):
        policies_on(Asked(Endpoint(script.base_url, "m"), ours=True), prompts[:1], 1)
