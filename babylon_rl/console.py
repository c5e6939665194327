"""What all commands share: the console, options, settings of a call, and progress of long work."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from babylon_rl.settings import Settings, get_settings
from babylon_rl.settings.names import SETTINGS_FILE

console = Console()
errors = Console(stderr=True)
WIDE = 160  # of a table, where no terminal says how wide it is


def print_table(table: Table) -> None:
    """Print a table as wide as it wants to be, unless a terminal is narrower."""
    wide = console if console.is_terminal else Console(width=max(console.width, WIDE))
    wide.print(table)


DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="PostgreSQL to use instead of the embedded server.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="smollm2-135m, tiny, or a folder. \\[default: BASE_MODEL]")
]
TablesOption = Annotated[
    bool,
    typer.Option("--with-application-tables", help="Create the application's tables in a database that has none."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# What the application's own processes have set, and the demo must not obey.
APPLICATIONS = (
    *("DATABASE_URL", "BABYLON_RL_DATABASE_URL", "BABYLON_RL_PUBLISH_URL", "OPENAI_API_KEY"),
    *("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT", "PROJECT_NAME", "MODEL_NAME", "MODE", "WINDOW_ID"),
    *("TRAIN_RL_LOCAL", "TRAINING_BACKEND", "JUDGE_MODEL", "JUDGE_BASE_URL", "JUDGE_API_KEY"),
)


def settings_for(database: str | None, model: str | None = None) -> Settings:
    """The settings, with the database that was named (for the application's tables too) and the model."""
    changes: dict[str, Any] = {}
    if database is not None:
        changes |= {"database_url": SecretStr(database), "application_url": None}
    if model is not None:
        changes["base_model"] = model
    return get_settings().model_copy(update=changes)


def forget_the_applications_variables() -> None:
    """A user of the application has these exported; simulated agents must not land in, or send to, what they name."""
    for name in APPLICATIONS:
        if os.environ.get(SETTINGS_FILE):
            os.environ[name] = ""  # which wins over what the file says
        else:
            os.environ.pop(name, None)
    get_settings.cache_clear()


def judging_told() -> contextlib.AbstractContextManager[None]:
    """What judging each window may cost is printed before it is asked for, beside the command's own output."""
    return log_told("babylon_rl.scoring.judge")


@contextlib.contextmanager
def log_told(name: str) -> Iterator[None]:
    """What the logger says is printed beside the command's own output."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.print(record.getMessage(), soft_wrap=True, markup=False, highlight=False)

    log, handler = logging.getLogger(name), Told(logging.INFO)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def progress() -> Progress:
    """Bars of the stages of long work; none where no terminal draws them."""
    return Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def stage(progress: Progress) -> Callable[[str, int], Callable[[], None]]:
    """Function that begins a stage of so many steps; what it gives is called for each step that is done."""
    if not console.is_terminal:
        return _line_stage

    def begin(title: str, steps: int) -> Callable[[], None]:
        task = progress.add_task(title, total=steps)
        return lambda: progress.advance(task)

    return begin


def _line_stage(title: str, steps: int) -> Callable[[], None]:
    """Where no bar can be drawn (a log, CI): a line when a stage is done, with its time."""
    began, left = time.monotonic(), [steps]

    def advance() -> None:
        left[0] -= 1
        if left[0] == 0:
            print(f"{title}: {steps} done in {time.monotonic() - began:.0f} s", flush=True)

    return advance
