"""The settings of an update: what a snapshot's id covers, together with its groups and seed."""

import hashlib
from typing import Literal

import msgspec

from babylon_rl.groups.health import AlarmLimits

# Share of the learning rate that is left after the decay.
DECAYED_TO = 0.1


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a policy is updated. Defaults are those of the demo with SmolLM2-135M, whose plan adds its `decay_steps`.

    `windows_per_update`: windows that one update consumes; in a run without an end, the new groups at which it is due.
    `minibatches`: optimizer steps a pass over them, on equal shares; `epochs`: passes, whose importance ratios correct
    for the steps in between. `advantages`: see `groups.advantages`. `exploration`: share of uniform choice mixed into
    the policy while playing for training; the recorded log-probability is the mixture's.

    `learning_rate` is reached over `warmup_steps` optimizer steps and falls in a straight line to a tenth over
    `decay_steps` (0: it stays). `policy_exponent`: with advantages over all actions, the power of the policy's own
    probability that weighs an action's gradient; 1 is the exact policy gradient of the expected reward, 0 weighs all
    actions alike.

    `balanced_answers`: two answers (by their first word) whose mean log-probabilities over a minibatch are held equal:
    each step is projected so that it does not change their difference, and a share `balance_rate` of what is left of
    it is taken away. What the policy learns is then when to give which, and not to give one of them always, which is
    the direction in which small models drift first. None switches it off.

    `dropout_target`, `max_dropout`: members of an update above which some are left out, and the share of them that is
    left out at most (`groups.dropout`; where they are not set, its defaults). Not set, they are no part of the digest.

    `stale_limit`, `stale_days`: updates and days behind which a recording is too old (not set:
    `groups.provenance.STALE_DAYS`). `admit`: labels of provenance that are admitted, where those are fewer than
    `groups.provenance.ADMITTED` allows. `ess_floor`: effective sample size, as a share of the batch, below which no
    update is made (not set: `training.admission.ESS_FLOOR`). `precision`: of the model's weights; not set, float32.

    `alarms`: when a batch raises an alarm, and how the run answers it.
    """

    windows_per_update: int = 32
    minibatches: int = 8
    epochs: int = 1
    learning_rate: float = 1e-3
    entropy_coefficient: float = 0.0
    max_grad_norm: float = 0.3
    adam_betas: tuple[float, float] = (0.9, 0.9)
    warmup_steps: int = 3
    decay_steps: int = 0
    lora_rank: int = 16
    lora_layers: int = 12
    advantages: Literal["leave_one_out", "leave_one_out_action_centred", "all_actions"] = "all_actions"
    policy_exponent: float = 0.5
    loss: Literal["cispo", "ppo"] = "cispo"
    balanced_answers: tuple[str, str] | None = ("BUY", "SELL")
    balance_rate: float = 0.3
    stale_limit: int = 0
    stale_days: float | msgspec.UnsetType = msgspec.UNSET
    ess_floor: float | msgspec.UnsetType = msgspec.UNSET
    admit: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    precision: Literal["bfloat16"] | msgspec.UnsetType = msgspec.UNSET
    temperature: float = 1.0
    exploration: float = 0.0
    dropout_target: int | msgspec.UnsetType = msgspec.UNSET
    max_dropout: float | msgspec.UnsetType = msgspec.UNSET
    alarms: AlarmLimits = AlarmLimits()

    def rate_at(self, step: int) -> float:
        """Share of the learning rate at an optimizer step, counted from 1 over the whole run."""
        warm = min(1.0, step / max(1, self.warmup_steps))
        left = 1 - min(1.0, (step - 1) / self.decay_steps) if self.decay_steps else 1.0
        return warm * (DECAYED_TO + (1 - DECAYED_TO) * left)

    def as_json(self) -> dict:
        """Plain JSON values, as stored."""
        return msgspec.to_builtins(self)

    def digest(self) -> str:
        """SHA-256 of the settings; one for equal settings."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()
