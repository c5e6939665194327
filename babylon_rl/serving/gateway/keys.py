"""Keys of the gateway as its process knows them: what a key may do, and whose it is. The secret itself is kept nowhere.

`keys.json` in the gateway's folder holds them; the database's table `gateway_keys` is where they come from.
"""

import hashlib
from typing import Literal

import msgspec

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


def secret_digest(secret: str) -> str:
    """What is kept of a key: 256 random bits need no slow hash, as a password would."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
