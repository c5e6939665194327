"""The hidden world of one simulated hour: three tickers with news, and one question with news.

A window is a pure function of (seed, split, index): no clock, no global random state. What agents may see of it is in
`observation`; what trades in it earn is in `settlement`.
"""

import random
from dataclasses import dataclass

from babylon_rl.errors import SettingsError
from babylon_rl.market.phrases import TRAINED, UNSEEN, PhraseBank
from babylon_rl.pricing import Cpmm

TICKERS = ("ACME", "BOLT", "CRUX")
QUESTION = "MOON"
SPLITS = ("train", "validation", "test", "unseen")

NEWS_ACCURACY = 0.88
COMMON_MOVE_STD = 0.01  # what all tickers share in an hour
OWN_MOVE = (0.03, 0.07)  # size of a ticker's own move
OPENING_PROBABILITY = (0.45, 0.55)
# Shares on each side of the question's maker: a stake of 0.5 % of $1000 moves the probability by about 0.1 points.
MAKER_LIQUIDITY = 2000.0

# Minutes after the hour's start at which a price stands; the last is the hour's close.
PATH_MINUTES = (0, 20, 40, 60)


@dataclass(frozen=True)
class Instrument:
    """What can be traded in an hour, and what the news says about it.

    `path`: dollars of a ticker, or the probability of YES, at `PATH_MINUTES`; a question ends at 1 or 0.
    `news_is_good` is what the text says, which is right with the window's news accuracy. Hidden from agents: all of
    `path` but its first value, `news_is_good`, `outcome`.
    """

    name: str
    news: str
    news_is_good: bool
    path: tuple[float, ...]
    question: str | None = None  # set for a prediction market
    outcome: bool | None = None  # whether the question comes true
    maker: Cpmm | None = None  # at the hour's opening

    @property
    def is_question(self) -> bool:
        return self.question is not None

    @property
    def open(self) -> float:
        return self.path[0]

    @property
    def close(self) -> float:
        return self.path[-1]

    @property
    def move(self) -> float:
        """Relative change of a ticker over the hour; change of the probability for a question."""
        return self.close - self.open if self.is_question else self.close / self.open - 1

    @property
    def rises(self) -> bool:
        return self.move > 0


@dataclass(frozen=True)
class MarketWindow:
    """One simulated hour. `instruments`: the tickers in `TICKERS`' order, then the question."""

    seed: int
    split: str
    index: int
    instruments: tuple[Instrument, ...]

    def instrument(self, name: str) -> Instrument:
        for instrument in self.instruments:
            if instrument.name == name:
                return instrument
        raise KeyError(f"There is no instrument {name}; there are {', '.join(i.name for i in self.instruments)}.")

    @property
    def tickers(self) -> tuple[Instrument, ...]:
        return tuple(i for i in self.instruments if not i.is_question)

    @property
    def market_move(self) -> float:
        """The market's own move: the mean of the tickers' relative changes."""
        return sum(i.move for i in self.tickers) / len(self.tickers)


def random_stream(seed: int, split: str, index: int, purpose: str) -> random.Random:
    """Random numbers of one purpose in one window; streams that differ in any part are unrelated."""
    if split not in SPLITS:
        raise SettingsError(f"{split!r} is not a split of the simulated market; take one of {', '.join(SPLITS)}.")
    # A text seed goes through SHA-512: the same on every machine and Python.
    return random.Random(f"babylon/{seed}/{split}/{index}/{purpose}")


def make_window(
    seed: int,
    split: str,
    index: int,
    news_accuracy: float = NEWS_ACCURACY,
    common_move: tuple[float, float] = (0.0, COMMON_MOVE_STD),
) -> MarketWindow:
    """The window `index` of a split. SettingsError for an unknown split or an accuracy outside [0, 1].

    `common_move`: mean and standard deviation of what all tickers share in an hour; windows that differ in it alone
    have the same news and the same own moves.
    """
    if not 0 <= news_accuracy <= 1:
        raise SettingsError(f"The accuracy of news is a probability, not {news_accuracy!r}.")
    stream = random_stream(seed, split, index, "world")
    bank = UNSEEN if split == "unseen" else TRAINED
    common = stream.gauss(*common_move)
    instruments = [_ticker(name, common, bank, news_accuracy, stream) for name in TICKERS]
    instruments.append(_question(bank, news_accuracy, stream))
    return MarketWindow(seed, split, index, tuple(instruments))


def _ticker(name: str, common: float, bank: PhraseBank, accuracy: float, stream: random.Random) -> Instrument:
    up = stream.random() < 0.5
    move = common + (1 if up else -1) * stream.uniform(*OWN_MOVE)
    # The news speaks of the company's own fortune, not of the whole market's.
    good = up == (stream.random() < accuracy)
    open_price = round(stream.uniform(20, 200), 2)
    news = stream.choice(bank.good if good else bank.bad)
    return Instrument(name, news, good, _ticker_path(open_price, move, stream))


def _ticker_path(open_price: float, move: float, stream: random.Random) -> tuple[float, ...]:
    end = PATH_MINUTES[-1]
    between = [open_price * (1 + move * m / end + stream.gauss(0, 0.005)) for m in PATH_MINUTES[1:-1]]
    return tuple(round(price, 4) for price in (open_price, *between, open_price * (1 + move)))


def _question(bank: PhraseBank, accuracy: float, stream: random.Random) -> Instrument:
    outcome = stream.random() < 0.5
    good = outcome == (stream.random() < accuracy)
    phrases = stream.choice(bank.questions)
    probability = round(stream.uniform(*OPENING_PROBABILITY), 2)
    final = 1.0 if outcome else 0.0
    end = PATH_MINUTES[-1]
    between = [
        min(0.95, max(0.05, probability + 0.6 * (final - probability) * m / end + stream.gauss(0, 0.03)))
        for m in PATH_MINUTES[1:-1]
    ]
    path = tuple(round(p, 4) for p in (probability, *between, final))
    news = phrases.good if good else phrases.bad
    return Instrument(
        QUESTION, news, good, path, phrases.text, outcome, Cpmm.at(probability, liquidity=MAKER_LIQUIDITY)
    )
