"""A tick of the readiness sensor: what changed is read, what is ready is requested, what was requested is followed.

A window is requested once a revision; the run key `window:revision` holds even where two ticks race. Run keys are for
ever, so a further attempt after a failed run has a number in its key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

import psycopg

from babylon_rl.database.connect import Recordings
from babylon_rl.outcomes.outcomes import awaited_outcomes
from babylon_rl.readiness.changes import Walk, changed_windows, misnamed
from babylon_rl.readiness.ledger import (
    MOST_ATTEMPTS,
    Entry,
    alone,
    confirmed,
    due_entries,
    failures,
    mark_changed,
    materialized,
    requested_entries,
    save,
    waiting_lines,
)
from babylon_rl.readiness.verdict import Waits, settled_at, time_verdict, verdict
from babylon_rl.recording.reader import read_window
from babylon_rl.recording.window import RecordedWindow

MOST_REQUESTS = 50  # a tick, and queued or running at once
MOST_READ = 50  # windows a tick
MOST_ROWS_READ = 20_000  # recorded rows a tick, though at least one window
BACK_OFF = (timedelta(minutes=5), timedelta(minutes=30))  # after the first attempt, after the second
RELAUNCH = timedelta(minutes=5)  # after which a request without a run is made again
FAILED_LOOK = timedelta(hours=1)  # how often a failed window is looked at for having been materialized by hand
SWEEP = "sweep:"  # what run keys of the hourly sweep begin with
END_OF_TIME = "9000-01-01T00:00"  # windows from here on are not looked at

RunState = Literal["running", "succeeded", "failed", "canceled"]
RunStates = Callable[[Sequence[str]], Mapping[str, RunState]]


@dataclass(frozen=True)
class Request:
    """A run that is wanted."""

    window_id: str
    run_key: str


@dataclass(frozen=True)
class Observed:
    """What is recorded in a window that changed; `revision` covers what agents wrote."""

    window_id: str
    revision: str
    agents: int
    recorded: int


@dataclass(frozen=True)
class Tick:
    """What a tick found. `waiting`: lines that a person reads, the number of windows first."""

    walk: Walk
    requests: list[Request] = field(default_factory=list)
    observed: list[Observed] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)


def tick(
    recordings: Recordings,
    walk: Walk,
    now: datetime,
    waits: Waits,
    look_back_hours: int,
    first_window: str,
    run_states: RunStates,
    in_flight: int,
) -> Tick | None:
    """One look at the recordings, in the transaction of `recordings.ours`; None where another tick is at work.

    `first_window`: earlier ones are no partitions. `run_states`: of runs by run key, without the keys of which there
    is no run. `in_flight`: runs of the sensor that are queued or running.
    """
    connection = recordings.ours
    if not alone(connection, wait=False):
        return None
    changed, walk = changed_windows(recordings, walk, now, look_back_hours)
    partitions = [w for w in changed if first_window <= w < END_OF_TIME]
    mark_changed(connection, [(w, _unread(w, waits, now), settled_at(w, waits)) for w in partitions], now)
    observed = _read_changed(recordings, now)
    again = follow(connection, now, run_states)
    requests = again + _request_ready(recordings, now, waits, run_states, in_flight + len(again))
    return Tick(walk, requests, observed, waiting_lines(connection))


def _unread(window_id: str, waits: Waits, now: datetime) -> str:
    early = time_verdict(window_id, waits, now)
    return early.reason if early else "its recordings changed and are not read yet"


# --- reading ---------------------------------------------------------------------------------------


def _read_changed(recordings: Recordings, now: datetime) -> list[Observed]:
    """Read what changed and is over, as much as a tick may; the windows whose revision is another one."""
    connection = recordings.ours
    entries = _few(connection, due_entries(connection, "changed", now, MOST_READ))
    elsewhere = misnamed(recordings, [entry.window_id for entry in entries]) if entries else {}
    read = [_read(recordings, entry, elsewhere[entry.window_id], now) for entry in entries]
    found = materialized(connection, [entry.window_id for entry in entries])
    after = [confirmed(entry, found.get(entry.window_id), now) or entry for entry, _ in read]
    save(connection, after)
    # What was materialized from these very recordings is no news, and Dagster would show it as out of date.
    return [
        Observed(entry.window_id, window.revision, window.agents, window.recorded)
        for before, (entry, window), now_known in zip(entries, read, after, strict=True)
        if window is not None and window.revision != before.revision and now_known.state != "materialized"
    ]


def _few(connection: psycopg.Connection, entries: list[Entry]) -> list[Entry]:
    """The first of them, with as many rows as a tick reads."""
    rows = dict(
        connection.execute(
            "SELECT window_id, sum(rows)::integer FROM babylon_rl.recorded_buckets "
            "WHERE window_id = ANY(%s) GROUP BY window_id",
            ([entry.window_id for entry in entries],),
        ).fetchall()
    )
    total, few = 0, []
    for entry in entries:
        total += rows.get(entry.window_id, 0)
        if few and total > MOST_ROWS_READ:
            break
        few.append(entry)
    return few


def _read(
    recordings: Recordings, entry: Entry, elsewhere: Sequence[str], now: datetime
) -> tuple[Entry, RecordedWindow | None]:
    """The entry with the window's revision; where that is the one known already, with what was requested for it."""
    try:
        with recordings.savepoint():
            window = read_window(recordings, entry.window_id, elsewhere)
    except Exception as error:  # one window that cannot be read holds up no other; the ledger says what it was
        if recordings.ours.broken or recordings.application.broken:
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        reason = f"it cannot be read ({said}); mend its rows in trajectories, and it is read again"
        return replace(entry, state="failed", reason=reason, look_at=now + FAILED_LOOK, changed_at=now), None
    if window.revision == entry.revision and entry.run_key:
        # Its run says how it stands.
        return replace(entry, state="requested", reason="its recordings are the same", look_at=None), window
    attempts, run_key = (entry.attempts, entry.run_key) if window.revision == entry.revision else (0, None)
    return (
        Entry(window.window_id, window.revision, window.agents, "waiting", "", run_key, attempts, now, now),
        window,
    )


