"""Which promotion and which experiment are in force in an hour, for who routes calls.

What an experiment decides takes effect with the hour after the decision, so that agents keep their arm for the window:
until then its promotion (`evidence.experiment.from_window`) waits, and the experiment (`settings.end_window`) goes on.
What is decided by a person, by a guardrail or by a rollback takes effect at once.
"""

from typing import NamedTuple

import psycopg
from psycopg.rows import dict_row

from babylon_rl.serving.routing import ExperimentRoute
from babylon_rl.windows import shift_window


class Promotion(NamedTuple):
    """A decision on what is served; `before` None where nothing was promoted until then."""

    promotion_id: int
    after: str
    before: str | None


class Running(NamedTuple):
    """The checkpoints of an experiment and its route."""

    candidate: str
    baseline: str
    route: ExperimentRoute


def promotion_in_force(connection: psycopg.Connection, window_id: str) -> Promotion | None:
    """The latest promotion that has taken effect in the window; None where there is none."""
    row = connection.execute(
        """SELECT promotion_id, to_checkpoint, from_checkpoint FROM babylon_rl.promotions
           WHERE coalesce(evidence #>> '{experiment,from_window}', '') <= %s ORDER BY promotion_id DESC LIMIT 1""",
        (window_id,),
    ).fetchone()
    return None if row is None else Promotion(*row)


def experiment_in_force(connection: psycopg.Connection, window_id: str) -> Running | None:
    """The experiment whose agents keep their arms in the window: one that runs, or ended within this hour.

    Its route ends with the last window of its horizon, whether or not anybody has looked since. One that begins later
    takes its place with its first window (`coming`).
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            """SELECT experiment_id, candidate, baseline, design, share, seed, first_window, horizon,
                      coalesce((settings ->> 'block_hours')::int, 1) AS block_hours,
                      settings ->> 'end_window' AS end_window
               FROM babylon_rl.experiments WHERE state = 'running' OR settings ->> 'end_window' > %s
               ORDER BY (first_window <= %s AND coalesce(settings ->> 'end_window' > %s, true)) DESC,
                        (state = 'running') DESC, ended_at DESC LIMIT 1""",
            (window_id, window_id, window_id),
        ).fetchone()
    if row is None:
        return None
    route = ExperimentRoute(
        experiment_id=row["experiment_id"],
        design=row["design"],
        share=row["share"],
        seed=row["seed"],
        first_window=row["first_window"],
        block_hours=row["block_hours"],
        end_window=row["end_window"] or shift_window(row["first_window"], row["horizon"]),
    )
    return Running(row["candidate"], row["baseline"], route)


def coming(connection: psycopg.Connection) -> str | None:
    """Candidate of the experiment that runs or is about to: it is made ready before the first window."""
    row = connection.execute("SELECT candidate FROM babylon_rl.experiments WHERE state = 'running'").fetchone()
    return None if row is None else row[0]
