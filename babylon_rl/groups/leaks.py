"""The second wall against the future: a search of trained prompts for what became known only after the decision.

The first wall is provenance (`trained_view.check_verbatim`): nothing but recorded text is trained on. This one finds
what was in the text when it was recorded: a later price, a resolution, the words of an outcome, in any usual spelling.
What the agent could see at that moment is no leak, whatever happened later.

A figure with few digits meets a later price by chance. How likely that is, is known of every pair of a figure and a
fact; where many pairs are compared, agreement takes more digits.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from babylon_rl.groups.readings import Number, Reading, is_value, names_of, plain_words

NEAR = 100  # letters between an instrument's name and what is said of it
SHORTEST_TEXT = 20  # letters of a text that is looked for; a shorter one is met by chance
# A pair of an unexplained figure and a fact agrees by chance with a probability that its digits and the fact's span
# tell. In a text of up to FEW unexplained figures each pair may have the probability LOOSE; in one of more, those with
# the most digits are looked at, until their probabilities sum up to STRICT; far from any name up to STRICTER.
FEW, LOOSE, STRICT, STRICTER = 6, 0.15, 0.01, 0.001
UNNAMED_DIGITS = 3  # of a figure that no name stands near; STRICTER bounds it too
# What a figure is expected to lie within, whatever happens: an hour's moves of a price as a share of it, of a change as
# a fraction, and of a probability.
PRICE_SPAN, CHANGE_SPAN, PROBABILITY_SPAN = 0.06, 0.06, 0.5
LONGEST_FOUND = 60


class Later(NamedTuple):
    """What became known after a decision. `instrument`: ticker, id or question; `also`: its other names.

    Near a name a short figure counts too; without an instrument the figure is looked for in the whole text.
    `price`: a price or probability; `change`: fraction (0.01 is 1 %); `verdict`: yes, no, up or down; `text`: words
    that were written later; `at`: when something happened that had not happened yet, or, with `until`, after when any
    time was yet to come.
    """

    what: str
    instrument: str | None = None
    price: float | None = None
    change: float | None = None
    verdict: str | None = None
    text: str | None = None
    at: datetime | None = None
    until: datetime | None = None
    also: tuple[str, ...] = ()


class Leak(NamedTuple):
    """A place in a text, and what it tells of the future."""

    what: str
    found: str
    place: int


class _Value(NamedTuple):
    what: str
    value: float
    span: float
    percent: bool = False  # as a percentage without its sign


class _Pair(NamedTuple):
    chance: float  # of agreeing though neither tells of the other
    number: Number
    value: _Value


class Secrets:
    """Facts in the form in which they are searched for; made once for all texts of one moment."""

    def __init__(self, later: Iterable[Later]) -> None:
        later = list(later)
        told: dict[str, dict[int, _Value]] = {}
        self.loose: list[_Value] = []  # of no instrument
        self.verdicts: dict[str, list[Later]] = {}
        self.texts: list[tuple[str, str]] = []
        self.times: list[tuple[str, list[str]]] = []
        self.spans: list[Later] = []
        self.values: list[_Value] = []
        for fact in later:
            names = names_of([fact.instrument, *fact.also]) if fact.instrument else ()
            for value in _values(fact):
                self.values.append(value)
                if not names:
                    self.loose.append(value)
                for name in names:
                    told.setdefault(name, {})[len(self.values)] = value
            for name in names if fact.verdict is not None else ():
                self.verdicts.setdefault(name, []).append(fact)
            if fact.text is not None and len(wanted := plain_words(fact.text)) >= SHORTEST_TEXT:
                self.texts.append((fact.what, wanted))
            if fact.until is not None:
                self.spans.append(fact)
            elif fact.at is not None:
                self.times.append((fact.what, _spellings(fact.at)))
        self.names = tuple(dict.fromkeys((*told, *self.verdicts)))
        self._ordered = sorted(self.values, key=lambda one: one.value)
        self._order = [one.value for one in self._ordered]
        self.by_name = [list(told.get(name, {}).values()) for name in self.names]

    def meets(self, number: Number) -> bool:
        """Whether the figure is any of the facts', and not too coarse to tell."""
        slack = 2 * number.step * (1 + 1e-9)
        at = bisect_left(self._order, number.value - slack)
        while at < len(self._order) and self._order[at] <= number.value + slack:
            one = self._ordered[at]
            if 3 * number.step <= LOOSE * one.span and is_value(number, one.value):
                return True
            at += 1
        return False


