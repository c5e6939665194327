"""The search for the future in trained prompts: whatever is planted is found, and what could be seen is no leak."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babylon_rl.groups.leaks import Later, leaks

AT = datetime(2025, 1, 15, 10, 59, 30, tzinfo=UTC)
CLOSE = Later("close of ACME", "ACME", price=1234.56)
CHANGE = Later("change of ACME", "ACME", change=0.0347)
FELL = Later("change of TECH", "TECH", change=-0.0812)
YES = Later("resolution of q-77", "q-77", verdict="YES")
NO = Later("resolution of Will it rain?", "Will it rain?", verdict="NO")
PROBABILITY = Later("probability of q-77", "q-77", price=0.837)
JUDGED = Later("the judge's words", text="The agent bought before the news and was right to do so.")
TOLD = Later("gameKnowledge", text="ACME will crash because the CEO resigns on Friday.")
TIME = Later("time of the close", at=AT)
ALL = (CLOSE, CHANGE, FELL, YES, NO, PROBABILITY, JUDGED, TOLD, TIME)

PLANTED = [
    ("ACME closes at 1234.56.", CLOSE),
    ("ACME: $1234.56", CLOSE),
    ("ACME: 1,234.56 dollars", CLOSE),
    ("ACME 1.234,56 EUR", CLOSE),
    ("ACME 1 234,56", CLOSE),
    ("ACME 1\u202f234.56", CLOSE),
    ("ACME 1'234.56", CLOSE),
    ("about 1234.6 for ACME", CLOSE),
    ("about 1,235 for ACME", CLOSE),
    ("cut to 1234.5", CLOSE),
    ("ACME 1.235k", CLOSE),
    ("ACME 1.23456e3", CLOSE),
    ("１２３４．５６", CLOSE),
    ("ACME +3.47%", CHANGE),
    ("ACME rose 3.5 percent", CHANGE),
    ("ACME 347 bps", CHANGE),
    ("a change of 0.0347", CHANGE),
    ("ACME gains 3,47 %", CHANGE),
    ("TECH fell 8.12 %", FELL),
    ("TECH \u22128.1 pct", FELL),
    ("TECH -0.0812", FELL),
    ("Market q-77 resolved YES.", YES),
    ("q-77: final answer is true", YES),
    ("q-77 (outcome: YES)", YES),
    ("Will it rain? It settled NO.", NO),
    ("Will it rain? Correct answer: no", NO),
    ("q-77 ends at 83.7 %", PROBABILITY),
    ("q-77 trades 0.837 at the end", PROBABILITY),
    ("q-77: 84 %", PROBABILITY),
    ("q-77 at 83.7\u00a2", PROBABILITY),
    ("Hint: the agent bought before the news, and was right to do so!", JUDGED),
    ("SECRET: ACME will crash because the CEO\nresigns on Friday", TOLD),
    ("as of 2025-01-15T10:59:30Z", TIME),
    ("as of 2025-01-15 10:59", TIME),
    (f"ts={int(AT.timestamp() * 1000)}", TIME),
    (f"ts={int(AT.timestamp())}", TIME),
]
PROMPT = "You have $1,000.00 and hold TECH. ACME stands at 1193.10 (+0.4 %), q-77 at 0.61. Will it rain? asks another. "


def test_the_corpus_is_as_large_as_it_says():
    assert len({text for text, _ in PLANTED}) >= 30


@pytest.mark.parametrize(("text", "fact"), PLANTED)
def test_what_is_planted_is_found_by_its_name(text, fact):
    found = leaks(f"{PROMPT}{text} What do you do?", ALL)
    assert [leak.what for leak in found] == [fact.what]


def test_what_the_agent_could_see_is_no_leak():
    assert leaks("ACME stands at 1234.56, up 3.47 % today; q-77 at 83.7 %.", ALL, [1234.56, 0.0347, 0.837]) == []


@pytest.mark.parametrize("text", [
    PROMPT,
    "q-77 resolves YES if it rains, NO otherwise; it is open until 2025-01-16T00:00.",
    "The last question resolved YES. " + "x" * 400 + " q-77 is open.",
    "Answer yes or no.",
])  # fmt: skip
def test_a_clean_prompt_is_clean(text):
    assert leaks(text, (CLOSE, CHANGE, FELL, PROBABILITY, JUDGED, TOLD, TIME, NO)) == []


def test_false_alarms_are_rare_where_prices_walk():
    """Prices at decisions against prices an hour later of twelve tickers: figures meet by chance alone."""
    chance, alarms, prompts = random.Random(7), 0, 2_000
    for _ in range(prompts):
        now = {f"TICK{n}": round(chance.uniform(5, 500), 2) for n in range(12)}
        moves = {name: chance.gauss(0, 0.02) for name in now}
        later = [Later(name, name, price=round(now[name] * (1 + moves[name]), 2), change=moves[name]) for name in now]
        balance = round(chance.uniform(500, 20_000), 2)
        text = f"Cash ${balance:,.2f}. " + " ".join(f"{name} stands at {price:.2f}." for name, price in now.items())
        alarms += bool(leaks(text, later, [*now.values(), balance]))
    assert alarms < prompts // 100


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([
    "9" * 400, "1e99", "0." + "0" * 400 + "1", "1,2.3'4 5_6", "\u0663\u0664\u0665", "ACME", "2025-13-99t99:99:99",
    "99999999999999", "2025-01-15 10:59:61", "resolved", "yes", "\x00", "\ud800", "%", "\u00b2", "q-77", " ", "\n", ":",
])).map("".join) | st.text())  # fmt: skip
def test_whatever_a_text_holds_it_can_be_searched(text):
    assert all(leak.what in {fact.what for fact in ALL} for leak in leaks(text, ALL, [1.0]))


@pytest.mark.parametrize("text", [
    "q-77 resolves YES if it rains.", "Answer q-77 with YES or NO.", "q-77 outcomes: Yes 52%, No 48%",
    '{"id": "q-77", "resolved": true}', "q-77 settles yes/no",
])  # fmt: skip
def test_rules_choices_prices_and_states_are_no_verdicts(text):
    assert leaks(text, [YES]) == []
