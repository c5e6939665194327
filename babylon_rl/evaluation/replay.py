"""A checkpoint on recorded hours: asked the recorded prompts again, its answers valued at what the market then did.

A prompt is valued where its quotes are recorded (`scoring.values`): the expectation over the policy of the reward
`alpha` of each legal answer, as if the answer had changed nobody else's price. Agents are averaged first, for they
share the hour's market; the hour is the unit of all intervals.

A checkpoint is asked about no hour that it was trained on, nor about one before the end of its training or within the
embargo after it, and neither is a baseline: it would be judged by what it was told.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pandas as pd
import psycopg

from babylon_rl.database.bulk import read_frame
from babylon_rl.database.connect import Database, Recordings
from babylon_rl.database.history import current_rows
from babylon_rl.database.kept import one_frame
from babylon_rl.database.tables import market_outcomes, replay_evaluations
from babylon_rl.database.window_rows import WindowRows, each_window, waiting_for
from babylon_rl.errors import TrainingError
from babylon_rl.evaluation.asking import Asked, Found, asked_checkpoints, available, roles, weights_id
from babylon_rl.evaluation.paired import Effect, paired_effect
from babylon_rl.evaluation.policies import Prompt, PromptPolicy, policies_on
from babylon_rl.evaluation.schedule import EMBARGO
from babylon_rl.recording.reader import RangeReader
from babylon_rl.recording.window import UsableTrajectory, action_calls
from babylon_rl.scoring.features import Market, features, market_of
from babylon_rl.scoring.scorers import revision_of
from babylon_rl.scoring.values import alpha_values, quotes_of
from babylon_rl.settings import Settings
from babylon_rl.training.ancestry import chain
from babylon_rl.training.runs import base_checkpoint, list_checkpoints, load_checkpoint, promoted
from babylon_rl.windows import shift_window

COLUMNS = (
    *("window_id", "candidate", "baseline", "effect", "low", "high", "candidate_value", "baseline_value"),
    *("decisions", "unvalued", "seed", "reason", "window_revision", "outcome_revision", "made_from"),
)
RECORDED, HOLD = "recorded", "hold"  # what was done, and doing nothing
SEED = 8_191
FORMAT = 1  # of what `made_from` covers

Say = Callable[[str], None]


class Decision(NamedTuple):
    """A recorded prompt, the value of each legal answer, and the value of the one that was given."""

    agent_id: str
    prompt: Prompt
    values: dict[str, float]
    done: float


class ReplayedWindow(NamedTuple):
    """A window's decisions that have a value; `unvalued`: how many others it has."""

    window_id: str
    decisions: list[Decision]
    unvalued: int
    window_revision: str
    outcome_revision: str


# --- which checkpoints may be asked about a window --------------------------------------------------


def trained_until(connection: psycopg.Connection, checkpoint_id: str) -> str | None:
    """The latest window that the checkpoint or one it descends from was trained on; None for a base model."""
    seen = [w for one in chain(connection, checkpoint_id) for w in (*one.windows, one.last_window) if w is not None]
    return max(seen, default=None)


def refuse_seen(connection: psycopg.Connection, checkpoint_id: str, window_id: str) -> None:
    """TrainingError where the window is not later than all that the checkpoint was trained on, and the embargo."""
    last = trained_until(connection, checkpoint_id)
    if last is not None and window_id <= (embargoed := shift_window(last, EMBARGO)):
        raise TrainingError(
            f"{checkpoint_id} was trained on windows up to {last}, and {window_id} is not later than {embargoed}: it "
            "would be judged by what it was told. Replay it on later windows."
        )


def may_see(connection: psycopg.Connection, checkpoint_id: str, window_id: str) -> bool:
    """Whether the checkpoint may be asked about the window."""
    try:
        refuse_seen(connection, checkpoint_id, window_id)
    except TrainingError:
        return False
    return True


