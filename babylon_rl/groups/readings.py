"""A text as the search for leaks reads it, once: figures in every usual spelling, times, verdicts, words, names.

A figure that the text itself calls the agent's own (an entry price, a size, a balance) or the past's (24h, yesterday)
is marked, for such a one is never compared with what the market did later.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple

LONGEST_NAME = 48  # letters of a name that are looked for; a question may be cut in a prompt

_NUMBER = re.compile(
    r"(\d+(?:[.,' _]\d+)*)(e[-+]?\d{1,2})?"
    r"([ ]?(?:[%‰¢]|(?:percent|per cent|pct|percentage points?|bps?|basis points?|k|m|cents?)\b))?",
    re.ASCII,
)
_SHARES = {"%": 100, "percent": 100, "per cent": 100, "pct": 100, "‰": 1000, "bps": 10_000, "bp": 10_000, "¢": 100}
# What a question's rules say ("resolves YES if"), a choice ("YES or NO"), a price list ("outcomes: Yes 52 %") and a
# state ("resolved": false) are no verdicts.
_SAYS = re.compile(
    r"\b(?:(?:resolv\w+|settl\w+|closed|ended)\b(?!\W{0,4}(?:true|false)\b)|resolution|outcomes?|verdict"
    r"|result\w*|final answer|answer|turned out|came true|correct answer|winn(?:er|ing) side|truth)\b"
    r"[^.!?\n]{0,30}?\b(?P<said>yes|no|true|false|up|down)\b"
    r"(?!\W{0,2}(?:if|when|unless|only|provided|should|otherwise|or|and|shares?|pays?|no|yes|false|true)\b"
    r"|\s?/|\W{0,3}[\d$])"
)
_SAME = {"true": "yes", "false": "no"}
# Of the agent, or of the past: right before the figure, but for a word like "price" or "at" between them.
_OWN_WORD = re.compile(
    r"\b(?:(?:entry|entered|avg|average|cost|paid|bought|sold|opened|stop|limit|target|liq|size|share|qty|quantity|vol"
    r"|cash|balance|capital|pnl|unrealized|realized|p&l|profit|loss|leverage|margin|fee|cap|supply|followers|prev|past"
    r"|yesterday|since|ago|points|reputation|week|month)[a-z_]*|[a-z_]*(?:24|48|12|6|1|7)_?[hd][a-z_]*)"
)
_BETWEEN = re.compile(r"[^\w\n]{0,4}(?:[a-z]{2,7}[^\w\n]{1,4})?[-+ $€£¥]*")
_OWN_AFTER = re.compile(
    r"\W{0,3}(?:(?:in|over|the|last|past)\W){0,3}(?:24|48|12|6|1|7)?[ _]?(?:h|d|hours?|days?|weeks?|months?|shares?"
    r"|contracts?|followers|yesterday|ago|volume)\b"
)
_STAMP = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[t ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?(?!\d)")
# A date or a time of day, whose parts are no figures.
_DATED = re.compile(r"\d{4}[-/]\d\d[-/]\d\d(?:[t _]+\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)?|\d\d?:\d\d(?::\d\d(?:[.,]\d+)?)?")
_EPOCH = re.compile(r"\d{10,}")


class Number(NamedTuple):
    """A figure of a text, read in one of the ways in which it can be. `value`: without its sign; a share is a fraction.

    `step`: half of the last digit's unit; `digits`: significant ones; `place`, `end`: in the text.
    """

    value: float
    step: float
    digits: int
    share: bool
    found: str
    place: int
    end: int


class Said(NamedTuple):
    """A verdict that a text pronounces: yes, no, up or down."""

    verdict: str
    found: str
    place: int


class Reading:
    """One text, read as far as it is asked for."""

    def __init__(self, text: str) -> None:
        self.text = folded(text)
        self._places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self._owned: dict[int, bool] = {}

    @cached_property
    def numbers(self) -> list[Number]:
        """Figures by place; one that can be read in two ways stands twice."""
        return list(_numbers(self.text))

    @cached_property
    def _own_words(self) -> list[int]:
        """Where words end that make a figure the agent's own or one of the past."""
        return [match.end() for match in _OWN_WORD.finditer(self.text)]

    def is_own(self, number: Number) -> bool:
        """Whether the text calls the figure the agent's own or one of the past."""
        if number.place not in self._owned:
            self._owned[number.place] = self._is_own(number)
        return self._owned[number.place]

    def _is_own(self, number: Number) -> bool:
        at = bisect_right(self._own_words, number.place)
        if at and number.place - (end := self._own_words[at - 1]) <= 16:
            if _BETWEEN.fullmatch(self.text, end, number.place):
                return True
        return _OWN_AFTER.match(self.text, number.end, number.end + 24) is not None

    @cached_property
    def words(self) -> str:
        """Its words with single spaces between them."""
        return " ".join(re.findall(r"\w+", self.text))

    @cached_property
    def said(self) -> list[Said]:
        """Verdicts by place."""
        return [Said(_SAME.get(m["said"], m["said"]), m[0], m.start()) for m in _SAYS.finditer(self.text)]

    @cached_property
    def times(self) -> list[tuple[datetime, str, int]]:
        """Times that are written to the second or finer, but for whole minutes, which are foreseen."""
        found = []
        for match in _STAMP.finditer(self.text):
            *parts, fraction = match.groups()
            try:
                moment = datetime(*map(int, parts), int((fraction or "0").ljust(6, "0")), tzinfo=UTC)
            except ValueError:
                continue
            found.append((moment, match[0], match.start()))
        for match in _EPOCH.finditer(self.text):
            seconds = int(match[0]) / (1000 if len(match[0]) == 13 else 1) if len(match[0]) in (10, 13) else -1
            if 0 <= seconds < 2**33:
                found.append((datetime.fromtimestamp(seconds, UTC), match[0], match.start()))
        return [one for one in found if one[0].second or one[0].microsecond]

    def places(self, names: tuple[str, ...]) -> list[tuple[int, int]]:
        """Where the (folded) names stand, and which of them it is, by place."""
        if names not in self._places:
            self._places[names] = sorted(
                (place, number) for number, name in enumerate(names) for place in _whole(name, self.text)
            )
        return self._places[names]


