"""The commands `babylon-rl recording …`: check and import recordings of agents in any language."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from babylon_rl.console import DatabaseOption, JsonOption, console, errors, settings_for

app = typer.Typer(
    help="Recordings of agents in any language, as JSONL: check them, import them, print their schema.",
    no_args_is_help=True,
)

FilesArgument = Annotated[list[str], typer.Argument(metavar="FILE...", help="JSONL files; - reads standard input.")]
LimitOption = Annotated[int, typer.Option(min=0, help="Wrong lines that are printed of a file.")]
TOLD_WINDOWS = 5


@app.command("check")
def check(files: FilesArgument, limit: LimitOption = 50, as_json: JsonOption = False) -> None:
    """Say what is wrong in recorded trajectories, and what the good ones are not good for. Exit code 1: something is.

    A line is a trajectory as docs/recording.md shows it, or a row of the application's table as row_to_json gives it.
    """
    from babylon_rl.recording.importing import check_file

    reports = _each(files, "checking", check_file)
    wrong = sum(report.wrong for report in reports)
    empty = not any(report.trajectories for report in reports)
    if as_json:
        print(json.dumps({"ok": not wrong and not empty, "files": [report.as_json() for report in reports]}))
    else:
        for report in reports:
            _tell(report, limit)
        if empty:
            console.print("Nothing is recorded there.")
    raise typer.Exit(1 if wrong or empty else 0)


@app.command("import")
def import_(
    files: FilesArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be written, and write nothing.")] = False,
    limit: LimitOption = 10,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write recorded trajectories to our tables, each once. Exit code 1: lines were rejected.

    Rejected lines go to FILE.rejected with what is wrong in them. The application's tables are not written to. After
    Ctrl-C the same command goes on: what is written already is known.
    """
    from babylon_rl.loop import prepare
    from babylon_rl.recording.importing import import_file

    opened = prepare(settings_for(database))
    reports = _each(
        files, "importing", lambda name, advance: import_file(opened, name, dry_run=dry_run, advance=advance)
    )
    totals = {name: sum(getattr(r, name) for r in reports) for name in ("written", "known", "wrong")}
    windows = sorted(set().union(*(report.windows for report in reports)))
    if as_json:
        told = {"written": totals["written"], "known": totals["known"], "rejected": totals["wrong"]}
        print(json.dumps({**told, "windows": windows, "files": [report.import_as_json() for report in reports]}))
    else:
        for report in reports:
            _tell(report, limit)
            if report.rejected_path:
                console.print(f"{report.file}: rejected lines are in {report.rejected_path}", soft_wrap=True)
        would = "would be written" if dry_run else "written"
        console.print(
            f"{totals['written']} {would}, {totals['known']} known already, {totals['wrong']} rejected.", soft_wrap=True
        )
        if windows:
            console.print(f"They ended in {len(windows)} hours: {_some(windows)}.", soft_wrap=True)
            console.print(f"Next: {'the same without --dry-run' if dry_run else 'babylon-rl windows --live'}")
    raise typer.Exit(1 if totals["wrong"] else 0)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a recorded trajectory."""
    from babylon_rl.recording.contract import SCHEMA_FILE

    print(SCHEMA_FILE.read_text(), end="")


def _each(files: Sequence[str], what: str, look: Callable[..., Any]) -> list[Any]:
    """A report of each file, with a bar of its bytes where a terminal draws one."""
    from babylon_rl.recording.importing import require_readable

    require_readable(files)  # before anything of the first is written
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    reports = []
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bars:
        for name in files:
            size = os.path.getsize(name) if os.path.isfile(name) else None
            task = bars.add_task(f"{what} {os.path.basename(name)}", total=size)
            reports.append(look(name, lambda done, task=task: bars.advance(task, done)))
    return reports


def _tell(report: Any, limit: int) -> None:
    """A file's wrong lines, then its cautions, then its counts."""
    from babylon_rl.recording.checking import CAUTIONS

    for line, name, problems in report.told[:limit]:
        for problem in problems:
            label = f"{report.file}:{line}" + (f" {name}" if name else "")
            console.print(f"{label}: {problem}", soft_wrap=True, markup=False, highlight=False)
    if report.wrong > limit:
        console.print(f"... and {report.wrong - limit} wrong lines more (--limit, or --json)")
    for name, count in sorted(report.cautions.items()):
        lines = ", ".join(map(str, report.caution_lines[name])) + (", ..." if count > 3 else "")
        said = f"{report.file}: warning: {count} with {name} (line {lines}): {CAUTIONS[name]}"
        console.print(said, soft_wrap=True, markup=False, highlight=False)
    good = report.trajectories - report.wrong
    console.print(
        f"{report.file}: {report.trajectories} trajectories, {good} good, {report.wrong} wrong", soft_wrap=True
    )


def _some(windows: list[str]) -> str:
    if len(windows) <= TOLD_WINDOWS:
        return ", ".join(windows)
    return f"{windows[0]} to {windows[-1]}"