def of_interest(connection: psycopg.Connection, window_id: str) -> list[str]:
    """Checkpoints that are replayed on the window by themselves: what is promoted, the running experiment's candidate,
    the newest that the window is later than, and the base models of these."""
    served = promoted(connection)
    names = [served["to_checkpoint"]] if served else []
    names += [
        name for (name,) in connection.execute("SELECT candidate FROM babylon_rl.experiments WHERE state = 'running'")
    ]
    trained = [one for one in list_checkpoints(connection) if one.step > 0 and one.state != "deleted"]
    trained.sort(key=lambda one: (one.last_window or "", one.step), reverse=True)
    newest = next((one.checkpoint_id for one in trained if may_see(connection, one.checkpoint_id, window_id)), None)
    names = [name for name in (*names, newest) if name is not None and may_see(connection, name, window_id)]
    bases = [base_checkpoint(load_checkpoint(connection, name).training_run) for name in names]
    return list(dict.fromkeys([*names, *bases]))


def checkpoints_that_saw(connection: psycopg.Connection, window_ids: Sequence[str]) -> pd.DataFrame:
    """Rows of `replay_evaluations` with a candidate or baseline that was trained on too much.

    Columns: window_id, checkpoint, trained_until.
    """
    rows = connection.execute(
        """SELECT DISTINCT r.window_id, c.checkpoint_id FROM babylon_rl.replay_evaluations r
           JOIN babylon_rl.checkpoints c ON c.checkpoint_id IN (r.candidate, r.baseline)
           WHERE r.superseded_at IS NULL AND r.window_id = ANY(%s) ORDER BY 1, 2""",
        (list(window_ids),),
    ).fetchall()
    until = {name: trained_until(connection, name) for name in {name for _, name in rows}}
    seen = [
        (w, name, last) for w, name in rows if (last := until[name]) is not None and w <= shift_window(last, EMBARGO)
    ]
    return pd.DataFrame(seen, columns=["window_id", "checkpoint", "trained_until"])


# --- a window's decisions ---------------------------------------------------------------------------


def replayed_window(recordings: Recordings, window_id: str) -> ReplayedWindow:
    """The window's recorded prompts with the values of their answers; two reads of the same give the same."""
    outcomes = read_frame(recordings.ours, current_rows(market_outcomes, [window_id]))
    recorded = RangeReader(recordings, [window_id]).read(window_id)
    market, decisions, unvalued = market_of(outcomes), [], 0
    for trajectory in recorded.usable:
        decision = _decision(trajectory, market)
        if decision is not None:
            decisions.append(decision)
        else:
            unvalued += sum(len(action_calls(step)) for step in trajectory.steps)
    return ReplayedWindow(window_id, decisions, unvalued, recorded.revision, revision_of(outcomes))


def _decision(trajectory: UsableTrajectory, market: Market) -> Decision | None:
    """The trajectory's only decision; None where it has several, or an answer whose value is not known."""
    if not quotes_of(trajectory):
        return None
    calls = action_calls(trajectory.steps[0])
    values = alpha_values(trajectory, features(trajectory, market).capital, market)
    if len(calls) != 1 or not values:
        return None
    call, logged = calls[0], trajectory.calls[0]
    prompt = Prompt(
        trajectory.trajectory_id,
        call.system_prompt,
        call.user_prompt,
        tuple(logged.choices or ()),
        logged.temperature,
    )
    # An answer that is no choice traded nothing.
    return Decision(trajectory.agent_id, prompt, values, values.get(call.response.strip(), 0.0))


def expected(decision: Decision, policy: PromptPolicy) -> float:
    """Expected reward of the policy's answer; an answer that is no choice trades nothing and earns 0."""
    return math.fsum(share * decision.values[choice] for choice, share in policy.probabilities.items())


def mean_over_agents(decisions: Iterable[Decision], figures: Iterable[float]) -> float:
    """Mean over agents of the mean over each one's decisions."""
    own: dict[str, list[float]] = {}
    for decision, figure in zip(decisions, figures, strict=True):
        own.setdefault(decision.agent_id, []).append(figure)
    return math.fsum(math.fsum(one) / len(one) for one in own.values()) / len(own)


# --- evaluating --------------------------------------------------------------------------------------


class _Wanted(NamedTuple):
    """What is asked about a window. `baselines`: by candidate, with what each is to it; `refused`: checkpoints that
    rows are stored of and that may not be asked about the window."""

    window: ReplayedWindow
    baselines: Mapping[str, Mapping[str, str]]
    found: Mapping[str, Found]
    refused: frozenset[str] = frozenset()


