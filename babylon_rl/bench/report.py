"""What the measured seeds come to together: a summary, one table, one plot."""

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from babylon_rl.bench.results import Estimate, Point, SeedResult, over_seeds, write_whole
from babylon_rl.reporting.progress import PNL

NAMES = {"always_buy": "always BUY", "always_sell": "always SELL", "hold": "HOLD", "random": "random"}
HEADER = (
    "| seed | promoted | over the start | over the best fixed policy | of the informed | unseen news, over the start "
    "| minutes | GB |"
)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All seeds together. `effect`: mean over seeds of the effect over the start; a failed seed has none.

    `measured` counts failed seeds too, as seeds that did not improve: leaving them out would flatter the recipe.
    """

    measured: int
    improved: int
    failed: int
    unseen_measured: int
    unseen_above_zero: int
    effect: Estimate | None
    share: float | None


def summary_of(results: Sequence[SeedResult]) -> Summary:
    """The seeds' results in short."""
    shown = [r.evidence for r in results if r.evidence]
    unseen = [e.unseen_above_zero for e in shown if e.unseen_above_zero is not None]
    shares = [e.share for e in shown if e.share is not None]
    return Summary(
        measured=len(results),
        improved=sum(r.improved for r in results),
        failed=sum(r.evidence is None for r in results),
        unseen_measured=len(unseen),
        unseen_above_zero=sum(unseen),
        effect=over_seeds([e.over_start.mean for e in shown]),
        share=fmean(shares) if shares else None,
    )


# --- the table -------------------------------------------------------------------------------------


def table(results: Sequence[SeedResult]) -> str:
    """A row a seed, and the summary in a sentence, as Markdown; effects in dollars with 95 % intervals."""
    rule = "|" + "---|" * HEADER.count(" | ") + "---|"
    return "\n".join([HEADER, rule, *map(_row, results), "", sentence(summary_of(results)), ""])


def _row(result: SeedResult) -> str:
    minutes = f"{result.spent.seconds / 60:.0f}" if result.spent.whole else "-"
    memory = f"{result.spent.peak_bytes / 1e9:.1f}" if result.spent.whole else "-"
    found = result.evidence
    if found is None:
        cells = ["failed", "-", "-", "-", "-"]
    else:
        cells = [
            "yes" if found.promoted else "no",
            str(found.over_start),
            f"{found.over_best_fixed} ({NAMES.get(found.best_fixed, found.best_fixed)})",
            "-" if found.share is None else f"{found.share:.0%}",
            "-" if found.unseen is None else str(found.unseen),
        ]
    return f"| {' | '.join([str(result.seed), *cells, minutes, memory])} |"


def result_line(result: SeedResult) -> str:
    """A seed's result in a line for the terminal."""
    found = result.evidence
    if found is None:
        return f"seed {result.seed}: failed: {result.error}"
    verdict = "promoted" if found.promoted else "not promoted"
    unseen = "" if found.unseen is None else f", on unseen news {found.unseen}"
    return f"seed {result.seed}: {verdict}, {found.over_start} over its start{unseen}"


def sentence(summary: Summary) -> str:
    """How many improved, and the mean effect with its interval over seeds."""
    said = f"{summary.improved} of {summary.measured} seeds improved."
    if summary.failed:
        said += f" Among the others, {summary.failed} failed."
    if summary.effect is not None:
        said += f" Mean effect over the start: {summary.effect} dollars (95 % interval over seeds)"
        said += "." if summary.share is None else f", {summary.share:.0%} of what an informed trader earns."
    if summary.unseen_measured:
        said += (
            f" On unseen news the interval lies above zero for {summary.unseen_above_zero} of "
            f"{summary.unseen_measured}."
        )
    return said


# --- the plot --------------------------------------------------------------------------------------


def mean_curve(results: Sequence[SeedResult]) -> list[Point]:
    """Mean over seeds of the P&L while training, by updates, with its interval over seeds; where two seeds have it."""
    by_updates: dict[int, list[float]] = defaultdict(list)
    for result in results:
        for point in result.evidence.training if result.evidence else ():
            by_updates[point.updates].append(point.pnl)
    means = [(updates, over_seeds(figures)) for updates, figures in sorted(by_updates.items())]
    return [Point(updates, m.mean, m.low, m.high) for updates, m in means if m]