class Known:
    """Figures that explain a number in a text. `parts`: collections that are put together without being copied.

    `dollars`: amounts of money, which explain no percentage.
    """

    def __init__(self, *parts: Collection[float], dollars: tuple[float, ...] = ()) -> None:
        self._dollars = dollars
        self._parts = [part if isinstance(part, tuple) else sorted_figures(part) for part in parts if part]
        self._left: tuple[Reading, list[Number]] | None = None

    def explains(self, number: Number) -> bool:
        """Whether the number is one of them, as somebody may have rounded or cut it."""
        low, high = number.value - number.step * (1 + 1e-9), number.value + 2 * number.step * (1 + 1e-9)
        for part in self._parts if number.share else (*self._parts, self._dollars):
            at = bisect_left(part, low)
            while at < len(part) and part[at] <= high:
                if is_value(number, part[at]):
                    return True
                at += 1
        return False

    def unexplained(self, reading: Reading) -> list[Number]:
        """The figures of a text that none of these explains; of a figure that can be read in two ways, neither."""
        if self._left is None or self._left[0] is not reading:  # several searches of one text follow each other
            explained = {number.place for number in reading.numbers if self.explains(number)}
            self._left = reading, [number for number in reading.numbers if number.place not in explained]
        return self._left[1]


def sorted_figures(values: Iterable[float]) -> tuple[float, ...]:
    """Figures as `Known` takes them without sorting them again."""
    return tuple(sorted({abs(value) for value in values if math.isfinite(value)}))


def leaks(text: str, later: Sequence[Later], known: Collection[float] = ()) -> list[Leak]:
    """What a text tells of the future, by place. `known`: figures that the agent could see at the moment."""
    return search(Reading(text), Secrets(later), Known(known))


def search(reading: Reading, secrets: Secrets, known: Known, *, lenient: bool = False) -> list[Leak]:
    """As `leaks`. `lenient`: also what many figures may tell by chance, for who looks at it again."""
    found = set(_figures(reading, secrets, known, lenient)) if secrets.values else set()
    found.update(_verdicts(reading, secrets))
    found.update(written(reading, secrets))
    return sorted(found, key=lambda leak: (leak.place, leak.what))


def written(reading: Reading, secrets: Secrets) -> Iterator[Leak]:
    """What cannot be a forecast: words that were written later, and times that were yet to come."""
    for what, words in secrets.texts:
        if (place := reading.words.find(words)) >= 0:
            yield Leak(what, words[:LONGEST_FOUND], place)
    for what, spelled in secrets.times:
        for one in spelled:
            if (place := _place_of(one, reading.text)) is not None:
                yield Leak(what, one, place)
    for fact in secrets.spans:
        assert fact.at is not None and fact.until is not None
        for moment, said, place in reading.times:
            if fact.at < moment <= fact.until:
                yield Leak(fact.what, said, place)


def told(found: Sequence[Leak]) -> str:
    """Leaks in one line for a person; of the text no more than the first one's beginning."""
    first = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"leak: {first.what}: {first.found[:LONGEST_FOUND]!r}{more}"


# --- figures ---------------------------------------------------------------------------------------


def _values(fact: Later) -> Iterator[_Value]:
    if fact.price:
        price = abs(fact.price)
        if fact.instrument is not None and price <= 1:
            # JSON says 83.7 and calls it a percentage in the key, if at all.
            yield _Value(fact.what, price, PROBABILITY_SPAN)
            yield _Value(fact.what, 100 * price, 100 * PROBABILITY_SPAN, percent=True)
        else:
            yield _Value(fact.what, price, price if fact.instrument is None else PRICE_SPAN * price)
    if fact.change:
        yield _Value(fact.what, abs(fact.change), CHANGE_SPAN)
        yield _Value(fact.what, 100 * abs(fact.change), 100 * CHANGE_SPAN, percent=True)


