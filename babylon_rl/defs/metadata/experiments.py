"""What a person sees of a look at an experiment, and of the watch over what is served."""

from collections.abc import Sequence
from typing import Any

import msgspec

from babylon_rl.defs.metadata.plots import sequence
from babylon_rl.defs.metadata.tables import cell, figures, table
from babylon_rl.evaluation.experiments import Experiment
from babylon_rl.evaluation.looks import Look
from babylon_rl.evaluation.watch import Watched

LOOK = ("last_window", "windows", "blocks", "effect", "low", "high", "sample_ratio_p", "decision")
GUARD = ("name", "breached", "candidate", "baseline", "limit", "said")


def experiment_metadata(experiment: Experiment, looks: Sequence[Look]) -> dict[str, Any]:
    """The experiment's state in words, its looks as a table, and the confidence sequence as it went on."""
    found: dict[str, Any] = {
        "experiment": experiment.experiment_id,
        "state": experiment.state,
        "compared": f"{experiment.candidate} with {experiment.baseline}",
        "design": f"{experiment.design}, {experiment.share:.0%} for the candidate",
        "windows": f"{experiment.first_window} to before {experiment.end_window}",
    }
    if not looks:
        return found | {"reason": cell(experiment.reason)}
    last = looks[-1]
    rows = [msgspec.structs.asdict(look) for look in looks]
    bounded = [(one.effect, one.low, one.high) for one in looks if None not in (one.effect, one.low, one.high)]
    return {
        **found,
        "reason": last.reason,
        "looks": table(rows, LOOK),
        "confidence sequence": sequence("candidate less baseline, by look", bounded),  # type: ignore[arg-type]
        "guardrails": table(list(last.guardrails.get("guards", {}).values()), GUARD),
        "left out": str(last.guardrails.get("left_out") or "nobody"),
        **figures({"effect": last.effect, "low": last.low, "high": last.high, "blocks": last.blocks}),
        **figures({"windows scored": last.windows, "agents' windows": last.guardrails.get("agents")}),
    }


def watched_metadata(found: Watched) -> dict[str, Any]:
    """What the watch saw."""
    shown: dict[str, Any] = {"state": found.state, "reason": found.said}
    if found.guards:
        shown["guardrails"] = table([msgspec.structs.asdict(one) for one in found.guards], GUARD)
        shown |= figures({"windows since": len(found.windows), "windows before": len(found.before)})
    return shown