def _whole(name: str, text: str) -> Iterator[int]:
    """Where a name stands as a word of its own; one that was cut may go on."""
    place = text.find(name)
    while place >= 0:
        end = place + len(name)
        if not text[place - 1 : place].isalnum() and (len(name) >= LONGEST_NAME or not text[end : end + 1].isalnum()):
            yield place
        place = text.find(name, place + 1)


def figures(text: str) -> list[float]:
    """Every figure of a text of two digits or more, in each way in which it can be read; a share as a fraction."""
    return [number.value for number in _numbers(folded(text))]


def plain_words(text: str) -> str:
    """The text's words as `Reading.words` has them."""
    return " ".join(re.findall(r"\w+", folded(text)))


def folded(text: str) -> str:
    """The text with one spelling of dashes, spaces and styled letters; a letter stays about where it was."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub("[\u00a0\u2007\u2009\u202f]", " ", re.sub("[\u2010-\u2015\u2212]", "-", text))


def is_value(number: Number, value: float) -> bool:
    """Whether the number is the value as somebody may have rounded or cut it."""
    off = number.value - value
    return -2 * number.step * (1 + 1e-9) < off <= number.step * (1 + 1e-9)


def _numbers(text: str) -> Iterator[Number]:
    dated = {place for match in _DATED.finditer(text) for place in range(match.start(), match.end())}
    for match in _NUMBER.finditer(text):
        start = match.start()
        if start in dated:
            continue
        # Part of a word or of another number. The expression begins with a digit, which is found fast.
        if start and ((before := text[start - 1]) in ".,_" or before.isalnum()):
            continue
        digits, power, after = match.groups()
        per, times = None, 1.0
        if after or power:
            after = (after or "").strip()
            per = _SHARES.get(after) or (100 if after.startswith(("percentage", "cent")) else None)
            per = per or (10_000 if after.startswith("basis") else None)
            times = {"k": 1e3, "m": 1e6}.get(after, 1.0) * float(f"1{power or 'e0'}") / (per or 1)
        for whole, part in _readings(digits):
            count = len((whole + part).lstrip("0"))
            if count > 1:
                value, step = float(f"{whole}.{part}") * times, 0.5 * 10.0 ** -len(part) * times
                yield Number(value, step, count, per is not None, match[0].strip(), start, match.end())


def _readings(digits: str) -> Iterator[tuple[str, str]]:
    """Whole and decimal digits of each way to read a number: 1.234 is a little more than one, or a thousand."""
    whole, mark, part = digits.partition(".")
    if whole.isdigit() and (not mark or part.isdigit() and len(part) != 3):
        yield whole, part
        return
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


def names_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Names as they are looked for."""
    return tuple(dict.fromkeys(name for text in texts if (name := folded(text).strip()[:LONGEST_NAME])))
