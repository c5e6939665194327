"""The local endpoint processes: one a base model, started when it is first needed, ended when nobody needs it."""

import contextlib
import threading
import time
from pathlib import Path
from typing import NamedTuple

from babylon_rl.errors import ServingError
from babylon_rl.serving.process import Endpoint, running_endpoint
from babylon_rl.serving.routing import Target


class Base(NamedTuple):
    """A base model as it is served: its folder, the name under which it answers, and the precision of its weights."""

    folder: Path
    name: str
    precision: str | None


class _Running:
    """A process, what is loaded in it, and how it is ended."""

    def __init__(self, endpoint: Endpoint, stack: contextlib.ExitStack) -> None:
        self.endpoint, self.stack = endpoint, stack
        self.models: dict[str, str] = {}  # checkpoint id -> name there
        self.began = time.monotonic()


class Ended(NamedTuple):
    """A process that has ended by itself. `checkpoint_ids`: what it served; `lived`: seconds."""

    base: Base
    checkpoint_ids: list[str]
    code: int | None
    lived: float


class LocalEndpoints:
    """The processes by base model. Its calls may come from several threads."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self._running: dict[Base, _Running] = {}
        self._locks: dict[Base, threading.Lock] = {}
        self._guard = threading.Lock()
        self._closed = False

    def serve(self, base: Base, checkpoint_id: str, adapter: Path | None) -> Target:
        """What answers for the checkpoint: `adapter` over the base model, or the base model itself.

        Starts the base model's process where there is none. ServingError where it does not start or load.
        """
        with self._lock(base):  # a base model is started once; another one's start does not wait for it
            running = self._running.get(base) or self._start(base)
            name = base.name if adapter is None else checkpoint_id
            if adapter is not None:
                # Weights that are loaded already stay; others under the same name (trained again) take their place.
                running.endpoint.load(checkpoint_id, str(adapter), in_place=True)
            running.models[checkpoint_id] = name
        return Target(checkpoint_id=checkpoint_id, base_url=running.endpoint.base_url, model=name)

    def retire(self, checkpoint_id: str) -> None:
        """Unload the checkpoint; end the process where it served nothing else. Nothing where it is not loaded."""
        for base, running in list(self._running.items()):
            with self._lock(base):  # what is being loaded there meanwhile keeps the process
                name = running.models.pop(checkpoint_id, None)
                if name is None:
                    continue
                if not running.models:
                    self._end(base)
                elif name != base.name:
                    with contextlib.suppress(ServingError):  # what does not answer is found dead
                        running.endpoint.unload(name)

    def ended(self) -> list[Ended]:
        """The processes that ended since the last call; what they served is served no more."""
        found = []
        for base, running in list(self._running.items()):
            code = running.endpoint.process.poll()
            if code is not None:
                self._end(base)
                found.append(Ended(base, sorted(running.models), code, time.monotonic() - running.began))
        return found

    def close(self) -> None:
        """End all of them."""
        self._closed = True
        for base in list(self._running):
            self._end(base)

    def _lock(self, base: Base) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(base, threading.Lock())

    def _start(self, base: Base) -> _Running:
        stack = contextlib.ExitStack()
        endpoint = stack.enter_context(
            running_endpoint(base.folder, base.name, self.device, self.threads, precision=base.precision)
        )
        if self._closed:
            stack.close()
            raise ServingError("Serving has ended.")
        self._running[base] = _Running(endpoint, stack)
        return self._running[base]

    def _end(self, base: Base) -> None:
        running = self._running.pop(base, None)
        if running is not None:
            running.stack.close()