# --- following what was requested ------------------------------------------------------------------


def follow(connection: psycopg.Connection, now: datetime, run_states: RunStates, prefix: str = "") -> list[Request]:
    """Settle requests whose runs ended; those without a run are made again, under the same key.

    `prefix`: only requests whose run keys begin with it.
    """
    requested = [e for e in requested_entries(connection) if (e.run_key or "").startswith(prefix)]
    failed = due_entries(connection, "failed", now, MOST_REQUESTS)
    if not requested and not failed:
        return []
    states = run_states(sorted({entry.run_key for entry in requested if entry.run_key})) if requested else {}
    ids = [entry.window_id for entry in (*requested, *failed)]
    found, said = materialized(connection, ids), failures(connection, ids)
    settled, again = [], []
    for entry in requested:
        state = states.get(entry.run_key or "")
        if state == "running":
            continue
        done = confirmed(entry, found.get(entry.window_id), now)
        if state is None and done is None:
            relaunched = _without_run(entry, now)
            if relaunched is not None:
                settled.append(relaunched)
                if relaunched.state == "requested" and relaunched.run_key:
                    again.append(Request(entry.window_id, relaunched.run_key))
            continue
        settled.append(done or _after_failure(entry, state or "failed", said.get(entry.window_id), now))
    for entry in failed:
        settled.append(confirmed(entry, found.get(entry.window_id), now) or replace(entry, look_at=now + FAILED_LOOK))
    save(connection, settled)
    return again


