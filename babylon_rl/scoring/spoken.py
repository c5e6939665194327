"""How scorers say a figure in the line that a person reads."""

from babylon_rl.scoring.features import Features


def money(one: Features) -> str:
    """What a run earned in its window: `earned $4.10`."""
    pnl = one.window_pnl
    return f"earned ${pnl + 0.0:,.2f}" if pnl >= 0 else f"lost ${-pnl:,.2f}"
