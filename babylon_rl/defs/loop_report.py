"""Asset `loop_report`: the state of the loop as one HTML file, with the same in short as its metadata."""

import dagster as dg

from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.reporting.page import summary, write_report
from babylon_rl.reporting.state import read_state
from babylon_rl.settings import get_settings

DESCRIPTION = """\
The state of the loop for people: what is served, the candidate and its evidence, the learning curve, P&L with
intervals, the judge, rejects by reason, cost. One HTML file without scripts, which a browser opens from the disk;
`babylon-rl report` writes the same. It reads current rows and is never a source for anything.
"""


@dg.asset(
    deps=["checkpoint_evaluations", "market_evaluations", "replay_evaluations", "online_evaluations"],
    group_name="models",
    kinds={"html"},
    tags={"stage": "reporting", "rerun": "cheap"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def loop_report(database: DatabaseResource) -> dg.MaterializeResult:
    settings = get_settings()
    state = read_state(database.open(), settings)
    target = write_report(state, settings.home / "report.html")
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.path(target),
            "state": dg.MetadataValue.md(summary(state)),
            "served": state.served.checkpoint if state.served else "nothing is promoted",
            "windows ready": state.windows["ready"],
        }
    )
