"""How scorers say a figure in the line that a person reads."""

from babylon_rl.scoring.features import Features


def money(one: Features) -> str:
    """What a run earned in its window: `earned $4.10`."""
    return f"{'earned' if one.window_pnl >= 0 else 'lost'} ${abs(one.window_pnl):,.2f}"
