"""The window of a recorded row: one pure function of what the row names and of when it ended.

A row belongs to the UTC hour in which it ended. What it names is compared with that, and believed in one case only: a
time off the hour names a window that cannot be, so the row is in none.
"""

import functools
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

from babylon_rl.recording.reasons import Reason
from babylon_rl.windows import window_of

# A date and a time as people and programs write them; what `datetime.fromisoformat` takes is tried first.
WRITTEN = re.compile(
    r"(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})"
    r"(?:[T _]+(?P<hour>\d{1,2})(?:[:.]?(?P<minute>\d{2})(?:[:.]?(?P<second>\d{2})(?:[.,](?P<part>\d+))?)?)?)?"
    r"\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?(?:\d{2})?)?",
    re.IGNORECASE | re.ASCII,
)


class Attribution(NamedTuple):
    """`window_id` None: no window is the row's own, and `reason` says why. `misnamed`: it names another one."""

    window_id: str | None
    reason: str | None = None
    misnamed: bool = False


def attribute(window_id: str | None, end_time: datetime | None) -> Attribution:
    """The window of a row that names `window_id` and ended at `end_time`.

    `end_time` without a zone is UTC; None stands for a time that no calendar holds, infinity among them.
    """
    try:
        own = None if end_time is None else window_of(end_time)
    except OverflowError:  # its UTC hour is outside the years 1 to 9999
        own = None
    if own is None:
        return Attribution(None, Reason.IMPOSSIBLE_TIME.value)
    if window_id is None or window_id == own:
        return Attribution(own)
    named = named_time(window_id)
    if named is not None and (named.minute or named.second or named.microsecond):
        return Attribution(None, Reason.OFF_HOUR_WINDOW.value)
    return Attribution(own, misnamed=named is None or window_of(named) != own)


@functools.lru_cache(maxsize=4096)
def named_time(text: str) -> datetime | None:
    """The time (aware, UTC) that a windowId spells; None where it is a label. A time without a zone is UTC."""
    text = text.strip()
    moment = _iso(text) or _written(text)
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        return None


def _iso(text: str) -> datetime | None:
    # Eight or fewer characters are a date at most, and as likely a number.
    if len(text) < 10 or text.isdecimal():
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _written(text: str) -> datetime | None:
    found = WRITTEN.fullmatch(text)
    if found is None:
        return None
    parts = [int(found[name] or 0) for name in ("year", "month", "day", "hour", "minute", "second")]
    try:
        micro = int((found["part"] or "0")[:6].ljust(6, "0"))
        return datetime(*parts, micro, tzinfo=_zone(found["zone"]))
    except ValueError:
        return None


def _zone(text: str | None) -> timezone:
    if not text or text.upper() in ("Z", "UTC", "GMT"):
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[0] == "-" else offset)
