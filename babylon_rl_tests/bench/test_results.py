import pytest

from babylon_rl.bench.results import Results, Spent, load_results, over_seeds, parse_seeds, save_results
from babylon_rl.errors import RecordingError, SettingsError
from babylon_rl_tests.bench.made import failed, result


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("11-13", [11, 12, 13]),
        ("1,5,7", [1, 5, 7]),
        (" 5, 1-3 ,2", [5, 1, 2, 3]),
        ("0", [0]),
        ("7-7", [7]),
    ],
)
def test_seeds_are_read_once_each_in_the_order_given(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1-", "-1", "1-2-3", "1.5", "20-11", "0-1000", "1-9999999999", "²"])
def test_anything_else_is_a_mistake_that_is_told(text):
    with pytest.raises(SettingsError):
        parse_seeds(text)


def test_results_are_read_as_they_were_kept(tmp_path):
    path = tmp_path / "new" / "results.json"
    kept = Results(base_model="tiny", plan_digest="d", finished={3: result(3), 4: failed(4)}, begun={5: Spent()})
    save_results(path, kept)
    assert load_results(path, "tiny", "d") == kept
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_another_models_results_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "results.json"
    save_results(path, Results(base_model="/a/model", plan_digest="d"))
    with pytest.raises(SettingsError, match="--out"):
        load_results(path, "/b/model", "d")
    path.write_text("{")
    with pytest.raises(RecordingError, match="--out"):
        load_results(path, "tiny", "d")


def test_what_a_seed_took_adds_up_and_memory_is_its_peak():
    spent = Spent(whole=False).and_then(10, 5).and_then(20, 3)
    assert (spent.seconds, spent.peak_bytes, spent.whole) == (30, 5, False)


def test_an_interval_over_seeds_needs_two_of_them():
    assert over_seeds([1.0]) is None
    found = over_seeds([1.0, 3.0])
    assert found and found.mean == 2.0 and found.low < 1.0 and found.high > 3.0
