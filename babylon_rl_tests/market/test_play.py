"""Playing: every window is recorded whole and once, as the endpoint really answered, and faults say what to do."""

import time
from datetime import UTC, datetime

import pytest

from babylon_rl.database.connect import Recordings
from babylon_rl.errors import RecordingError, ServingError, SettingsError
from babylon_rl.market import endpoint as endpoint_module
from babylon_rl.market.actions import choices
from babylon_rl.market.endpoint import Endpoint, Sampling
from babylon_rl.market.play import call_seed, play_fixed, play_live, play_windows
from babylon_rl.market.policies import POLICIES
from babylon_rl.market.trajectories import Label
from babylon_rl.market.world import make_window
from babylon_rl.outcomes.outcomes import outcomes_of
from babylon_rl.recording.reader import list_windows, read_evaluation, read_window, whole_windows
from babylon_rl.recording.recorder import Recorder
from babylon_rl.recording.summary import window_summary
from babylon_rl.windows import shift_window
from babylon_rl_tests.market.scripted import completion, endpoint, first_choice

FIRST = "2025-01-15T10:00"
TRAIN = Label("train")
SAMPLING = Sampling(temperature=0.9, exploration=0.2, seed=4)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(endpoint_module, "PAUSES", (0, 0))


@pytest.fixture
def recorder(database, tmp_path):
    with Recorder(database, tmp_path / "spool.jsonl") as recorder:
        yield recorder


def hours(count: int, split: str = "train", seed: int = 1):
    return [(shift_window(FIRST, n), make_window(seed, split, n)) for n in range(count)]


def play(database, recorder, reply, windows, *, agents=4, label=TRAIN, sampling=SAMPLING, extensions=True, **options):
    with endpoint(reply) as script:
        where = Endpoint(script.base_url, "policy", extensions=extensions)
        played = play_windows(
            database, recorder, where, windows, agents=agents, label=label, sampling=sampling, **options
        )
    recorder.flush()
    return played, script


def test_each_window_is_recorded_whole_with_what_was_sampled(database, recorder):
    told = []
    played, script = play(database, recorder, first_choice, hours(3), agents=8, progress=told.append)
    assert [p.window_id for p in played] == [w for w, _ in hours(3)] and sorted(t.window_id for t in told) == [
        p.window_id for p in played
    ]
    with database.connect() as connection:
        for one in played:
            window = read_window(Recordings.of(connection), one.window_id)
            assert not window.rejected and {t.provenance for t in window.usable} == {"logged"}
            assert {t.agent_id: t.window_pnl for t in window.usable} == {d.agent_id: d.pnl for d in one.decisions}
            assert window_summary(window, 8, datetime.now(UTC))["status"] == "ready"
        (call,) = next(t for t in window.usable if t.agent_id == "agent-1").calls
    prompts = {b["messages"][1]["content"] for b in script.bodies}
    assert {t.steps[0].llm_calls[0].user_prompt for t in window.usable} <= prompts
    assert (call.checkpoint, call.token_ids, call.logprobs) == ("run-0001", [5, 6], [-0.5, -0.1])
    assert (call.temperature, call.exploration, call.choices) == (0.9, 0.2, choices("ACME"))


def test_the_request_asks_for_choices_tokens_and_logprobs_in_the_fields_of_vllm(database, recorder):
    _, script = play(database, recorder, first_choice, hours(1))
    body = script.bodies[0]
    assert body["logprobs"] is True and body["return_token_ids"] is True
    assert (body["temperature"], body["exploration"], body["max_tokens"]) == (0.9, 0.2, 8)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert sorted(b["structured_outputs"]["choice"][0] for b in script.bodies) == [
        "BUY ACME", "BUY BOLT", "BUY CRUX", "BUY MOON",
    ]  # fmt: skip


def test_an_endpoint_without_extensions_is_asked_standard_fields_only(database, recorder):
    def reply(body):
        assert not {"structured_outputs", "return_token_ids", "exploration"} & set(body)
        return 200, completion("HOLD ACME", prompt_token_ids=None, token_ids=None)

    (played,), _ = play(database, recorder, reply, hours(1), extensions=False)
    assert played.logged_share == 0 and played.valid_share == 0.25


