"""What goes wrong between us and a judge has a name and a remedy, and the key is told to nobody."""

import asyncio
import logging
import socket
import traceback

import pytest
from pydantic import SecretStr

from babylon_rl.errors import ScoringError, SettingsError
from babylon_rl.scoring.judge.client import JudgeClient, JudgeError, Pace, Trouble
from babylon_rl.settings import Settings

KEY = "sk-very-secret-0123456789"


def ask(settings: Settings, times: int = 1, retries: int = 1, **options):
    client = JudgeClient(settings, retries=retries)

    async def all_of_them():
        async with client.opened():
            return await asyncio.gather(*(client.ask(f"question {n}", 5, 40, **options) for n in range(times)))

    return asyncio.run(all_of_them())


def test_the_request_is_the_one_that_was_meant(judge, settings):
    (reply,) = ask(settings(), choices=["0.0", "1.0"])
    assert reply.text == '{"scores": []}' and reply.prompt_tokens == 4 and not reply.cut_off
    (body,) = judge.bodies
    assert (body["model"], body["temperature"], body["seed"], body["max_completion_tokens"]) == ("scripted", 0, 5, 40)
    assert body["structured_outputs"] == {"choice": ["0.0", "1.0"]}


def test_a_model_that_takes_no_temperature_is_asked_without(judge, settings):
    judge.whenever("question", "no_temperature")
    replies = ask(settings(judge_concurrency=1), times=2)
    assert [reply.text for reply in replies] == ['{"scores": []}'] * 2
    assert ["temperature" in body for body in judge.bodies] == [True, False, False]
    assert all(body["seed"] == 5 for body in judge.bodies)


@pytest.mark.parametrize("faults", [["429"], ["500"], ["429", "500"], ["late"]])
def test_what_passes_by_itself_is_tried_again(judge, settings, faults):
    judge.next(*faults)
    # As long as an answer may take on a machine that is busy with other things.
    (reply,) = ask(settings(judge_timeout=1.5 if "late" in faults else 30), retries=2)
    assert reply.text and len(judge.bodies) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "trouble", "requests", "said"),
    [
        ("500", Trouble.STILL_FAILING, 2, "REQUESTS_PER_MINUTE"),
        ("429", Trouble.STILL_FAILING, 2, "429"),
        ("401", Trouble.KEY_REFUSED, 1, "JUDGE_API_KEY"),
        ("403", Trouble.KEY_REFUSED, 1, "JUDGE_API_KEY"),
        ("404", Trouble.UNKNOWN_MODEL, 1, "JUDGE_MODEL"),
        ("400", Trouble.REQUEST_REFUSED, 1, "400"),
        ("late", Trouble.LATE, 2, "JUDGE_TIMEOUT"),
    ],
)
def test_what_stays_wrong_is_told_by_name_and_without_the_key(judge, settings, caplog, fault, trouble, requests, said):
    caplog.set_level(logging.DEBUG)
    judge.whenever("question", fault)
    with pytest.raises(JudgeError, match=said) as raised:
        ask(settings(judge_api_key=SecretStr(KEY), judge_timeout=0.2 if fault == "late" else 30))
    assert raised.value.trouble is trouble and len(judge.bodies) == requests
    assert isinstance(raised.value, SettingsError) == (trouble in (Trouble.KEY_REFUSED, Trouble.UNKNOWN_MODEL))
    assert judge.keys[0] == f"Bearer {KEY}"
    assert KEY not in caplog.text + "".join(traceback.format_exception(raised.value))


def test_who_cannot_be_reached_is_not_asked_again_and_again(settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"http://user:word@127.0.0.1:{free.getsockname()[1]}/v1?key={KEY}"
    with pytest.raises(ScoringError, match="JUDGE_BASE_URL") as raised:
        ask(settings(judge_base_url=where, judge_concurrency=1), times=40, retries=0)
    assert raised.value.trouble is Trouble.NOT_REACHABLE
    assert "word" not in str(raised.value) and KEY not in str(raised.value)


def test_another_endpoint_than_openais_is_never_sent_its_key(judge, settings, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    ask(settings())
    assert judge.keys == ["Bearer none"]
    openais = JudgeClient(Settings(judge_model="m"))
    assert openais.base_url == "https://api.openai.com/v1"


def test_without_a_model_or_a_key_the_settings_are_told():
    with pytest.raises(SettingsError, match="JUDGE_MODEL"):
        JudgeClient(Settings())
    with pytest.raises(SettingsError, match="JUDGE_API_KEY"):
        ask(Settings(judge_model="m"))


def test_an_endpoint_that_answers_no_completion_has_said_nothing(judge, settings):
    judge.next("not_http_json")
    assert ask(settings())[0].text == ""


def test_requests_are_spread_over_the_minute():
    pace = Pace(per_minute=60)
    assert [pace.delay(now) for now in (10.0, 10.0, 10.5, 20.0)] == [0.0, 1.0, 1.5, 0.0]


def test_at_most_so_many_calls_are_made_at_a_time(judge, settings):
    running, most = 0, 0
    answer = judge.answer

    def counted(body, key):
        nonlocal running, most
        running += 1
        most = max(most, running)
        found = answer(body, key)
        running -= 1
        return found

    judge.answer = counted
    ask(settings(judge_concurrency=2), times=12)
    assert len(judge.bodies) == 12 and most <= 2
