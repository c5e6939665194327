"""Snapshots made again from the rows that they were made from, and what differs: window, member and field."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg

from babylon_rl.errors import TrainingError
from babylon_rl.groups.snapshot_store import MadeFrom, SnapshotHeader, group_of, load_header, stored_texts
from babylon_rl.groups.snapshots import Assembled, assembled
from babylon_rl.groups.stored import stream_named
from babylon_rl.groups.trained_view import Group, digest_of

# Characters of a value that a difference shows, and differences that are told; the others are counted.
SHOWN, MOST = 60, 1000
ABSENT = "-"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a snapshot and what it was made from part. `window_id`, `trajectory_id`: null where it is about the whole.

    `field`: the path of a field, or what is wrong with a row; `stored`, `rebuilt`: the values, shortened.
    """

    field: str
    window_id: str | None = None
    trajectory_id: str | None = None
    stored: str = ABSENT
    rebuilt: str = ABSENT


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild came to. `rebuilt_id`: null where nothing could be made; `groups`: how many the snapshot has;
    `more`: how many differences there are beside those told."""

    snapshot_id: str
    rebuilt_id: str | None
    groups: int
    differences: list[Difference]
    more: int = 0

    @property
    def equal(self) -> bool:
        """Whether the same snapshot came out and nothing was wrong with what is stored."""
        return self.rebuilt_id == self.snapshot_id and not self.differences


def rebuild_snapshot(connection: psycopg.Connection, snapshot_id: str) -> Rebuilt:
    """Make the snapshot again from its rows of `art_groups`, current or superseded, and compare it group by group.

    Settings, seed and lineage are those of the snapshot. TrainingError where there is no such snapshot, its header is
    damaged, or it was stored without what it was made from.
    """
    header, made_from = load_header(connection, snapshot_id), _made_from(connection, snapshot_id)
    found: list[Difference] = []
    rebuilt_id = None
    # What the dropout came to is told in the settings, and is found again.
    settings = {name: value for name, value in header.settings.items() if name != "dropout"}
    try:
        with assembled(
            _source_groups(connection, made_from, found),
            header.training_run,
            settings,
            header.seed,
            lineage=made_from.lineage,
            left_out=made_from.left_out,
        ) as made:
            rebuilt_id = hashlib.sha256(made.content.encode()).hexdigest()
            apart = itertools.chain(_headers_apart(header, made.content), _groups_apart(connection, snapshot_id, made))
            found += itertools.islice(apart, max(0, MOST - len(found)))
            more = sum(1 for _ in apart)
    except TrainingError as error:
        found, more = [*found, Difference(field=f"it cannot be made: {error}")], 0
    return Rebuilt(snapshot_id=snapshot_id, rebuilt_id=rebuilt_id, groups=header.groups, differences=found, more=more)


def _made_from(connection: psycopg.Connection, snapshot_id: str) -> MadeFrom:
    row = connection.execute(
        "SELECT made_from FROM babylon_rl.snapshots WHERE snapshot_id = %s", (snapshot_id,)
    ).fetchone()
    if row is None or row[0] is None:
        raise TrainingError(
            f"Snapshot {snapshot_id} was stored without what it was made from, and cannot be made again. What it holds "
            "is checked by the check snapshot_rebuilds."
        )
    return msgspec.convert(row[0], MadeFrom)


def _source_groups(connection: psycopg.Connection, made_from: MadeFrom, found: list[Difference]) -> Iterator[Group]:
    """The groups that went in, without their refused members; what is wrong with their rows goes to `found`."""
    missing = dict(made_from.groups)
    for window_id, digest, text in stream_named(connection, made_from.groups):
        del missing[window_id]
        try:
            group = group_of(text)
        except TrainingError as error:
            found.append(Difference(window_id=window_id, field=f"its row of art_groups: {error}"))
            continue
        if digest_of(group) != digest:
            found.append(
                Difference(window_id=window_id, field="its row of art_groups was changed: it does not match its digest")
            )
        refused = set(made_from.refused.get(window_id, ()))
        members = [member for member in group.members if member.trajectory_id not in refused]
        yield msgspec.structs.replace(group, members=members)
    found += [
        Difference(window_id=window_id, field=f"its row of art_groups is gone: group_digest {digest}")
        for window_id, digest in missing.items()
    ]


def _headers_apart(header: SnapshotHeader, content: str) -> Iterator[Difference]:
    rebuilt = json.loads(content)
    for field in ("settings", "left_out"):
        yield from _apart(getattr(header, field), rebuilt[field], field)


def _groups_apart(connection: psycopg.Connection, snapshot_id: str, made: Assembled) -> Iterator[Difference]:
    """Differences of the stored groups to their digests, and to the rebuilt groups; both are in order of windows."""
    stored = iter(stored_texts(connection, snapshot_id))
    rebuilt = ((group.window_id, text.decode()) for group, text in zip(made.batch, made.texts(), strict=True))
    one, other = next(stored, None), next(rebuilt, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            yield Difference(window_id=one[0], field="the window", stored="there")
            one = next(stored, None)
        elif one is None or other[0] < one[0]:
            yield Difference(window_id=other[0], field="the window", rebuilt="there")
            other = next(rebuilt, None)
        else:
            if one[1] != other[1]:
                yield from _texts_apart(one[0], one[1], other[1])
            one, other = next(stored, None), next(rebuilt, None)


def _texts_apart(window_id: str, stored: str, rebuilt: str) -> Iterator[Difference]:
    """Differences of two groups of a window: of the groups' own fields, then member by member."""
    try:
        one, other = json.loads(stored), json.loads(rebuilt)
        members = [{member["trajectory_id"]: member for member in value.pop("members")} for value in (one, other)]
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Difference(window_id=window_id, field="the stored group is no group", stored=_short(stored))
        return
    for difference in _apart(one, other, ""):
        yield msgspec.structs.replace(difference, window_id=window_id)
    for trajectory_id in sorted(members[0].keys() | members[1].keys()):
        pair = [own.get(trajectory_id, ABSENT) for own in members]
        for difference in _apart(*pair, "the member" if ABSENT in pair else ""):
            yield msgspec.structs.replace(difference, window_id=window_id, trajectory_id=trajectory_id)


def _apart(stored: Any, rebuilt: Any, path: str) -> Iterator[Difference]:
    """Differences of two JSON values, down to the fields and places of lists in which they lie."""
    if isinstance(stored, dict) and isinstance(rebuilt, dict):
        for key in sorted(stored.keys() | rebuilt.keys()):
            yield from _apart(stored.get(key, ABSENT), rebuilt.get(key, ABSENT), f"{path}.{key}" if path else key)
    elif isinstance(stored, list) and isinstance(rebuilt, list):
        for place, (one, other) in enumerate(itertools.zip_longest(stored, rebuilt, fillvalue=ABSENT)):
            yield from _apart(one, other, f"{path}[{place}]")
    elif stored != rebuilt or type(stored) is not type(rebuilt):
        yield Difference(field=path, stored=_short(stored), rebuilt=_short(rebuilt))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
