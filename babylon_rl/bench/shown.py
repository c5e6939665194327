"""What all commands of the benches share: the option of their rounds, and how figures are shown."""

import json
from typing import Annotated, Any, NoReturn

import typer

PairsOption = Annotated[int, typer.Option("--pairs", min=1, help="Rounds in which each way is taken once.")]


def show(found: Any, as_json: bool) -> NoReturn:
    """Print the figures; exit code 1 where a limit is missed."""
    print(json.dumps(found.as_json()) if as_json else found.table())
    raise typer.Exit(0 if found.reached else 1)
