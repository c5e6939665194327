"""`babylon-rl promote`: what agents call from now on, decided by a person and booked with the reason."""

import getpass
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from babylon_rl.console import DatabaseOption, JsonOption, console, errors, settings_for

if TYPE_CHECKING:
    from babylon_rl.database.connect import Database
    from babylon_rl.evaluation.promotion import Promoted
    from babylon_rl.settings import Settings

WhyOption = Annotated[str, typer.Option("--why", help="The reason; it is kept.")]
WhoOption = Annotated[str | None, typer.Option("--who", help="Who decides. \\[default: the user of this machine]")]


def promote(
    checkpoint: Annotated[str, typer.Argument(help="Its id, or the beginning of it; RUN@0 is a run's base model.")],
    why: WhyOption,
    who: WhoOption = None,
    despite_evidence: Annotated[
        bool, typer.Option("--despite-evidence", help="Promote although no evaluation says so.")
    ] = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Serve a checkpoint from now on: a running gateway follows within seconds.

    Its evaluation has to say promote, and its weights have to be those that were trained. Who, when, why and the
    evidence are kept: `babylon-rl history` shows them, `babylon-rl rollback` goes back.
    """
    from babylon_rl.evaluation.promotion import promote_checkpoint
    from babylon_rl.loop import prepare
    from babylon_rl.training.retention import find_checkpoint

    settings = settings_for(database)
    opened = prepare(settings)
    with opened.connect() as connection:
        found = find_checkpoint(connection, checkpoint)
        made = promote_checkpoint(connection, found.checkpoint_id, decider(who), why, despite_evidence)
    tell(settings, opened, made, as_json)


def decider(who: str | None) -> str:
    """Who decides: as named, else the user of this machine."""
    if who is not None:
        return who
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown user"


def tell(settings: "Settings", database: "Database", made: "Promoted", as_json: bool) -> None:
    """Say what was booked, and tell the application where that is configured."""
    if made.booked:
        _published(settings, database)
    if as_json:
        print(msgspec.json.encode(made).decode())
        return
    change = f"{made.before or 'nothing'} -> {made.after}" if made.booked else f"{made.after} is served already"
    console.print(f"{change}. {made.said}".strip(), soft_wrap=True, markup=False, highlight=False)
    console.print("Next: babylon-rl history", highlight=False)


def _published(settings: "Settings", database: "Database") -> None:
    """Whatever goes wrong is a warning: the decision is booked, and `babylon-rl publish` tells of it again."""
    from datetime import UTC, datetime

    from babylon_rl.training.publishing import publish

    url = settings.publish_url.get_secret_value() if settings.publish_url else ""
    if not url:
        return
    try:
        publish(database, url, datetime.now(UTC))
    except Exception as error:
        errors.print(
            f"Not published: {error} The decision is booked; `babylon-rl publish` tells the application of it.",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