def test_recorded_prices_tell_the_same_pnl_as_the_settlement(database, recorder):
    (played,), _ = play(database, recorder, first_choice, hours(1), agents=8)
    with database.connect() as connection:
        truth = outcomes_of(connection, [FIRST]).set_index("instrument")
        usable = {t.agent_id: t for t in read_window(Recordings.of(connection), FIRST).usable}
    assert set(truth.index) == {"ACME", "BOLT", "CRUX", f"MOON-{FIRST}"} and truth["settled"].all()
    for decision in played.decisions:
        action = usable[decision.agent_id].steps[0].action
        known = truth.loc[action.parameters["instrument"]]
        if known["kind"] == "ticker":
            expected = action.result["notional"] * known["change"]
        else:
            expected = (action.result["shares"] if known["outcome"] == "YES" else 0) - action.result["notional"]
        assert decision.pnl == pytest.approx(expected - action.result["fees"])


def test_a_malformed_answer_is_a_failed_action_that_earns_nothing_and_is_kept(database, recorder):
    def reply(body):
        text = "buy the moon" if "MOON" in str(body["structured_outputs"]) else body["structured_outputs"]["choice"][2]
        return 200, completion(text)

    (played,), _ = play(database, recorder, reply, hours(1))
    assert played.valid_share == 0.75 and set(played.pnls) == {0.0}
    with database.connect() as connection:
        failed = [t for t in read_window(Recordings.of(connection), FIRST).usable if not t.steps[0].action.success]
        status = connection.execute('SELECT DISTINCT "finalStatus" FROM trajectories ORDER BY 1').fetchall()
    assert [t.steps[0].action.action_type for t in failed] == ["malformed"]
    assert "is not one of: BUY MOON" in failed[0].steps[0].action.error and failed[0].provenance == "logged"
    assert status == [("completed",), ("completed_with_errors",)]


@pytest.mark.parametrize(
    "missing", [{"logprobs": None}, {"prompt_token_ids": None}, {"token_ids": [5]}, {"token_ids": [5, 6, 7]}]
)
def test_an_endpoint_that_does_not_say_what_it_sampled_still_plays_unlogged(database, recorder, missing):
    (played,), _ = play(database, recorder, lambda body: (200, completion("BUY ACME", **missing)), hours(1))
    assert played.logged_share == 0
    with database.connect() as connection:
        assert {t.provenance for t in read_window(Recordings.of(connection), FIRST).usable} == {"no_logprobs"}


def test_token_ids_are_also_read_from_the_logprobs_and_the_checkpoint_from_the_model(database, recorder):
    reply = completion("BUY ACME", token_ids=None, checkpoint=None)
    (played,), _ = play(database, recorder, lambda body: (200, reply), hours(1))
    assert played.logged_share == 1 and played.decisions[0].checkpoint == "policy"


def test_playing_again_records_nothing_twice(database, recorder):
    for _ in range(2):
        play(database, recorder, first_choice, hours(2))
    with database.connect() as connection:
        assert list_windows(connection)["recorded"].tolist() == [4, 4]
        assert connection.execute("SELECT count(*) FROM babylon_rl.recorded_calls").fetchone() == (8,)
        assert connection.execute('SELECT count(*) FROM "StockPrice"').fetchone() == (24,)


def test_another_market_is_not_played_into_an_hour_that_has_one(database, recorder):
    play(database, recorder, first_choice, hours(1))
    with pytest.raises(RecordingError, match="another simulated market"):
        play(database, recorder, first_choice, hours(1, seed=2))


def test_a_refusal_is_told_with_its_remedy_and_not_repeated(database, recorder):
    for status, remedy in ((404, "serves the model 'policy'"), (401, "key"), (400, "without extensions")):
        with endpoint(lambda body, status=status: (status, "no such thing")) as script:
            with pytest.raises(ServingError, match=f"(?s)answered {status}: no such thing.*{remedy}"):
                play_windows(
                    database, recorder, Endpoint(script.base_url, "policy"), hours(1), agents=4, label=TRAIN,
                    sampling=SAMPLING,
                )  # fmt: skip
        assert len(script.bodies) <= 4


def test_a_passing_fault_is_tried_again(database, recorder):
    tries: dict[str, int] = {}

    def reply(body):
        who = body["messages"][1]["content"]
        tries[who] = tries.get(who, 0) + 1
        return first_choice(body) if tries[who] == 3 else (503, "starting")

    (played,), _ = play(database, recorder, reply, hours(1))
    assert played.valid_share == 1 and set(tries.values()) == {3}


