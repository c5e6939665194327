"""The game's market makers: probability, price and cost of a trade, as pure arithmetic on frozen records.

Amounts are dollars and shares; a share pays one dollar if its side comes true, else nothing.
`fee` is a rate: the part of the dollars paid (or received) that the house keeps.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

Side = Literal["yes", "no"]


def _check(amount: float, fee: float) -> None:
    if not (math.isfinite(amount) and amount >= 0):
        raise ValueError(f"An amount to trade must be a number of at least zero, not {amount!r}.")
    if not 0 <= fee < 1:
        raise ValueError(f"A fee is a rate in [0, 1), not {fee!r}.")


@dataclass(frozen=True)
class Cpmm:
    """Constant-product maker of a yes/no question: `yes_shares * no_shares` stays the same in every trade.

    Dollars buy complete sets (one YES and one NO share each); the maker keeps the side that was not asked for. So the
    price of a share is its probability, and the maker can never lose more than it put in.
    """

    yes_shares: float
    no_shares: float

    def __post_init__(self) -> None:
        if not (0 < self.yes_shares < math.inf and 0 < self.no_shares < math.inf):
            raise ValueError("A constant-product maker needs a positive, finite number of shares on both sides.")

    @classmethod
    def at(cls, probability: float, liquidity: float) -> "Cpmm":
        """Maker whose YES stands at `probability` (inside 0..1) with `liquidity` = sqrt(yes * no) shares."""
        if not 0 < probability < 1:
            raise ValueError(f"A probability must lie inside (0, 1), not {probability!r}.")
        odds = math.sqrt((1 - probability) / probability)
        return cls(yes_shares=liquidity * odds, no_shares=liquidity / odds)

    @property
    def probability(self) -> float:
        """Probability of YES: the scarcer YES is in the pool, the likelier."""
        return self.no_shares / (self.yes_shares + self.no_shares)

    def buy(self, side: Side, dollars: float, fee: float = 0.0) -> tuple[float, "Cpmm"]:
        """Shares that `dollars` buy of `side`, the fee taken out of the dollars, and the maker after the trade."""
        _check(dollars, fee)
        paid = dollars * (1 - fee)
        wanted, other = self._pool(side)
        other_after = other + paid
        wanted_after = wanted * other / other_after
        # paid + (wanted - wanted_after), without cancelling where the pool is deep and the trade small
        shares = paid + wanted * paid / other_after
        return shares, self._with(side, wanted_after, other_after)

    def sell(self, side: Side, shares: float, fee: float = 0.0) -> tuple[float, "Cpmm"]:
        """Dollars, after the fee, that `shares` of `side` bring, and the maker after the trade."""
        _check(shares, fee)
        wanted, other = self._pool(side)
        # (wanted + shares - d) * (other - d) = wanted * other; the smaller root, in the form that does not cancel
        total = wanted + shares + other
        dollars = 2 * shares * other / (total + math.sqrt(total * total - 4 * shares * other))
        return dollars * (1 - fee), self._with(side, wanted + shares - dollars, other - dollars)

    def _pool(self, side: Side) -> tuple[float, float]:
        if side not in ("yes", "no"):
            raise ValueError(f"A question has the sides 'yes' and 'no', not {side!r}.")
        return (self.yes_shares, self.no_shares) if side == "yes" else (self.no_shares, self.yes_shares)

    def _with(self, side: Side, wanted: float, other: float) -> "Cpmm":
        return Cpmm(wanted, other) if side == "yes" else Cpmm(other, wanted)


@dataclass(frozen=True)
class Lmsr:
    """Hanson's logarithmic market scoring rule over n outcomes; its maker loses at most `b * ln n` from equal prices.

    `b`: liquidity in shares. `quantities`: shares sold so far of each outcome (negative: bought back).
    """

    b: float
    quantities: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < self.b < math.inf:
            raise ValueError("The liquidity b of a logarithmic market scoring rule must be positive and finite.")
        if len(self.quantities) < 2 or not all(math.isfinite(q) for q in self.quantities):
            raise ValueError("A logarithmic market scoring rule needs at least two outcomes with finite quantities.")

    @classmethod
    def open(cls, outcomes: int, b: float) -> "Lmsr":
        """Maker with nothing sold yet: all outcomes equally likely."""
        return cls(b, (0.0,) * outcomes)

    @property
    def prices(self) -> tuple[float, ...]:
        """Price, which is the probability, of each outcome; they sum to one."""
        top = max(self.quantities)
        weights = [math.exp((q - top) / self.b) for q in self.quantities]
        total = math.fsum(weights)
        return tuple(w / total for w in weights)

    @property
    def max_loss(self) -> float:
        """The most that a maker opened at equal prices can lose, dollars."""
        return self.b * math.log(len(self.quantities))

    def cost(self, outcome: int, shares: float) -> float:
        """Dollars that `shares` of `outcome` cost now; negative where shares are sold back (`shares` < 0)."""
        return self._after(outcome, shares)._potential() - self._potential()

    def trade(self, outcome: int, shares: float) -> tuple[float, "Lmsr"]:
        """Cost of the trade, dollars, and the maker after it."""
        return self.cost(outcome, shares), self._after(outcome, shares)

    def _after(self, outcome: int, shares: float) -> "Lmsr":
        if not 0 <= outcome < len(self.quantities):
            raise ValueError(f"There is no outcome {outcome}: there are {len(self.quantities)}.")
        after = list(self.quantities)
        after[outcome] += shares
        return replace(self, quantities=tuple(after))

    def _potential(self) -> float:
        top = max(self.quantities)
        return top + self.b * math.log(math.fsum(math.exp((q - top) / self.b) for q in self.quantities))
