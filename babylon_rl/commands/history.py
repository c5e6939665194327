"""`babylon-rl history`: what was served when, who decided it and why, and what the gateways made of it."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.box import SIMPLE
from rich.table import Table

from babylon_rl.console import DatabaseOption, JsonOption, console, print_table, settings_for
from babylon_rl.errors import SettingsError

if TYPE_CHECKING:
    from babylon_rl.evaluation.promotion_history import Decision, Deployed, ServedAt

FORM = "%Y-%m-%d %H:%M:%S"


def history(
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="What was served then, as 2026-10-01T14:30; UTC unless it says."),
    ] = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Tell what was promoted and rolled back, by whom and why, and what really answered; or what was at a time."""
    from babylon_rl.evaluation.promotion_history import history as decisions
    from babylon_rl.evaluation.promotion_history import served_at
    from babylon_rl.loop import prepare

    moment = None if at is None else time_of(at)
    with prepare(settings_for(database)).connect() as connection:
        found = decisions(connection) if moment is None else served_at(connection, moment)
    if as_json:
        print(msgspec.json.encode(found).decode())
    elif isinstance(found, list):
        _tell(found)
    else:
        _tell_at(found)


def time_of(text: str) -> datetime:
    """A time as a person writes it, or a window's id; without a zone it is UTC. SettingsError for anything else."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise SettingsError(f"{text!r} is not a time. Write it as 2026-10-01T14:30, or with a zone: …+02:00.") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _tell(found: "list[Decision]") -> None:
    from babylon_rl.evaluation.promotion_history import in_short

    if not found:
        _say("Nothing was promoted yet: the base model is served. `babylon-rl promote ID --why …` promotes.")
        return
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("no.", "when (UTC)", "kind", "from", "to", "who", "why", "experiment", "evidence", "gateways"):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(
            str(one.promotion_id),
            f"{one.at.astimezone(UTC):{FORM}}",
            one.kind,
            one.before or "-",
            one.after,
            one.who,
            one.why,
            one.experiment_id or "-",
            in_short(one.evidence),
            "\n".join(_deployed(each, one.at) for each in one.deployed) or "-",
        )
    print_table(table)
    _say("--at TIME tells what was served at a time; --json has the evidence in full.")


def _deployed(one: "Deployed", decided: datetime) -> str:
    seconds = (one.at - decided).total_seconds()
    said = f"{one.state} at {one.gateway} after {seconds:.1f} s"
    return said if one.state == "served" else f"{said}: {one.reason}"


def _tell_at(found: "ServedAt") -> None:
    one = found.decided
    when = f"{found.at.astimezone(UTC):{FORM}} UTC"
    if one is None:
        _say(f"At {when} nothing was promoted: the base model was to be served.")
    else:
        _say(
            f"At {when} it was decided to serve {one.after}: number {one.promotion_id}, {one.kind} of "
            f"{one.at.astimezone(UTC):{FORM}} by {one.who}, from {one.before or 'nothing'}. {one.why}"
        )
    for each in found.answered:
        _say(
            f"{each.gateway}, {each.role}: {each.checkpoint_id} answered, since {each.at.astimezone(UTC):{FORM}}, as "
            f"{each.model} at {each.upstream}. {each.reason}"
        )
    if not found.answered:
        _say("No gateway had booked that anything answered.")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
