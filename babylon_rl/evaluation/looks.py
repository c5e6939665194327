"""Looks at an experiment: what was seen, what it comes to, and the end that an experiment makes of itself."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from babylon_rl.errors import ServingError, TrainingError
from babylon_rl.evaluation.arms import BASELINE, CANDIDATE, Seen, read_arms, scored_windows
from babylon_rl.evaluation.experiments import (
    GO_ON,
    HARM,
    KEEP,
    PROMOTE,
    STOPPED,
    Experiment,
    end,
    load_experiment,
    route_of,
    running_experiment,
    taken_back,
)
from babylon_rl.evaluation.guardrails import Guard, Limits, breach, guard
from babylon_rl.evaluation.observations import blocks_of, in_burn_in, observations
from babylon_rl.evaluation.promotion import promote_checkpoint
from babylon_rl.evaluation.sample_ratio import sample_ratio_p
from babylon_rl.evaluation.sequential import Look as Evidence
from babylon_rl.evaluation.sequential import look as evidence_of
from babylon_rl.training.runs import promoted
from babylon_rl.windows import parse_window_id, shift_window, window_of

# Agents answered by the other arm than the plan's: a share of them, and so many before it counts.
MOST_MISMATCHED, LEAST_AGENTS = 0.05, 20
# How long after its last window an experiment waits for windows to be scored.
PATIENCE = timedelta(hours=24)


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `experiment_looks`. `effect`, `low`, `high` in the experiment's metric; `guardrails`: as `Guard`.

    `new`: whether this look was stored now; one that saw the same is stored already.
    """

    experiment_id: str
    last_window: str
    windows: int
    blocks: int
    effect: float | None
    low: float | None
    high: float | None
    sample_ratio_p: float | None
    guardrails: dict[str, Any]
    decision: str
    reason: str
    digest: str
    looked_at: datetime | None = None
    new: bool = False


def looks(connection: psycopg.Connection, experiment_id: str) -> list[Look]:
    """The looks at an experiment, the oldest first."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT * FROM babylon_rl.experiment_looks WHERE experiment_id = %s ORDER BY look_id", (experiment_id,)
        ).fetchall()
    names = [name for name in Look.__struct_fields__ if name != "new"]
    return [msgspec.convert({name: row[name] for name in names}, Look) for row in rows]


def look_at_running(connection: psycopg.Connection, now: datetime | None = None) -> Look | None:
    """A look at the experiment that runs; None where none does."""
    experiment = running_experiment(connection)
    return None if experiment is None else look(connection, experiment, now or datetime.now(UTC))


def worth_a_look(connection: psycopg.Connection, now: datetime) -> str | None:
    """A text that changes whenever a look at the experiment that runs may see something else; None where none runs.

    It does where a window of it was scored, or scored again, something was promoted, or its last day of waiting is
    over.
    """
    experiment = running_experiment(connection)
    if experiment is None:
        return None
    row = connection.execute(
        """SELECT count(DISTINCT window_id), coalesce(max(row_id), 0) FROM babylon_rl.scored_trajectories
           WHERE superseded_at IS NULL AND window_id >= %s AND window_id < %s""",
        (experiment.first_window, min(experiment.end_window, window_of(now))),
    ).fetchone()
    served = promoted(connection)
    late = now >= parse_window_id(experiment.end_window) + PATIENCE
    seen = (*(row or (0, 0)), served["promotion_id"] if served else 0, int(late))
    return f"{experiment.experiment_id}:{'.'.join(map(str, seen))}"


def look(connection: psycopg.Connection, experiment: Experiment, now: datetime) -> Look:
    """Look at the experiment's scored windows, store what they come to, and end the experiment where that is decided.

    In the caller's transaction, which holds the experiment's row. The same windows give the same look, which is stored
    once; an experiment that has ended is looked at no more: its last look is the answer.
    """
    connection.execute(
        "SELECT 1 FROM babylon_rl.experiments WHERE experiment_id = %s FOR UPDATE", (experiment.experiment_id,)
    )
    experiment = load_experiment(connection, experiment.experiment_id)
    if experiment.state != "running":
        known = looks(connection, experiment.experiment_id)
        return known[-1] if known else _unseen(experiment)
    seen = see(connection, experiment, now)
    found = judge(connection, experiment, seen, now)
    stored = _store(connection, found)
    if found.decision != GO_ON:
        _end(connection, experiment, found, now)
    return stored


def see(connection: psycopg.Connection, experiment: Experiment, now: datetime) -> Seen:
    """What the experiment's windows show that are over and scored."""
    route, settings = route_of(experiment), experiment.settings
    windows = scored_windows(connection, experiment.first_window, min(experiment.end_window, window_of(now)))
    burn_in = frozenset(w for w in windows if in_burn_in(route, w, settings["burn_in_hours"]))
    return read_arms(
        connection,
        route,
        experiment.candidate,
        experiment.baseline,
        windows,
        settings["metric"],
        settings["scorer"],
        burn_in,
    )


