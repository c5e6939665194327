"""What a judge is shown of a window, and what is kept from it: texts with signs that they were written to sway it.

Where an agent's goal or its own words show such signs, nothing of its texts is shown, for who writes to the judge once
may do so in words that no list of signs knows. Where only what it was shown has them (another agent's post, say), that
alone is left out. A list of signs tells what is usual and not what is new: who must be sure shows no texts at all
(setting `judge_texts`). What was done is told in words of the record, whatever an agent calls it.
"""

import math
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import pandas as pd

from babylon_rl.recording.actions import NAMES, normal
from babylon_rl.scoring.features import TICKER, Features
from babylon_rl.scoring.judge.injection import signs_of_injection
from babylon_rl.scoring.judge.view import JudgedRun
from babylon_rl.scoring.seam import Runs, RunText

Texts = Literal["guarded", "never", "always"]
ACTION, FAILED = "Action: ", " (failed)"
SEEN = "seen_"  # before a sign in what the agent was shown, and did not write
VERBS = frozenset({"buy", "sell"}.union(*NAMES.values()))
LONGEST_TRUTH = 200  # instruments
LONGEST_QUESTION = 160  # letters


class Evidence(NamedTuple):
    """Runs as the judge sees them, the signs of injection in each, and a line for what each instrument did."""

    runs: list[JudgedRun]
    signs: list[list[str]]
    truth: list[str]


def evidence_of(window: Runs, texts: Texts = "guarded") -> Evidence:
    """What is shown of a window, runs in its order.

    `texts`: `guarded`, all but those with signs of injection; `never`, what was done alone; `always`, to measure what
    the guard is good for.
    """
    instruments = frozenset(map(str, window.outcomes["instrument"])) if len(window.outcomes) else frozenset()
    ids = [text.trajectory_id for text in window.texts]
    runs, signs, withhold = [], [], texts != "always"
    for one, text in zip(window.features, window.texts, strict=True):
        own, seen = _signs(text, [name for name in ids if name != text.trajectory_id])
        signs.append(sorted({*own, *(SEEN + sign for sign in seen)}))
        runs.append(_run(one, text, instruments, texts == "never" or withhold and bool(own), withhold and bool(seen)))
    traded = {name for one in window.features for name in one.notional}
    return Evidence(runs, signs, truth_of(window.outcomes, traded))


def _signs(text: RunText, other_ids: Collection[str]) -> tuple[set[str], set[str]]:
    """Signs in what the agent wrote, and those that are only in what it was shown."""
    wrote = text.answers if len(text.answers) == len(text.decisions) else text.decisions
    own = set(signs_of_injection("\n".join((text.goal, *wrote, *text.actions)), other_ids))
    return own, set(signs_of_injection("\n".join(text.decisions), other_ids)) - own


def _run(one: Features, text: RunText, instruments: Collection[str], withheld: bool, blind: bool) -> JudgedRun:
    actions = [plain_action(action, instruments) for action in text.actions]
    told = (
        [f"Answered: {answer}" for answer in text.answers] if blind else list(map(_told, text.decisions, text.actions))
    )
    return JudgedRun(
        trajectory_id=one.trajectory_id,
        goal=text.goal,
        capital=one.capital,
        actions=actions,
        texts=told,
        earned=one.window_pnl,
        fees=one.fees,
        withheld=withheld,
    )


def _told(decision: str, action: str) -> str:
    """What was seen and answered; what was done has a line of its own."""
    return "" if decision == action else decision.removesuffix("\n" + action)


def plain_action(action: str, instruments: Collection[str]) -> str:
    """What was done in words of the record alone: a known verb, an instrument of the market, whether it failed."""
    words = action.removeprefix(ACTION)
    failed = words.endswith(FAILED)
    verb, _, instrument = words.removesuffix(FAILED).partition(" ")
    known = normal(verb)
    said = known.upper() if known in VERBS else "OTHER"
    if instrument:
        said += f" {instrument if instrument in instruments else 'of another instrument'}"
    return said + (FAILED if failed else "")


def truth_of(outcomes: pd.DataFrame, traded: Collection[str] = ()) -> list[str]:
    """A line for each instrument from its row of `market_outcomes`; where there are too many, the traded ones first."""
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in outcomes.to_dict("records")]
    rows.sort(key=lambda row: (row["instrument"] not in traded, row["kind"] != TICKER, str(row["instrument"])))
    left = len(rows) - LONGEST_TRUTH
    more = [f"and {left} instruments that none of these runs traded"] if left > 0 else []
    return [_line(row) for row in rows[:LONGEST_TRUTH]] + more


def _line(row: dict[str, Any]) -> str:
    opened, closed, change = (_number(row.get(name)) for name in ("open", "close", "change"))
    said = []
    if opened is not None and closed is not None:
        said.append(f"{opened:,.4g} to {closed:,.4g}" if row["kind"] != TICKER else f"${opened:,.2f} to ${closed:,.2f}")
    if change is not None and row["kind"] == TICKER:
        said.append(f"{100 * change:+.2f} %")
    if row.get("outcome") in ("YES", "NO"):
        said.append(f"resolved {row['outcome']}")
    asked = row.get("question")
    name = str(row["instrument"])
    if isinstance(asked, str) and asked:
        name += f" ({' '.join(asked.split())[:LONGEST_QUESTION]})"
    return f"{name}: {', '.join(said) or 'not known'}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
