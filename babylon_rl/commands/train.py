"""`babylon-rl train`: which windows are trained on, what that takes and costs, and the jobs that do it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from babylon_rl.commands.training_told import Told, agree_to_cost
from babylon_rl.console import DatabaseOption, JsonOption, ModelOption, errors, progress, settings_for, stage
from babylon_rl.errors import SettingsError
from babylon_rl.settings import Settings, old_name_notes

if TYPE_CHECKING:
    from babylon_rl.database.connect import Database
    from babylon_rl.launching import Model
    from babylon_rl.training.batches import Wanted
    from babylon_rl.training.runs import TrainingRun

MODES = ("list", "single", "continuous")
EITHER = "Say either --to WINDOW, for one update over a range, or --continuous (--follow), for a run without an end."
NAME = "babylon"
# Options that choose windows, and so change nothing where windows are named or a run has no end.
CHOOSING = ("iterations", "windows_per_iteration", "lookback_hours", "min_agents", "min_actions")


Window = Annotated[str | None, typer.Option("--window", help="Train on this window alone.")]
First = Annotated[str | None, typer.Option("--from", help="First window.")]
Last = Annotated[str | None, typer.Option("--to", help="Last window; the update consumes the whole range.")]
Continuous = Annotated[
    bool, typer.Option("--continuous", "--follow", help="A run without an end, from --from or --lookback-hours on.")
]
Wait = Annotated[
    bool, typer.Option(help="With --continuous: make the updates here until Ctrl-C, or leave them to `make ui`.")
]
Iterations = Annotated[int, typer.Option(min=1, help="Updates over chosen windows, one after the other.")]
Windows = Annotated[int, typer.Option(min=1, help="Windows of an update at most.")]
Lookback = Annotated[float, typer.Option(min=1, help="Hours from which windows are chosen.")]
Agents = Annotated[int, typer.Option(min=1, help="Agents with --min-actions that a chosen window has at least.")]
Actions = Annotated[
    int,
    typer.Option(min=1, help="Recorded steps from which an agent counts for --min-agents; all agents are trained on."),
]
Target = Annotated[int, typer.Option(min=2, help="Trajectories of an update from which on some are left out, by seed.")]
Dropout = Annotated[float, typer.Option(min=0, max=1, help="Share of them that is left out at most.")]
Rate = Annotated[float | None, typer.Option(min=0, help="\\[default: the recipe's]")]
Name = Annotated[str | None, typer.Option(help="Name of the model. \\[default: MODEL_NAME, or babylon]")]
Backend = Annotated[str | None, typer.Option(help="torch, wandb, art-local or auto. \\[default: TRAINING_BACKEND]")]
Cost = Annotated[float | None, typer.Option(min=0, help="Dollars that this may cost. \\[default: BABYLON_RL_MAX_COST]")]
Yes = Annotated[bool, typer.Option("--yes", help="Agree to what is sent and what it costs unasked.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; nothing is trained, stored or sent.")]


def train(
    context: typer.Context,
    window: Window = None,
    first: First = None,
    last: Last = None,
    continuous: Continuous = False,
    wait: Wait = True,
    iterations: Iterations = 1,
    windows_per_iteration: Windows = 20,
    lookback_hours: Lookback = 168,
    min_agents: Agents = 5,
    min_actions: Actions = 5,
    target_trajectories: Target = 1000,
    max_dropout: Dropout = 0.3,
    learning_rate: Rate = None,
    seed: Annotated[int, typer.Option()] = 0,
    name: Name = None,
    backend: Backend = None,
    max_cost: Cost = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: JsonOption = False,
    model: ModelOption = None,
    database: DatabaseOption = None,
) -> None:
    """Train on recorded windows; without window options on the newest that will do and were not trained on before.

    One line of checkpoints a --name: called again, it goes on with what is new.

    MODE and WINDOW_ID say what is done where no window option does.
    """
    from babylon_rl.launching import Model, looked_back
    from babylon_rl.training.batches import Wanted

    settings = _settings(database, model, backend, max_cost)
    kind, first, last = what(settings, window, first, last, continuous)
    if kind == "list":
        _list(database, as_json)
        return
    given = [one for one in CHOOSING if str(context.get_parameter_source(one)).endswith("COMMANDLINE")]
    for text in [] if as_json else without_effect(kind, first, given):
        errors.print(text, soft_wrap=True, markup=False)
    since, until = looked_back(settings, lookback_hours, datetime.now(UTC))
    wanted = Wanted(
        first=since,
        last=until,
        min_agents=min_agents,
        min_actions=min_actions,
        windows=windows_per_iteration,
        updates=iterations,
    )
    asked = Model(
        name=name or settings.model_name or NAME,
        seed=seed,
        learning_rate=learning_rate,
        target_trajectories=target_trajectories,
        max_dropout=max_dropout,
    )
    _do(settings, asked, kind, (first, last), wanted, Told(as_json, lookback_hours), wait, yes, dry_run)


def _do(
    settings: Settings,
    asked: "Model",
    kind: str,
    span: tuple[str | None, str | None],
    wanted: "Wanted",
    say: Told,
    wait: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """What was asked, on the database that the settings name."""
    from babylon_rl.launching import run_of
    from babylon_rl.materializing import dagster_environment, environment
    from babylon_rl.training.backends.hosted_service import key_of

    if not say.as_json:
        for note in old_name_notes():
            errors.print(note, soft_wrap=True, markup=False)
    run = run_of(settings, asked, settings.groups_per_update if kind == "continuous" else wanted.windows)
    call = _Call(settings, _opened(settings, dry_run), run, say, yes)
    first, last = span[0] or wanted.first, span[1]
    if dry_run:
        call.forecast(kind, first, last, wanted)
        return
    if run.backend == "wandb":
        key_of(settings)  # before anything is computed for it
    # Processes that make updates read the limit from their environment.
    limit = {} if settings.max_cost is None else {"BABYLON_RL_MAX_COST": str(settings.max_cost)}
    with environment(dagster_environment(settings) | limit), progress() as stages:
        begin = (lambda title, steps: lambda: None) if say.as_json else stage(stages)
        if kind == "range":
            call.range(begin, first, str(last))
        elif kind == "continuous":
            call.continuous(begin, first, wait)
        else:
            call.chosen(begin, wanted)
    say.end()


def what(
    settings: Settings, window: str | None, first: str | None, last: str | None, continuous: bool
) -> tuple[str, str | None, str | None]:
    """What is to be done, range | continuous | list | chosen, and the first and last window that were named.

    SettingsError where the options, or MODE and WINDOW_ID in their place, contradict each other.
    """
    if window is not None and (first or last or continuous):
        raise SettingsError("--window names one window; leave out --from, --to and --continuous.")
    if window is not None:
        return "range", window, window
    if (first or last) and (first is None or continuous == (last is not None)):
        raise SettingsError(EITHER)
    if continuous:
        return "continuous", first, None
    if first is not None:
        return "range", first, last
    mode = settings.mode.strip().lower()
    if mode not in ("", *MODES):
        raise SettingsError(
            f"MODE={settings.mode} is none of {', '.join(MODES)}. Unset it, or name windows by options."
        )
    if mode == "single" and settings.window_id is None:
        raise SettingsError("MODE=single trains on one window: name it in WINDOW_ID, or with --window.")
    if mode == "single" or (mode == "" and settings.window_id is not None):
        return "range", settings.window_id, settings.window_id
    return mode or "chosen", None, None


def without_effect(kind: str, first: str | None, given: Sequence[str]) -> list[str]:
    """What a person should know of options that choose windows, of those that were given, where none are chosen."""
    idle = [one for one in given if not (one == "lookback_hours" and kind == "continuous" and first is None)]
    if kind == "chosen" or not idle:
        return []
    why = "windows are named" if kind == "range" else "BABYLON_RL_GROUPS_PER_UPDATE says when an update is due"
    told = ", ".join(f"--{one.replace('_', '-')}" for one in idle)
    return [f"Without effect here, because {why}: {told}."]


def _settings(database: str | None, model: str | None, backend: str | None, max_cost: float | None) -> Settings:
    """The settings with what the options say. SettingsError for a backend that is not there."""
    settings = settings_for(database, model)
    if backend is not None and backend not in ("torch", "wandb", "art-local", "auto"):
        raise SettingsError(f"There is no training backend {backend!r}; --backend is torch, wandb, art-local or auto.")
    changes: dict[str, Any] = {"training_backend": backend, "max_cost": max_cost}
    return settings.model_copy(update={key: value for key, value in changes.items() if value is not None})


def _list(database: str | None, as_json: bool) -> None:
    from babylon_rl.commands.windows import windows

    windows(ready=True, min_agents=None, lookback_hours=None, live=False, as_json=as_json, database=database)


def _opened(settings: Settings, dry_run: bool) -> "Database":
    """The database, migrated; for a dry run as it is."""
    from babylon_rl.database.connect import open_materialized
    from babylon_rl.loop import prepare

    return open_materialized(settings) if dry_run else prepare(settings)


class _Call:
    """One call of the command: its settings, database and run."""

    def __init__(self, settings: Settings, database: "Database", run: "TrainingRun", say: Told, yes: bool) -> None:
        self.settings, self.database, self.run, self.say, self.yes = settings, database, run, say, yes

    def range(self, begin: Any, first: str, last: str) -> None:
        """One update over a range."""
        from babylon_rl.launching import launch, range_of, train_range
        from babylon_rl.windows import window_range

        run = range_of(self.database, self.run, first, last)
        launch(self.database, begin, "materialize_windows", first, last)
        with self._agreed(run, [list(window_range(first, last))]):
            self.say.update(train_range(self.database, self.settings, begin, run))

    def chosen(self, begin: Any, wanted: "Wanted") -> None:
        """Updates over chosen windows."""
        from babylon_rl.launching import materialize_missing, next_batches, nothing_recorded, train_batches

        materialize_missing(self.database, begin, wanted.first, wanted.last)
        left = wanted.updates
        while left:
            run, batches, choice = next_batches(self.database, self.run, wanted)
            if choice is not None:
                if not choice.ready:
                    raise nothing_recorded(self.database, self.say.hours)
                self.say.choice(choice, wanted)
            with self._agreed(run, batches):
                for told in train_batches(self.database, self.settings, begin, run, batches[:left]):
                    self.say.update(told)
            if choice is not None:
                return
            left -= 1

    def continuous(self, begin: Any, first: str, wait: bool) -> None:
        """A run without an end."""
        from babylon_rl.launching import follow, keep_updating

        if self.run.backend == "wandb" and self.settings.max_cost is None:
            raise SettingsError(
                "Updates that nobody is asked about need a limit: --max-cost DOLLARS, or BABYLON_RL_MAX_COST, for each."
            )
        said = follow(self.database, self.settings, self.run, first)
        if not wait:
            self.say.line(f"{said} `make ui` makes the updates: its sensor training_due requests them.")
            return
        self.say.line(f"{said} They are made here until Ctrl-C.")
        run = msgspec.structs.replace(self.run, first_window=first)
        keep_updating(self.database, self.settings, begin, run, self.say.update)

    def forecast(self, kind: str, first: str, last: str | None, wanted: "Wanted") -> None:
        """What would be done."""
        from babylon_rl.commands.training_told import dry_run

        dry_run(self.database, self.settings, self.run, kind, first, last, wanted, self.say)

    def _agreed(self, run: "TrainingRun", batches: list[list[str]]) -> Any:
        return agree_to_cost(self.database, self.settings, run, batches, self.yes, self.say)
