"""What updates would take, before anything is spent: windows, groups, trajectories by label, tokens, time and cost.

The counts are those of the very training set that an update would make, which is made and taken back.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import psycopg

from babylon_rl.errors import TrainingError
from babylon_rl.groups.admitting import labels_of
from babylon_rl.groups.provenance import IMPORTANCE_WEIGHTED
from babylon_rl.groups.snapshots import stream_groups
from babylon_rl.groups.trained_view import Member
from babylon_rl.settings import Settings
from babylon_rl.training.admission import Checker
from babylon_rl.training.batches import parent_at
from babylon_rl.training.ledger import HOSTED, job_id_of
from babylon_rl.training.runs import TrainingRun
from babylon_rl.training.updates import planned, tokenizer_folder

# Earlier updates that a speed is taken from, the latest ones.
MEASURED = 3


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """One update, or the sum of several.

    `groups`: windows by the status of their group, "not_materialized" where there is none yet. `trajectories`: those
    that are trained on, by loss and label; `left_out`: counts by reason; words that begin with "members" count
    trajectories, the others windows. `tokens_by_loss`: of prompts and answers of the trained trajectories, each counted
    once, those of a text as the trainer's tokenizer gives them. `refused`: why an update would not be made. `begun`:
    how many have a job in the ledger that no attempt begins again: sent to a service, or done.
    """

    windows: int
    groups: dict[str, int]
    trajectories: dict[str, dict[str, int]]
    left_out: dict[str, int]
    tokens_by_loss: dict[str, dict[str, int]]
    refused: list[str]
    begun: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(found["prompt"] for found in self.tokens_by_loss.values())

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(found["answer"] for found in self.tokens_by_loss.values())

    @property
    def tokens(self) -> int:
        """Prompts and answers."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def trained(self) -> int:
        """Trajectories that are trained on."""
        return sum(sum(labels.values()) for labels in self.trajectories.values())


class Speed(msgspec.Struct, frozen=True):
    """Tokens a second of so many earlier updates, from each one's start to its end."""

    tokens_per_second: float
    updates: int


def forecast_of(
    connection: psycopg.Connection, settings: Settings, run: TrainingRun, windows: Sequence[str]
) -> Forecast:
    """What the run's update over the windows, the last of which ends it, would take. The run need not be stored."""
    last = windows[-1]
    statuses = dict(connection.execute(_STATUSES, (list(windows),)).fetchall())
    counts = Counter(statuses.get(window, "not_materialized") for window in windows)
    parent = parent_at(connection, run, last)
    checker = Checker(tokenizer_folder(settings, run))
    tokens: dict[str, Counter[str]] = {}
    trajectories: dict[str, Counter[str]] = {}
    left_out: dict[str, int] = {}
    refused = []
    begun = 0
    try:
        with planned(connection, settings, run, parent, last, list(windows)) as header:
            job_id = job_id_of(parent.checkpoint_id, header.snapshot_id, run.recipe.digest())
            begun = int(connection.execute(_BEGUN, (job_id, list(HOSTED))).fetchone() is not None)
            left_out = dict(header.left_out)
            for group in stream_groups(connection, header.snapshot_id):
                for loss, labels in labels_of(group.members).items():
                    trajectories.setdefault(loss, Counter()).update(labels)
                for loss, (prompts, answers) in _tokens(group.members, checker).items():
                    found = tokens.setdefault(loss, Counter())
                    found.update(prompt=prompts, answer=answers)
    except TrainingError as error:
        refused.append(str(error))
    return Forecast(
        windows=len(windows),
        groups=dict(sorted(counts.items())),
        trajectories={loss: dict(sorted(labels.items())) for loss, labels in sorted(trajectories.items())},
        left_out=left_out,
        tokens_by_loss={loss: dict(found) for loss, found in sorted(tokens.items())},
        refused=refused,
        begun=begun,
    )