def replay_windows(
    database: Database, settings: Settings, window_ids: Sequence[str], also: Sequence[str], say: Say
) -> WindowRows:
    """Rows of `replay_evaluations` of the windows. `also`: checkpoints beside those of interest.

    What was evaluated of a window before stays; what was made from the same weights and recordings is not asked again.
    A window that one of `also` may not be asked about fails by itself, with a TrainingError.
    """
    with database.recordings() as recordings:
        waiting = waiting_for(recordings.ours, ("windows", "market_outcomes"), window_ids)
        held = read_frame(recordings.ours, current_rows(replay_evaluations, window_ids))
        wanted, failed = each_window(
            sorted(window_ids), lambda w: _wanted(recordings, settings, w, also, held[held["window_id"] == w]), waiting
        )
    kept = _kept(held, wanted)
    values = _ask(settings, wanted, kept, say)
    made = [_rows(one, kept, values) for one in wanted]
    return WindowRows(one_frame(made, COLUMNS), tuple(window_ids), failed)


def _wanted(
    recordings: Recordings, settings: Settings, window_id: str, also: Sequence[str], held: pd.DataFrame
) -> _Wanted:
    connection = recordings.ours
    for name in also:
        load_checkpoint(connection, name)
        refuse_seen(connection, name, window_id)
    window = replayed_window(recordings, window_id)
    if not window.decisions:
        return _Wanted(window, {}, {})
    stored = {*held["candidate"], *held["baseline"]} - {RECORDED, HOLD}
    refused = frozenset(name for name in stored if not may_see(connection, name, window_id))
    names = [*of_interest(connection, window_id), *also, *(c for c in held["candidate"] if c not in refused)]
    baselines: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(names):
        before = held.loc[held["candidate"] == name, "baseline"].tolist()
        others = {one: " and ".join(said) for one, said in roles(connection, load_checkpoint(connection, name)).items()}
        others = {one: "compared before" for one in before if one not in (RECORDED, HOLD)} | others
        baselines[name] = {one: said for one, said in others.items() if may_see(connection, one, window_id)}
    ids = {name for candidate, others in baselines.items() for name in (candidate, *others)}
    found, _ = available(connection, settings, sorted(ids))
    known = {
        name: {o: said for o, said in own.items() if o in found} for name, own in baselines.items() if name in found
    }
    return _Wanted(window, known, found, refused)


def _made_from(one: _Wanted, candidate: str, baseline: str) -> str:
    theirs = weights_id(one.found[baseline].checkpoint) if baseline in one.found else baseline
    ours = weights_id(one.found[candidate].checkpoint)
    told = (FORMAT, ours, theirs, SEED, one.window.window_revision, one.window.outcome_revision)
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()


Key = tuple[str, str, str]  # window, candidate, baseline


def _kept(held: pd.DataFrame, wanted: Sequence[_Wanted]) -> dict[Key, dict[str, Any]]:
    """The stored rows that stand: made from what is wanted now, or of checkpoints that cannot be asked any more while
    the recordings are the same."""
    windows = {one.window.window_id: one for one in wanted}
    kept: dict[Key, dict[str, Any]] = {}
    for row in held[list(COLUMNS)].to_dict("records"):
        one, candidate, baseline = windows.get(row["window_id"]), row["candidate"], row["baseline"]
        if one is None or one.refused & {candidate, baseline}:
            continue
        if baseline in one.baselines.get(candidate, {}) or (
            baseline in (RECORDED, HOLD) and candidate in one.baselines
        ):
            stands = row["made_from"] == _made_from(one, candidate, baseline)
        else:
            now = (one.window.window_revision, one.window.outcome_revision)
            stands = (row["window_revision"], row["outcome_revision"]) == now
        if stands:
            # pandas says NaN for what is missing.
            kept[row["window_id"], candidate, baseline] = {n: None if v != v else v for n, v in row.items()}
    return kept


