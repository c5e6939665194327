"""Promotion by a person: on the evidence of a stored evaluation, or against it with a reason."""

from typing import Any

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import checkpoint_evaluations
from babylon_rl.errors import ServingError, SettingsError
from babylon_rl.evaluation.compare import INFO, PROMOTE
from babylon_rl.training.checkpoint_store import stored_digest
from babylon_rl.training.runs import Checkpoint, base_checkpoint, load_checkpoint, promote, promoted


class Promoted(msgspec.Struct, frozen=True, kw_only=True):
    """What a promotion came to. `booked`: False where the checkpoint was served already."""

    before: str | None
    after: str
    booked: bool
    said: str  # what the evaluation says, or that there is none


def promote_checkpoint(
    connection: psycopg.Connection, checkpoint_id: str, who: str, why: str, despite_evidence: bool = False
) -> Promoted:
    """Serve the checkpoint from now on, in the caller's transaction.

    ServingError where its evaluation does not say promote (unless `despite_evidence`) or its weights are not there;
    SettingsError without a name or a reason; TrainingError for a checkpoint that there is not.
    """
    if not who.strip() or not why.strip():
        raise SettingsError("A promotion is kept with who decided it and why. Give both.")
    checkpoint = load_checkpoint(connection, checkpoint_id)
    _check_weights(checkpoint)
    evidence = evidence_for(connection, checkpoint)
    said = evidence["reason"] if evidence else f"{checkpoint_id} has no evaluation on test windows."
    if (evidence is None or evidence["decision"] != PROMOTE) and not despite_evidence:
        raise ServingError(
            f"Not promoted. {said} Evaluate it on later windows, or say despite_evidence with the reason in why."
        )
    served = promoted(connection)
    booked = promote(
        connection,
        checkpoint.training_run,
        checkpoint_id,
        who,
        why,
        {**(evidence or {}), "despite_evidence": despite_evidence},
        again=True,
    )
    before = served["to_checkpoint"] if served else None
    return Promoted(before=before, after=checkpoint_id, booked=booked, said=said)


def _check_weights(checkpoint: Checkpoint) -> None:
    """ServingError where the checkpoint cannot be served."""
    if checkpoint.state == "deleted":
        raise ServingError(
            f"{checkpoint.checkpoint_id} was deleted. Promote another; `babylon-rl checkpoints` lists them."
        )
    if checkpoint.path is None:  # the base model itself, or weights that a service keeps
        return
    if stored_digest(checkpoint.path) != checkpoint.weights_sha256:
        raise ServingError(
            f"The weights in {checkpoint.path} are not those of {checkpoint.checkpoint_id}: their hash differs. Remove "
            f"the folder and materialize trained_checkpoints of {checkpoint.last_window} to make them again."
        )


def evidence_for(connection: psycopg.Connection, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What the checkpoint's latest evaluation on test windows came to; None where there is none."""
    statement = current_rows(checkpoint_evaluations).where(
        checkpoint_evaluations.c.candidate == checkpoint.checkpoint_id
    )
    rows = read_frame(connection, statement)
    test = rows[rows["split"] == "test"]
    if test.empty:
        return None
    latest = rows[(rows["split"] != "test") | (rows["window_id"] == test["window_id"].max())]
    return evidence_of(latest, base_checkpoint(checkpoint.training_run))


def evidence_of(rows: pd.DataFrame, base: str) -> dict[str, Any] | None:
    """What a promotion rests on, from the rows of its evaluation; None before the test windows are compared."""
    decided = rows[(rows["split"] == "test") & (rows["decision"] != INFO)]
    if decided.empty:
        return None
    start = decided[decided["baseline"] == base].iloc[0]
    best = decided[decided["baseline"] != base].iloc[0]
    unseen = rows[rows["split"] == "unseen"]
    return {
        "base": base,
        "candidate": start["candidate"],
        "decision": start["decision"],
        "reason": start["reason"],
        "effect": float(start["effect"]),
        "interval": [float(start["low"]), float(start["high"])],
        "candidate_pnl": float(start["candidate_pnl"]),
        "base_pnl": float(start["baseline_pnl"]),
        "over_best_fixed": {
            "policy": best["baseline"],
            "effect": float(best["effect"]),
            "interval": [float(best["low"]), float(best["high"])],
        },
        "windows": int(start["windows"]),
        "unseen": None
        if unseen.empty
        else {
            "effect": float(unseen.iloc[0]["effect"]),
            "interval": [float(unseen.iloc[0]["low"]), float(unseen.iloc[0]["high"])],
            "candidate_pnl": float(unseen.iloc[0]["candidate_pnl"]),
            "base_pnl": float(unseen.iloc[0]["baseline_pnl"]),
        },
    }