_BEGUN = """SELECT 1 FROM babylon_rl.training_attempts
            WHERE job_id = %s AND (state = 'done' OR backend = ANY(%s) AND state <> 'written')"""
_STATUSES = "SELECT window_id, status FROM babylon_rl.art_groups WHERE window_id = ANY(%s) AND superseded_at IS NULL"


def _tokens(members: Iterable[Member], checker: Checker) -> dict[str, tuple[int, int]]:
    """Tokens of prompts and answers by loss; a text counts 0 where no tokenizer is at hand."""
    found: dict[str, tuple[int, int]] = {}
    for member in members:
        loss = IMPORTANCE_WEIGHTED if member.loss is msgspec.UNSET else member.loss
        prompt, answer = found.get(loss, (0, 0))
        for decision in member.decisions:
            prompts, answers = checker.lengths(decision) or (0, 0)
            prompt, answer = prompt + prompts, answer + answers
        found[loss] = prompt, answer
    return found


def sum_of(forecasts: Sequence[Forecast]) -> Forecast:
    """Several updates together."""
    trajectories: dict[str, Counter[str]] = {}
    tokens: dict[str, Counter[str]] = {}
    for one in forecasts:
        for loss, labels in one.trajectories.items():
            trajectories.setdefault(loss, Counter()).update(labels)
        for loss, found in one.tokens_by_loss.items():
            tokens.setdefault(loss, Counter()).update(found)
    return Forecast(
        windows=sum(one.windows for one in forecasts),
        groups=dict(sum((Counter(one.groups) for one in forecasts), Counter())),
        trajectories={loss: dict(labels) for loss, labels in trajectories.items()},
        left_out=dict(sum((Counter(one.left_out) for one in forecasts), Counter())),
        tokens_by_loss={loss: dict(found) for loss, found in tokens.items()},
        refused=[why for one in forecasts for why in one.refused],
        begun=sum(one.begun for one in forecasts),
    )


# --- time and cost ---------------------------------------------------------------------------------


def measured_speed(connection: psycopg.Connection, settings: Settings, run: TrainingRun) -> Speed | None:
    """Tokens a second of the latest finished updates of the same backend and base model; None where there is none.

    A token counts once for each of the update's passes. The time holds all that an update does, its process's start
    included.
    """
    rows = connection.execute(
        """SELECT a.snapshot_id, extract(epoch FROM a.finished_at - a.created_at)::float8,
                  coalesce((r.settings->>'epochs')::int, 1)
           FROM babylon_rl.training_attempts a
           JOIN babylon_rl.checkpoints c ON c.snapshot_id = a.snapshot_id AND c.parent_id = a.parent_id
           JOIN babylon_rl.training_runs r USING (training_run)
           WHERE a.state = 'done' AND a.backend = %s AND c.base_model = %s AND a.finished_at > a.created_at
           ORDER BY a.finished_at DESC LIMIT %s""",
        (run.backend, run.base_model, MEASURED),
    ).fetchall()
    checker = Checker(tokenizer_folder(settings, run))
    tokens = sum(
        epochs * sum(map(sum, _tokens(group.members, checker).values()))
        for snapshot, _, epochs in rows
        for group in stream_groups(connection, snapshot)
    )
    seconds = sum(took for _, took, _ in rows)
    return Speed(tokens / seconds, len(rows)) if tokens and seconds else None


def seconds_of(forecast: Forecast, run: TrainingRun, speed: Speed | None) -> float | None:
    """Seconds that the updates take at a measured speed; None where none was measured."""
    return None if speed is None else forecast.tokens * run.recipe.epochs / speed.tokens_per_second


def dollars_of(forecast: Forecast, run: TrainingRun, settings: Settings) -> float:
    """Dollars that the updates cost by BABYLON_RL_TRAINING_PRICE; on this machine nothing."""
    hosted = run.backend == "wandb"
    return forecast.tokens * run.recipe.epochs / 1e6 * settings.training_price if hosted else 0.0
