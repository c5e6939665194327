"""What is served now and what went wrong with serving, as PostgreSQL and the gateway's folder tell it."""

from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from babylon_rl.serving.gateway.shipper import read_status, waiting_bytes
from babylon_rl.serving.supervision import LOCK, gateway_folder


def serving_status(connection: psycopg.Connection, home: Path) -> dict[str, Any]:
    """What answers by role, switches refused since then, unrecorded calls, what waits in the spool, the live gateway.

    A role's row is the latest that was booked; `gateway` is None where none of this home folder answers.
    """
    folder = gateway_folder(home)
    shipper = read_status(folder)
    return {
        "gateway": _gateway(home),
        "served": _latest(connection, ("served", "withdrawn")),
        "refused": _refused(connection),
        "gaps": _gaps(connection),
        "spool": {
            "folder": str(folder),
            "waiting_bytes": waiting_bytes(folder),
            "refused": shipper.refused if shipper else 0,
            "error": shipper.error if shipper else None,
        },
    }


def _latest(connection: psycopg.Connection, states: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    rows = _rows(
        connection,
        """SELECT DISTINCT ON (role) role, checkpoint_id AS checkpoint, gateway, upstream, reason, at,
                  attestation ->> 'state' AS attestation
           FROM babylon_rl.deployments WHERE state = ANY(%s) ORDER BY role, deployment_id DESC""",
        (list(states),),
    )
    return {row.pop("role"): row for row in rows if row["checkpoint"] is not None}


def _refused(connection: psycopg.Connection) -> list[dict[str, Any]]:
    """Refusals that no later switch of their role has overtaken."""
    return _rows(
        connection,
        """SELECT role, checkpoint_id AS checkpoint, reason, at FROM babylon_rl.deployments d
           WHERE state = 'refused' AND NOT EXISTS (
               SELECT 1 FROM babylon_rl.deployments later
               WHERE later.role = d.role AND later.deployment_id > d.deployment_id
                 AND (later.state = 'refused' OR later.checkpoint_id = d.checkpoint_id))
           ORDER BY deployment_id""",
        (),
    )


def _gaps(connection: psycopg.Connection) -> dict[str, Any]:
    (row,) = _rows(
        connection,
        "SELECT count(*) AS gaps, coalesce(sum(calls), 0)::bigint AS calls FROM babylon_rl.recording_gaps",
        (),
    )
    return row


def _rows(connection: psycopg.Connection, query: str, parameters: tuple) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, parameters).fetchall()
    return [{k: v.isoformat() if k == "at" else v for k, v in row.items()} for row in rows]


def _gateway(home: Path) -> dict[str, Any] | None:
    """Address and health of the gateway that this home folder's supervisor named last."""
    try:
        address = (gateway_folder(home) / LOCK).read_text().split()[0]
        health = httpx.get(f"{address}/health", timeout=2, trust_env=False).json()
    except (OSError, IndexError, ValueError, httpx.HTTPError, httpx.InvalidURL):
        return None
    return {"address": address, **health}
