"""Asset `market_outcomes`: what the market did in each hour."""

import dagster as dg

from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.data import outcomes_metadata
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import RECORDED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.outcomes.windows import outcome_windows

DESCRIPTION = """\
A row is an instrument in an hour: its price at both edges, the change, the outcome, and where they come from. **A
partition** holds what was traded or resolved in the hour, and nothing for a quiet hour.

**Where from?** `source` says: the price history, else positions, else the application's own `market_outcomes`
(docs/outcomes.md). What none of them knows is null, never guessed.

**Provisional?** A question is settled once the game resolved it, in every hour in which it was traded. Until then its
row says `settled = false`; the hourly sweep, or `babylon-rl outcomes sync`, computes it anew when it resolved.

Read by `scored_trajectories` and `replay_evaluations`.
"""


@dg.asset(
    **declared("market_outcomes", "truth", hourly=True),
    deps=[RECORDED],
    group_name="data",
    kinds={"postgres", "pandas"},
    code_version="2",
    description=DESCRIPTION,
)
@typed_failures()
def market_outcomes(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.Output[WindowRows]:
    opened = database.open()
    return written(context, opened, outcome_windows(opened, window_ids(context)), outcomes_metadata)
