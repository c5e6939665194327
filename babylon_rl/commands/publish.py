"""The command `babylon-rl publish`: tells the application of finished checkpoints and says which rows that wrote."""

import json
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE
from rich.table import Table

from babylon_rl.console import DatabaseOption, JsonOption, console, settings_for
from babylon_rl.errors import SettingsError


def publish(
    checkpoint: Annotated[
        str | None, typer.Option(metavar="ID", help="This checkpoint only. \\[default: all that are finished]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and leave everything as it is.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the application of finished checkpoints: its tables trained_models and training_batches.

    They are in the database that BABYLON_RL_PUBLISH_URL names, whose role needs SELECT, INSERT and UPDATE on these two.
    All is written or nothing; a second time nothing changes. Checkpoints of the simulated market go by name only.
    """
    from babylon_rl.database.urls import redacted
    from babylon_rl.loop import prepare
    from babylon_rl.training.publishing import publish as publish_checkpoints

    settings = settings_for(database)
    url = settings.publish_url.get_secret_value() if settings.publish_url else ""
    if not url:
        raise SettingsError(
            "Publishing is off. Set BABYLON_RL_PUBLISH_URL to the application's database, with a role that may SELECT, "
            "INSERT and UPDATE trained_models and training_batches there."
        )
    done = publish_checkpoints(prepare(settings), url, datetime.now(UTC), checkpoint, dry_run)
    if as_json:
        print(json.dumps({"database": redacted(url), **msgspec.to_builtins(done)}))
        return
    if done.changes:
        table = Table(box=SIMPLE, padding=0)
        for name in ("table", "id", "version", "status", "change"):
            table.add_column(name, overflow="fold")
        for change in done.changes:
            said = "inserted" if change.inserted else ", ".join(change.columns)
            table.add_row(change.table, change.key, change.version, change.status, said)
        console.print(table)
    verb = "would be written" if dry_run else "written"
    console.print(
        f"{len(done.changes)} rows {verb}, {done.unchanged} as they were, in {redacted(url)}.",
        soft_wrap=True,
        markup=False,
    )
    if done.simulated:
        console.print(
            f"{done.simulated} checkpoints of the simulated market were left out; --checkpoint ID names one.",
            soft_wrap=True,
        )
