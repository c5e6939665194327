"""`babylon-rl bench rewards`: how often scorers rank a planted edge right, and what they pay three fixed policies.

The scorers are those that score recordings. Beside `alpha` and the first system's `heuristic` stand P&L in dollars,
P&L over capital, and alpha with another measure of the market's move, none of which is registered.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import msgspec
import numpy as np

from babylon_rl.evaluation.paired import mean_interval
from babylon_rl.evaluation.skill import (
    Draw,
    agent_share,
    correlation_with_decisions,
    correlation_with_edge,
    play_draw,
    play_policies,
    ranked_right,
)
from babylon_rl.market.skill import POLICIES, Climate
from babylon_rl.scoring.alpha import ALPHA
from babylon_rl.scoring.features import TICKER
from babylon_rl.scoring.heuristic import HEURISTIC
from babylon_rl.scoring.seam import Runs, Score, Scorer

EDGES = (0.05, 0.10, 0.20)
OTHER_EDGE = 0.10  # of the climates beside the demo's
HORIZONS = (1, 24, 168)  # hours, each of which divides the last

DEMO = Climate("demo")
CLIMATES = (
    DEMO,
    Climate("drift", drift=0.01),
    Climate("common move", common=0.03),
    Climate("leaning orders", leaning=True),
)
MEANT = {
    "demo": "the demo's market, tilts are positions",
    "drift": "the same, but all tickers drift up by 1 % an hour",
    "common move": "the same, but the tickers' common move has a deviation of 3 % an hour instead of 1 %",
    "leaning orders": "the demo's market, tilts are in the sizes of the orders",
}

Say = Callable[[str], None]


def _raw(runs: Runs) -> list[Score]:
    return [Score(one.window_pnl, {}, "") for one in runs.features]


def _on_capital(runs: Runs) -> list[Score]:
    return [Score(one.window_pnl / one.capital if one.capital else 0.0, {}, "") for one in runs.features]


def _against_all(runs: Runs) -> list[Score]:
    """P&L over capital, less ticker exposure times the mean move of *all* tickers.

    That mean holds a part of the traded ticker's own move, and so takes off a part of what was earned on it.
    """
    move = runs.market.move
    return [
        Score((one.window_pnl - one.exposure_to(TICKER) * move) / one.capital if one.capital else 0.0, {}, "")
        for one in runs.features
    ]


RAW = Scorer("raw P&L", "1", _raw)
SCORERS = (
    RAW,
    Scorer("P&L over capital", "1", _on_capital),
    ALPHA,
    Scorer("alpha, all tickers", "1", _against_all),
    HEURISTIC,
)


class Figure(msgspec.Struct, frozen=True):
    """A mean over draws with its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self, form: str = ".3f") -> str:
        """As tables show it."""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """How often a scorer ranks a pair right over so many hours. `life`: hours that lifetime P&L covers.

    `alpha_ahead`: alpha's share less this scorer's, over the same draws.
    """

    climate: str
    edge: float
    hours: int
    scorer: str
    life: int
    right: Figure
    alpha_ahead: Figure


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What an hour's advantages tell: correlations, and the share of their variance that is who the agent is."""

    climate: str
    edge: float
    scorer: str
    with_edge: Figure
    with_decisions: Figure
    agent_share: Figure


class Paid(msgspec.Struct, frozen=True, kw_only=True):
    """What a scorer pays a policy: a trajectory (an agent's hour), a decision, and beyond what it pays HOLD."""

    edge: float
    scorer: str
    policy: str
    agent_hours: int
    trajectory: Figure
    decision: Figure
    over_hold: Figure


