"""Between assets: windows out, windows in, each run in one transaction."""

import dagster as dg
import pandas as pd
import pytest

from babylon_rl.defs.io_manager import PostgresIOManager
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.errors import DatabaseError

HOURS = dg.HourlyPartitionsDefinition(start_date="2025-01-15T00:00", fmt="%Y-%m-%dT%H:%M", timezone="UTC")
TEN, ELEVEN, TWELVE = "2025-01-15T10:00", "2025-01-15T11:00", "2025-01-15T12:00"


@pytest.fixture
def manager(database) -> PostgresIOManager:
    return PostgresIOManager(database=DatabaseResource(url=database.url))


def outcomes(window_ids: list[str], close: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "window_id": window_ids,
            "instrument": "AAA",
            "kind": "ticker",
            "close": close,
            "settled": True,
            "source": "test",
            "revision": "r",
        }
    )


def output(name: str = "market_outcomes", partition: str | None = TEN) -> dg.OutputContext:
    definition = HOURS if partition else None
    return dg.build_output_context(
        asset_key=dg.AssetKey(["babylon", name]), partition_key=partition, asset_partitions_def=definition
    )


def loaded(manager: PostgresIOManager, first: str = TEN, last: str = TWELVE) -> pd.DataFrame:
    context = dg.build_input_context(
        asset_key=dg.AssetKey("market_outcomes"),
        asset_partitions_def=HOURS,
        asset_partition_key_range=dg.PartitionKeyRange(first, last),
    )
    return manager.load_input(context)


def run(manager: PostgresIOManager, first: str, last: str, frame: pd.DataFrame) -> tuple[dict, list]:
    """Two assets in one run over a range of windows: metadata of the first, and what the second was given."""
    given: list[pd.DataFrame] = []

    @dg.asset(partitions_def=HOURS, backfill_policy=dg.BackfillPolicy.single_run())
    def market_outcomes() -> pd.DataFrame:
        return frame

    @dg.asset(partitions_def=HOURS, backfill_policy=dg.BackfillPolicy.single_run())
    def scored_trajectories(market_outcomes: pd.DataFrame) -> None:
        given.append(market_outcomes)

    result = dg.materialize(
        [market_outcomes, scored_trajectories],
        resources={"io_manager": manager},
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
    )
    metadata = result.asset_materializations_for_node("market_outcomes")[0].metadata
    return {name: value.value for name, value in metadata.items()}, given


def test_a_range_is_written_and_read_in_one_run_and_again_without_change(manager):
    frame = outcomes([TEN, ELEVEN, TWELVE], 1.0)
    metadata, (given,) = run(manager, TEN, TWELVE, frame)
    assert (
        metadata["dagster/row_count"] == metadata["run: rows written"] == 3 and metadata["run: windows unchanged"] == 0
    )
    assert given["window_id"].tolist() == [TEN, ELEVEN, TWELVE] and "digest" in given
    metadata, _ = run(manager, TEN, TWELVE, frame)
    assert metadata["run: rows written"] == 0 and metadata["run: windows unchanged"] == 3


def test_a_run_of_one_window_leaves_the_others_alone(manager):
    manager.handle_output(output(), outcomes([TEN], 1.0))
    manager.handle_output(output(partition=ELEVEN), outcomes([ELEVEN], 2.0))
    manager.handle_output(output(partition=ELEVEN), outcomes([ELEVEN], 3.0))
    assert loaded(manager)["close"].tolist() == [1.0, 3.0]
    assert loaded(manager, TEN, TEN)["close"].tolist() == [1.0]


def test_rows_outside_the_run_are_refused_and_nothing_is_changed(manager):
    manager.handle_output(output(), outcomes([TEN], 1.0))
    with pytest.raises(DatabaseError, match=TWELVE):
        manager.handle_output(output(), outcomes([TEN, TWELVE], 2.0))
    assert loaded(manager)["close"].tolist() == [1.0]


def test_none_writes_nothing_and_a_frame_without_rows_empties_the_window(manager):
    manager.handle_output(output(), outcomes([TEN], 1.0))
    manager.handle_output(output(), None)
    assert len(loaded(manager)) == 1
    manager.handle_output(output(), pd.DataFrame())
    assert len(loaded(manager)) == 0


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (output("nonsense"), "has no table"),
        (output("snapshots"), "has no table"),
        (output(partition=None), "not partitioned"),
    ],
)
def test_an_asset_that_it_cannot_keep_is_refused_with_the_remedy(manager, context, said):
    with pytest.raises(DatabaseError, match=said):
        manager.handle_output(context, outcomes([TEN], 1.0))


def test_what_is_no_frame_is_refused(manager):
    with pytest.raises(DatabaseError, match="DataFrame"):
        manager.handle_output(output(), [1])
