"""A checkpoint in the simulated market: it, what it came from, what is promoted and fixed policies play the same hours.

The hours are made of a fixed seed, the same for every checkpoint, and so are the seeds of the calls; nothing is written
to the recordings. They are of split `validation`, which no run trains on. Who picks the best of many checkpoints by
these figures has chosen by them, and judges it on other hours (an experiment, or `checkpoint_evaluations`).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database
from babylon_rl.database.history import current_rows
from babylon_rl.database.kept import one_frame
from babylon_rl.database.tables import market_evaluations
from babylon_rl.database.window_rows import WindowRows, each_window, waiting_for
from babylon_rl.errors import TrainingError
from babylon_rl.evaluation.asking import Asked, Found, asked_checkpoints, available, roles, weights_id
from babylon_rl.evaluation.paired import paired_effect
from babylon_rl.market.endpoint import Sampling
from babylon_rl.market.play import PlayedWindow, play_fixed_unrecorded, play_unrecorded
from babylon_rl.market.policies import INFORMED_POLICY, POLICIES
from babylon_rl.market.world import MarketWindow, make_window
from babylon_rl.settings import Settings
from babylon_rl.training.runs import load_checkpoint, load_run

COLUMNS = (
    *("window_id", "candidate", "baseline", "effect", "low", "high", "candidate_value", "baseline_value"),
    *("windows", "seed", "valid", "reason", "made_from"),
)
SPLIT = "validation"
SEED, WINDOWS, AGENTS = 8_191, 48, 8
CONCURRENCY = 8  # windows
FORMAT = 1  # of what `made_from` covers: another where the same inputs would give other figures

# A line for a person.
Say = Callable[[str], None]


class MarketPlan(NamedTuple):
    """The hours that are played: how many, of which seed, with how many agents each."""

    seed: int = SEED
    windows: int = WINDOWS
    agents: int = AGENTS

    def hours(self) -> list[tuple[str, MarketWindow]]:
        """Name and hidden world of each hour."""
        return [(f"{SPLIT}/{n}", make_window(self.seed, SPLIT, n)) for n in range(self.windows)]


class _Wanted(NamedTuple):
    """The comparisons of a window. `others`: baselines that are checkpoints, with what they are to the candidate."""

    window_id: str
    candidate: str
    found: Mapping[str, Found]
    others: Mapping[str, Sequence[str]]
    missing: Mapping[str, str]
    temperature: float


Played = dict[tuple[str, float], list[PlayedWindow]]


def evaluate_in_market(
    database: Database, settings: Settings, window_ids: Sequence[str], plan: MarketPlan, say: Say
) -> WindowRows:
    """Rows of `market_evaluations` of the windows that ended an update; none of the others.

    What was made from the same weights, hours and seeds is taken as it stands and not played again. A window whose
    checkpoint cannot be asked fails by itself; ServingError where an endpoint does not start or answer.
    """
    with database.connect() as connection:
        waiting = waiting_for(connection, ("trained_checkpoints",), window_ids)
        found, failed = each_window(sorted(window_ids), lambda w: _wanted(connection, settings, w), waiting)
        held = read_frame(connection, current_rows(market_evaluations, window_ids))
    wanted = [one for one in found if one is not None]
    frames = {one.window_id: _held(held, one, plan) for one in wanted}
    left = [one for one in wanted if frames[one.window_id] is None]
    if len(left) < len(wanted):
        say(f"{len(wanted) - len(left)} evaluations stand as they are: same weights, hours and seeds.")
    if left:
        played = _play(settings, left, plan, say)
        frames |= {one.window_id: _rows(one, played, plan) for one in left}
    made = [frame for frame in frames.values() if frame is not None]
    return WindowRows(one_frame(made, COLUMNS), tuple(window_ids), failed)


def _wanted(connection: psycopg.Connection, settings: Settings, window_id: str) -> _Wanted | None:
    """What the window's checkpoint is compared with; None where no update ended in it."""
    row = connection.execute(
        """SELECT checkpoint_id FROM babylon_rl.trained_checkpoints
           WHERE window_id = %s AND superseded_at IS NULL AND updated""",
        (window_id,),
    ).fetchone()
    if row is None:
        return None
    checkpoint = load_checkpoint(connection, row[0])
    others = roles(connection, checkpoint)
    found, missing = available(connection, settings, [checkpoint.checkpoint_id, *others])
    if checkpoint.checkpoint_id in missing:
        raise TrainingError(missing[checkpoint.checkpoint_id])
    run = load_run(connection, checkpoint.training_run)
    temperature = run.recipe.temperature if run else 1.0
    asked = {name: said for name, said in others.items() if name in found}
    return _Wanted(window_id, checkpoint.checkpoint_id, found, asked, missing, temperature)


