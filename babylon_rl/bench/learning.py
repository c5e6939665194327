"""`babylon-rl bench learning`: a recipe over seeds, from the settings to the files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.bench.publish import may_publish, publish, title
from babylon_rl.bench.report import draw, summary_of, table
from babylon_rl.bench.results import Results, SeedResult, write_whole
from babylon_rl.bench.run import DemoProcesses, bench_learning, only_bench
from babylon_rl.loop import prepare
from babylon_rl.plans import Plan, plan_digest
from babylon_rl.settings import REPOSITORY, Settings


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What a bench came to: the results of the seeds that were asked for, and the files that were written."""

    base_model: str
    plan_digest: str
    results: list[SeedResult]
    files: list[Path]

    @property
    def failed(self) -> bool:
        """Whether a seed's demo ended with an error."""
        return any(result.evidence is None for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "base_model": self.base_model,
            "plan_digest": self.plan_digest,
            "summary": msgspec.to_builtins(summary_of(self.results)),
            "seeds": msgspec.to_builtins(self.results),
            "files": [str(path) for path in self.files],
        }


def measure_learning(
    settings: Settings,
    plan: Plan,
    seeds: Sequence[int],
    out: Path,
    to_repository: bool,
    stage: Callable[[int, str], None],
    finished: Callable[[SeedResult], None],
) -> Measurement:
    """Run the seeds that are not measured yet; table and plot of all of them are written again after each.

    `stage` is told a running seed and what its demo said last, `finished` each seed's result.
    """
    if to_repository:
        may_publish(settings.base_model)
    digest, base_model = plan_digest(plan), settings.base_model
    target = out / f"learning-{Path(base_model).name}-{digest[:8]}.json"

    def each(results: Results, result: SeedResult) -> None:
        write_report(target, base_model, _asked(results, seeds))
        finished(result)

    with only_bench(out) as lock:
        demos = DemoProcesses(prepare(settings), base_model, digest, out, lock, stage)
        results = _asked(bench_learning(target, base_model, digest, seeds, demos, each), seeds)
    files = [target, *write_report(target, base_model, results)]
    if to_repository:
        files += publish(REPOSITORY, base_model, plan, results)
    return Measurement(base_model=base_model, plan_digest=digest, results=results, files=files)


def write_report(target: Path, base_model: str, results: Sequence[SeedResult]) -> list[Path]:
    """Table and plot of the results, beside the file that holds them."""
    document, picture = target.with_suffix(".md"), target.with_suffix(".png")
    write_whole(document, table(results).encode())
    draw(results, title(base_model, results), picture)
    return [document, picture]


def _asked(results: Results, seeds: Sequence[int]) -> list[SeedResult]:
    """Of the seeds that were asked for those that are finished: nobody picks among them afterwards."""
    return [results.finished[seed] for seed in seeds if seed in results.finished]
