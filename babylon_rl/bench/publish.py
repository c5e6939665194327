"""Carrying a measurement into the repository: the data that the demo reads, the document and its picture."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import msgspec

from babylon_rl.bench.report import draw, summary_of, table
from babylon_rl.bench.results import Estimate, SeedResult, write_whole
from babylon_rl.errors import SettingsError
from babylon_rl.evaluation.measured import DATA, Entry, MeasuredSeed
from babylon_rl.plans import PLANS, Plan, plan_digest
from babylon_rl.training.base_models import SMOLLM2


def may_publish(base_model: str) -> None:
    """SettingsError where the base model is a folder: what it holds is not in the repository."""
    if base_model not in PLANS:
        raise SettingsError(f"Only measurements of {' and '.join(PLANS)} can be published. Leave --publish out.")


def publish(repository: Path, base_model: str, plan: Plan, results: Sequence[SeedResult]) -> list[Path]:
    """Write the measurement's data, document and picture into the repository; an earlier one of the model goes."""
    may_publish(base_model)
    suffix = "" if base_model == SMOLLM2 else f"-{base_model}"
    document, picture = f"docs/learning{suffix}.md", f"docs/img/learning-seeds{suffix}.png"
    data = repository / "babylon_rl" / "evaluation" / DATA
    entry = Entry(
        base_model=base_model,
        plan_digest=plan_digest(plan),
        document=document,
        seeds=[_measured(result) for result in results],
    )
    kept = msgspec.json.decode(data.read_bytes(), type=list[Entry]) if data.exists() else []
    kept = [other for other in kept if other.base_model != base_model]
    write_whole(data, msgspec.json.format(msgspec.json.encode([*kept, entry]), indent=1) + b"\n")
    draw(results, title(base_model, results), repository / picture)
    write_whole(repository / document, _document(base_model, plan, results, Path(picture).name).encode())
    return [data, repository / document, repository / picture]


def title(base_model: str, results: Sequence[SeedResult]) -> str:
    """The plot's title."""
    summary = summary_of(results)
    return f"{Path(base_model).name}: {summary.improved} of {summary.measured} seeds improved"


def seeds_text(seeds: Sequence[int]) -> str:
    """The seeds as `--seeds` takes them: `11-20` for a run of neighbours."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _measured(result: SeedResult) -> MeasuredSeed:
    found = result.evidence
    return MeasuredSeed(
        seed=result.seed,
        promoted=result.improved,
        effect=_numbers(found.over_start) if found else None,
        unseen=_numbers(found.unseen) if found and found.unseen else None,
        share=found.share if found else None,
    )


def _numbers(estimate: Estimate) -> tuple[float, float, float]:
    return (estimate.mean, estimate.low, estimate.high)


def _document(base_model: str, plan: Plan, results: Sequence[SeedResult], picture: str) -> str:
    command = f"babylon-rl bench learning --model {base_model} --seeds {seeds_text([r.seed for r in results])}"
    made = f"""Each seed is one demo with a market, play and training of its own: {plan.rounds} rounds of
        {plan.recipe.windows_per_update} windows with {plan.agents} agents, then {plan.validation} validation windows to
        choose a checkpoint, {plan.test} test windows to judge it and {plan.unseen} windows of unseen news. Figures are
        P&L in dollars an agent and window, with paired 95 % intervals over windows. A seed improved if its candidate
        was promoted: above its start and above the best fixed policy, both intervals above zero. The informed trader
        always follows the news. Minutes and memory (peak of the demo's processes, without PostgreSQL) are those of the
        machine that ran it. The demo quotes this for runs of exactly this plan ({plan_digest(plan)[:8]}). Written by
        the command with --publish."""
    made = fill(" ".join(made.split()), 120, break_on_hyphens=False)
    parts = [f"# How surely the recipe learns: {base_model}", f"    {command}", made]
    return "\n\n".join([*parts, table(results).rstrip(), f"![P&L by seed](img/{picture})"]) + "\n"
