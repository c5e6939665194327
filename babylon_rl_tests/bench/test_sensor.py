"""The bench of the sensor, on a table small enough for a test."""

import pytest

from babylon_rl.bench.sensor import LEAST_TICKS, as_json, measure_sensor, table


@pytest.mark.parametrize("named", [True, False])
def test_the_bench_measures_quiet_ticks_and_one_late_row(named):
    figures = measure_sensor(20, 100, named, lambda line: None)
    assert figures.late_found and figures.round_ticks >= 1 and len(figures.quiet) >= LEAST_TICKS
    assert "100 trajectories" in table(figures) and as_json(figures)["rows"] == 100
