"""Judged windows made by hand: rows of `scored_trajectories` as a judge of planted skill leaves them."""

import random
from collections.abc import Sequence
from typing import Any

MODEL, DIGEST = "judge-1", "asked-1"


def asked(score: float, repeat: int, place: int, of: int, length: int) -> dict[str, Any]:
    """One answer as column `judge` holds it."""
    words = {"reason": "because", "clamped": False}
    return {"repeat": repeat, "score": score, "place": place, "of": of, "length": length, **words}


def judge_json(scores: Sequence[float], places: Sequence[int], of: int, length: int, digest: str = DIGEST) -> dict:
    """Column `judge` of a run whose repeats had these scores at these places; both questions alike."""
    told = [asked(s, r, p, of, length) for r, (s, p) in enumerate(zip(scores, places, strict=True))]
    return {"model": MODEL, "form": "json", "digest": digest, "asked": {"hindsight": told, "process": told}}


def judged_window(
    window_id: str, seed: int, skill: float, runs: int = 8, repeats: int = 2, **changes: Any
) -> list[dict]:
    """Rows of a window whose judge sees alpha for a share `skill` of its score and noise for the rest.

    The noise is anew in each repeat. `changes`: of the rows.
    """
    generator = random.Random(f"{window_id} {seed}")
    orders = [generator.sample(range(runs), runs) for _ in range(repeats)]
    rows = []
    for run in range(runs):
        alpha = generator.gauss(0, 0.01)
        scores = [
            min(1.0, max(0.0, 0.5 + 10 * skill * alpha + 0.1 * (1 - skill) * generator.gauss(0, 1)))
            for _ in range(repeats)
        ]
        judge = judge_json(scores, [order[run] for order in orders], runs, 100 + generator.randrange(900))
        mean = sum(scores) / repeats
        rows.append(
            {"window_id": window_id, "trajectory_id": f"{window_id}-{run}", "judge": judge, "outcome_score": alpha,
             "hindsight_score": mean, "process_score": mean, "scorer_settings": None, **changes}
        )  # fmt: skip
    return rows
