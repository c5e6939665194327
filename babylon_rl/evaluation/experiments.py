"""The life of an experiment: what is checked before one starts, what is written down then, and how it ends.

At most one runs at a time. What decides it is fixed before the start in `settings`; looks at it are in `looks`.
"""

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.errors import ServingError, SettingsError
from babylon_rl.evaluation.promotion import check_weights
from babylon_rl.serving.routing import Design, ExperimentRoute
from babylon_rl.training.runs import Checkpoint, load_checkpoint, promoted
from babylon_rl.windows import shift_window, window_of

State = Literal["running", "promote", "keep", "harm", "stopped"]
RUNNING, PROMOTE, KEEP, HARM, STOPPED, GO_ON = "running", "promote", "keep", "harm", "stopped", "go on"
DESIGNS = ("paired-by-window", "switchback")


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `experiments`. `share`: 0 to 1; `horizon`: windows; `settings`: what was declared before the start."""

    experiment_id: str
    candidate: str
    baseline: str
    design: Design
    share: float
    seed: int
    first_window: str
    horizon: int
    settings: dict[str, Any]
    forecast: dict[str, Any]
    tried: int
    state: State
    reason: str
    who: str
    created_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def end_window(self) -> str:
        """The first window that is no longer its own."""
        return self.settings.get("end_window") or shift_window(self.first_window, self.horizon)


def route_of(experiment: Experiment) -> ExperimentRoute:
    """What of the experiment decides who answers."""
    return ExperimentRoute(
        experiment_id=experiment.experiment_id,
        design=experiment.design,
        share=experiment.share,
        seed=experiment.seed,
        first_window=experiment.first_window,
        block_hours=experiment.settings["block_hours"],
        end_window=experiment.end_window,
    )


# --- what there is ---------------------------------------------------------------------------------


def running_experiment(connection: psycopg.Connection) -> Experiment | None:
    """The experiment that runs; None where none does."""
    return next(
        iter(_experiments(connection, "SELECT * FROM babylon_rl.experiments WHERE state = 'running'", ())), None
    )


def list_experiments(connection: psycopg.Connection) -> list[Experiment]:
    """All experiments, the latest first."""
    return _experiments(connection, "SELECT * FROM babylon_rl.experiments ORDER BY created_at DESC, experiment_id", ())


def load_experiment(connection: psycopg.Connection, experiment_id: str | None = None) -> Experiment:
    """The experiment of that id; without one the latest. ServingError where there is none."""
    found = list_experiments(connection)
    if experiment_id is not None:
        known = ", ".join(one.experiment_id for one in found[:10]) or "none"
        found = [one for one in found if one.experiment_id == experiment_id]
        if not found:
            raise ServingError(f"There is no experiment {experiment_id!r}; there are: {known}.")
    if not found:
        raise ServingError("There is no experiment yet; `babylon-rl experiment start --candidate ID` starts one.")
    return found[0]


def _experiments(connection: psycopg.Connection, query: Any, parameters: tuple) -> list[Experiment]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, parameters).fetchall()
    return [msgspec.convert({key: row[key] for key in Experiment.__struct_fields__}, Experiment) for row in rows]


def candidates_tried(connection: psycopg.Connection, baseline: str) -> int:
    """Experiments against this baseline so far. One that was stopped counts too: somebody may have looked at it."""
    row = connection.execute("SELECT count(*) FROM babylon_rl.experiments WHERE baseline = %s", (baseline,)).fetchone()
    return row[0] if row else 0


def taken_back(connection: psycopg.Connection, checkpoint_id: str) -> str | None:
    """Why the checkpoint was rolled back from, where that was the last that was decided of it by anybody."""
    row = connection.execute(
        """SELECT kind, why FROM babylon_rl.promotions
           WHERE (kind = 'rollback' AND from_checkpoint = %(id)s) OR (kind = 'promotion' AND to_checkpoint = %(id)s)
           ORDER BY promotion_id DESC LIMIT 1""",
        {"id": checkpoint_id},
    ).fetchone()
    return row[1] if row is not None and row[0] == "rollback" else None


# --- start -----------------------------------------------------------------------------------------


def check_arms(connection: psycopg.Connection, candidate: str, baseline: str | None) -> tuple[Checkpoint, Checkpoint]:
    """The two checkpoints of an experiment; `baseline` None: what is promoted.

    ServingError where another experiment runs, nothing is promoted, the two are the same, the candidate cannot be
    served or was rolled back from, or the baseline is not what answers outside of the experiment. TrainingError for a
    checkpoint that there is not.
    """
    running = running_experiment(connection)
    if running is not None:
        raise ServingError(
            f"Experiment {running.experiment_id} runs ({running.candidate} against {running.baseline}, until "
            f"{running.end_window}); two at once would each be a part of the other's market. Wait for its end, or end "
            'it with `babylon-rl experiment stop --why "…"`.'
        )
    served = promoted(connection)
    if served is None:
        raise ServingError(
            "Nothing is promoted yet, so there is nothing to compare with. Promote the checkpoint that shall be the "
            'baseline first: `babylon-rl promote ID --why "…"`; the base model of a run is RUN@0.'
        )
    if baseline is not None and baseline != served["to_checkpoint"]:
        raise ServingError(
            f"The baseline's agents are answered by what is promoted, {served['to_checkpoint']}, not by {baseline}. "
            f"Promote {baseline} first, or leave the baseline out."
        )
    chosen, standing = load_checkpoint(connection, candidate), load_checkpoint(connection, served["to_checkpoint"])
    if chosen.checkpoint_id == standing.checkpoint_id:
        raise ServingError(f"{candidate} is what is promoted; an experiment needs another candidate.")
    why = taken_back(connection, candidate)
    if why is not None:
        raise ServingError(
            f"{candidate} was rolled back from ({why}), and no experiment promotes it again. A person may: "
            f'`babylon-rl promote {candidate} --despite-evidence --why "…"`.'
        )
    check_weights(chosen)
    return chosen, standing


def check_design(design: str, share: float, block_hours: int, burn_in_hours: int) -> None:
    """SettingsError where the design, its share of the candidate (0 to 1) and its blocks do not go together."""
    if design not in DESIGNS:
        raise SettingsError(f"There is no design {design!r}; there are {' and '.join(DESIGNS)}.")
    if not 0 < share < 1:
        raise SettingsError(f"A share of {share:.4g} leaves an arm without agents; it lies above 0 and below 1.")
    if design == "switchback" and share != 0.5:
        raise SettingsError(
            "A switchback gives the candidate one of each two blocks: its share is 50. Another share takes "
            "paired-by-window."
        )
    if design == "switchback" and burn_in_hours >= block_hours:
        raise SettingsError(
            f"A burn-in of {burn_in_hours} hours leaves nothing of blocks of {block_hours} hours; set "
            "BABYLON_RL_EXPERIMENT_BURN_IN below BABYLON_RL_EXPERIMENT_BLOCK_HOURS."
        )


def next_id(connection: psycopg.Connection) -> str:
    """Id of the next experiment: e1, e2, …"""
    row = connection.execute(
        """SELECT coalesce(max(substr(experiment_id, 2)::int), 0) + 1 FROM babylon_rl.experiments
           WHERE experiment_id ~ '^e[0-9]{1,8}$'"""
    ).fetchone()
    return f"e{row[0] if row else 1}"


def save_experiment(connection: psycopg.Connection, experiment: Experiment) -> Experiment:
    """Store an experiment that starts, in the caller's transaction; ServingError where one runs."""
    try:
        with connection.transaction():
            connection.execute(
                """INSERT INTO babylon_rl.experiments (experiment_id, candidate, baseline, design, share, seed,
                   first_window, horizon, settings, forecast, tried, state, reason, who)
                   VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",
                (
                    experiment.experiment_id,
                    experiment.candidate,
                    experiment.baseline,
                    experiment.design,
                    experiment.share,
                    experiment.seed,
                    experiment.first_window,
                    experiment.horizon,
                    Jsonb(experiment.settings),
                    Jsonb(experiment.forecast),
                    experiment.tried,
                    experiment.state,
                    experiment.reason,
                    experiment.who,
                ),
            )
    except psycopg.errors.UniqueViolation:
        raise ServingError(
            "Another experiment was started at the same moment; `babylon-rl experiment show` tells which."
        ) from None
    return load_experiment(connection, experiment.experiment_id)


# --- end -------------------------------------------------------------------------------------------


def stop(connection: psycopg.Connection, why: str, who: str, now: datetime | None = None) -> Experiment:
    """End the experiment that runs, at the end of this hour. SettingsError without a reason; ServingError for none."""
    if not why.strip() or not who.strip():
        raise SettingsError("An experiment is stopped with a reason, and by somebody. Give both.")
    running = running_experiment(connection)
    if running is None:
        raise ServingError("No experiment runs.")
    end(connection, running, STOPPED, f"{who}: {why}", now or datetime.now(UTC))
    return load_experiment(connection, running.experiment_id)


def end(
    connection: psycopg.Connection,
    experiment: Experiment,
    state: State,
    reason: str,
    now: datetime,
    at_once: bool = False,
) -> bool:
    """Book the end; whether it was running until then.

    Agents keep their arm until the hour is over: `settings.end_window` is the next hour's window. `at_once`: it is this
    hour's, so that nobody is sent to the candidate any more.
    """
    last = window_of(now) if at_once else shift_window(window_of(now), 1)
    # One that ends before it began takes no window.
    last = max(experiment.first_window, min(last, experiment.end_window))
    booked = connection.execute(
        """UPDATE babylon_rl.experiments SET state = %s, reason = %s, ended_at = %s, settings = settings || %s
           WHERE experiment_id = %s AND state = 'running'""",
        (state, reason, now, Jsonb({"end_window": last}), experiment.experiment_id),
    )
    return booked.rowcount == 1
