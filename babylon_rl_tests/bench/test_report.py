import msgspec
import pytest

from babylon_rl.bench.learning import Measurement, write_report
from babylon_rl.bench.publish import publish, seeds_text
from babylon_rl.bench.report import levels, mean_curve, sentence, summary_of, table
from babylon_rl.bench.results import parse_seeds
from babylon_rl.errors import SettingsError
from babylon_rl.evaluation.measured import Entry, measured_for
from babylon_rl.plans import PLANS, plan_digest
from babylon_rl_tests.bench.made import failed, result

PNG = b"\x89PNG"


def made():
    return [
        result(11, curve=(0.0, 3.0)),
        result(12, effect=0.5, promoted=False, unseen=0.1, curve=(1.0, 5.0)),
        failed(13),
        result(14, unseen=None, curve=(2.0, 4.0)),
    ]


def test_the_mean_is_over_the_seeds_that_have_a_curve():
    found = mean_curve(made())
    assert [(p.updates, p.pnl) for p in found] == [(0, 1.0), (1, 4.0)]
    assert all(p.low < p.pnl < p.high for p in found)
    assert mean_curve(made()[:1]) == []


def test_a_failed_seed_counts_as_measured_and_not_as_improved():
    found = summary_of(made())
    assert (found.measured, found.improved, found.failed) == (4, 2, 1)
    assert (found.unseen_measured, found.unseen_above_zero) == (2, 1)
    assert found.effect and found.effect.mean == pytest.approx(6.5 / 3)
    assert sentence(found).startswith("2 of 4 seeds improved.")


def test_the_table_has_a_row_a_seed_and_a_cell_a_column():
    lines = table(made()).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 4 and len({line.count("|") for line in rows}) == 1
    assert "| 13 | failed |" in table(made()) and "75%" in rows[2] and "(random)" in rows[2]
    assert "+3.00 [+2.00, +4.00]" in rows[2] and "| 30 | 3.0 |" in rows[2]


def test_the_levels_are_means_over_seeds_and_the_ceiling_comes_first():
    found = levels(made())
    assert list(found)[0] == "always follows the news" and found["always follows the news"] == 4.0
    assert found["HOLD"] == 0.0 and len(found) == 5


@pytest.mark.parametrize("results", [made(), made()[:1], [failed(1)]])
def test_table_and_plot_are_written_whatever_the_seeds_came_to(results, tmp_path):
    document, picture = write_report(tmp_path / "learning.json", "tiny", results)
    assert picture.read_bytes().startswith(PNG) and "improved" in document.read_text()


def test_what_json_prints_holds_summary_and_seeds():
    measured = Measurement(base_model="tiny", plan_digest="d", results=made(), files=[])
    shown = msgspec.json.decode(msgspec.json.encode(measured.as_json()))
    assert measured.failed and shown["summary"]["improved"] == 2
    assert [seed["seed"] for seed in shown["seeds"]] == [11, 12, 13, 14]


@pytest.mark.parametrize("text", ["11-20", "1,5,7-9", "3"])
def test_seeds_are_written_as_they_are_read(text):
    assert seeds_text(parse_seeds(text)) == text


def test_what_is_published_is_what_the_demo_quotes(tmp_path):
    plan = PLANS["smollm2-135m"]
    for seeds in (made()[:2], made()):
        data, document, picture = publish(tmp_path, "smollm2-135m", plan, seeds)
    among = msgspec.json.decode(data.read_bytes(), type=list[Entry])
    found = measured_for("smollm2-135m", plan_digest(plan), among)
    assert len(among) == 1 and found
    assert (found.seeds, found.improved, found.unseen_improved) == (4, 2, 1)
    assert tmp_path / found.document == document and picture.read_bytes().startswith(PNG)
    assert table(made()).strip() in document.read_text() and "--seeds 11-14" in document.read_text()
    assert "Nothing was left" not in document.read_text() + data.read_text()


def test_another_models_measurement_stays_and_a_folders_is_refused(tmp_path):
    publish(tmp_path, "tiny", PLANS["tiny"], made())
    data = publish(tmp_path, "smollm2-135m", PLANS["smollm2-135m"], made())[0]
    among = msgspec.json.decode(data.read_bytes(), type=list[Entry])
    assert [entry.base_model for entry in among] == ["tiny", "smollm2-135m"]
    assert len({entry.document for entry in among}) == 2
    with pytest.raises(SettingsError, match="--publish"):
        publish(tmp_path, str(tmp_path), PLANS["tiny"], made())
