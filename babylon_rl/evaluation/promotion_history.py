"""What was served when: what was decided (`promotions`), and what really answered (`deployments`), side by side."""

from datetime import datetime
from typing import Any, Literal

import msgspec
import psycopg
from psycopg.rows import dict_row


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway did: from `at` on the checkpoint answered there in that role, or was refused, or nothing did."""

    at: datetime
    gateway: str
    role: Literal["promoted", "candidate"]
    checkpoint_id: str | None
    upstream: str | None
    model: str | None
    state: Literal["served", "refused", "withdrawn"]
    reason: str
    attestation: dict[str, Any] | None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `promotions`, and what the gateways did for it until the next one."""

    promotion_id: int
    at: datetime
    kind: Literal["promotion", "rollback"]
    before: str | None
    after: str
    who: str
    why: str
    experiment_id: str | None
    evidence: dict[str, Any]
    deployed: list[Deployed] = []


class ServedAt(msgspec.Struct, frozen=True, kw_only=True):
    """At a time: the decision that stood (None: the base model, nothing was promoted), and what answered where."""

    at: datetime
    decided: Decision | None
    answered: list[Deployed]


_DECISIONS = """SELECT promotion_id, promoted_at AS at, kind, from_checkpoint AS before, to_checkpoint AS after, who, why,
                       experiment_id, evidence
                FROM babylon_rl.promotions"""
_DEPLOYED = """SELECT at, gateway, role, checkpoint_id, upstream, model, state, reason, attestation
               FROM babylon_rl.deployments"""


def history(connection: psycopg.Connection) -> list[Decision]:
    """All decisions, the latest first, each with what the gateways did for it."""
    decisions = [msgspec.convert(row, Decision) for row in _rows(connection, _DECISIONS + " ORDER BY promotion_id", {})]
    done = [msgspec.convert(row, Deployed) for row in _rows(connection, _DEPLOYED + " ORDER BY deployment_id", {})]
    told = []
    for place, one in enumerate(decisions):
        until = decisions[place + 1].at if place + 1 < len(decisions) else None
        own = [
            each
            for each in done
            if each.role == "promoted"
            and each.checkpoint_id == one.after
            and each.at >= one.at
            and (until is None or each.at < until)
        ]
        told.append(msgspec.structs.replace(one, deployed=own))
    return told[::-1]


def served_at(connection: psycopg.Connection, time: datetime) -> ServedAt:
    """What was decided, and what really answered, at a time (with its time zone).

    A gateway that was killed leaves no row, and counts as answering until it books something else.
    """
    asked = {"time": time}
    decided = _rows(connection, _DECISIONS + " WHERE promoted_at <= %(time)s ORDER BY promotion_id DESC LIMIT 1", asked)
    # What was refused changed nothing: the old one went on answering.
    answered = _rows(
        connection,
        """SELECT DISTINCT ON (gateway, role) at, gateway, role, checkpoint_id, upstream, model, state, reason,
                  attestation
           FROM babylon_rl.deployments WHERE at <= %(time)s AND state <> 'refused'
           ORDER BY gateway, role, deployment_id DESC""",
        asked,
    )
    return ServedAt(
        at=time,
        decided=msgspec.convert(decided[0], Decision) if decided else None,
        answered=[
            msgspec.convert(row, Deployed)
            for row in answered
            if row["state"] == "served" and row["checkpoint_id"] is not None
        ],
    )


def _rows(connection: psycopg.Connection, query: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()  # type: ignore[arg-type]


def in_short(evidence: dict[str, Any]) -> str:
    """What a decision rests on, in a few words."""
    said = []
    if "effect" in evidence and "interval" in evidence:
        low, high = evidence["interval"]
        said.append(
            f"{evidence['effect']:+.2f} [{low:+.2f}, {high:+.2f}] over {evidence.get('base', 'its start')} on "
            f"{evidence.get('windows', '?')} windows"
        )
    if evidence.get("experiment"):
        said.append("an experiment")
    if evidence.get("despite_evidence"):
        said.append("despite the evidence" if said else "without evidence")
    if "took_back" in evidence:
        said.append(f"took back number {evidence['took_back']}")
    if evidence.get("passed_over"):
        said.append(f"passed over {len(evidence['passed_over'])}")
    return "; ".join(said) or "none"
