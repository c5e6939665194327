"""The deployer: the loop that makes what is served what was decided, and books what really answers.

A thread reads what is wanted from PostgreSQL and books; others find, load and attest, which may take minutes; `look`
puts their results together, writes the gateway's files, and never waits. While PostgreSQL is down what is served stays.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from babylon_rl.database.connect import Database
from babylon_rl.errors import BabylonError
from babylon_rl.serving.attestation import Attestation
from babylon_rl.serving.deployment import NOTHING, Actual, Prepare, Route, Wanted, plan, unrouted
from babylon_rl.serving.endpoints import LocalEndpoints
from babylon_rl.serving.finding import BaseFolder, Finder, Found
from babylon_rl.serving.gateway.files import write_keys, write_routes
from babylon_rl.serving.gateway.keys import Key
from babylon_rl.serving.routing import Routes, Target
from babylon_rl.serving.wanted import Decided, read_decided
from babylon_rl.settings import Settings

READ_SECONDS = 0.5
FRESH_SECONDS = 60.0  # that an attestation is good for a switch
PAUSE_SECONDS = 30.0  # before a refused checkpoint is tried again though nothing changed
CRASH_SECONDS = 10.0  # an endpoint that lived shorter is started again after a pause, not at once
CRASH_PAUSE = 5.0


class Pace(NamedTuple):
    """Seconds of the deployer's waiting. `rest`: after which calls that began before a switch have ended."""

    rest: float
    pause: float = PAUSE_SECONDS
    fresh: float = FRESH_SECONDS


class Booked(NamedTuple):
    """A row of `deployments`."""

    role: str
    target: Target | None
    checkpoint_id: str | None
    state: str
    reason: str
    attestation: Attestation | None
    at: datetime


class Refusal(NamedTuple):
    """Why a checkpoint is not served. `version`: as of `Wanted.versions`; `until`: monotonic time of the next try."""

    version: str
    reason: str
    until: float
    tries: int = 1


