"""The gateway as a process of its own: its entry point, and starting and stopping it from another process.

`python -m babylon_rl.serving.gateway.process --folder F --port P` serves on loopback; TLS is left to a proxy in front.
"""

import argparse
import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from babylon_rl.errors import BabylonError, ServingError
from babylon_rl.serving.gateway.files import LOCK, write_file
from babylon_rl.serving.gateway.limits import GatewayLimits
from babylon_rl.serving.lifetime import alone, end, end_with_parent

if TYPE_CHECKING:
    import uvicorn

    from babylon_rl.serving.gateway.application import Gateway

START_SECONDS = 120  # reading back an hour of a busy spool takes some of them
END_SECONDS = 15.0
LOCK_SECONDS = 5.0  # that a gateway waits for the one before it on its folder, which may still be ending
UPSTREAM_KEY = "BABYLON_RL_UPSTREAM_KEY"


class RunningGateway(msgspec.Struct, frozen=True):
    """A running gateway. `base_url` ends in /v1."""

    base_url: str
    process: Any  # subprocess.Popen

    @property
    def address(self) -> str:
        """Where /health, /ready and /metrics are."""
        return self.base_url.removesuffix("/v1")


@contextlib.contextmanager
def running_gateway(
    folder: Path,
    port: int = 0,
    limits: GatewayLimits | None = None,
    host: str = "127.0.0.1",
    upstream_key: str | None = None,
    prefix: tuple[str, ...] = (),
) -> Iterator[RunningGateway]:
    """A gateway on the folder, stopped at the end. `port` 0: a free one. ServingError where it does not start.

    `upstream_key`: sent to upstreams that want one. `prefix`: of its command, such as taskset -c 0.
    """
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as output:
        port_file = Path(scratch) / "port"
        environment = {**os.environ, **({} if upstream_key is None else {UPSTREAM_KEY: upstream_key})}
        process = subprocess.Popen(
            [*prefix, *gateway_command(folder, port, limits, host, port_file)],
            # The gateway watches its standard input and ends when this process does, however that happens.
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        try:
            yield RunningGateway(f"http://{host}:{_wait(process, port_file, output)}/v1", process)
        finally:
            end(process, END_SECONDS)


def gateway_command(
    folder: Path,
    port: int = 0,
    limits: GatewayLimits | None = None,
    host: str = "127.0.0.1",
    port_file: Path | None = None,
) -> list[str]:
    """The command that `running_gateway` starts, for who starts it otherwise; it ends when its stdin is closed."""
    return [
        *(sys.executable, "-m", "babylon_rl.serving.gateway.process", "--parent-pipe"),
        *("--folder", str(folder), "--host", host, "--port", str(port)),
        *("--limits", msgspec.json.encode(limits or GatewayLimits()).decode()),
        *(("--port-file", str(port_file)) if port_file else ()),
    ]


def _wait(process: subprocess.Popen, port_file: Path, output: Any) -> int:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return int(port_file.read_text())
        time.sleep(0.02)
    output.seek(0)
    said = " ".join(output.read().decode(errors="replace")[-1500:].split("\n")[-12:]).strip()
    raise ServingError(f"The gateway did not start within {START_SECONDS} s. It said: {said or 'nothing'}")


def serve(folder: Path, host: str, port: int, limits: GatewayLimits, port_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; calls in flight are finished first. ServingError where it cannot begin."""
    import gc

    import uvicorn

    from babylon_rl.serving.gateway.application import Gateway

    with _only_gateway(folder), _bound(host, port) as listening:
        gateway = Gateway(folder, limits, os.environ.get(UPSTREAM_KEY))

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if port_file is not None and self.started:
                    write_file(port_file, str(listening.getsockname()[1]).encode())
                gc.collect()
                gc.freeze()  # what was imported is never garbage: a full collection would only pause calls

        Server(server_config(gateway)).run(sockets=[listening])


def server_config(gateway: "Gateway") -> "uvicorn.Config":
    """How the gateway is served."""
    import uvicorn

    from babylon_rl.serving.gateway.application import build_application

    return uvicorn.Config(
        build_application(gateway),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,  # an address that a proxy claims opens nothing here
        server_header=False,
        timeout_keep_alive=65,  # agents' connections live through their pauses; proxies close theirs after 60 s
        timeout_graceful_shutdown=gateway.limits.drain_seconds,
        backlog=2048,
    )


def _only_gateway(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Two gateways on one folder would both think that their segment is the newest."""
    refusal = f"Another gateway serves from {folder}. Stop it, or give this one a folder of its own."
    return alone(folder / LOCK, LOCK_SECONDS, refusal)


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ServingError(
                f"The gateway cannot listen on {host}:{port}: {error.strerror}. Free the port, or name another."
            ) from None
        yield listening


def main() -> None:
    """Entry point of the gateway's process."""
    parser = argparse.ArgumentParser(prog="python -m babylon_rl.serving.gateway.process", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="routes.json, keys.json and the spool")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--port-file", type=Path, help="written with the port once calls are answered")
    parser.add_argument("--limits", default="{}", help="JSON of GatewayLimits")
    parser.add_argument("--parent-pipe", action="store_true", help="end when standard input is closed")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    if options.parent_pipe:
        end_with_parent()
    try:
        try:
            limits = msgspec.json.decode(options.limits, type=GatewayLimits)
        except msgspec.DecodeError as error:
            raise ServingError(f"--limits is not the JSON of limits: {error}.") from None
        serve(options.folder, options.host, options.port, limits, options.port_file)
    except BabylonError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
