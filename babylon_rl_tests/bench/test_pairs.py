"""Ways that are timed in turn: fair turns, ratios by round, limits that can be missed."""

import itertools

from babylon_rl.bench.pairs import Compared, Limit, take_turns


def test_each_way_is_taken_once_a_round_and_begins_in_turn():
    taken: list[str] = []
    clock = itertools.count()

    def way(name: str):
        return lambda: taken.append(name) or float(next(clock))

    seconds = take_turns({name: way(name) for name in "abc"}, 3)
    assert "".join(taken) == "abc" + "abc" + "bca" + "cab"
    assert seconds == {"a": [3, 8, 10], "b": [4, 6, 11], "c": [5, 7, 9]}


def test_limits_are_on_the_median_of_the_ratios_within_a_round():
    # A busy moment that hits a whole round changes no ratio.
    seconds = {"ours": [1.2, 12.0, 1.4], "theirs": [1.0, 10.0, 1.0]}
    slower = Limit(of="ours", against="theirs", most=1.3)
    found = Compared(title="t", rows=10, seconds=seconds, limits=[slower])
    assert round(found.ratio(slower), 6) == 1.2 and found.reached
    assert "reached" in found.table() and found.as_json()["limits"][0]["reached"]
    for limit in (Limit(of="ours", against="theirs", most=1.1), Limit(of="ours", against="theirs", least=1.0)):
        missed = Compared(title="t", rows=10, seconds=seconds, limits=[limit])
        assert not missed.reached and "MISSED" in missed.table()
    assert Limit(of="a", against="b", least=2.0).holds(0.5) and not Limit(of="a", against="b", least=2.0).holds(0.6)
