"""`babylon-rl checkpoints`: what there is and why it stays, one of them in full, and the deletion of what may go."""

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE
from rich.table import Table

from babylon_rl.console import DatabaseOption, JsonOption, console, print_table, settings_for

if TYPE_CHECKING:
    from babylon_rl.training.retention import Pruned, Standing


app = typer.Typer(help="The checkpoints: list, show, prune.", invoke_without_command=True)


@app.callback()
def listed(
    context: typer.Context,
    run: Annotated[str | None, typer.Option("--run", help="Only those of this training run.")] = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """List the checkpoints: run, step, backend, when made, size, state, and why each stays."""
    if context.invoked_subcommand is not None:
        return
    from babylon_rl.loop import prepare
    from babylon_rl.training.retention import standings

    settings = settings_for(database)
    with prepare(settings).connect() as connection:
        found = standings(connection, settings.keep_checkpoints)
    found = [one for one in found if run is None or one.training_run == run]
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    if not found:
        whose = "" if run is None else f" of a training run {run!r}"
        console.print(
            f"There is no checkpoint{whose} yet; `babylon-rl demo` and `babylon-rl train` make some.",
            soft_wrap=True,
            markup=False,
        )
        return
    print_table(_table(found, "why it stays"))
    free = [one for one in found if one.state != "deleted" and not one.why]
    if free:
        console.print(f"{len(free)} of {len(found)} may go: `babylon-rl checkpoints prune` says what that frees.")


@app.command()
def show(
    checkpoint: Annotated[str, typer.Argument(help="Its id, the beginning of it, or promoted.")],
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Show all that is known of one checkpoint."""
    from babylon_rl.loop import prepare
    from babylon_rl.training.checkpoint_store import stored_bytes
    from babylon_rl.training.retention import checkpoint_row, find_checkpoint, reasons
    from babylon_rl.training.runs import list_checkpoints

    settings = settings_for(database)
    with prepare(settings).connect() as connection:
        found = find_checkpoint(connection, checkpoint).checkpoint_id
        row = checkpoint_row(connection, found)
        kept = reasons(connection, list_checkpoints(connection), settings.keep_checkpoints).get(found, [])
    row["bytes"] = stored_bytes(row["path"]) if row["path"] else None
    row["why_it_stays"] = kept
    if as_json:
        print(json.dumps(row, default=_plain))
        return
    for name, value in row.items():
        if value is None or name == "metrics":
            continue
        said = ", ".join(value) if isinstance(value, list) else _size(value) if name == "bytes" else _plain(value)
        console.print(f"{name:<18}{said or '-'}", soft_wrap=True, markup=False, highlight=False)
    for name, value in row["metrics"].items():
        console.print(f"{'  ' + name:<18}{value}", soft_wrap=True, markup=False, highlight=False)
    if row["step"] > 0:
        console.print(f"Next: babylon-rl lineage {found}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def prune(
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without this it is only said what would go.")] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=0, help="Latest ones of each run to keep. \\[default: BABYLON_RL_KEEP_CHECKPOINTS]"),
    ] = None,
    hosted: Annotated[bool, typer.Option("--hosted", help="Also those that the hosted service keeps.")] = False,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Delete the weights of checkpoints that no rule keeps; their rows and what they were made of stay."""
    from babylon_rl.loop import prepare
    from babylon_rl.training.retention import hosted_deleter
    from babylon_rl.training.retention import prune as prune_checkpoints

    settings = settings_for(database)
    if keep is not None:
        settings = settings.model_copy(update={"keep_checkpoints": keep})
    deleter = hosted_deleter(settings) if hosted else None
    done = prune_checkpoints(prepare(settings), settings, apply, deleter)
    if as_json:
        print(json.dumps({**msgspec.to_builtins(done), "freed": done.freed}))
    else:
        _tell(done)
    if done.failed:
        raise typer.Exit(1)


def _tell(done: "Pruned") -> None:
    if done.gone or done.left:
        print_table(_table([*done.gone, *done.left], None))
    verb = "are deleted" if done.applied else "would go"
    left = f", and what is left of {len(done.left)} that were deleted before" if done.left else ""
    _say(f"Checkpoints that {verb}: {len(done.gone)}{left}; bytes freed: {_size(done.freed)}.")
    for path, size in done.work.items():
        _say(f"  {path}: what an update left that was abandoned, {_size(size)}")
    _say(f"Checkpoints that stay: {len(done.kept)}.")
    for one in done.kept:
        _say(f"  {one.checkpoint_id}: {'; '.join(one.why)}")
    if done.hosted:
        _say(
            f"{len(done.hosted)} more may go and are kept by the hosted service, which may charge for storing them; "
            "--hosted deletes them there."
        )
    for checkpoint, said in done.failed.items():
        _say(f"{checkpoint} could not be removed ({said}); the same command tries again.")
    if not done.applied and (done.gone or done.left or done.work):
        _say("Nothing was changed. Next: the same command with --apply")


def _table(found: "list[Standing]", why: str | None) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("checkpoint", "run", "step", "backend", "made", "size", "state"):
        table.add_column(name, justify="right" if name in ("step", "size") else "left", overflow="fold")
    if why:
        table.add_column(why, overflow="fold")
    for one in found:
        reason = [] if not why else ["; ".join(one.why) or ("" if one.state == "deleted" else "may go")]
        table.add_row(
            one.checkpoint_id,
            one.training_run,
            str(one.step),
            one.backend or "-",
            f"{one.made:%Y-%m-%d %H:%M}",
            "hosted" if one.hosted else _size(one.bytes),
            one.state,
            *reason,
        )
    return table


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} B"


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
