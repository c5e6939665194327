"""`babylon-rl report`: the state of the loop as one HTML file."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from babylon_rl.console import DatabaseOption, JsonOption, console, settings_for


def report(
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write. \\[default: report.html in the home folder]")
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the state of the loop to one HTML file: served, candidate, evidence, learning, P&L, rejects, cost."""
    from babylon_rl.loop import prepare
    from babylon_rl.reporting.page import write_report
    from babylon_rl.reporting.state import read_state

    settings = settings_for(database)
    state = read_state(prepare(settings), settings)
    if as_json:
        print(msgspec.json.encode(state).decode())
        return
    target = write_report(state, out or settings.home / "report.html")
    served = state.served.checkpoint if state.served else "nothing is promoted"
    console.print(f"Served: {served}. The page: {target}", soft_wrap=True, markup=False)