class Rewards(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured."""

    seed: int
    draws: int
    lives: int
    ranked: list[Ranked]
    told: list[Told]
    paid: list[Paid]

    @property
    def missed(self) -> list[str]:
        """What was to be shown and is not."""
        return [*_not_ahead(self.ranked), *_out_of_order(self.paid)]

    @property
    def reached(self) -> bool:
        """Whether alpha ranks edges right more often over a day than P&L and the heuristic, and pays in order."""
        return not self.missed

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**msgspec.to_builtins(self), "missed": self.missed, "reached": self.reached}


def measure_rewards(seed: int, draws: int, lives: int, say: Say) -> Rewards:
    """All tables; `draws` of personas a climate, and lives of the fixed policies."""
    ranked, told = [], []
    for climate in CLIMATES:
        rows, tells = rank_traders(seed, draws, EDGES if climate is DEMO else (OTHER_EDGE,), climate, say)
        ranked += rows
        told += tells
    paid = [row for edge in EDGES for row in pay_policies(seed, lives, edge, say)]
    return Rewards(seed=seed, draws=draws, lives=lives, ranked=ranked, told=told, paid=paid)


def rank_traders(
    seed: int, draws: int, edges: Sequence[float], climate: Climate, say: Say, horizons: Sequence[int] = HORIZONS
) -> tuple[list[Ranked], list[Told]]:
    """How often each scorer ranks a pair of traders right, and what an hour's advantages tell."""
    played = []
    for draw in range(draws):
        say(f"{climate.name}: draw {draw + 1} of {draws}")
        played.append(play_draw(seed, draw, edges, climate, SCORERS, horizons))
    ranked, told = [], []
    for edge in edges:
        own = [draw[edge] for draw in played]
        for hours, scorer in product(horizons, SCORERS):
            # The heuristic reads lifetime P&L: that of the hours compared, or that of the agent's whole life.
            for life in sorted({hours, horizons[-1]}) if scorer is HEURISTIC else [hours]:
                ranked.append(_ranked(climate.name, edge, hours, scorer.name, life, own))
        told += [_told(climate.name, edge, scorer.name, horizons[-1], own) for scorer in SCORERS]
    return ranked, told


def _ranked(climate: str, edge: float, hours: int, scorer: str, life: int, own: list[Draw]) -> Ranked:
    shares, alphas = (
        np.array([ranked_right(draw.advantages[key], draw.edges, hours) for draw in own])
        for key in ((scorer, life), (ALPHA.name, hours))
    )
    right, ahead = _figure(shares), _figure(alphas - shares)
    return Ranked(climate=climate, edge=edge, hours=hours, scorer=scorer, life=life, right=right, alpha_ahead=ahead)


def _told(climate: str, edge: float, scorer: str, life: int, own: list[Draw]) -> Told:
    pairs = [(draw.advantages[scorer, life], draw) for draw in own]
    return Told(
        climate=climate,
        edge=edge,
        scorer=scorer,
        with_edge=_figure([correlation_with_edge(found, draw.edges) for found, draw in pairs]),
        with_decisions=_figure([correlation_with_decisions(found, draw.balances) for found, draw in pairs]),
        agent_share=_figure([agent_share(found) for found, _ in pairs]),
    )


def pay_policies(seed: int, lives: int, edge: float, say: Say) -> list[Paid]:
    """What each scorer pays the policies in the demo's market; intervals are over lives."""
    played = []
    for life in range(lives):
        say(f"policies, edge {edge:.2f}: life {life + 1} of {lives}")
        played.append(play_policies(seed, life, edge, DEMO, SCORERS))
    paid = []
    for scorer, policy in product(SCORERS, POLICIES):
        own = [one[scorer.name, policy] for one in played]
        means, hold = (
            np.array([np.mean(one[scorer.name, which].rewards) for one in played]) for which in (policy, "hold")
        )
        paid.append(
            Paid(
                edge=edge,
                scorer=scorer.name,
                policy=policy,
                agent_hours=sum(len(one.rewards) for one in own),
                trajectory=_figure(means),
                decision=_figure(means / own[0].decisions),
                over_hold=_figure(means - hold),
            )
        )
    return paid


def _figure(values: Sequence[float] | np.ndarray) -> Figure:
    return Figure(*mean_interval(list(values)))


# --- what is to be shown ---------------------------------------------------------------------------


def _not_ahead(ranked: Sequence[Ranked]) -> list[str]:
    """Where alpha is not clearly ahead of P&L and the heuristic over a day of the same hours, for edges from 0.1."""
    return [
        f"edge {row.edge:.2f}, {row.hours} h: alpha is ahead of {row.scorer} by {row.alpha_ahead.text('+.3f')}"
        for row in ranked
        if row.climate == DEMO.name and row.edge >= OTHER_EDGE and row.hours == row.life == 24
        if row.scorer in (RAW.name, HEURISTIC.name) and row.alpha_ahead.low <= 0
    ]


def _out_of_order(paid: Sequence[Paid]) -> list[str]:
    """Where alpha does not pay informed > HOLD = 0 > overtrading, for edges from 0.1, or the heuristic does."""
    over = {(row.edge, row.scorer, row.policy): row.over_hold for row in paid}
    missed = []
    for edge in sorted({row.edge for row in paid if row.edge >= OTHER_EDGE}):
        informed, overtrading = (over[edge, ALPHA.name, policy] for policy in ("informed", "overtrading"))
        if informed.low <= 0 or overtrading.high >= 0:
            missed.append(f"edge {edge:.2f}: alpha does not pay informed > HOLD > overtrading")
        if over[edge, HEURISTIC.name, "overtrading"].low <= 0:
            missed.append(f"edge {edge:.2f}: the heuristic does not pay overtrading more than HOLD")
    return missed


# --- tables ----------------------------------------------------------------------------------------


def tables(found: Rewards) -> str:
    """As Markdown."""
    parts = [f"Seed {found.seed}, {found.draws} draws of 8 traders a climate, {found.lives} lives of 24 hours."]
    for climate in CLIMATES:
        parts += [f"**{climate.name}**: {MEANT[climate.name]}."]
        parts += [_ranked_table([row for row in found.ranked if row.climate == climate.name])]
        parts += [_told_table([row for row in found.told if row.climate == climate.name])]
    parts += ["**policies**, in the demo's market.", _paid_table(found.paid)]
    parts += [f"MISSED: {line}" for line in found.missed] or ["All that was to be shown is."]
    return "\n\n".join(parts) + "\n"


def _ranked_table(rows: Sequence[Ranked]) -> str:
    head = ("edge", "hours", "scorer", "pairs ranked right", "alpha is ahead by")
    return _table(
        head,
        [
            (
                f"{row.edge:.2f}",
                f"{row.hours}",
                row.scorer if row.life == row.hours else f"{row.scorer}, P&L of {row.life} h",
                row.right.text(),
                "" if row.scorer == ALPHA.name else row.alpha_ahead.text("+.3f"),
            )
            for row in rows
        ],
    )


def _told_table(rows: Sequence[Told]) -> str:
    head = ("edge", "scorer", "correlation with edge", "with the hour's decisions", "variance by agent")
    return _table(
        head,
        [
            (f"{row.edge:.2f}", row.scorer, row.with_edge.text(), row.with_decisions.text(), row.agent_share.text())
            for row in rows
        ],
    )


def _paid_table(rows: Sequence[Paid]) -> str:
    head = ("edge", "scorer", "policy", "a trajectory", "a decision", "over HOLD")
    return _table(
        head,
        [
            (f"{row.edge:.2f}", row.scorer, row.policy)
            + tuple(one.text("+.5f") for one in (row.trajectory, row.decision, row.over_hold))
            for row in rows
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
