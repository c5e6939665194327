"""What a training run does about the alarms of a batch (`groups.health`): explore more, step back, stop.

Pure: plain inputs, frozen records. The rows are in `alarm_log`, the use of it in `updates`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from babylon_rl.groups.health import Alarm, AlarmLimits

Done = Literal["none", "explore", "step_back", "stop"]


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What is done. `exploration`: of the next round; `checkpoint`: the state to go back to, None to train as usual."""

    kind: Done
    exploration: float
    checkpoint: str | None = None


def respond(
    alarms: Sequence[Alarm],
    limits: AlarmLimits,
    exploration: float,
    *,
    played_step: int,
    alarmed_before: int,
    last_good: str,
) -> Response:
    """What is done about the alarms of an update.

    `exploration`: the recipe's; `played_step`: step of the checkpoint that played the batch; `alarmed_before`: updates
    in a row just before this one that raised alarms; `last_good`: where a step back leads.
    """
    if not alarms:
        return Response(kind="none", exploration=exploration)
    more = max(exploration, limits.exploration)
    if alarmed_before + 1 >= limits.patience:
        return Response(kind="stop", exploration=more, checkpoint=last_good)
    if played_step == 0:  # there is nothing behind the start
        return Response(kind="explore", exploration=more)
    return Response(kind="step_back", exploration=more, checkpoint=last_good)


def last_good(checkpoint: str, parents: Mapping[str, str | None], alarmed: Collection[str]) -> str:
    """The nearest ancestor whose own batch raised no alarm; the start where there is none.

    `parents`: parent of each checkpoint of the run; `alarmed`: checkpoints whose batches raised alarms.
    """
    while (parent := parents.get(checkpoint)) is not None:
        checkpoint = parent
        if checkpoint not in alarmed:
            break
    return checkpoint
