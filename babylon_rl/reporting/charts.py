"""Charts of the report as SVG texts, drawn by matplotlib: small, without scripts."""

import io
from collections.abc import Sequence
from typing import Any

from babylon_rl.reporting.progress import PNL, Round
from babylon_rl.reporting.state import Candidate, Interval

WIDTH = 7.0  # inches, of which the page shows 96 pixels each


def forest(items: Sequence[Interval], unit: str) -> str:
    """A row an item: its middle and its interval, against zero; the first at the top."""
    from matplotlib import pyplot

    with _style():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 0.7 + 0.32 * len(items)))
        places = range(len(items))
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.errorbar(
            [one.middle for one in items],
            list(places),
            xerr=_sides(items),
            fmt="o",
            color="tab:blue",
            capsize=3,
            markersize=4,
        )
        axes.set_yticks(list(places), [one.label for one in items])
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        return _svg(figure)


def course(items: Sequence[Interval], unit: str, below: str) -> str:
    """A point an item from left to right, with its interval as a band; at most eight labels below."""
    from matplotlib import pyplot

    with _style():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 2.6))
        places = list(range(len(items)))
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.fill_between(places, [o.low for o in items], [o.high for o in items], color="tab:blue", alpha=0.18)
        axes.plot(places, [o.middle for o in items], "o-", color="tab:blue", markersize=3)
        every = max(1, -(-len(items) // 8))
        axes.set_xticks(places[::every], [o.label[:10] for o in items][::every])
        axes.set_ylabel(unit)
        axes.set_xlabel(below)
        return _svg(figure)


def learning(played: Sequence[Round], validation: Sequence[Interval]) -> str:
    """P&L while training and on validation windows, by the number of updates, with 95 % intervals."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    with _style():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 3.0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axhline(0, color="0.6", linewidth=0.8)
        if played:
            x = [r.number - 1 for r in played]
            axes.fill_between(x, [r.low for r in played], [r.high for r in played], color="tab:blue", alpha=0.15)
            axes.plot(x, [r.pnl for r in played], "o-", color="tab:blue", markersize=4, label="training windows")
        if validation:
            axes.errorbar(
                [int(one.label) for one in validation],
                [one.middle for one in validation],
                yerr=_sides(validation),
                fmt="s--",
                color="tab:orange",
                capsize=3,
                markersize=4,
                label="validation windows",
            )
        axes.set_xlabel("updates")
        axes.set_ylabel(f"P&L, {PNL}")
        if played or validation:
            axes.legend(fontsize=8)
        return _svg(figure)


def sequence(candidate: Candidate) -> str:
    """The confidence sequence of an experiment: effect and bounds at each look, by the windows that it had seen."""
    from matplotlib import pyplot

    looks = [look for look in candidate.looks if look["effect"] is not None]
    with _style():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 2.6))
        x = [look["windows"] for look in looks]
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.fill_between(
            x, [look["low"] for look in looks], [look["high"] for look in looks], color="tab:green", alpha=0.18
        )
        axes.plot(x, [look["effect"] for look in looks], "o-", color="tab:green", markersize=3)
        axes.set_xlabel(f"windows seen, of at most {candidate.horizon}")
        axes.set_ylabel("effect")
        return _svg(figure)


def _sides(items: Sequence[Interval]) -> list[list[float]]:
    """How far each interval reaches below and above its middle; a bootstrap's may lie beside it by rounding."""
    return [[max(0.0, one.middle - one.low) for one in items], [max(0.0, one.high - one.middle) for one in items]]


def _style() -> Any:
    """Names are texts, never mathematics; the same figure gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    return matplotlib.rc_context(
        {
            "text.parse_math": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "babylon_rl",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    figure.tight_layout()
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = target.getvalue()
    return text[text.index("<svg") :]