def judge(connection: psycopg.Connection, experiment: Experiment, seen: Seen, now: datetime) -> Look:
    """What was seen comes to: the decision and its reason; nothing is stored."""
    route, settings = route_of(experiment), experiment.settings
    last = seen.scored[-1] if seen.scored else None
    values = observations(route, seen.arms, last, settings["burn_in_hours"])
    horizon_blocks = max(1, blocks_of(route, experiment.horizon))
    evidence = evidence_of(values, settings["alpha"], settings["alpha_harm"], horizon_blocks)
    guards = guard(
        list(seen.arms[CANDIDATE].values()),
        list(seen.arms[BASELINE].values()),
        msgspec.convert(settings["guardrails"], Limits),
    )
    ratio = _ratio(experiment, seen)
    decision, reason = _decide(connection, experiment, seen, evidence, guards, ratio, now)
    found = Look(
        experiment_id=experiment.experiment_id,
        last_window=last or experiment.first_window,
        windows=len(seen.scored),
        blocks=evidence.blocks,
        effect=evidence.effect,
        low=evidence.low,
        high=evidence.high,
        sample_ratio_p=ratio,
        guardrails={
            "guards": {one.name: msgspec.to_builtins(one) for one in guards},
            "agents": seen.agents,
            "mismatched": seen.mismatched,
            "left_out": seen.left_out,
            "windows_compared": len(seen.arms[CANDIDATE].keys() & seen.arms[BASELINE].keys()),
        },
        decision=decision,
        reason=reason,
        digest="",
    )
    return msgspec.structs.replace(found, digest=hashlib.sha256(msgspec.json.encode((found, seen))).hexdigest())


def _ratio(experiment: Experiment, seen: Seen) -> float | None:
    """P-value of the planned share; None for a switchback, whose blocks alternate by the plan."""
    if experiment.design == "switchback":
        return None
    counts = [seen.answered[window_id] for window_id in seen.scored]
    return sample_ratio_p([ours for ours, _ in counts], [ours + theirs for ours, theirs in counts], experiment.share)


def _decide(
    connection: psycopg.Connection,
    experiment: Experiment,
    seen: Seen,
    evidence: Evidence,
    guards: list[Guard],
    ratio: float | None,
    now: datetime,
) -> tuple[str, str]:
    """The decision and the reason for it, as a person reads it. What casts doubt on all figures is asked first."""
    settings, unit = experiment.settings, _unit(experiment)
    broken = _broken(connection, experiment, seen, ratio)
    if broken is not None:
        return STOPPED, broken
    breached = breach(guards)
    if breached is not None:
        return HARM, f"A guardrail: {breached}."
    if evidence.harm:
        return HARM, f"{experiment.candidate} is worse than {experiment.baseline}: {evidence}, {unit}."
    over = _over(experiment, seen, now)
    if evidence.promote:
        why = taken_back(connection, experiment.candidate)
        if why is None:
            told = f"alpha {settings['alpha']:.3g}, candidate number {experiment.tried} against this baseline"
            return PROMOTE, f"{experiment.candidate} is better than {experiment.baseline}: {evidence}, {unit}; {told}."
        return KEEP, f"{experiment.candidate} is better ({evidence}), but it was rolled back from: {why}"
    if over:
        return KEEP, f"{experiment.horizon} windows gave no evidence that {experiment.candidate} is better: {evidence}."
    return GO_ON, f"{evidence}, {unit}; it ends before {experiment.end_window} at the latest."


