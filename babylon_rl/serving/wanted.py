"""What was decided, read from PostgreSQL for the deployer: promotions, the experiment that runs, keys."""

import hashlib
from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

import psycopg

from babylon_rl.serving.deployment import Wanted
from babylon_rl.serving.gateway.keys import Key
from babylon_rl.serving.in_force import coming, experiment_in_force, promotion_in_force
from babylon_rl.serving.key_store import load_keys
from babylon_rl.training.runs import base_checkpoint
from babylon_rl.windows import window_of


class Decided(NamedTuple):
    """What is wanted, and the keys that are good."""

    wanted: Wanted
    keys: list[Key]


def read_decided(connection: psycopg.Connection, base_model: str, fixed: str | None = None) -> Decided:
    """What is to be served now.

    `base_model`: of the settings, served beside nothing that is promoted. `fixed`: a checkpoint, or `base`, that is
    served whatever was promoted, without experiments.
    """
    return Decided(_wanted(connection, base_model, fixed), load_keys(connection))


def _wanted(connection: psycopg.Connection, base_model: str, fixed: str | None) -> Wanted:
    if fixed is not None:
        promoted = None if fixed == "base" else fixed
        base, _ = _base_of(connection, base_model, promoted, None)
        return Wanted(promoted=promoted, base=base, versions=_versions(connection, [promoted, base]))
    hour = window_of(datetime.now(UTC))
    decision, promoted, before = promotion_in_force(connection, hour) or (0, None, None)
    candidate, baseline, route = experiment_in_force(connection, hour) or (None, None, None)
    base, spare = _base_of(connection, base_model, promoted, before)
    following = coming(connection)
    versions = _versions(connection, [promoted, base, spare, candidate, following])
    if promoted in versions:
        versions[promoted] += f"/{decision}"  # a decision that is booked again is tried again
    return Wanted(
        promoted=promoted,
        base=base,
        spare=spare,
        candidate=candidate,
        baseline=baseline,
        coming=following,
        experiment=route,
        versions=versions,
    )


def _base_of(
    connection: psycopg.Connection, base_model: str, promoted: str | None, before: str | None
) -> tuple[str | None, str | None]:
    """Name of the base model beside the promoted checkpoint, and the checkpoint before, where it has the same one.

    Beside nothing: that of the newest training run on the base model of the settings, whose calls are then known to
    be its step 0's; its own name where there is no run.
    """
    if promoted is None:
        row = connection.execute(
            """SELECT training_run FROM babylon_rl.training_runs WHERE base_model = %s
               ORDER BY created_at DESC, training_run DESC LIMIT 1""",
            (base_model,),
        ).fetchone()
        return (base_model if row is None else base_checkpoint(row[0])), None
    rows = connection.execute(
        """SELECT c.checkpoint_id, c.training_run, c.inference_name, r.base_model, r.seed, c.path IS NULL AND c.step > 0
           FROM babylon_rl.checkpoints c JOIN babylon_rl.training_runs r USING (training_run)
           WHERE c.checkpoint_id = ANY(%s)""",
        ([promoted, before],),
    ).fetchall()
    found = {row[0]: row[1:] for row in rows}
    if promoted not in found:
        return None, None
    training_run, _, *of_promoted = found[promoted]
    hosted = of_promoted[-1]
    alike = before is not None and before in found and list(found[before][2:]) == of_promoted
    return (None if hosted else base_checkpoint(training_run)), before if alike else None


def _versions(connection: psycopg.Connection, named: Collection[str | None]) -> dict[str, str]:
    """What tells each checkpoint from itself after a change, by id; of an id that is not booked a version too."""
    ids = sorted({one for one in named if one is not None})
    rows = connection.execute(
        """SELECT checkpoint_id, path, weights_sha256, state, inference_url, inference_name
           FROM babylon_rl.checkpoints WHERE checkpoint_id = ANY(%s)""",
        (ids,),
    ).fetchall()
    found = {row[0]: hashlib.sha256(repr(row[1:]).encode()).hexdigest()[:12] for row in rows}
    return {one: found.get(one, "not booked") for one in ids}
