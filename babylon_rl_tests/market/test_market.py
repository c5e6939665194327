"""The simulated market: news accuracy, unseen words, balance, what each fixed policy earns, and settlement."""

import math
import re
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import SettingsError
from babylon_rl.market.actions import MalformedAction, ParsedAction, choices, parse_action
from babylon_rl.market.agents import coverage, make_agents
from babylon_rl.market.observation import observation, system_prompt
from babylon_rl.market.phrases import TRAINED, UNSEEN, PhraseBank
from babylon_rl.market.policies import POLICIES, choose
from babylon_rl.market.settlement import settle
from babylon_rl.market.world import QUESTION, SPLITS, TICKERS, make_window

STOP_WORDS = set(
    """a an the of to in on at by for from with and or as but its it is are be was has have no not will that this
    over under into within after before out off up back amid near along ever again every both""".split()
)


def stem(word: str) -> str:
    for ending in ("ing", "ed", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def content_words(bank: PhraseBank) -> set[str]:
    texts = [*bank.good, *bank.bad, *(t for q in bank.questions for t in (q.text, q.good, q.bad))]
    words = re.findall(r"[a-z]+", " ".join(texts).lower())
    return {stem(w) for w in words if w not in STOP_WORDS}


def pnl_of(policy: str, windows: int, split: str = "test", count: int = 8) -> list[float]:
    means = []
    for index in range(windows):
        window, agents = make_window(5, split, index), make_agents(5, split, index, count)
        actions = [parse_action(choose(policy, window, a), window.instrument(a.instrument)) for a in agents]
        means.append(statistics.fmean(s.pnl for s in settle(window, agents, actions)))
    return means


def test_unseen_phrases_share_no_content_word_with_trained_ones():
    assert content_words(TRAINED) & content_words(UNSEEN) == set()


def test_there_are_enough_phrases_and_none_twice():
    for bank, news, questions in ((TRAINED, 24, 10), (UNSEEN, 12, 5)):
        assert len(bank.good) >= news and len(bank.bad) >= news and len(bank.questions) >= questions
        assert len({*bank.good, *bank.bad}) == len(bank.good) + len(bank.bad)


def test_news_is_right_85_to_90_percent_of_the_time_over_2000_windows():
    right = [
        i.news_is_good == (i.path[-1] > i.path[0]) for n in range(2000) for i in make_window(1, "train", n).instruments
    ]
    # The common factor can turn the smallest own moves round, so the share is a little under the news' own accuracy.
    assert 0.85 <= statistics.fmean(right) <= 0.90
    questions = right[3::4]
    assert 0.85 <= statistics.fmean(questions) <= 0.90


def test_a_window_is_a_function_of_seed_split_and_index():
    assert make_window(3, "train", 7) == make_window(3, "train", 7)
    assert make_agents(3, "train", 7) == make_agents(3, "train", 7)
    others = {
        make_window(*key).instruments for key in [(3, "train", 7), (4, "train", 7), (3, "test", 7), (3, "train", 8)]
    }
    assert len(others) == 4
    # Pins the stream: a change of it would silently turn recorded windows into others.
    assert [i.open for i in make_window(1, "train", 0).instruments] == [92.43, 136.9, 27.98, 0.5]


def test_only_the_unseen_split_uses_unseen_phrases():
    for split in SPLITS:
        bank = UNSEEN if split == "unseen" else TRAINED
        for index in range(20):
            for i in make_window(0, split, index).tickers:
                assert i.news in (bank.good if i.news_is_good else bank.bad)


def test_an_unknown_split_is_refused_with_the_names_of_the_known_ones():
    with pytest.raises(SettingsError, match="validation"):
        make_window(0, "holdout", 0)


@given(st.integers(3, 64))
def test_every_ticker_is_covered_equally_and_the_question_from_seven_agents_up(count):
    covered = coverage(count)
    assert len(covered) == count
    assert len({covered.count(t) for t in TICKERS}) == 1
    if count >= 7:
        assert QUESTION in covered


def test_too_few_agents_are_refused():
    with pytest.raises(SettingsError, match="3 to 64"):
        coverage(2)


def test_agents_differ_in_capital_and_keep_their_ids():
    first, second = make_agents(0, "train", 0), make_agents(0, "train", 1)
    assert [a.agent_id for a in first] == [a.agent_id for a in second] == [f"agent-{n}" for n in range(1, 9)]
    assert len({a.capital for a in first}) > 3
    assert all(500 <= a.capital <= 2000 for a in first + second)


def test_the_observation_shows_prices_news_and_holdings_and_nothing_hidden():
    window, agents = make_window(0, "train", 0), make_agents(0, "train", 0)
    for agent in agents:
        text = observation(window, agent)
        covered = window.instrument(agent.instrument)
        assert covered.news in text and f"Cash ${agent.capital}, {agent.holding} {agent.instrument}." in text
        assert text.startswith("ACME $") and text.endswith("BUY if good, SELL if bad.")
        changed = replace(covered, path=(covered.path[0], 1.0, 2.0, 3.0), news_is_good=not covered.news_is_good)
        hidden = replace(
            window, instruments=tuple(changed if i.name == covered.name else i for i in window.instruments)
        )
        assert observation(hidden, agent) == text
    assert system_prompt()


@pytest.mark.parametrize("answer", ["BUY ACME", " BUY ACME\n", "SELL ACME", "HOLD ACME"])
def test_an_answer_among_the_choices_is_an_action_whatever_white_space_surrounds_it(answer):
    acme = make_window(0, "train", 0).instruments[0]
    parsed = parse_action(answer, acme)
    assert isinstance(parsed, ParsedAction)
    assert parsed.action_type == {"B": "open_long", "S": "open_short", "H": "hold"}[answer.strip()[0]]


@given(st.text())
def test_any_other_answer_is_malformed_with_its_reason(answer):
    moon = make_window(0, "train", 0).instruments[3]
    parsed = parse_action(answer, moon)
    assert isinstance(parsed, MalformedAction) != (answer.strip() in choices("MOON"))


@pytest.mark.parametrize("answer", ["buy ACME", "BUY BOLT", "BUY ACME now", "BUYACME", "", "BUY  ACME"])
def test_near_misses_are_malformed(answer):
    parsed = parse_action(answer, make_window(0, "train", 0).instruments[0])
    assert isinstance(parsed, MalformedAction)
    assert "BUY ACME, SELL ACME, HOLD ACME" in parsed.error


def test_holding_and_malformed_answers_earn_exactly_nothing():
    assert set(pnl_of("hold", 20)) == {0.0}
    window, agents = make_window(0, "test", 0), make_agents(0, "test", 0)
    actions = [parse_action("?", window.instrument(a.instrument)) for a in agents]
    settled = settle(window, agents, actions)
    assert {s.pnl for s in settled} == {0} and not any(s.success for s in settled) and all(s.error for s in settled)


def test_following_the_news_earns_clearly_more_than_every_fixed_policy():
    earned = {policy: pnl_of(policy, 200) for policy in POLICIES}
    informed = earned.pop("follow_news")
    for policy, pnls in earned.items():
        difference = [a - b for a, b in zip(informed, pnls, strict=True)]
        error = statistics.stdev(difference) / math.sqrt(len(difference))
        assert statistics.fmean(difference) > 5 * error, policy


def test_one_sided_trading_loses_its_fees_once_the_market_move_is_taken_out():
    for policy in ("always_buy", "always_sell"):
        for index in range(20):
            window, agents = make_window(5, "test", index), make_agents(5, "test", index)
            actions = [parse_action(choose(policy, window, a), window.instrument(a.instrument)) for a in agents]
            alphas = [
                (s.pnl - s.exposure * window.market_move) / s.capital
                for s in settle(window, agents, actions)
                if s.instrument != QUESTION
            ]
            assert sum(alphas) == pytest.approx(-0.0002 * len(alphas))


@given(st.integers(0, 10_000), st.sampled_from([1, -1]))
def test_an_order_earns_its_share_of_the_move_less_the_fee(index, direction):
    window, agents = make_window(0, "train", index), make_agents(0, "train", index)[:1]
    action = ParsedAction("ACME", "open_long" if direction > 0 else "open_short", direction)
    (settled,) = settle(window, agents, [action])
    gross = direction * 0.1 * agents[0].capital * window.instruments[0].move
    assert settled.pnl == pytest.approx(gross - 0.0002 * agents[0].capital)
    assert settled.fees > 0 and settled.exposure == direction * settled.notional


def test_an_earlier_stake_makes_the_same_side_dearer_for_a_later_agent():
    window, agents = make_window(0, "train", 0), make_agents(0, "train", 0)
    moons = [a for a in agents if a.instrument == QUESTION]
    yes = ParsedAction(QUESTION, "buy_yes", 1)
    first, second = settle(window, moons, [yes, yes])
    assert second.entry_price > first.entry_price > window.instrument(QUESTION).open
    assert second.entry_price - first.entry_price < 0.01


def test_a_right_share_pays_a_dollar_and_a_wrong_one_nothing():
    for index in range(10):
        window, agents = make_window(0, "train", index), make_agents(0, "train", index)
        moon = next(a for a in agents if a.instrument == QUESTION)
        right = 1 if window.instrument(QUESTION).outcome else -1
        for direction, pays in ((right, True), (-right, False)):
            (s,) = settle(window, [moon], [ParsedAction(QUESTION, "buy_yes" if direction > 0 else "buy_no", direction)])
            assert s.pnl == pytest.approx((s.shares if pays else 0) - s.notional * 1.02)
