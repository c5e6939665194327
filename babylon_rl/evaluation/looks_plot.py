"""The confidence sequence of an experiment over its looks, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from babylon_rl.evaluation.experiments import Experiment
from babylon_rl.evaluation.looks import Look


def draw_looks(experiment: Experiment, looks: Sequence[Look], target: Path) -> Path:
    """Write a PNG: the effect with its bounds by windows seen, against zero."""
    from matplotlib.figure import Figure

    known = [one for one in looks if one.effect is not None and one.low is not None and one.high is not None]
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=0.8)
    if known:
        x = [one.windows for one in known]
        low, high = [one.low or 0.0 for one in known], [one.high or 0.0 for one in known]
        axes.fill_between(x, low, high, color="tab:blue", alpha=0.2, label="confidence sequence")
        axes.plot(x, [one.effect or 0.0 for one in known], "o-", color="tab:blue", markersize=3, label="effect")
        axes.legend(loc="best", fontsize=8)
    else:
        axes.text(0.5, 0.5, "no interval is known yet", ha="center", transform=axes.transAxes)
    effect = experiment.settings.get("effect")
    if effect:
        axes.axhline(effect, color="tab:green", linestyle=":", linewidth=0.8)
    metric = experiment.settings["metric"]
    axes.set(
        xlabel="windows scored",
        ylabel=f"candidate less baseline, {metric}",
        title=f"{experiment.experiment_id}: {experiment.candidate} against {experiment.baseline} ({experiment.state})",
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="png")
    return target
