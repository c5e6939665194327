"""Windows made by hand, as a scorer that reads sees them."""

from babylon_rl.scoring.features import features, market_of
from babylon_rl.scoring.seam import Runs, Score, Scorer
from babylon_rl.scoring.texts import run_text
from babylon_rl_tests.scoring import made


def window_of(*trajectories, window_id=made.WINDOW, outcomes=None) -> Runs:
    rows = made.outcomes(window_id) if outcomes is None else outcomes
    market = market_of(rows)
    ordered = sorted(trajectories, key=lambda one: one.trajectory_id)
    return Runs(
        window_id=window_id,
        features=[features(one, market) for one in ordered],
        market=market,
        outcomes=rows,
        texts=[run_text(one) for one in ordered],
    )


def run(name, verb="BUY", says=None, sees=None, goal=made.SYSTEM, action=None, pnl=1.0):
    """A run of one decision that says something beside its action."""
    import msgspec

    step = made.step(0, action or made.action(verb), verb if says is None else says, user=sees or "BUY or SELL?")
    calls = [msgspec.structs.replace(call, system_prompt=goal) for call in step.llm_calls]
    return made.trajectory(name, steps=[msgspec.structs.replace(step, llm_calls=calls)], pnl=pnl, calls=[])


def by_id(scorer: Scorer, window: Runs) -> dict[str, Score]:
    return dict(zip((one.trajectory_id for one in window.features), scorer.score(window), strict=True))
