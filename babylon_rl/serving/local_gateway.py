"""A gateway of one's own before one endpoint, for as long as a play lasts: the demo calls as agents elsewhere do.

Its only key lives in this process, each checkpoint that is loaded may be named, and every call is spooled and shipped.
"""

import contextlib
import fcntl
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from babylon_rl.database.connect import Database
from babylon_rl.errors import ServingError
from babylon_rl.serving.gateway.files import LOCK, write_keys, write_routes
from babylon_rl.serving.gateway.keys import PREFIX, Key, secret_digest
from babylon_rl.serving.gateway.limits import GatewayLimits
from babylon_rl.serving.gateway.process import running_gateway
from babylon_rl.serving.process import Endpoint, running_endpoint
from babylon_rl.serving.routing import Routes, Target
from babylon_rl.serving.shipping import await_shipped, running_shipper

FOLLOW_SECONDS = 10.0  # in which a gateway that lives has followed the routes
SHIP_SECONDS = 30.0


class LocalGateway:
    """The gateway and the endpoint behind it. `base_url` ends in /v1; `api_key`: the key that it takes.

    A checkpoint is asked for by its id once it is loaded, the base model by `base_name`.
    """

    def __init__(self, folder: Path, base_url: str, api_key: str, endpoint: Endpoint, base_name: str) -> None:
        self.folder, self.base_url, self.api_key, self.endpoint = folder, base_url, api_key, endpoint
        base = Target(checkpoint_id=base_name, base_url=endpoint.base_url, model=base_name)
        self.routes = Routes(promoted=None, base=base, targets={base_name: base})

    def load(self, name: str, folder: str) -> None:
        """Have the checkpoint answer under its name from now on; ServingError where it cannot."""
        if name in self.routes.targets:
            return
        self.endpoint.load(name, folder)
        target = Target(checkpoint_id=name, base_url=self.endpoint.base_url, model=name)
        self._follow(Routes(promoted=None, base=self.routes.base, targets={**self.routes.targets, name: target}))

    def _follow(self, routes: Routes) -> None:
        """Write the routes and wait until the gateway has them: a name it does not know would go to the base model."""
        write_routes(self.folder, routes)
        self.routes = routes
        deadline = time.monotonic() + FOLLOW_SECONDS
        headers = {"Authorization": f"Bearer {self.api_key}"}
        with httpx.Client(headers=headers, trust_env=False, timeout=FOLLOW_SECONDS) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                    listed = {entry["id"] for entry in client.get(f"{self.base_url}/models").json()["data"]}
                    if listed >= set(routes.targets):
                        return
                time.sleep(0.02)
        raise ServingError(f"The gateway at {self.base_url} did not follow its routes within {FOLLOW_SECONDS:.0f} s.")


@contextlib.contextmanager
def running_local_gateway(
    database: Database,
    home: Path,
    name: str,
    base_folder: Path,
    base_name: str,
    device: str,
    threads: int,
    adapters: Mapping[str, str] | None = None,
    precision: str | None = None,
) -> Iterator[LocalGateway]:
    """An endpoint of the base model and a gateway before it, on loopback; `name` is that of its folder in `home`.

    At the end what is spooled is in PostgreSQL, or waits in the folder for the next one of that name.
    """
    secret = f"{PREFIX}{secrets.token_urlsafe(32)}"
    key = Key(key_id="local", secret_sha256=secret_digest(secret), scopes=("call", "pin"))
    folder = _free_folder(home / "gateways", name)
    with running_endpoint(base_folder, base_name, device, threads, precision=precision) as endpoint:
        local = LocalGateway(folder, "", secret, endpoint, base_name)
        write_routes(folder, local.routes)
        write_keys(folder, [key])
        # What is played is bounded by who plays; a play of many windows must not meet a limit of ours.
        limits = GatewayLimits(in_flight=4096)
        with running_shipper(folder, database), running_gateway(folder, limits=limits) as gateway:
            local.base_url = gateway.base_url
            for checkpoint_id, adapter in (adapters or {}).items():
                local.load(checkpoint_id, adapter)
            yield local
            left = await_shipped(folder, SHIP_SECONDS)
    if not left:
        shutil.rmtree(folder, ignore_errors=True)


def _free_folder(parent: Path, name: str) -> Path:
    """The folder of that name, or the first numbered one that no living gateway serves from."""
    for number in range(1, 100):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / LOCK, "w") as lock, contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folder
    raise ServingError(f"All gateways in {parent} named {name} are in use. End some of them.")
