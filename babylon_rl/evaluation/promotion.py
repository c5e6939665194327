"""What is served from now on, decided: promotion on evidence or against it with a reason, and the way back.

Each decision is a row of `promotions` that is never changed. A rollback is one more row; what it took back stays with
its evidence.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import pandas as pd
import psycopg
from psycopg.rows import dict_row

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.history import current_rows
from babylon_rl.database.tables import checkpoint_evaluations
from babylon_rl.errors import ServingError, SettingsError, TrainingError
from babylon_rl.evaluation.compare import INFO, PROMOTE
from babylon_rl.training.checkpoint_store import stored_digest
from babylon_rl.training.runs import (
    Checkpoint,
    base_checkpoint,
    load_checkpoint,
    lock_promotions,
    promote,
    promoted,
)


class Promoted(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision came to. `booked`: False where the checkpoint was served already."""

    before: str | None
    after: str
    booked: bool
    said: str  # what the evaluation says, or that there is none; of a rollback what it passed over


def promote_checkpoint(
    connection: psycopg.Connection,
    checkpoint_id: str,
    who: str,
    why: str,
    despite_evidence: bool = False,
    experiment_id: str | None = None,
    decided: dict[str, Any] | None = None,
) -> Promoted:
    """Serve the checkpoint from now on, in the caller's transaction.

    `experiment_id`, `decided`: the experiment that ended in its favour and what that rests on, which stands in place of
    an evaluation's word. ServingError where neither says promote (unless `despite_evidence`) or the weights are not
    there; SettingsError without a name or a reason; TrainingError for a checkpoint that there is not.
    """
    _check_words(who, why)
    checkpoint = load_checkpoint(connection, checkpoint_id)
    check_weights(checkpoint)
    evidence = evidence_for(connection, checkpoint)
    said = evidence["reason"] if evidence else f"{checkpoint_id} has no evaluation on test windows."
    favoured = decided is not None or (evidence is not None and evidence["decision"] == PROMOTE)
    if not favoured and not despite_evidence:
        raise ServingError(
            f"Not promoted. {said} Evaluate it on later windows, or say despite_evidence (--despite-evidence) "
            "with the reason in why."
        )
    served = promoted(connection)
    booked = promote(
        connection,
        checkpoint.training_run,
        checkpoint_id,
        who,
        why,
        {
            **(evidence or {}),
            "despite_evidence": despite_evidence,
            **({} if decided is None else {"experiment": decided}),
        },
        again=True,
        experiment_id=experiment_id,
    )
    before = served["to_checkpoint"] if served else None
    return Promoted(before=before, after=checkpoint_id, booked=booked, said=said)


def roll_back(
    connection: psycopg.Connection,
    who: str,
    why: str,
    to: str | None = None,
    evidence: dict[str, Any] | None = None,
    experiment_id: str | None = None,
) -> Promoted:
    """Go back to what was served before the promotion that stands now, in the caller's transaction.

    Rollbacks that were made before count as done: promote A, promote B, roll back gives A, and once more what was
    before A; before the first promotion that is the base model, step 0 of the run. What cannot be served any more is
    passed over and named in `said`. `to`: a checkpoint further back, or a step 0. `evidence`: what made it necessary.
    ServingError where there is nothing to go back to, or `to` cannot be; SettingsError without a name or a reason.
    """
    _check_words(who, why)
    lock_promotions(connection)
    rows = _decisions(connection)
    stack = standing(rows)
    if not stack:
        raise ServingError("Nothing is promoted, so there is nothing to go back from: the base model is served.")
    target, passed = _earlier(connection, stack) if to is None else (_named(connection, stack, to), [])
    said = "".join(f"Passed over: {one} " for one in passed).strip()
    booked = promote(
        connection,
        target.training_run,
        target.checkpoint_id,
        who,
        why,
        {
            **(evidence_for(connection, target) or {}),
            **(evidence or {}),
            "took_back": rows[-1]["promotion_id"],
            "passed_over": passed,
        },
        again=True,
        kind="rollback",
        experiment_id=experiment_id,
    )
    return Promoted(before=stack[-1], after=target.checkpoint_id, booked=booked, said=said)


def standing(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each decision that still stands serves, the earliest first: the last is what is served now.

    `rows`: of `promotions` in their order. A rollback takes back all that was decided since what it goes back to.
    """
    stack: list[str] = []
    for row in rows:
        to = row["to_checkpoint"]
        if row["kind"] == "rollback":
            stack.pop()
            while stack and stack[-1] != to:
                stack.pop()
        if not stack or stack[-1] != to:
            stack.append(to)
    return stack


def _decisions(connection: psycopg.Connection) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT promotion_id, kind, to_checkpoint FROM babylon_rl.promotions ORDER BY promotion_id"
        ).fetchall()


def _earlier(connection: psycopg.Connection, stack: list[str]) -> tuple[Checkpoint, list[str]]:
    """The latest before what is served now that can be served, and what was passed over with the reason."""
    served = load_checkpoint(connection, stack[-1])
    base = base_checkpoint(served.training_run)
    before = [one for one in reversed(stack[:-1]) if one != served.checkpoint_id]
    passed: list[str] = []
    for one in [*before, *([base] if served.step > 0 and base not in before else [])]:
        checkpoint = load_checkpoint(connection, one)
        try:
            check_weights(checkpoint)
        except (ServingError, TrainingError) as error:
            passed.append(str(error))
            continue
        return checkpoint, passed
    raise ServingError(
        f"Nothing was served before {served.checkpoint_id} that can be served now; `babylon-rl history` lists what was "
        'served. Promote another checkpoint: `babylon-rl promote ID --despite-evidence --why "…"`. ' + " ".join(passed)
    )


def _named(connection: psycopg.Connection, stack: list[str], to: str) -> Checkpoint:
    checkpoint = load_checkpoint(connection, to)
    if to == stack[-1]:
        raise ServingError(f"{to} is what is served.")
    if to not in stack and checkpoint.step > 0:
        earlier = ", ".join(dict.fromkeys(reversed(stack[:-1]))) or "none"
        raise ServingError(
            f"{to} was not served before {stack[-1]}, or was taken back itself. Earlier ones are: {earlier}. To serve "
            f'it all the same: `babylon-rl promote {to} --why "…"`.'
        )
    check_weights(checkpoint)
    return checkpoint


def _check_words(who: str, why: str) -> None:
    if not who.strip() or not why.strip():
        raise SettingsError("What is served is kept with who decided it and why. Give both.")


def check_weights(checkpoint: Checkpoint) -> None:
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