def levels(results: Sequence[SeedResult]) -> dict[str, float]:
    """P&L on test windows of the informed trader and the fixed policies, by what they are called; mean over seeds."""
    shown = [r.evidence for r in results if r.evidence]
    if not shown:
        return {}
    earned = {name: [e.fixed[name] for e in shown if name in e.fixed] for e in shown for name in e.fixed}
    fixed = {NAMES.get(name, name): fmean(figures) for name, figures in earned.items()}
    return {"always follows the news": fmean(e.informed for e in shown), **fixed}


def draw(results: Sequence[SeedResult], title: str, target: Path) -> Path:
    """Write the plot as a PNG: seeds and their mean while training, each candidate on test windows, their bounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [r for r in results if r.evidence]
    width = max(2.0, 0.32 * len(results))
    figure, (left, right) = pyplot.subplots(
        1, 2, sharey=True, figsize=(6.8 + width, 4.6), dpi=120, width_ratios=[5.2, width], layout="constrained"
    )
    _draw_training(left, shown)
    _draw_tests(right, results)
    _draw_levels(left, right, levels(shown))
    left.set_ylabel(f"P&L, {PNL}")
    figure.suptitle(title, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    pyplot.close(figure)
    write_whole(target, content.getvalue())
    return target


def _colour(result: SeedResult) -> str:
    return "tab:blue" if result.improved else "tab:red"


def _draw_training(axes: Any, shown: Sequence[SeedResult]) -> None:
    from matplotlib.ticker import MaxNLocator

    labels = {True: "a seed that improved", False: "a seed that did not improve"}
    for result in shown:
        assert result.evidence
        points, colour = result.evidence.training, _colour(result)
        x = [p.updates for p in points]
        axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.06, linewidth=0)
        label = labels.pop(result.improved, None)
        axes.plot(x, [p.pnl for p in points], color=colour, linewidth=0.9, alpha=0.6, label=label)
    mean = mean_curve(shown)
    if mean:
        errors = [[p.pnl - p.low for p in mean], [p.high - p.pnl for p in mean]]
        axes.errorbar(
            [p.updates for p in mean],
            [p.pnl for p in mean],
            yerr=errors,
            fmt="o-",
            color="black",
            linewidth=2.4,
            markersize=4,
            elinewidth=1.2,
            capsize=3,
            label="mean over seeds",
            zorder=4,
        )
    axes.set_title("training windows, as they were played", fontsize=9)
    axes.set_xlabel("updates")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=8)


def _draw_tests(axes: Any, results: Sequence[SeedResult]) -> None:
    for place, result in enumerate(results):
        if result.evidence is None:
            axes.text(place, 0, "failed", rotation=90, ha="center", va="bottom", fontsize=8, color=_colour(result))
            continue
        pnl = result.evidence.pnl
        axes.errorbar(
            place,
            pnl.mean,
            yerr=[[pnl.mean - pnl.low], [pnl.high - pnl.mean]],
            fmt="o",
            markersize=4,
            capsize=2.5,
            color=_colour(result),
        )
    axes.set_xticks(range(len(results)), [str(r.seed) for r in results], fontsize=8)
    axes.set_xlim(-0.7, max(len(results), 1) - 0.3)
    axes.set_title("candidates on test windows", fontsize=9)
    axes.set_xlabel("seed")


def _draw_levels(left: Any, right: Any, lines: dict[str, float]) -> None:
    """Lines through both panels, the first the ceiling, with their names at the right edge."""
    if not lines:
        return
    low, high = left.get_ylim()
    low, high = min([low, *lines.values()]), max([high, *lines.values()])
    left.set_ylim(low - 0.03 * (high - low), high + 0.05 * (high - low))
    (ceiling, top), *fixed = lines.items()
    heights = {ceiling: top, **_apart(dict(fixed), 0.045 * (high - low))}
    for name, level in lines.items():
        colour, style, width = ("tab:green", ":", 1.6) if name == ceiling else ("0.45", "--", 0.9)
        for axes in (left, right):
            axes.axhline(level, color=colour, linestyle=style, linewidth=width, zorder=1)
        # In fractions of the panel's width and in dollars.
        where = right.get_yaxis_transform()
        right.text(1.02, heights[name], f"{name} {level:+.2f}", transform=where, fontsize=8, va="center", color=colour)


def _apart(levels: dict[str, float], distance: float) -> dict[str, float]:
    """Heights for the names of the levels: at least `distance` apart, in the levels' order and about their middle."""
    heights: dict[str, float] = {}
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        heights[name] = max([level, *(height + distance for height in heights.values())])
    moved = sum(heights[name] - levels[name] for name in levels) / max(len(levels), 1)
    return {name: height - moved for name, height in heights.items()}
