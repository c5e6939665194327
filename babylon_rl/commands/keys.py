"""The commands `babylon-rl keys …`: who may call the gateway, and what each may do."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from babylon_rl.console import DatabaseOption, JsonOption, console, errors, print_table, settings_for

app = typer.Typer(help="Keys of the gateway: create, list, rotate, revoke.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's id, the part between brl_ and the next _.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="\\[default: no limit]")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for the list.")],
    agent: Annotated[str | None, typer.Option(help="The only agent that it speaks for. \\[default: any]")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="call, record, pin, metrics; may be repeated. \\[default: call, record]")
    ] = None,
    requests_per_minute: LimitOption = None,
    tokens_per_minute: LimitOption = None,
    in_flight: LimitOption = None,
    days: Annotated[float | None, typer.Option(min=0.001, max=36_500, help="\\[default: it does not end]")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: it is kept nowhere."""
    from babylon_rl.serving.key_store import DEFAULT_SCOPES, create_key

    with _opened(database).connect() as connection:
        made = create_key(
            connection,
            name,
            agent_id=agent,
            scopes=scope or DEFAULT_SCOPES,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            in_flight=in_flight,
            lasts=None if days is None else timedelta(days=days),
        )
    _show(made, as_json)


@app.command("list")
def listed(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """List the keys, the newest first. What a key is cannot be shown again."""
    from babylon_rl.serving.key_store import list_keys

    now = datetime.now(UTC)
    with _opened(database).connect() as connection:
        found = list_keys(connection)
    if as_json:
        print(json.dumps([{**msgspec.to_builtins(key), "state": key.state(now)} for key in found]))
        return
    if not found:
        console.print("There is no key yet; `babylon-rl keys create NAME` makes one.")
        return
    table = Table(box=SIMPLE, padding=(0, 1))
    for column in ("key", "name", "state", "agent", "scopes", "limits", "made", "ends"):
        table.add_column(column, no_wrap=column not in ("name", "agent", "limits"))
    for key in found:
        state = key.state(now) if key.successor is None else f"{key.state(now)}: {key.successor}"
        who = (key.key_id, key.name, state, key.agent_id or "any", " ".join(key.scopes), _limits(key))
        table.add_row(
            *map(escape, who), *(f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (key.created_at, key.expires_at))
        )
    print_table(table)


@app.command()
def rotate(
    key: IdArgument,
    grace_minutes: Annotated[float, typer.Option(min=0, max=1e6, help="That the old key goes on for.")] = 60,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key of the same rights and print it, this once; the old one ends after the grace.

    A request id that was used with the old key is another request with this one.
    """
    from babylon_rl.serving.key_store import rotate_key

    with _opened(database).connect() as connection:
        made = rotate_key(connection, key, timedelta(minutes=grace_minutes))
    _show(made, as_json)
    if not as_json:
        errors.print(f"{key} is refused after {grace_minutes:g} minutes.")


@app.command()
def revoke(key: IdArgument, database: DatabaseOption = None) -> None:
    """Have a key refused: by a gateway whose `babylon-rl serve` reaches the database, within seconds."""
    from babylon_rl.serving.key_store import revoke_key

    with _opened(database).connect() as connection:
        found = revoke_key(connection, key)
    before = " It was before." if found.revoked_at is not None else ""
    console.print(f"{key} ({found.name}) is revoked.{before}", soft_wrap=True, markup=False)


def _opened(database: str | None) -> Any:
    from babylon_rl.loop import prepare

    return prepare(settings_for(database))


def _show(made: Any, as_json: bool) -> None:
    if as_json:
        ends = None if made.expires_at is None else made.expires_at.isoformat()
        print(json.dumps({"key_id": made.key_id, "key": made.secret, "expires_at": ends}))
        return
    print(made.secret)
    ends = "" if made.expires_at is None else f" It ends {made.expires_at:%Y-%m-%d %H:%M} UTC."
    errors.print(f"This is the key {made.key_id}; it is shown this once.{ends}", soft_wrap=True)


def _limits(key: Any) -> str:
    limits = {
        "requests/min": key.requests_per_minute,
        "tokens/min": key.tokens_per_minute,
        "in flight": key.in_flight,
    }
    return ", ".join(f"{value} {name}" for name, value in limits.items() if value is not None)