def test_windows_finished_before_an_endpoint_fails_stay_and_the_failed_one_leaves_nothing(database, recorder):
    windows = hours(3)
    last = " ".join(f"${i.open:.0f}" for i in windows[2][1].tickers[:1])

    def reply(body):
        failing = last in body["messages"][1]["content"] and "MOON:" in body["messages"][1]["content"]
        return (500, "out of memory") if failing else first_choice(body)

    with pytest.raises(ServingError, match="out of memory"):
        play(database, recorder, reply, windows, concurrency=1)
    recorder.flush()
    with database.connect() as connection:
        assert whole_windows(connection, [w for w, _ in windows], 4) == {w for w, _ in windows[:2]}
        assert read_window(Recordings.of(connection), windows[2][0]).recorded == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "nonsense", "http://"])
def test_an_endpoint_that_is_not_there_is_told_so(database, recorder, url):
    with pytest.raises(ServingError, match="does not answer|not the URL"):
        play_windows(database, recorder, Endpoint(url, "m"), hours(1), agents=3, label=TRAIN, sampling=SAMPLING)


@pytest.mark.parametrize("answer", ["<html>", {"choices": []}, {"choices": [{"message": {"content": 5}}]}, []])
def test_an_answer_of_another_shape_is_told_so(database, recorder, answer):
    with pytest.raises(ServingError, match="not as a chat completion"):
        play(database, recorder, lambda body: (200, answer), hours(1))


def test_no_more_windows_are_in_flight_than_asked_for(database, recorder):
    def reply(body):
        time.sleep(0.01)
        return first_choice(body)

    _, script = play(database, recorder, reply, hours(6), agents=3, concurrency=2)
    assert 3 <= script.most_at_once <= 6
    with pytest.raises(SettingsError, match="At least one window"):
        play(database, recorder, first_choice, hours(1), concurrency=0)


def test_two_checkpoints_play_the_same_window_with_the_same_seeds(database, recorder):
    asked = []
    for arm in ("base", "candidate"):
        _, script = play(database, recorder, first_choice, hours(2, "test"), label=Label(arm, "test"))
        asked.append(sorted((b["messages"][1]["content"], b["seed"]) for b in script.bodies))
    assert asked[0] == asked[1] and len({seed for _, seed in asked[0]}) == 8
    assert call_seed(1, FIRST, "agent-1") != call_seed(2, FIRST, "agent-1")


def test_evaluations_are_recorded_apart_from_training_with_their_arm(database, recorder):
    windows = hours(2, "test")
    play(database, recorder, first_choice, windows, label=Label("base", "test"))
    for policy in POLICIES:
        play_fixed(database, recorder, policy, windows, split="test", agents=4)
    recorder.flush()
    with database.connect() as connection:
        frame = read_evaluation(connection, [w for w, _ in windows], "test")
        window = read_window(Recordings.of(connection), FIRST)
    assert set(frame["arm"]) == {"base", *POLICIES} and len(frame) == 2 * 4 * 6 and frame["valid"].all()
    assert (frame.loc[frame["arm"] == "hold", "pnl"] == 0).all()
    buys = [frame[frame["arm"] == arm].reset_index(drop=True) for arm in ("base", "always_buy")]
    assert buys[0]["pnl"].tolist() == buys[1]["pnl"].tolist() and (buys[0]["capital"] > 0).all()
    assert not window.usable and [r.reason for r in window.rejected] == ["evaluation"] * (4 * 6)


def test_a_live_hour_is_played_in_turns_and_recorded_in_it(database, recorder):
    start = datetime(2025, 1, 15, 10, 20, tzinfo=UTC)
    clock = iter(range(10_000))

    def now():
        return start.replace(second=min(59, next(clock)))

    with endpoint(first_choice) as script:
        played = play_live(
            database, recorder, Endpoint(script.base_url, "policy"), make_window(1, "train", 0), minutes=0, agents=4,
            label=TRAIN, sampling=SAMPLING, now=now,
        )  # fmt: skip
    recorder.flush()
    assert played.window_id == FIRST and len(played.decisions) == 4
    with database.connect() as connection:
        window = read_window(Recordings.of(connection), FIRST)
        assert len(window.usable) == 4 and window_summary(window, 3, start)["status"] == "open"


def test_a_live_play_that_does_not_fit_into_the_hour_is_refused(database, recorder):
    with pytest.raises(SettingsError, match="do not fit into the hour 2025-01-15T10:00"):
        play_live(
            database, recorder, Endpoint("http://127.0.0.1:9/v1", "m"), make_window(1, "train", 0), minutes=10,
            label=TRAIN, sampling=SAMPLING, now=lambda: datetime(2025, 1, 15, 10, 55, tzinfo=UTC),
        )  # fmt: skip