def _broken(connection: psycopg.Connection, experiment: Experiment, seen: Seen, ratio: float | None) -> str | None:
    """Why the figures are no comparison of these two; None where they are."""
    served = promoted(connection)
    if served is None or served["to_checkpoint"] != experiment.baseline:
        now_served = "nothing" if served is None else served["to_checkpoint"]
        return (
            f"{now_served} is promoted since, so {experiment.baseline} answers no agent any more. Start another "
            "experiment against what is served."
        )
    if seen.agents >= LEAST_AGENTS and seen.mismatched > MOST_MISMATCHED * seen.agents:
        return (
            f"{seen.mismatched} of {seen.agents} agents' windows were answered by the other arm than the plan's, so "
            "the arms are not the drawn ones. Look at `babylon-rl history` and at the gateway: was the candidate "
            "refused, or its routing switched off?"
        )
    if ratio is not None and ratio < experiment.settings["sample_ratio_alpha"]:
        ours = sum(own for own, _ in seen.answered.values())
        return (
            f"{ours} of {seen.agents} agents' windows were the candidate's, and {experiment.share:.0%} were planned "
            f"(p = {ratio:.2g}): something keeps agents from an arm, and the comparison is not to be trusted. Look for "
            "runs of one arm that fail, are rejected, or are not recorded."
        )
    return None


def _over(experiment: Experiment, seen: Seen, now: datetime) -> bool:
    """Whether its last window is scored, or was not for long enough."""
    last = shift_window(experiment.end_window, -1)
    return last in seen.scored or now >= parse_window_id(experiment.end_window) + PATIENCE


def _unit(experiment: Experiment) -> str:
    named = (
        f"reward of {experiment.settings['scorer']}"
        if experiment.settings["metric"] == "reward"
        else "P&L over capital"
    )
    return f"{named} an agent and window"


def _store(connection: psycopg.Connection, found: Look) -> Look:
    row = connection.execute(
        """INSERT INTO babylon_rl.experiment_looks (experiment_id, last_window, windows, blocks, effect, low, high,
           sample_ratio_p, guardrails, decision, reason, digest)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
           ON CONFLICT (experiment_id, digest) DO NOTHING RETURNING looked_at""",
        (
            found.experiment_id,
            found.last_window,
            found.windows,
            found.blocks,
            found.effect,
            found.low,
            found.high,
            found.sample_ratio_p,
            Jsonb(found.guardrails),
            found.decision,
            found.reason,
            found.digest,
        ),
    ).fetchone()
    return found if row is None else msgspec.structs.replace(found, looked_at=row[0], new=True)


def _end(connection: psycopg.Connection, experiment: Experiment, found: Look, now: datetime) -> None:
    """End the experiment by the look's decision; what it promotes is booked with the look as its evidence."""
    if found.decision != PROMOTE:
        end(connection, experiment, found.decision, found.reason, now, found.decision in (HARM, STOPPED))  # type: ignore[arg-type]
        return
    end(connection, experiment, PROMOTE, found.reason, now)
    try:
        with connection.transaction():
            _promote(connection, load_experiment(connection, experiment.experiment_id), found)
    except (ServingError, TrainingError) as error:
        # Its weights are gone: what won cannot be served, and another look would find the same.
        reason = f"It won and cannot be promoted. {error} {found.reason}"
        connection.execute(
            "UPDATE babylon_rl.experiments SET state = %s, reason = %s WHERE experiment_id = %s",
            (STOPPED, reason, experiment.experiment_id),
        )


def _promote(connection: psycopg.Connection, experiment: Experiment, found: Look) -> None:
    decided = {
        "experiment_id": experiment.experiment_id,
        "baseline": experiment.baseline,
        "metric": experiment.settings["metric"],
        "effect": found.effect,
        "interval": [found.low, found.high],
        "windows": found.windows,
        "blocks": found.blocks,
        "look": found.digest,
        # Agents keep their arm until the hour is over: from then on the candidate answers all.
        "from_window": experiment.end_window,
    }
    promote_checkpoint(
        connection,
        experiment.candidate,
        f"experiment {experiment.experiment_id}",
        found.reason,
        experiment_id=experiment.experiment_id,
        decided=decided,
    )


def _unseen(experiment: Experiment) -> Look:
    """What is answered for an experiment that was ended before anybody looked at it."""
    return Look(
        experiment_id=experiment.experiment_id,
        last_window=experiment.first_window,
        windows=0,
        blocks=0,
        effect=None,
        low=None,
        high=None,
        sample_ratio_p=None,
        guardrails={},
        decision=experiment.state,
        reason=experiment.reason,
        digest="",
    )
