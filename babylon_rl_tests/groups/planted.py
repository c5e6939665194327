"""Leaks to plant in recorded prompts of the simulated market: each a text made of what its window knew only later.

`row`: columns of the run's row of `trajectories` that the leak repeats.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from babylon_rl.market.trajectories import market_id
from babylon_rl.market.world import MarketWindow
from babylon_rl.windows import parse_window_id


@dataclass(frozen=True)
class Hour:
    """What there is to leak of one run: its window's world, its P&L and its last balance."""

    window_id: str
    world: MarketWindow
    pnl: float
    balance: float

    @property
    def close(self) -> float:
        return self.world.instrument("ACME").close

    @property
    def move(self) -> float:
        return self.world.instrument("ACME").move

    @property
    def question(self) -> str:
        return self.world.instrument("MOON").question

    @property
    def verdict(self) -> str:
        return "YES" if self.world.instrument("MOON").outcome else "NO"

    @property
    def truth(self) -> str:
        return "true" if self.world.instrument("MOON").outcome else "false"

    @property
    def chance(self) -> float:
        """Probability of YES after 40 minutes."""
        return self.world.instrument("MOON").path[2]

    @property
    def market(self) -> str:
        return market_id(self.window_id, "MOON")

    def at(self, minutes: float):
        return parse_window_id(self.window_id) + timedelta(minutes=minutes)


def _wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if c.isdigit() or c == "." else c for c in text)


def _knows(part: str, value: object) -> dict[str, str]:
    return {"metadataJson": json.dumps({"isTrainingData": True, "gameKnowledge": {part: value}})}


JUDGED = "Bought right before the news came out, which was well timed. Risk was low."
SECRET = "The chief of BOLT resigns at a quarter to eleven."

PLANTED: dict[str, Callable[[Hour], str]] = {
    "whole price": lambda h: f"ACME closes at {h.close:.4f}.",
    "dollars": lambda h: f"ACME: ${h.close:.2f}",
    "decimal comma": lambda h: f"ACME {h.close:.2f} EUR".replace(".", ","),
    "rounded": lambda h: f"about {h.close:.1f} for ACME",
    "cut": lambda h: f"ACME goes to {int(h.close * 10) / 10}",
    "full-width digits": lambda h: "ACME " + _wide(f"{h.close:.2f}"),
    "exponent": lambda h: f"ACME {h.close:.5e}",
    "narrow space": lambda h: f"ACME\u202f{h.close:.2f}",
    "between marks": lambda h: f"ACME=>[{h.close:.3f}]",
    "in thousands": lambda h: f"ACME {h.close / 1000:.5f}k",
    "name after": lambda h: f"{h.close:.2f} is what ACME will cost",
    "signed percent": lambda h: f"ACME {h.move:+.2%}",
    "percent in words": lambda h: f"ACME moves by {abs(h.move) * 100:.2f} percent",
    "percent rounded": lambda h: f"ACME will move {abs(h.move) * 100:.1f} %",
    "basis points": lambda h: f"ACME {abs(h.move) * 1e4:.0f} bps",
    "fraction": lambda h: f"ACME, a change of {h.move:.4f}",
    "percent with comma": lambda h: f"ACME {abs(h.move) * 100:.2f} %".replace(".", ","),
    "unicode minus": lambda h: f"ACME \u2212{abs(h.move) * 100:.2f}%",
    "JSON of the outcome": lambda h: json.dumps({"stockTicker": "ACME", "endPrice": round(h.close, 2)}),
    "JSON of the change": lambda h: json.dumps({"ticker": "ACME", "changePercent": round(100 * h.move, 2)}),
    "price on the way": lambda h: f"BOLT will be at {h.world.instrument('BOLT').path[2]:.2f} soon",
    "probability": lambda h: f"{h.question} It will stand at {h.chance:.3f}.",
    "probability in percent": lambda h: f"{h.question} Soon {h.chance:.1%}.",
    "probability in cents": lambda h: f"{h.market} at {100 * h.chance:.1f}\u00a2",
    "resolved": lambda h: f"{h.question} Resolved {h.verdict}.",
    "settled": lambda h: f"Market {h.market} settled {h.verdict}.",
    "outcome": lambda h: f"{h.market} (outcome: {h.verdict})",
    "final answer": lambda h: f"{h.question} The final answer is {h.truth}.",
    "JSON of the resolution": lambda h: json.dumps({"marketId": h.market, "resolution": h.verdict}),
    "a judge's sentence": lambda h: "Hint: bought right before the news came out, which was well timed!",
    "a judge's strength": lambda h: "Note - SIZED THE POSITION SENSIBLY FOR ITS CAPITAL",
    "what the engine knew": lambda h: "Secret: the chief of BOLT\nresigns at a quarter to eleven",
    "true probability": lambda h: f"{h.market} is really at 93.7 %",
    "actual outcome": lambda h: f"q-side of {h.market}: the truth is {h.truth}",
    "future price": lambda h: "CRUX 187.65 by the evening",
    "time after the run": lambda h: f"as of {h.at(59.25):%Y-%m-%dT%H:%M:%S}Z",
    "time with a space": lambda h: f"as of {h.at(61.75):%Y-%m-%d %H:%M:%S} UTC",
    "epoch milliseconds": lambda h: f'{{"timestamp": {round(h.at(59.11).timestamp() * 1000)}}}',
    "epoch seconds": lambda h: f"t={round(h.at(63.3).timestamp())}",
    "profit to come": lambda h: f"This will earn you ${h.pnl:.4f}.",
    "balance to come": lambda h: f"Afterwards you own ${h.balance:,.2f}.",
}
ROWS: dict[str, Callable[[Hour], dict[str, str]]] = {
    "a judge's sentence": lambda h: {"aiJudgeReasoning": JUDGED},
    "what the engine knew": lambda h: _knows("futureOutcomes", {"events": [SECRET]}),
    "true probability": lambda h: _knows("trueProbabilities", {h.market: 0.937}),
    "actual outcome": lambda h: _knows("actualOutcomes", {h.market: h.verdict == "YES"}),
    "future price": lambda h: _knows("futureOutcomes", {"CRUX": {"price": 187.65}}),
}
STRENGTH = "Sized the position sensibly for its capital."
