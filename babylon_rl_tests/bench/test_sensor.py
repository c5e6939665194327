"""The sensor's bench on a small table: it finds the late row, measures a whole round, and leaves no database behind."""

import psycopg
import pytest

from babylon_rl.bench.sensor import NAME, as_json, measure_sensor, table
from babylon_rl.settings import Settings


@pytest.mark.parametrize("named", [True, False])
def test_the_bench_measures_quiet_ticks_and_one_late_row_in_a_database_of_its_own(server, named):
    said: list[str] = []
    figures = measure_sensor(Settings(database_home=server.home), 20, 200, named, said.append)
    assert figures.late_found and len(figures.quiet) >= 10 and said
    assert "200 trajectories" in table(figures) and as_json(figures)["rows"] == 200
    with psycopg.connect(server.url("postgres")) as connection:
        assert not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (NAME,)).fetchall()
