"""The endpoint as a process of its own: its entry point, and starting, asking and stopping it from another process.

`python -m babylon_rl.serving.process` serves one base model and the adapters it is told of, on loopback.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from babylon_rl.errors import BabylonError, ServingError
from babylon_rl.serving.lifetime import end, end_with_parent, free_port

if TYPE_CHECKING:
    from babylon_rl.serving.batching import Limits

START_SECONDS = 120
KEEP_ALIVE_SECONDS = 75
DRAIN_SECONDS = 10  # that calls in flight have when the endpoint is told to end


class Endpoint(msgspec.Struct, frozen=True):
    """A running endpoint. `base_url` ends in /v1; `process`: its subprocess.Popen."""

    base_url: str
    process: Any = None

    def load(self, name: str, folder: str, in_place: bool = False) -> str | None:
        """Load a checkpoint's adapter under its name; SHA-256 of the weights that the endpoint loaded.

        `in_place`: replace other weights of that name. Calls in flight end with the weights that they began with.
        ServingError where it cannot; what was loaded before stays.
        """
        body = {"lora_name": name, "lora_path": folder, "load_inplace": in_place}
        return self._change("load_lora_adapter", body, f"load {name}").get("weights_sha256")

    def unload(self, name: str) -> None:
        """Take an adapter out; calls in flight end with it. ServingError where none has the name."""
        self._change("unload_lora_adapter", {"lora_name": name}, f"unload {name}")

    def _change(self, path: str, body: dict[str, Any], doing: str) -> dict[str, Any]:
        try:
            response = httpx.post(f"{self.base_url}/{path}", json=body, timeout=60, trust_env=False)
        except httpx.HTTPError as error:
            raise ServingError(f"The endpoint at {self.base_url} does not answer: {error}.") from None
        if response.status_code != 200:
            raise ServingError(f"The endpoint did not {doing}: {response.text}")
        return response.json()


@contextlib.contextmanager
def running_endpoint(
    base_folder: Path,
    base_name: str,
    device: str,
    threads: int,
    adapters: Mapping[str, str] | None = None,
    precision: str | None = None,
) -> Iterator[Endpoint]:
    """An endpoint on a free loopback port, stopped at the end. ServingError with its last output where it fails."""
    port = free_port()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "babylon_rl.serving.process"),
                *("--base", str(base_folder), "--name", base_name, "--port", str(port)),
                *("--device", device, "--threads", str(threads), "--parent-pipe"),
                *(("--precision", precision) if precision else ()),
            ],
            # The endpoint watches its standard input and ends when this process does, however that happens.
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C belongs to the caller, which still has answers to wait for.
            start_new_session=True,
        )
        try:
            endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", process)
            _wait(process, endpoint, output)
            for name, folder in (adapters or {}).items():
                endpoint.load(name, folder)
            yield endpoint
        finally:
            end(process, DRAIN_SECONDS + 5)


def _wait(process: subprocess.Popen, endpoint: Endpoint, output: tempfile._TemporaryFileWrapper) -> None:
    deadline = time.monotonic() + START_SECONDS
    ready = f"{endpoint.base_url.removesuffix('/v1')}/ready"
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(ready, timeout=2, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    output.seek(0)
    said = " ".join(output.read()[-1500:].split("\n")[-12:]).strip()
    raise ServingError(f"The endpoint did not start within {START_SECONDS} s. It said: {said or 'nothing'}")


def serve(
    base_folder: Path,
    name: str,
    host: str,
    port: int,
    device: str,
    threads: int,
    adapters: Mapping[str, str],
    precision: str | None = None,
    limits: "Limits | None" = None,
) -> None:
    """Serve until interrupted or told to end by SIGTERM; what is in flight then is finished within `DRAIN_SECONDS`.

    `precision`: as of `Policy`, and as of the trainer that reads what was sampled here.
    """
    import os
    import signal

    import uvicorn

    from babylon_rl.serving.application import build_application
    from babylon_rl.training.policy import Policy, use_threads

    use_threads(threads)
    policy = Policy(base_folder, device, precision)
    uvicorn.run(
        # A process that answers nothing any more ends, so that who keeps it starts another.
        build_application(policy, name, adapters, limits, died=lambda: os.kill(os.getpid(), signal.SIGTERM)),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=DRAIN_SECONDS,
        # Longer than clients keep a connection, so that it is never closed under a call that is being sent.
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def _limits(text: str) -> "Limits":
    from babylon_rl.serving.batching import Limits

    try:
        return msgspec.json.decode(text, type=Limits)
    except msgspec.MsgspecError as error:
        raise ServingError(f"--limits is not the JSON of limits: {error}.") from None


def main() -> None:
    """Entry point of the endpoint's process."""
    parser = argparse.ArgumentParser(prog="python -m babylon_rl.serving.process", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--name", required=True, help="name under which the base model answers")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", choices=["bfloat16"], help="of the base model's weights; float32 without it")
    parser.add_argument("--adapters", type=json.loads, default={}, help="JSON: name to folder")
    parser.add_argument("--parent-pipe", action="store_true", help="end when standard input is closed")
    parser.add_argument("--limits", default="{}", help="JSON of batching.Limits: waiting, rows, cache_bytes, …")
    options = parser.parse_args()
    if options.parent_pipe:
        end_with_parent()
    try:
        serve(
            options.base,
            options.name,
            options.host,
            options.port,
            options.device,
            options.threads,
            options.adapters,
            options.precision,
            _limits(options.limits),
        )
    except BabylonError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
