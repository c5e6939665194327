"""Keys of the gateway as its process knows them: what a key may do, and whose it is. The secret itself is kept nowhere.

`keys.json` in the gateway's folder holds them; the database's table `gateway_keys` is where they come from.
"""

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from babylon_rl.serving.gateway.refusals import forbidden, unauthenticated

PREFIX = "brl_"  # begins every key, so that scanners of leaked secrets can find one
Scope = Literal["call", "record", "pin", "metrics"]
SCOPES: tuple[Scope, ...] = ("call", "record", "pin", "metrics")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may do. `agent_id`: the only agent that it speaks for, None for any; limits None: unlimited.

    Scopes: `call` asks for answers, `record` records trajectories, `pin` may name the checkpoint that answers,
    `metrics` reads metrics. `expires_at`: epoch seconds.
    """

    key_id: str
    secret_sha256: str
    scopes: tuple[Scope, ...]
    agent_id: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    in_flight: int | None = None
    expires_at: float | None = None


def open_key() -> Key:
    """The key of whoever sends none, for a gateway on loopback that is open to all of the machine.

    No digest is an empty text, so nothing that is sent finds it by its own digest.
    """
    return Key(key_id="open", secret_sha256="", scopes=SCOPES)


def secret_digest(secret: str) -> str:
    """What is kept of a key: 256 random bits need no slow hash, as a password would."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def authenticate(authorization: str | None, scope: Scope, by_digest: Mapping[str, Key], now: float) -> Key:
    """The key of the header `Authorization: Bearer …`; Refused with 401 or, without the scope, 403.

    Keys are found by the digest of what was sent, so the time of a comparison says nothing of a secret. `now`: epoch
    seconds.
    """
    kind, _, secret = (authorization or "").partition(" ")
    if (everyone := by_digest.get("")) is not None:
        return by_digest.get(secret_digest(secret.strip())) or everyone
    if kind.lower() != "bearer" or not secret.strip():
        raise unauthenticated("No key was sent. Send the header Authorization: Bearer brl_…, a key of this gateway.")
    key = by_digest.get(secret_digest(secret.strip()))
    if key is None:
        raise unauthenticated("This key is not known here, or was revoked. `babylon-rl keys create` makes one.")
    if key.expires_at is not None and key.expires_at <= now:
        raise unauthenticated(f"Key {key.key_id} has expired. `babylon-rl keys rotate {key.key_id}` replaces it.")
    if scope not in key.scopes:
        has = ", ".join(key.scopes) or "none"
        raise forbidden(f"Key {key.key_id} lacks the scope {scope!r}; it has {has}.", "scope")
    return key
