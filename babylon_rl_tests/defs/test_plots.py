"""Tables and plots as a person sees them: bounded, rounded, and safe from what agents called themselves."""

import math

import dagster as dg
import pytest

from babylon_rl.defs.metadata.plots import INLINE, bars, curves, intervals
from babylon_rl.defs.metadata.tables import LONGEST_CELL, MOST_ROWS, counted, figures, table
from babylon_rl_tests.defs.shown import NASTY, image, records, texts

# --- tables and figures ------------------------------------------------------------------------------


def test_a_long_table_keeps_its_first_and_last_rows_and_says_how_many_are_between():
    shown = records(table([{"n": n, "m": n} for n in range(100)], ["n", "m"]))
    assert len(shown) == MOST_ROWS + 1
    assert (shown[0]["n"], shown[-1]["n"]) == (0, 99)
    assert [row["n"] for row in shown if isinstance(row["n"], str)] == [f"… {100 - MOST_ROWS} more in the table"]
    assert len(records(table([{"n": n} for n in range(MOST_ROWS)], ["n"]))) == MOST_ROWS


def test_a_cell_is_one_short_line_a_rounded_number_or_empty():
    row = {"text": NASTY, "number": 0.123456789, "nan": math.nan, "none": None, "yes": True, "count": 3}
    (shown,) = records(table([row], row))
    assert shown["text"].isprintable() and len(shown["text"]) <= LONGEST_CELL
    assert (shown["number"], shown["nan"], shown["none"], shown["yes"], shown["count"]) == (0.1235, None, None, True, 3)


def test_unknown_figures_are_left_out_and_zero_is_not_unknown():
    given = {"a": 0.0, "b": math.nan, "c": math.inf, "d": None, "e": 1234.567, "f": 0, "g": 0.000123456}
    assert figures(given) == {"a": 0.0, "e": 1235.0, "f": 0, "g": 0.0001235}


def test_counts_say_the_most_frequent_first():
    assert counted(["no_text", "logged", "logged"]) == "2 logged, 1 no_text"


# --- plots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8, 16, 32, 48])
def test_bars_stand_inline_for_as_many_agents_as_a_window_has(count):
    plot = bars("P&L by agent", [(f"agent-{n}", 500.0 - 31 * n) for n in range(count)])
    assert len(plot.value) < INLINE
    title, svg = image(plot)
    assert title == "P&L by agent" and len(texts(svg)) in (0, count)


def test_bars_carry_names_and_values_where_there_is_room():
    _, svg = image(bars("t", [("agent-1", 2.5), ("agent-2", -13.9)]))
    assert texts(svg) == ["agent-1 +2.50", "agent-2 -13.90"]


def test_what_agents_called_themselves_cannot_break_a_plot():
    for plot in (bars("t", [(NASTY, 1.0), ("]>)", -1.0)]), intervals("t", [(NASTY, 1.0, 0.0, 2.0)])):
        _, svg = image(plot)
        assert "<" not in "".join(texts(svg)) and len(list(svg)) > 1


def test_curves_of_a_long_update_stand_inline_with_first_and_last_value():
    names = ("loss", "entropy", "ratio", "grad_norm")
    plot = curves("steps", {name: [math.sin(17 * n) - 0.00123 for n in range(200)] for name in names})
    assert len(plot.value) < INLINE
    _, svg = image(plot)
    assert texts(svg)[0].startswith("loss -0.00123 → ") and len(texts(svg)) == 4


def test_plots_of_nothing_say_so():
    for said in (bars("t", [("a", math.nan)]), intervals("t", []), curves("t", {"loss": [1.0]})):
        assert isinstance(said, dg.TextMetadataValue) and said.text