def _ask(
    settings: Settings, wanted: Sequence[_Wanted], kept: Mapping[Key, Any], say: Say
) -> dict[tuple[str, str], tuple[float, bool]]:
    """Value of each checkpoint in each window where a row is missing, and whether it is exact; by window and id."""
    needed: dict[str, dict[str, _Wanted]] = {}
    for one in wanted:
        for name, others in one.baselines.items():
            for baseline in (RECORDED, HOLD, *others):
                if (one.window.window_id, name, baseline) not in kept:
                    needed.setdefault(name, {})[one.window.window_id] = one
                    if baseline in one.found:
                        needed.setdefault(baseline, {})[one.window.window_id] = one
    if not needed:
        say("Nothing to ask: same weights and recordings as before, or no window with prompts that have a value.")
        return {}
    say(f"Starting the endpoint of {len(needed)} checkpoints.")
    found = {name: one.found[name] for name, windows in needed.items() for one in windows.values()}
    values: dict[tuple[str, str], tuple[float, bool]] = {}
    with asked_checkpoints(settings, found.values()) as places:
        for number, (name, windows) in enumerate(sorted(needed.items()), start=1):
            for window_id, one in windows.items():
                values[window_id, name] = value_of(places[name], one.window)
            say(f"{name} ({number} of {len(needed)}): replayed on {len(windows)} windows.")
    return values


def value_of(asked: Asked, window: ReplayedWindow) -> tuple[float, bool]:
    """Expected reward of the policy in the window, agents averaged, and whether it is exact or from draws."""
    policies = policies_on(asked, [one.prompt for one in window.decisions], SEED)
    rewards = [expected(decision, policy) for decision, policy in zip(window.decisions, policies, strict=True)]
    return mean_over_agents(window.decisions, rewards), all(one.exact for one in policies)


def _rows(
    one: _Wanted, kept: Mapping[Key, dict[str, Any]], values: Mapping[tuple[str, str], tuple[float, bool]]
) -> pd.DataFrame:
    window = one.window
    rows = {key[1:]: row for key, row in kept.items() if key[0] == window.window_id}
    done = mean_over_agents(window.decisions, (d.done for d in window.decisions)) if window.decisions else 0.0
    fixed = {RECORDED: (done, True), HOLD: (0.0, True)}
    for name, others in one.baselines.items():
        for baseline, said in {RECORDED: "what was done", HOLD: "no trade", **others}.items():
            if (name, baseline) not in rows:
                own, theirs = values[window.window_id, name], fixed.get(baseline) or values[window.window_id, baseline]
                rows[name, baseline] = _row(one, name, baseline, said, own, theirs)
    return pd.DataFrame([rows[key] for key in sorted(rows)], columns=list(COLUMNS))


def _row(
    one: _Wanted, candidate: str, baseline: str, said: str, own: tuple[float, bool], theirs: tuple[float, bool]
) -> dict[str, Any]:
    window, effect = one.window, own[0] - theirs[0]
    how = "exact over the policy" if own[1] and theirs[1] else "from seeded draws"
    return {
        "window_id": window.window_id,
        "candidate": candidate,
        "baseline": baseline,
        "effect": effect,
        # One window says nothing of how windows differ.
        "low": None,
        "high": None,
        "candidate_value": own[0],
        "baseline_value": theirs[0],
        "decisions": len(window.decisions),
        "unvalued": window.unvalued,
        "seed": SEED,
        "reason": f"{candidate} over {baseline} ({said}): {effect:+.5f} of capital an agent, {how}.",
        "window_revision": window.window_revision,
        "outcome_revision": window.outcome_revision,
        "made_from": _made_from(one, candidate, baseline),
    }


# --- over windows ------------------------------------------------------------------------------------


def replay_over(connection: psycopg.Connection, candidate: str, baseline: str, windows: Sequence[str]) -> Effect:
    """Effect of the candidate over the baseline in reward `alpha`, with its interval over the windows.

    EmptyWindowError for fewer than two of them.
    """
    table = replay_evaluations
    rows = read_frame(
        connection,
        current_rows(table, windows).where(table.c.candidate == candidate, table.c.baseline == baseline),
    ).set_index("window_id")
    return paired_effect(rows["candidate_value"].astype(float), rows["baseline_value"].astype(float), SEED)