def _figures(reading: Reading, secrets: Secrets, known: Known, lenient: bool) -> Iterator[Leak]:
    unknown = known.unexplained(reading)
    if not any(secrets.meets(number) for number in unknown):
        return
    of_market = [number for number in unknown if not reading.is_own(number)]
    places = reading.places(secrets.names)
    starts = [place for place, _ in places]
    near = [(number, _near(number.place, places, starts)) for number in of_market]
    pairs = _pairs(near, secrets)
    few = len({number.place for number in of_market}) <= FEW
    if not few:
        # Where much is said, a figure is said of the name right before it, or right after it.
        near = [(number, _beside(number.place, places, starts)) for number in of_market]
        pairs = _pairs(near, secrets)
    yield from _agreeing(pairs, math.inf if lenient or few else STRICT)
    # Far from any name, or of no instrument, only what chance does not make is told.
    far = [n for n, names in near if not names and n.digits >= UNNAMED_DIGITS]
    pairs = [pair for n in far for value in secrets.values if (pair := _pair(n, value))]
    if secrets.loose:
        others = set(unknown) - set(far)
        fine = [n for n in others if n.digits >= UNNAMED_DIGITS]
        pairs += [pair for n in fine for value in secrets.loose if (pair := _pair(n, value))]
    yield from _agreeing(pairs, STRICT if lenient else STRICTER)


def _pairs(near: Iterable[tuple[Number, Sequence[int]]], secrets: Secrets) -> list[_Pair]:
    """Figures and the facts of the names that they may be said of."""
    return [
        pair
        for number, names in near
        for name in sorted(set(names))
        for value in secrets.by_name[name]
        if (pair := _pair(number, value))
    ]


def _pair(number: Number, value: _Value) -> _Pair | None:
    """The pair, unless the figure is too far away to be taken for the fact by chance or otherwise."""
    if value.percent and number.share or abs(number.value - value.value) > max(value.span, 2.1 * number.step):
        return None
    return _Pair(3 * number.step / value.span, number, value)


def _agreeing(pairs: Iterable[_Pair], budget: float) -> Iterator[Leak]:
    total = 0.0
    for chance, number, value in sorted(pairs, key=lambda pair: pair.chance):
        total += chance
        if chance > LOOSE or total > budget:
            return
        if is_value(number, value.value):
            yield Leak(value.what, number.found, number.place)


def _near(place: int, places: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int]:
    """Names that stand near a place."""
    return [name for _, name in places[bisect_left(starts, place - NEAR) : bisect_right(starts, place + NEAR)]]


def _beside(place: int, places: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int]:
    """The last name before a place and the first after it, where they are near."""
    at = bisect_right(starts, place)
    return [name for start, name in places[max(0, at - 1) : at + 1] if abs(start - place) <= NEAR]


# --- verdicts and times ----------------------------------------------------------------------------


def _verdicts(reading: Reading, secrets: Secrets) -> Iterator[Leak]:
    if not secrets.verdicts:
        return
    for verdict, found, place in reading.said:
        for start, name in reading.places(secrets.names):
            if -NEAR <= place - start <= 3 * NEAR:
                for fact in secrets.verdicts.get(secrets.names[name], ()):
                    if verdict == str(fact.verdict).lower():
                        yield Leak(fact.what, found, place)


def _spellings(at: datetime) -> list[str]:
    moment = at.astimezone(UTC)
    return sorted(
        {
            f"{moment:%Y-%m-%dt%H:%M}",
            f"{moment:%Y-%m-%d %H:%M}",
            f"{moment:%Y/%m/%d %H:%M}",
            str(round(moment.timestamp() * 1000)),
            str(int(moment.timestamp())),
        }
    )


def _place_of(spelled: str, text: str) -> int | None:
    """Where a spelled time stands, and not as a part of a longer number."""
    place = text.find(spelled)
    while place >= 0:
        before, after = text[place - 1 : place], text[place + len(spelled) : place + len(spelled) + 1]
        if not before.isdigit() and not after.isdigit():
            return place
        place = text.find(spelled, place + 1)
    return None
