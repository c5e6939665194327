"""What `babylon-rl train` says: the choice of windows, a dry run, what would leave this machine, what came of it."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from babylon_rl.console import console, errors
from babylon_rl.errors import SettingsError
from babylon_rl.settings import Settings, without_user

if TYPE_CHECKING:
    from babylon_rl.database.connect import Database
    from babylon_rl.training.batches import Choice, Wanted
    from babylon_rl.training.forecast import Forecast, Speed
    from babylon_rl.training.runs import TrainingRun


class Told:
    """Prints lines as they come, or gathers everything into one JSON object."""

    def __init__(self, as_json: bool, hours: float) -> None:
        self.as_json, self.hours = as_json, hours
        self.gathered: dict[str, Any] = {"updates": []}

    def line(self, text: str) -> None:
        """A sentence for a person."""
        if not self.as_json:
            console.print(text, soft_wrap=True, markup=False, highlight=False)

    def update(self, text: str) -> None:
        """What came of an update."""
        self.gathered["updates"].append(text)
        self.line(text)

    def choice(self, choice: "Choice", wanted: "Wanted") -> None:
        """Which windows were chosen, and why the others were not."""
        self.gathered["choice"] = msgspec.to_builtins(choice)
        for text in choice_lines(choice, wanted, self.hours):
            self.line(text)

    def end(self) -> None:
        """The JSON object, where it was asked for."""
        if self.as_json:
            print(json.dumps(self.gathered))


def choice_lines(choice: "Choice", wanted: "Wanted", hours: float) -> Iterator[str]:
    """The choice in words."""
    if choice.batches:
        taken = sum(map(len, choice.batches))
        updates = "1 update" if len(choice.batches) == 1 else f"{len(choice.batches)} updates"
        first, last = min(map(min, choice.batches)), choice.batches[-1][-1]
        yield f"Chosen: {_windows(taken)} from {first} to {last}, in {updates}."
    else:
        yield f"Nothing new to train on: none of {_windows(choice.ready)} that are ready in the last {hours:g} hours."
    if choice.trained:
        yield f"  {_windows(choice.trained)}: this model was trained on them."
    if choice.nothing_new:
        yield (
            f"  {_windows(choice.nothing_new)}: nothing that may be trained on; `babylon-rl windows`, and the pages of "
            "art_groups in the UI, say why."
        )
    if choice.few_agents:
        yield (
            f"  {_windows(choice.few_agents)}: fewer than {wanted.min_agents} agents with {wanted.min_actions} "
            f"recorded steps, {choice.best} at most. --min-agents and --min-actions say otherwise."
        )
    if choice.left:
        yield f"  {_windows(choice.left)} more would do; a later update takes them, --windows-per-iteration more now."


def _windows(count: int) -> str:
    return "1 window" if count == 1 else f"{count:,} windows"


# --- dry run ---------------------------------------------------------------------------------------


def dry_run(
    database: "Database",
    settings: Settings,
    run: "TrainingRun",
    kind: str,
    first: str,
    last: str | None,
    wanted: "Wanted",
    say: Told,
) -> None:
    """Print what would be done; nothing is written."""
    from babylon_rl.launching import missing_windows, next_batches, nothing_recorded, planned_range, prepare_base
    from babylon_rl.training.forecast import forecast_of, measured_speed, sum_of

    if kind == "range":
        run, batches = planned_range(database, run, first, str(last))
        missing = missing_windows(database, first, str(last))
    elif kind == "continuous":
        raise SettingsError(
            "A run without an end has no forecast: --dry-run takes --from with --to, or chosen windows."
        )
    else:
        missing = missing_windows(database, wanted.first, wanted.last)
        run, batches, choice = next_batches(database, run, wanted)
        if choice is not None:
            if not choice.ready and not missing:
                raise nothing_recorded(database, say.hours)
            say.choice(choice, wanted)
    prepare_base(settings, run)
    with database.connect() as connection:
        each = [forecast_of(connection, settings, run, batch) for batch in batches]
        speed = measured_speed(connection, settings, run)
    total = sum_of(each)
    say.gathered |= {
        "dry_run": True,
        "backend": run.backend,
        "base_model": run.base_model,
        "not_materialized": len(missing),
        "batches": batches,
        **forecast_json(total, run, settings, speed),
    }
    for text in forecast_lines(total, run, settings, speed, len(missing)):
        say.line(text)
    say.end()


def forecast_json(total: "Forecast", run: "TrainingRun", settings: Settings, speed: "Speed | None") -> dict[str, Any]:
    """The forecast as JSON values."""
    from babylon_rl.training.forecast import dollars_of, seconds_of

    return {
        **msgspec.to_builtins(total),
        "seconds": seconds_of(total, run, speed),
        "tokens_per_second": None if speed is None else speed.tokens_per_second,
        "dollars": dollars_of(total, run, settings),
    }


def forecast_lines(
    total: "Forecast", run: "TrainingRun", settings: Settings, speed: "Speed | None", missing: int
) -> Iterator[str]:
    """The forecast in words."""
    from babylon_rl.training.forecast import dollars_of, seconds_of

    yield f"Dry run, nothing is trained, stored or sent: {run.training_run} on {run.backend}, {run.base_model}."
    if missing:
        yield f"{_windows(missing)} with recordings are not materialized yet, or not ready; they are not counted."
    said = ", ".join(f"{count} {status}" for status, count in sorted(total.groups.items()))
    yield f"Windows: {total.windows}. Groups: {said or 'none'}."
    yield f"Trajectories: {total.trained:,} trained on."
    for loss, labels in sorted(total.trajectories.items()):
        yield f"  {loss}: {', '.join(f'{count:,} {label}' for label, count in labels.items())}"
    for reason, count in sorted(total.left_out.items()):
        members, _, why = reason.partition(" ")
        what = f"{count:,} trajectories: {why}" if members == "members" else f"{count:,} {reason}"
        yield f"  left out: {what.replace('_', ' ')}"
    yield f"Tokens: {total.prompt_tokens:,} of prompts, {total.answer_tokens:,} of answers."
    if len(total.tokens_by_loss) > 1:
        for loss, found in total.tokens_by_loss.items():
            yield f"  {loss}: {found['prompt']:,} of prompts, {found['answer']:,} of answers"
    seconds = seconds_of(total, run, speed)
    if seconds is None or speed is None:
        yield f"Time: not known; no update of {run.base_model} on {run.backend} was measured yet."
    else:
        yield (
            f"Time: about {seconds:,.0f} s, at {speed.tokens_per_second:,.0f} tokens a second of the last "
            f"{speed.updates} updates."
        )
    if run.backend == "wandb":
        yield f"Cost: about ${dollars_of(total, run, settings):.2f}, at ${settings.training_price:g} a million tokens."
    else:
        yield "Cost: none; it is done on this machine."
    yield from (f"No update: {why}" for why in total.refused)


# --- what leaves this machine ------------------------------------------------------------------------


@contextlib.contextmanager
def agree_to_cost(
    database: "Database",
    settings: Settings,
    run: "TrainingRun",
    batches: Sequence[Sequence[str]],
    yes: bool,
    say: Told,
) -> Iterator[None]:
    """For a hosted backend: say what would leave this machine and what it costs, and go on where that is agreed to.

    SettingsError where the estimate is above --max-cost, or nobody can be asked; typer.Exit where the answer is no.
    Inside, the processes that make the update know the limit.
    """
    from babylon_rl.materializing import environment
    from babylon_rl.training.backends.submission import cents
    from babylon_rl.training.forecast import dollars_of, forecast_of, sum_of

    if run.backend != "wandb" or not batches:
        yield
        return
    with database.connect() as connection:
        forecasts = [forecast_of(connection, settings, run, batch) for batch in batches]
    total = sum_of([one for one in forecasts if not one.begun])  # the others are not sent again
    if not total.trained:  # nothing will leave this machine
        yield
        return
    dollars = dollars_of(total, run, settings)
    what = leaves_lines(total, run, settings, dollars)
    for text in what:
        errors.print(text, soft_wrap=True, markup=False, highlight=False)
    if settings.max_cost is not None and dollars > settings.max_cost:
        raise SettingsError(
            f"The estimate of ${dollars:.2f} is above the limit of ${settings.max_cost:.2f}, and nothing was sent. "
            f"Raise --max-cost to {cents(dollars)}, take fewer windows, or train here with --backend torch."
        )
    if settings.max_cost is None and not yes:
        if not sys.stdin.isatty():
            raise SettingsError(
                f"Nothing was sent: nobody can be asked here. Agree with --max-cost {cents(dollars)} or --yes, or "
                "train here with --backend torch."
            )
        if not typer.confirm("Send it?", default=False, err=True):
            errors.print("Nothing was sent.")
            raise typer.Exit(1)
    say.gathered["agreed"] = dollars
    limit = dollars if settings.max_cost is None else settings.max_cost
    with environment({"BABYLON_RL_MAX_COST": repr(limit)}):
        yield


def leaves_lines(total: "Forecast", run: "TrainingRun", settings: Settings, dollars: float) -> list[str]:
    """What leaves this machine, to where, and what it costs."""
    from babylon_rl.training.backends.submission import model_name

    entity = f"{settings.wandb_entity}/" if settings.wandb_entity else ""
    return [
        f"{run.backend}: {_windows(total.windows)}, {total.trained:,} trajectories, {total.tokens:,} tokens leave this "
        f"machine (the agents' prompts and answers, their log-probabilities, an advantage each),",
        f"to {without_user(settings.wandb_training_url)}, project {entity}{settings.wandb_project}, model "
        f"{model_name(run.training_run)} on {run.base_model}.",
        f"Estimated cost: ${dollars:.2f}, at ${settings.training_price:g} a million tokens "
        "(BABYLON_RL_TRAINING_PRICE).",
    ]