class Deployer:
    """See `look`. `address`: of the gateway, under which deployments are booked; `say`: told each change, a line.

    `fixed`: a checkpoint, or `base`, that is served whatever was promoted. `keys`: valid beside those of the database.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        folder: Path,
        address: str,
        base_folder: BaseFolder,
        say: Callable[[str], None],
        fixed: str | None = None,
        keys: tuple[Key, ...] = (),
        pace: Pace | None = None,
    ) -> None:
        self.database, self.settings, self.folder, self.address = database, settings, folder, address
        self.say, self.fixed, self.own_keys = say, fixed, keys
        self.pace = pace or Pace(rest=settings.upstream_timeout)
        self.endpoints = LocalEndpoints(settings.device, settings.threads)
        self.finder = Finder(database, settings, self.endpoints, base_folder)
        self.routes = NOTHING
        self.wanted: Wanted | None = None
        self.refusals: dict[str, Refusal] = {}
        self.attested: dict[str, Attestation] = {}
        self._keys: list[Key] | None = None
        self._ready: dict[str, Target] = {}
        self._attested_at: dict[str, float] = {}
        self._left_at: dict[str, float] = {}
        self._busy: set[str] = set()
        self._told: dict[str, tuple[str, str]] = {}
        self._why = ""
        self._disk_full = False
        self._results: SimpleQueue[tuple[str, str, Found | BabylonError | None]] = SimpleQueue()
        self._bookings: deque[Booked] = deque()
        self._decided: SimpleQueue[Decided | None] = SimpleQueue()
        self.database_down = False
        self._ended = threading.Event()
        write_routes(folder, NOTHING)  # those of an earlier time name processes that are gone
        self._reader = threading.Thread(target=self._read_for_ever, daemon=True)
        self._reader.start()

    # --- the loop ----------------------------------------------------------------------------------

    def look(self) -> None:
        """Take in what was read and prepared since the last look, and take the steps that the plan says."""
        self._take_decided()
        self._take_results()
        self._take_ended()
        if self.wanted is None:
            return
        for step in plan(self.wanted, self._actual(self.wanted)):
            match step:
                case Prepare(checkpoint_id):
                    self._prepare(checkpoint_id)
                case Route(routes):
                    self._route(routes)
                case _:
                    self._retire(step.checkpoint_id)
        self._tell_experiment(self.wanted)

    def close(self) -> None:
        """End the endpoints, and book that nothing is served from now on; not where the database does not answer."""
        for role, target in _roles(self.routes).items():
            if target is not None:
                self._book(role, None, None, "withdrawn", "The gateway was ended.", None)
        self._ended.set()
        self._reader.join(timeout=5)
        self.endpoints.close()

    def _actual(self, wanted: Wanted) -> Actual:
        now = time.monotonic()
        return Actual(
            routes=self.routes,
            ready=dict(self._ready),
            fresh=frozenset(n for n in self._ready if now - self._attested_at[n] < self.pace.fresh),
            busy=frozenset(self._busy),
            refused=frozenset(
                name
                for name, refusal in self.refusals.items()
                if now < refusal.until and refusal.version == wanted.versions.get(name, refusal.version)
            ),
            resting=frozenset(n for n, left in self._left_at.items() if now - left < self.pace.rest),
        )

    # --- what others found out ---------------------------------------------------------------------

    def _take_decided(self) -> None:
        decided = None
        try:
            while True:
                decided = self._decided.get_nowait()
        except Empty:
            pass
        if decided is None:
            return
        self.wanted = decided.wanted
        keys = [*self.own_keys, *decided.keys]
        if keys != self._keys and self._on_disk(lambda: write_keys(self.folder, keys)):
            self._keys = keys

    def _take_results(self) -> None:
        while True:
            try:
                name, version, result = self._results.get_nowait()
            except Empty:
                return
            self._busy.discard(name)
            if result is None:  # it was retired
                continue
            if isinstance(result, BabylonError):
                self._refuse(name, version, str(result), None)
            elif not result.attestation.may_serve:
                self.finder.forget(name)
                self._refuse(name, version, result.attestation.reason, result.attestation)
                in_a_role = name in {t.checkpoint_id for t in _roles(self.routes).values() if t is not None}
                if not in_a_role and (result.attestation.state == "differs" or name not in self._ready):
                    self._retire(name)
            else:
                self._ready[name], self.attested[name] = result
                self._attested_at[name] = time.monotonic()
                self.refusals.pop(name, None)

    def _take_ended(self) -> None:
        for ended in self.endpoints.ended():
            for name in ended.checkpoint_ids:
                self._ready.pop(name, None)
            soon = ended.lived < CRASH_SECONDS
            self.say(
                f"The endpoint of {ended.base.name} has ended by itself (exit code {ended.code}); it is started again"
                f"{f' in {CRASH_PAUSE:.0f} s' if soon else ''}."
            )
            if soon and self.wanted is not None:
                until = time.monotonic() + CRASH_PAUSE
                for name in ended.checkpoint_ids:
                    version = self.wanted.versions.get(name, "")
                    self.refusals[name] = Refusal(version, "Its endpoint ended soon after its start.", until)

    # --- steps -------------------------------------------------------------------------------------

    def _prepare(self, name: str) -> None:
        assert self.wanted is not None
        version = self.wanted.versions.get(name, "")
        self._busy.add(name)

        def work() -> None:
            try:
                found: Found | BabylonError = self.finder.find(name, version)
            except BabylonError as error:
                found = error
            except Exception as error:  # whatever it is, the loop goes on and says it
                found = BabylonError(f"{type(error).__name__}: {error}")
            self._results.put((name, version, found))

        if name not in self._ready and name not in self.refusals:
            self.say(f"{name}: found, loaded and attested …")
        threading.Thread(target=work, daemon=True).start()

    def _route(self, routes: Routes) -> None:
        if not self._on_disk(lambda: write_routes(self.folder, routes)):
            return
        before, after = _roles(self.routes), _roles(routes)
        now = time.monotonic()
        self._left_at |= {name: now for name in self.routes.targets if name not in routes.targets}
        for name in routes.targets:
            self._left_at.pop(name, None)
        self.routes = routes
        for role, target in after.items():
            if target == before[role]:
                continue
            if target is None:
                self._book(role, None, None, "withdrawn", f"No {role} is served any more.", None)
                self.say(f"{role}: nothing any more.")
                continue
            attestation = self.attested.get(target.checkpoint_id)
            reason = self._reason(role, target, before[role])
            self._book(role, target, target.checkpoint_id, "served", reason, attestation)
            said = "" if attestation is None else f" ({attestation.reason.rstrip('.')})"
            self.say(f"{role}: {reason}{said}.")

    def _reason(self, role: str, target: Target, before: Target | None) -> str:
        if before is not None and before.checkpoint_id == target.checkpoint_id:
            return f"{target.checkpoint_id} at another address, its endpoint was started again"
        if self.wanted is not None and role == "promoted":
            if self.wanted.promoted is None:
                said = "the base model, nothing is promoted" if self.fixed is None else "the base model, as asked for"
                return f"{target.checkpoint_id}, {said}"
            if target.checkpoint_id != self.wanted.promoted:
                return f"{target.checkpoint_id}, because {self.wanted.promoted} is refused"
        instead = "" if before is None else f" in place of {before.checkpoint_id}"
        return f"{target.checkpoint_id}{instead}"

    def _retire(self, name: str) -> None:
        self._ready.pop(name, None)
        self._left_at.pop(name, None)
        self._busy.add(name)  # it is not loaded again before it is gone

        def work() -> None:
            self.endpoints.retire(name)
            self._results.put((name, "", None))

        threading.Thread(target=work, daemon=True).start()

    def _refuse(self, name: str, version: str, reason: str, attestation: Attestation | None) -> None:
        before = self.refusals.get(name)
        tries = before.tries + 1 if before is not None and before.version == version else 1
        # Other weights stay other weights; what could not be asked may be there in a moment.
        differs = attestation is not None and attestation.state == "differs"
        pause = self.pace.pause if differs else min(self.pace.pause, 2.0 ** (tries - 1))
        self.refusals[name] = Refusal(version, reason, time.monotonic() + pause, tries)
        state = reason if attestation is None else attestation.state
        if self._told.get(name) == (version, state):
            return
        self._told[name] = (version, state)
        standing = _roles(self.routes)["promoted"]
        stays = "nothing is served yet" if standing is None else f"{standing.checkpoint_id} stays"
        self.say(f"Refused: {name}; {stays}. {reason}")
        if self.wanted is not None and name in (self.wanted.promoted, self.wanted.candidate, self.wanted.coming):
            role = "promoted" if name == self.wanted.promoted else "candidate"
            self._book(role, None, name, "refused", reason, attestation)

    def _on_disk(self, write: Callable[[], None]) -> bool:
        """Whether the gateway's file was written. A disk that takes none is told once, and what is served stays."""
        try:
            write()
        except OSError as error:
            if not self._disk_full:
                self.say(f"What is served stays, until {self.folder} can be written: {error.strerror or error}")
            self._disk_full = True
            return False
        self._disk_full = False
        return True

    def _tell_experiment(self, wanted: Wanted) -> None:
        why = unrouted(wanted, self.routes) or ""
        if why != self._why and why:
            self.say(why)
        self._why = why

    # --- PostgreSQL --------------------------------------------------------------------------------

    def _book(
        self,
        role: str,
        target: Target | None,
        checkpoint_id: str | None,
        state: str,
        reason: str,
        attestation: Attestation | None,
    ) -> None:
        self._bookings.append(Booked(role, target, checkpoint_id, state, reason, attestation, datetime.now(UTC)))

    def _read_for_ever(self) -> None:
        last = False
        while not last:
            last = self._ended.is_set()  # what is booked before the end is written
            try:
                with self.database.connect() as connection:
                    decided = read_decided(connection, self.settings.base_model, self.fixed)
                    booked = list(self._bookings)
                    for row in booked:
                        self._write(connection, row)
                for _ in booked:
                    self._bookings.popleft()
                self._decided.put(decided)
                if self.database_down:
                    self.database_down = False
                    self.say("PostgreSQL is back: decisions are followed again.")
            except (BabylonError, psycopg.Error) as error:
                if not self.database_down:
                    self.database_down = True
                    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    self.say(f"What is served stays, until PostgreSQL answers again: {said}")
            self._ended.wait(READ_SECONDS)

    def _write(self, connection: psycopg.Connection, row: Booked) -> None:
        connection.execute(
            """INSERT INTO babylon_rl.deployments
               (gateway, role, checkpoint_id, upstream, model, state, reason, attestation, at)
               VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)""",
            (
                self.address,
                row.role,
                row.checkpoint_id,
                None if row.target is None else row.target.base_url,
                None if row.target is None else row.target.model,
                row.state,
                row.reason,
                None if row.attestation is None else Jsonb(msgspec.to_builtins(row.attestation)),
                row.at,
            ),
        )


def _roles(routes: Routes) -> dict[str, Target | None]:
    """What answers outside of an experiment, and the experiment's candidate."""
    return {"promoted": routes.promoted or routes.base, "candidate": routes.candidate}