def _without_run(entry: Entry, now: datetime) -> Entry | None:
    """A request of which no run was made: the tick may have ended before Dagster launched it."""
    if now < entry.changed_at + RELAUNCH:
        return None
    if (entry.run_key or "").startswith(SWEEP):
        return replace(entry, state="waiting", reason="its sweep was never run", look_at=None, changed_at=now)
    return replace(entry, reason="requested again, as no run was made", changed_at=now)


def _after_failure(entry: Entry, state: str, said: str | None, now: datetime) -> Entry:
    """What follows a run that did not materialize the window: another attempt after a while, or a person."""
    what = said or ("its run ended without its rows" if state == "succeeded" else f"its run {state}")
    if state != "canceled" and entry.attempts < MOST_ATTEMPTS:
        sweep = (entry.run_key or "").startswith(SWEEP)
        look_at = None if sweep else now + BACK_OFF[min(entry.attempts, len(BACK_OFF)) - 1]
        when = "with the next sweep" if look_at is None else f"after {look_at:%H:%M} UTC"
        reason = f"attempt {entry.attempts} of {MOST_ATTEMPTS} failed ({what}); tried again {when}"
        return replace(entry, state="waiting", reason=reason, look_at=look_at, changed_at=now)
    reason = (
        f"{what}, attempt {entry.attempts}; look at the run {entry.run_key}, mend what failed, "
        "and materialize the window by hand or record it again"
    )
    return replace(entry, state="failed", reason=reason, look_at=now + FAILED_LOOK, changed_at=now)


# --- requesting ------------------------------------------------------------------------------------


def _request_ready(
    recordings: Recordings, now: datetime, waits: Waits, run_states: RunStates, in_flight: int
) -> list[Request]:
    """Look again at windows that wait, and request what is ready, oldest first, as far as there is room."""
    connection = recordings.ours
    entries = due_entries(connection, "waiting", now, MOST_REQUESTS + MOST_READ)
    if not entries:
        return []
    ids = [entry.window_id for entry in entries]
    found, awaited = materialized(connection, ids), awaited_outcomes(recordings.application, ids)
    underway = sum(not (entry.run_key or "").startswith(SWEEP) for entry in requested_entries(connection))
    room = MOST_REQUESTS - max(in_flight, underway)
    after: list[Entry] = []
    ready: list[Entry] = []
    for entry in entries:
        done = confirmed(entry, found.get(entry.window_id), now)
        said = verdict(entry.window_id, entry.agents, awaited.get(entry.window_id, 0), waits, now)
        if done:
            after.append(done)
        elif said.state == "waiting":
            after.append(replace(entry, state="waiting", reason=said.reason, look_at=said.again))
        elif len(ready) >= room:
            reason = f"ready; {MOST_REQUESTS} runs are queued or running"
            after.append(replace(entry, reason=reason, look_at=now))
        else:
            ready.append(entry)
    keys = _unused_keys(ready, run_states)
    save(connection, after + [requested(entry, keys[entry.window_id], now) for entry in ready])
    return [Request(entry.window_id, keys[entry.window_id]) for entry in ready]


def _unused_keys(entries: Sequence[Entry], run_states: RunStates) -> dict[str, str]:
    """Run key by window: the first of the revision's that no run has had.

    An attempt before has had one, and so has a revision that was there, was corrected, and is there again.
    """
    keys: dict[str, str] = {}
    left, number = list(entries), 1
    while left:
        tried = {e.window_id: f"{e.window_id}:{e.revision}" + (f":{number}" if number > 1 else "") for e in left}
        used = run_states(sorted(tried.values()))
        keys |= {window_id: key for window_id, key in tried.items() if key not in used}
        left, number = [entry for entry in left if entry.window_id not in keys], number + 1
    return keys


def requested(entry: Entry, run_key: str, now: datetime) -> Entry:
    """The entry with one more attempt, under the run key."""
    attempts = entry.attempts + 1
    reason = f"requested, attempt {attempts} of {MOST_ATTEMPTS}"
    return replace(
        entry, state="requested", reason=reason, run_key=run_key, attempts=attempts, look_at=None, changed_at=now
    )
