"""The second wall against the future: a search of trained prompts for what became known only after the decision.

The first wall is provenance (`trained_view.check_verbatim`): nothing but recorded text is trained on. This one finds
what was in the text when it was recorded: a later price, a resolution, the words of an outcome, in any usual spelling.
What the agent could see at that moment is no leak, whatever happened later.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

LEAST_DIGITS = 3  # significant ones: fewer are met by chance
NEAR = 100  # letters between an instrument's name and what is said of it
SHORTEST_TEXT = 20  # letters of a text that is looked for; a shorter one is met by chance

_NUMBER = re.compile(
    r"(?<![\w.,])[-+]?[ ]?(?P<unit>[$€£¥]?)[ ]?(?P<digits>\d+(?:[.,' _]\d+)*)(?P<power>e[-+]?\d{1,2})?"
    r"(?P<after>[ ]?(?:[%‰¢]|(?:percent|per cent|pct|percentage points?|bps?|basis points?|k|m|cents?)\b))?",
    re.ASCII,
)
_SHARES = {"%": 100, "percent": 100, "per cent": 100, "pct": 100, "‰": 1000, "bps": 10_000, "bp": 10_000, "¢": 100}
_SAYS = re.compile(
    r"\b(resolv\w+|settl\w+|outcomes?|verdict|result\w*|final answer|answer|closed|ended|turned out|came true"
    r"|correct answer|winn(?:er|ing) side|truth)\b[^.!?\n]{0,30}?\b(?P<said>yes|no|true|false|up|down)\b"
)
_SAME = {"true": "yes", "false": "no"}


class Later(NamedTuple):
    """What became known after a decision. `instrument`: ticker, id or question; near it a short figure counts too.

    `price`: a price or probability; `change`: fraction (0.01 is 1 %); `verdict`: yes, no, up or down; `text`: words
    that were written later; `at`: when something happened that had not happened yet.
    """

    what: str
    instrument: str | None = None
    price: float | None = None
    change: float | None = None
    verdict: str | None = None
    text: str | None = None
    at: datetime | None = None


class Leak(NamedTuple):
    """A place in a text, and what it tells of the future."""

    what: str
    found: str
    place: int


class _Number(NamedTuple):
    value: float  # without its sign
    step: float  # half of the last digit's unit
    digits: int  # significant ones
    share: bool  # written as a percentage or the like; the value is the fraction
    found: str
    place: int


def leaks(text: str, later: Sequence[Later], known: Collection[float] = ()) -> list[Leak]:
    """What a text tells of the future, by place. `known`: figures that the agent could see at the moment."""
    folded = _folded(text)
    numbers = [number for number in _numbers(folded) if not number.share or number.digits > 1]
    seen = [abs(value) for value in known]
    unknown = [number for number in numbers if not any(_is(number, value) for value in seen)]
    found = [leak for fact in later for leak in _of(fact, folded, unknown)]
    return sorted(set(found), key=lambda leak: (leak.place, leak.what))


def _of(fact: Later, text: str, numbers: Sequence[_Number]) -> Iterator[Leak]:
    named = [m.start() for m in re.finditer(re.escape(_folded(fact.instrument)), text)] if fact.instrument else []
    for number in numbers:
        near = any(abs(place - number.place) <= NEAR for place in named)
        if number.digits < LEAST_DIGITS and not (near and number.digits == LEAST_DIGITS - 1):
            continue
        if any(_is(number, abs(value)) for value in (fact.price, fact.change) if value):
            yield Leak(fact.what, number.found, number.place)
    if fact.verdict is not None:
        yield from _verdicts(fact, text, named)
    if fact.text is not None and len(wanted := _words(fact.text)) >= SHORTEST_TEXT:
        place = _words(text).find(wanted)
        if place >= 0:
            yield Leak(fact.what, wanted[:60], place)
    if fact.at is not None:
        yield from _times(fact, text)


def _verdicts(fact: Later, text: str, named: Sequence[int]) -> Iterator[Leak]:
    for said in _SAYS.finditer(text):
        word = _SAME.get(said["said"], said["said"])
        if word == str(fact.verdict).lower() and any(-NEAR <= said.start() - place <= 3 * NEAR for place in named):
            yield Leak(fact.what, said[0], said.start())


def _times(fact: Later, text: str) -> Iterator[Leak]:
    assert fact.at is not None
    moment = fact.at.astimezone(UTC)
    spelled = {
        f"{moment:%Y-%m-%dt%H:%M}",
        f"{moment:%Y-%m-%d %H:%M}",
        f"{moment:%Y/%m/%d %H:%M}",
        str(round(moment.timestamp() * 1000)),
        str(int(moment.timestamp())),
    }
    for one in sorted(spelled):
        if place := re.search(rf"(?<!\d){re.escape(one)}(?!\d)", text):
            yield Leak(fact.what, one, place.start())


def _is(number: _Number, value: float) -> bool:
    """Whether the number is the value as somebody may have rounded or cut it."""
    off = number.value - value
    return -2 * number.step * (1 + 1e-9) < off <= number.step * (1 + 1e-9)


def _numbers(text: str) -> Iterator[_Number]:
    for match in _NUMBER.finditer(text):
        after = (match["after"] or "").strip()
        per = _SHARES.get(after) or (100 if after.startswith(("percentage", "cent")) else None)
        per = per or (10_000 if after.startswith("basis") else None)
        times = {"k": 1e3, "m": 1e6}.get(after, 1.0) * float(f"1{match['power'] or 'e0'}")
        for whole, part in _readings(match["digits"]):
            value = float(f"{whole}.{part or '0'}") * times / (per or 1)
            step = 0.5 * 10.0 ** -len(part) * times / (per or 1)
            digits = len((whole + part).lstrip("0"))
            yield _Number(value, step, digits, per is not None, match[0].strip(), match.start())


def _readings(digits: str) -> Iterator[tuple[str, str]]:
    """Whole and decimal digits of each way to read a number: 1.234 is a little more than one, or a thousand."""
    plain = re.sub(r"[' _]", "", digits)
    marks = re.findall(r"[.,]", plain)
    if not marks:
        yield plain, ""
        return
    whole, _, part = plain.rpartition(marks[-1])
    if len(set(marks)) == 2 or len(marks) == 1:
        yield re.sub(r"[.,]", "", whole), part
    if len(set(marks)) == 1 and all(len(group) == 3 for group in re.split(r"[.,]", plain)[1:]):
        yield re.sub(r"[.,]", "", plain), ""


def _folded(text: str) -> str:
    """The text with one spelling of dashes, spaces and styled letters; a letter stays about where it was."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub("[\u00a0\u2007\u2009\u202f]", " ", re.sub("[\u2010-\u2015\u2212]", "-", text))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", _folded(text)))
