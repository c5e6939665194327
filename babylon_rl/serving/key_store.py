"""The gateway's keys in PostgreSQL: made, rotated, revoked, listed. A key itself is shown once and kept nowhere."""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, get_args

import msgspec
import psycopg
import sqlalchemy as sa

from babylon_rl.database.bulk import compiled
from babylon_rl.database.serving_tables import gateway_keys
from babylon_rl.errors import ServingError
from babylon_rl.serving.gateway.keys import PREFIX, SCOPES, Key, Scope, secret_digest

DEFAULT_SCOPES: tuple[Scope, ...] = ("call", "record")
GRACE = timedelta(minutes=60)  # that a rotated key goes on for, unless it is said otherwise
SECRET_BYTES = 32


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `gateway_keys`. `successor`: the key that it was rotated to; limits None: unlimited."""

    key_id: str
    name: str
    scopes: tuple[str, ...]
    agent_id: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    in_flight: int | None
    replaces: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    successor: str | None = None

    def state(self, now: datetime) -> str:
        """`good`, `rotated` (its successor is good, it still is), `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "rotated" if self.successor else "good"


class Made(NamedTuple):
    """A key that was made just now. `secret`: the whole key, which nobody can be shown again."""

    key_id: str
    secret: str
    expires_at: datetime | None


def create_key(
    connection: psycopg.Connection,
    name: str,
    *,
    agent_id: str | None = None,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    in_flight: int | None = None,
    lasts: timedelta | None = None,
) -> Made:
    """Make a key in the caller's transaction. `lasts`: after that it is refused; None: it does not end.

    ServingError for an unknown scope, a limit below one, a name or agent that is empty or cannot be kept.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        said = f"There is no scope {', '.join(map(repr, unknown))}." if unknown else "A key without a scope is no use."
        raise ServingError(f"{said} Name some of {', '.join(get_args(Scope))}.")
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "in_flight": in_flight,
    }
    for limit, value in limits.items():
        if value is not None and not 1 <= value < 2**31:
            raise ServingError(f"{limit} is {value}: write 1 or more, or leave it out for no limit.")
    _storable("name", name)
    if agent_id is not None:
        _storable("agent", agent_id)
    values = {"name": name, "agent_id": agent_id, "scopes": [s for s in SCOPES if s in scopes], **limits}
    return _insert(connection, values, lasts)


def rotate_key(connection: psycopg.Connection, key_id: str, grace: timedelta = GRACE) -> Made:
    """A key of the same rights, in place of this one, which ends after the grace. In the caller's transaction.

    ServingError where the key is not known, not good any more, or was rotated before.
    """
    found = _found(connection, key_id, for_update=True)
    now = datetime.now(UTC)
    if (state := found.state(now)) != "good":
        instead = f"rotate {found.successor}, which took its place" if state == "rotated" else "create a key instead"
        raise ServingError(f"The key {key_id} is {state}: {instead}.")
    values = {
        name: getattr(found, name)
        for name in ("name", "agent_id", "requests_per_minute", "tokens_per_minute", "in_flight")
    }
    lasts = None if found.expires_at is None else found.expires_at - found.created_at
    made = _insert(connection, {**values, "scopes": list(found.scopes), "replaces": key_id}, lasts)
    ends = now + max(grace, timedelta(0))
    ends = ends if found.expires_at is None else min(ends, found.expires_at)
    connection.execute("UPDATE babylon_rl.gateway_keys SET expires_at = %s WHERE key_id = %s", (ends, key_id))
    return made


def revoke_key(connection: psycopg.Connection, key_id: str) -> KeyRow:
    """Have the key refused from now on, in the caller's transaction; one that was revoked before stays so.

    ServingError where the key is not known.
    """
    found = _found(connection, key_id, for_update=True)
    connection.execute(
        "UPDATE babylon_rl.gateway_keys SET revoked_at = clock_timestamp() WHERE key_id = %s AND revoked_at IS NULL",
        (key_id,),
    )
    return found


def list_keys(connection: psycopg.Connection) -> list[KeyRow]:
    """All keys, the newest first."""
    return _rows(connection, sa.true())


def load_keys(connection: psycopg.Connection) -> list[Key]:
    """The keys that are good now, as the gateway's process knows them, by id."""
    good = sa.and_(
        gateway_keys.c.revoked_at.is_(None),
        sa.or_(gateway_keys.c.expires_at.is_(None), gateway_keys.c.expires_at > sa.func.clock_timestamp()),
    )
    columns = [gateway_keys.c[name] for name in Key.__struct_fields__]
    statement = sa.select(*columns).where(good).order_by(gateway_keys.c.key_id)
    keys = []
    for values in connection.execute(*compiled(statement)):
        fields: dict[str, Any] = dict(zip(Key.__struct_fields__, values, strict=True))
        ends = fields["expires_at"]
        keys.append(
            Key(
                **{
                    **fields,
                    "scopes": tuple(fields["scopes"]),
                    "expires_at": None if ends is None else ends.timestamp(),
                }
            )
        )
    return keys


def _insert(connection: psycopg.Connection, values: dict[str, Any], lasts: timedelta | None) -> Made:
    key_id = secrets.token_hex(6)
    secret = f"{PREFIX}{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    now = datetime.now(UTC)
    expires_at = None if lasts is None else now + lasts
    row = {
        **values,
        "key_id": key_id,
        "secret_sha256": secret_digest(secret),
        "created_at": now,
        "expires_at": expires_at,
    }
    connection.execute(*compiled(sa.insert(gateway_keys).values(row)))
    return Made(key_id, secret, expires_at)


def _found(connection: psycopg.Connection, key_id: str, *, for_update: bool) -> KeyRow:
    if for_update:  # of two rotations at once, the second sees the first
        connection.execute("SELECT FROM babylon_rl.gateway_keys WHERE key_id = %s FOR UPDATE", (key_id,))
    rows = _rows(connection, gateway_keys.c.key_id == key_id)
    if not rows:
        raise ServingError(f"There is no key {key_id!r}; `babylon-rl keys list` names those there are.")
    return rows[0]


def _rows(connection: psycopg.Connection, condition: sa.ColumnElement[bool]) -> list[KeyRow]:
    newer = gateway_keys.alias("newer")
    names = KeyRow.__struct_fields__[:-1]
    statement = (
        sa.select(*(gateway_keys.c[name] for name in names), newer.c.key_id.label("successor"))
        .select_from(gateway_keys.outerjoin(newer, newer.c.replaces == gateway_keys.c.key_id))
        .where(condition)
        .order_by(gateway_keys.c.created_at.desc(), gateway_keys.c.key_id)
    )
    return [
        msgspec.convert(dict(zip(KeyRow.__struct_fields__, values, strict=True)), KeyRow)
        for values in connection.execute(*compiled(statement))
    ]


def _storable(what: str, text: str) -> None:
    try:
        good = bool(text.strip()) and "\x00" not in text and len(text.encode()) <= 200
    except UnicodeEncodeError:
        good = False
    if not good:
        raise ServingError(f"The {what} of a key is a text of 1 to 200 bytes.")
