"""Ranges of windows for the tests of definitions: recorded, and materialized on an instance."""

import dagster as dg

from babylon_rl.database.connect import Database
from babylon_rl.definitions import build_defs
from babylon_rl.defs.jobs import DATA_ASSETS
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.market.actions import parse_action
from babylon_rl.market.agents import make_agents
from babylon_rl.market.policies import choose
from babylon_rl.market.settlement import settle
from babylon_rl.market.trajectories import Label, make_run, market_history
from babylon_rl.market.world import make_window
from babylon_rl.recording.market_history import record_market
from babylon_rl.recording.recorder import write_runs
from babylon_rl.windows import shift_window

FIRST = "2025-01-15T00:00"


def record(database: Database, windows: int, agents: int = 8, first: str = FIRST) -> list[str]:
    """Windows played for training by agents that choose at random, without a model's tokens."""
    ids = [shift_window(first, i) for i in range(windows)]
    with database.connect() as connection:
        for index, window_id in enumerate(ids):
            window = make_window(0, "train", index)
            state = make_agents(0, "train", index, agents)
            tickers, questions = market_history(window_id, window)
            record_market(connection, [a.agent_id for a in state], tickers, questions)
            actions = [parse_action(choose("random", window, a), window.instrument(a.instrument)) for a in state]
            settled = settle(window, state, actions)
            write_runs(
                connection,
                [make_run(window_id, window, a, s, Label("random"), None) for a, s in zip(state, settled, strict=True)],
            )
    return ids


def materialize(database: Database, instance: dg.DagsterInstance, tags: dict[str, str], assets=DATA_ASSETS):
    definitions = build_defs({"database": DatabaseResource(url=database.url)})
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance, tags=tags, asset_selection=[dg.AssetKey(a) for a in assets], raise_on_error=False
    )


def span(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