def _made_from(one: _Wanted, baseline: str, plan: MarketPlan) -> str:
    theirs = weights_id(one.found[baseline].checkpoint) if baseline in one.found else baseline
    told = (FORMAT, weights_id(one.found[one.candidate].checkpoint), theirs, *plan, one.temperature)
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()


def _held(held: pd.DataFrame, one: _Wanted, plan: MarketPlan) -> pd.DataFrame | None:
    """The window's rows as they stand, where they were made from the same as they would be now."""
    own = held[held["window_id"] == one.window_id]
    wanted = {(one.candidate, name, _made_from(one, name, plan)) for name in (*one.others, *POLICIES)}
    stored = set(zip(own["candidate"], own["baseline"], own["made_from"], strict=True))
    return own[list(COLUMNS)] if stored == wanted else None


# --- playing ---------------------------------------------------------------------------------------


def _play(settings: Settings, wanted: Sequence[_Wanted], plan: MarketPlan, say: Say) -> Played:
    """What each checkpoint earned, by it and the temperature; each plays once, however many compare with it."""
    arms = {(name, one.temperature): one.found[name] for one in wanted for name in (one.candidate, *one.others)}
    members = {name: found for (name, _), found in arms.items()}
    say(f"Starting the endpoint of {len(members)} checkpoints.")
    hours, played = plan.hours(), {}
    with asked_checkpoints(settings, members.values()) as places:
        for number, (name, temperature) in enumerate(arms, start=1):
            own = play_arm(places[name], hours, plan, temperature, say, f"{name} ({number} of {len(arms)})")
            played[name, temperature] = own
    return played


def play_arm(
    asked: Asked, hours: Sequence[tuple[str, MarketWindow]], plan: MarketPlan, temperature: float, say: Say, title: str
) -> list[PlayedWindow]:
    """The hours as a checkpoint plays them, in their order, with the same seeds of the calls as any other."""
    done: list[str] = []

    def progress(window: PlayedWindow) -> None:
        done.append(window.window_id)
        if len(done) % max(1, len(hours) // 4) == 0:
            say(f"{title}: {len(done)} of {len(hours)} hours played.")

    sampling = Sampling(temperature=temperature, seed=plan.seed, max_tokens=16)
    return play_unrecorded(
        asked.endpoint, hours, agents=plan.agents, sampling=sampling, concurrency=CONCURRENCY, progress=progress
    )


# --- comparing -------------------------------------------------------------------------------------


def earned(played: Iterable[PlayedWindow]) -> pd.Series:
    """Mean P&L of an agent by window, dollars: agents of one window share its market, so they are averaged first."""
    return pd.Series({one.window_id: one.mean_pnl for one in played}, dtype=float)


def _rows(one: _Wanted, played: Played, plan: MarketPlan) -> pd.DataFrame:
    own = played[one.candidate, one.temperature]
    valid = sum(window.valid_share for window in own) / len(own)
    rows = []
    for name, said in one.others.items():
        rows.append(_row(one, name, earned(played[name, one.temperature]), own, valid, plan, " and ".join(said)))
    for policy in POLICIES:
        theirs = earned(play_fixed_unrecorded(policy, plan.hours(), plan.agents))
        kind = "the informed ceiling" if policy == INFORMED_POLICY else "a fixed policy"
        rows.append(_row(one, policy, theirs, own, valid, plan, kind))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(
    one: _Wanted, baseline: str, theirs: pd.Series, own: list[PlayedWindow], valid: float, plan: MarketPlan, said: str
) -> dict[str, Any]:
    effect = paired_effect(earned(own), theirs, plan.seed)
    reason = f"{one.candidate} over {baseline} ({said}): {effect} dollars an agent and window, {valid:.0%} valid."
    if one.missing:
        reason += f" Not compared with {', '.join(sorted(one.missing))}, which cannot be asked."
    return {
        "window_id": one.window_id,
        "candidate": one.candidate,
        "baseline": baseline,
        "effect": effect.effect,
        "low": effect.low,
        "high": effect.high,
        "candidate_value": effect.candidate_mean,
        "baseline_value": effect.baseline_mean,
        "windows": effect.windows,
        "seed": plan.seed,
        "valid": valid,
        "reason": reason,
        "made_from": _made_from(one, baseline, plan),
    }
