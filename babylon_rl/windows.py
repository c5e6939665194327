"""Window ids: the half-open UTC hour `[start, start + 1 h)` and its name, `2025-01-15T10:00`.

The one place where a window id is parsed, formatted, derived from a time or enumerated.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from babylon_rl.errors import WindowIdError

WINDOW_FORMAT = "%Y-%m-%dT%H:%M"
WINDOW_LENGTH = timedelta(hours=1)


def parse_window_id(window_id: str) -> datetime:
    """Start of the window (aware, UTC). WindowIdError where the text is not exactly a whole hour's id."""
    try:
        start = datetime.strptime(window_id, WINDOW_FORMAT).replace(tzinfo=UTC)
    except (TypeError, ValueError):
        raise WindowIdError(
            f"{window_id!r} is not a window id. Write the UTC hour in which the window starts, "
            "for example 2025-01-15T10:00."
        ) from None
    if format_window_id(start) != window_id:  # strptime also takes 2025-1-15T10:0
        raise WindowIdError(f"{window_id!r} is not a window id. Did you mean {format_window_id(start)}?")
    if start.minute:
        # Dagster would silently take the next hour for such a key.
        hour = start.replace(minute=0)
        raise WindowIdError(
            f"{window_id!r} is off the hour: windows start on whole UTC hours. Did you mean {format_window_id(hour)}?"
        )
    return start


def format_window_id(start: datetime) -> str:
    """Id of the window that starts at `start` (aware; converted to UTC)."""
    if start.tzinfo is None:
        raise WindowIdError(f"{start!r} has no time zone; window ids are UTC hours.")
    start = start.astimezone(UTC)
    # Not strftime: glibc does not pad years before 1000, and the id must round-trip.
    return f"{start.year:04d}-{start.month:02d}-{start.day:02d}T{start.hour:02d}:{start.minute:02d}"


def window_of(moment: datetime) -> str:
    """Id of the window that holds `moment`; a time without a zone is UTC, as in the application's tables."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return format_window_id(moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0))


def shift_window(window_id: str, hours: int) -> str:
    """Id of the window `hours` after (or before, if negative) the given one."""
    return format_window_id(parse_window_id(window_id) + hours * WINDOW_LENGTH)


def window_range(first: str, last: str) -> Iterator[str]:
    """Ids from `first` to `last`, both included; none where `last` is earlier."""
    start, end = parse_window_id(first), parse_window_id(last)
    while start <= end:
        yield format_window_id(start)
        start += WINDOW_LENGTH


def neighbours(window_ids: Iterable[str], most: int) -> list[tuple[str, str]]:
    """First and last of each unbroken run of the windows, in order; runs of more than `most` windows are cut."""
    runs: list[list[str]] = []
    for window_id in sorted(set(window_ids)):
        if runs and len(runs[-1]) < most and shift_window(runs[-1][-1], 1) == window_id:
            runs[-1].append(window_id)
        else:
            runs.append([window_id])
    return [(run[0], run[-1]) for run in runs]
