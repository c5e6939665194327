"""The comparison at the end of the gateway's fault bench finds what is planted."""

import asyncio
import hashlib
import types
from collections import Counter

from babylon_rl.bench.faulty_upstream import answer, chunks
from babylon_rl.bench.gateway_faults import KEY_ID, _Asked, _body, _compared
from babylon_rl.serving.gateway.answers import BROKEN
from babylon_rl.serving.gateway.files import SPOOL
from babylon_rl.serving.gateway.shipper import ship
from babylon_rl.serving.gateway.spool import Spool
from babylon_rl_tests.serving.gateway.agents import call_event

CALLS, SEED = 6, 3


def call_id(number: int) -> str:
    return hashlib.sha256(f"{KEY_ID}/r{number}".encode()).hexdigest()[:32]


def rows_of(database, folder, **changes) -> None:
    """Rows of all the calls; `changes` by number."""

    async def write(spool):
        for number in range(CALLS):
            fields = {"request_id": f"r{number}", "request": _body(number, SEED).decode(), "response": f"a{number}"}
            given = changes.get(f"r{number}", {})
            if given is not None:
                await spool.append(call_event(given.pop("call_id", call_id(number)), **{**fields, **given}))

    spool = Spool(folder / SPOOL).open()
    asyncio.run(write(spool))
    spool.close()
    ship(database, folder)


def compared(database, folder, answered: int = CALLS):
    answers = {f"r{number}": (call_id(number), f"a{number}".encode()) for number in range(answered)}
    parts = types.SimpleNamespace(kills=Counter(), folder=folder)
    found = _compared(parts, database, _Asked(answers=answers), CALLS, SEED, 1.0)
    return found.reached, found.unanswered, found.lost, found.doubled, found.different


def test_answers_that_are_all_there_reach_the_figure(database, tmp_path):
    rows_of(database, tmp_path)
    assert compared(database, tmp_path) == (True, 0, 0, 0, 0)
    assert compared(database, tmp_path, answered=4) == (False, 2, 0, 0, 0)


def test_an_attempt_that_broke_off_before_the_answer_is_no_second_one(database, tmp_path):
    rows_of(database, tmp_path, r1={"finish_reason": BROKEN, "call_id": "first"}, r2=None)
    assert compared(database, tmp_path) == (False, 0, 2, 0, 0)
    rows_of(database, tmp_path)
    assert compared(database, tmp_path) == (True, 0, 0, 0, 0)


def test_a_lost_a_doubled_and_a_different_call_are_found(database, tmp_path):
    rows_of(database, tmp_path, r1=None, r2={"response": "else"}, r3={"request_id": "r4", "call_id": "another"})
    # The row that stands under another id is missing for its own request, and is the second of another's.
    assert compared(database, tmp_path) == (False, 0, 2, 1, 1)


def test_a_stream_says_what_the_whole_answer_says():
    whole = answer("m", [5, 6, 7], "some text")
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(whole)]
    assert "".join(deltas) == "some text" and len(deltas) == 4
