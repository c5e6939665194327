"""What of ART this version speaks: names, signatures, paths and defaults that another ART may have moved.

ART has no stable interface; the pin in pyproject.toml holds it at VERSION. CONTRACT names everything that we call, hand
over, subclass or read, and what it was there. `moved` says what differs in the ART that is installed.
"""

import inspect
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, get_args

VERSION = "0.5.18"


class Part(NamedTuple):
    """One thing that we rely on: its name for a person, how it was at VERSION, and how to read it now."""

    name: str
    expected: Any
    read: Callable[[], Any]


def moved() -> list[str]:
    """What is not as at VERSION, by name; empty where nothing moved. Imports ART with all that it brings."""
    return [said for part in CONTRACT if (said := difference(part)) is not None]


def difference(part: Part) -> str | None:
    """How the part differs now, or None."""
    try:
        found = part.read()
    except Exception as error:  # whatever a name that is gone comes to
        return f"{part.name}: cannot be read any more ({type(error).__name__}: {error})"
    return None if found == part.expected else f"{part.name}: was {part.expected!r}, is {found!r}"


def explanation() -> str | None:
    """For an error's message: which ART is installed and what moved in it; None where nothing did."""
    found = moved()
    if not found:
        return None
    try:
        installed = f"ART {version('openpipe-art')} is installed"
    except PackageNotFoundError:
        installed = "ART is not installed"
    return (
        f"{installed}, {VERSION} is what this version speaks; install "
        f"openpipe-art=={VERSION}. Moved: {'; '.join(found)}."
    )


def _get(path: str) -> Any:
    """The object at `module:name.name`, which each name's owner must define itself: ART's protocols have empty
    methods of the same names, which a class inherits where its own is gone."""
    module, _, names = path.partition(":")
    found = import_module(module)
    for name in names.split("."):
        if name not in vars(found):
            raise AttributeError(f"{name} is not in {found.__name__}")
        found = getattr(found, name)
    return found


def shape(function: Callable[..., Any]) -> str:
    """A function's parameters with their defaults, without types: `(self, groups, *, learning_rate=5e-06)`."""
    signature = inspect.signature(function)
    empty = inspect.Parameter.empty
    bare = [parameter.replace(annotation=empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _signature(path: str, expected: str) -> Part:
    return Part(f"parameters of {path.replace(':', '.')}", expected, lambda: shape(_get(path)))


def _fields(path: str, *expected: str) -> Part:
    """Fields of a pydantic model, a TypedDict or a dataclass."""
    return Part(f"fields of {path.replace(':', '.')}", expected, lambda: tuple(_fields_of(_get(path))))


def _fields_of(kind: Any) -> list[str]:
    if hasattr(kind, "model_fields"):
        return list(kind.model_fields)
    named = [name for base in reversed(kind.__mro__) for name in base.__dict__.get("__annotations__", {})]
    return list(dict.fromkeys(named))


def _paths() -> list[str]:
    """Paths that the client asks, as its source names them."""
    source = inspect.getsource(import_module("art.serverless.client"))
    return sorted(set(re.findall(r'"(/preview/[^"]*)"', source)))


def _clipping(ppo: bool) -> tuple[float, float]:
    """Range of the ratio that the loss lets through by default, found by giving it ratios beyond both ends."""
    import torch

    loss_fn = _get("art.loss:loss_fn")

    def loss(ratio: float, advantage: float) -> float:
        new = torch.full((1, 2), -1.0)
        inputs = {
            "logprobs": new - torch.tensor(ratio).log(),
            "advantages": torch.full((1, 2), advantage),
            "assistant_mask": torch.tensor([[False, True]]),
            "weights": torch.ones(1, 2),
        }
        # ART reads the log-probability of token t + 1 at position t.
        return abs(float(loss_fn(inputs, new, None, None, {"ppo": ppo}, reduction="sum").policy_loss))

    return round(loss(1e-6, -1.0), 3), round(loss(1e6, 1.0), 3)


CONTRACT: tuple[Part, ...] = (
    Part("version", VERSION, lambda: version("openpipe-art")),
    # the hosted service
    _signature("art.serverless.backend:ServerlessBackend.__init__", "(self, *, api_key=None, base_url=None)"),
    _signature("art.serverless.backend:ServerlessBackend.register", "(self, model)"),
    _signature("art.serverless.backend:ServerlessBackend.delete", "(self, model)"),
    _signature("art.serverless.backend:ServerlessBackend.close", "(self)"),
    _signature(
        "art.serverless.backend:ServerlessBackend.train",
        "(self, model, trajectory_groups, *, learning_rate=5e-06, ppo=False, epsilon=None, epsilon_high=None,"
        " advantage_balance=0.0, scale_rewards=True, importance_sampling_level='token', "
        "max_negative_advantage_importance_sampling_weight=None, mask_prob_ratio=False, kimi_k2_tau=None, "
        "precalculate_logprobs=False, verbose=False)",
    ),
    _signature("art.serverless.backend:ServerlessBackend._get_step", "(self, model)"),
    _signature("art.serverless.backend:ServerlessBackend._model_inference_name", "(self, model, step=None)"),
    _signature("art.serverless.backend:ServerlessBackend._delete_checkpoint_files", "(self, model, steps_to_keep)"),
    _signature("art.serverless.client:Client.__init__", "(self, *, api_key=None, base_url=None)"),
    _signature(
        "art.serverless.client:Models.create",
        "(self, *, entity=None, project=None, name=None, base_model, return_existing=False)",
    ),
    _signature(
        "art.serverless.client:Checkpoints.list",
        "(self, *, after=NOT_GIVEN, limit=NOT_GIVEN, model_id, order=NOT_GIVEN)",
    ),
    _signature("art.serverless.client:Checkpoints.delete", "(self, *, model_id, steps)"),
    _signature(
        "art.serverless.client:TrainingJobs.create",
        "(self, *, model_id, trajectory_groups, experimental_config=None)",
    ),
    _signature(
        "art.serverless.client:TrainingJobEvents.list",
        "(self, *, training_job_id, after=NOT_GIVEN, limit=NOT_GIVEN)",
    ),
    Part(
        "paths of art.serverless.client",
        [
            "/preview/models",
            "/preview/models/{model_id}",
            "/preview/models/{model_id}/checkpoints",
            "/preview/models/{model_id}/log",
            "/preview/sft-training-jobs",
            "/preview/training-jobs",
            "/preview/training-jobs/{training_job_id}/events",
        ],
        _paths,
    ),
    Part(
        "types of a training job's events",
        ("training_started", "gradient_step", "training_ended", "training_failed"),
        lambda: get_args(_get("art.serverless.client:TrainingJobEvent").model_fields["type"].annotation),
    ),
    _fields("art.serverless.client:Model", "id", "entity", "project", "name", "base_model", "run_id"),
    _fields("art.serverless.client:Checkpoint", "id", "step", "metrics"),
    _fields("art.serverless.client:TrainingJobEvent", "id", "type", "data"),
    _fields(
        "art.serverless.client:ExperimentalTrainingConfig",
        "advantage_balance",
        "epsilon",
        "epsilon_high",
        "importance_sampling_level",
        "kimi_k2_tau",
        "learning_rate",
        "mask_prob_ratio",
        "max_negative_advantage_importance_sampling_weight",
        "ppo",
        "precalculate_logprobs",
        "scale_rewards",
    ),
    # groups
    _fields(
        "art.trajectories:Trajectory",
        "messages_and_choices",
        "tools",
        "additional_histories",
        "reward",
        "initial_policy_version",
        "final_policy_version",
        "metrics",
        "metadata",
        "logs",
        "start_time",
    ),
    _fields("art.trajectories:History", "messages_and_choices", "tools"),
    _fields("art.trajectories:TrajectoryGroup", "trajectories", "exceptions", "metadata", "metrics", "logs"),
    _signature(
        "art.trajectories:TrajectoryGroup.__init__",
        "(self, trajectories, *, exceptions=[], metadata=None, metrics=None, logs=None)",
    ),
    _fields(
        "art.model:TrainableModel",
        "name",
        "project",
        "entity",
        "id",
        "run_id",
        "config",
        "trainable",
        "inference_api_key",
        "inference_base_url",
        "inference_model_name",
        "base_path",
        "report_metrics",
        "base_model",
    ),
    _signature("art.model:Model._get_wandb_run", "(self)"),
    # tokenizing, packing, loss
    _signature(
        "art.preprocessing.tokenize:tokenize_trajectory_groups",
        "(tokenizer, trajectory_groups, allow_training_without_logprobs, scale_rewards, "
        "shuffle_group_trajectories=True, drop_zero_advantage_trajectories=True, image_processor=None, "
        "chat_template_kwargs=None, chat_template_tool_schema_format='default')",
    ),
    _signature(
        "art.preprocessing.tokenize:tokenize_trajectory",
        "(tokenizer, image_processor, history, advantage, allow_training_without_logprobs, trajectory, "
        "chat_template_kwargs=None, chat_template_tool_schema_format='default')",
    ),
    _fields(
        "art.preprocessing.tokenize:TokenizedResult",
        "advantage",
        "chat",
        "token_ids",
        "input_pos",
        "assistant_mask",
        "logprobs",
        "pixel_values",
        "image_grid_thw",
        "trajectory",
        "choice_offsets",
        "extra_logprobs",
        "_tokenizer",
        "weight",
        "prompt_id",
        "prompt_length",
    ),
    _signature(
        "art.preprocessing.pack:packed_tensors_from_tokenized_results",
        "(tokenized_results, seq_len, pad_token_id=-100, truncate_long_results=True, advantage_balance=0.0, "
        "verbosity=1, pack_results=True)",
    ),
    _signature("art.preprocessing.pack:packed_tensors_from_dir", "(**kwargs)"),
    _fields(
        "art.preprocessing.pack:PackedTensors",
        "tokens",
        "group_ids",
        "parent_ids",
        "input_pos",
        "assistant_mask",
        "logprobs",
        "advantages",
        "weights",
        "pixel_values",
        "image_grid_thw",
    ),
    _fields(
        "art.preprocessing.pack:DiskPackedTensors",
        "dir",
        "num_sequences",
        "sequence_length",
        "pixel_values",
        "image_grid_thw",
    ),
    _signature(
        "art.loss:loss_fn",
        "(inputs, new_logprobs, ref_logprobs, entropies, experimental_config, reduction='mean')",
    ),
    _fields("art.loss:Loss", "reduction", "policy_loss", "entropy", "policy_loss_sum", "probs_corr", "kl_policy_ref"),
    Part("ratios that the CISPO loss lets through", (0.0, 5.0), lambda: _clipping(ppo=False)),
    Part("ratios that the PPO loss lets through", (0.8, 1.2), lambda: _clipping(ppo=True)),
    # ART on this machine
    _signature(
        "art.local.backend:LocalBackend.__init__",
        "(self, *, in_process=False, path=None, gpu_cost_per_hour_usd=None)",
    ),
    _signature("art.local.backend:LocalBackend.register", "(self, model)"),
    _signature(
        "art.local.backend:LocalBackend.train",
        "(self, model, trajectory_groups, *, learning_rate=5e-06, loss_fn='cispo', loss_fn_config=None, "
        "normalize_advantages=True, adam_params=None, kl_penalty_coef=0.0, kl_penalty_reference_step=None, "
        "kl_ref_adapter_path=None, epsilon=None, epsilon_high=None, advantage_balance=0.0, "
        "scale_rewards=True, importance_sampling_level='token', "
        "max_negative_advantage_importance_sampling_weight=None, mask_prob_ratio=False, kimi_k2_tau=None, "
        "precalculate_logprobs=False, allow_training_without_logprobs=False, plot_tensors=False, "
        "truncated_importance_sampling=None, scale_learning_rate_by_reward_std_dev=False, "
        "logprob_calculation_chunk_size=1024, packed_sequence_length=None, "
        "num_trajectories_learning_rate_multiplier_power=0.0, save_checkpoint=True, verbose=False)",
    ),
    _signature("art.local.backend:LocalBackend._get_service", "(self, model)"),
    _signature("art.local.service:ModelService.train", "(self, disk_packed_tensors, config, _config, verbose=False)"),
    _signature("art.local.service:ModelService.start_openai_server", "(self, config)"),
    _fields("art.types:LocalTrainResult", "step", "metrics", "checkpoint_path"),
    _fields("art.types:TrainConfig", "learning_rate", "kl_penalty_coef", "grad_accumulation_sequences"),
    _signature(
        "art._backend_training:build_rl_train_configs",
        "(*, learning_rate, advantage_balance=0.0, scale_rewards=True, importance_sampling_level='token', "
        "mask_prob_ratio=False, ppo=False, precalculate_logprobs=False, epsilon=None, epsilon_high=None, "
        "max_negative_advantage_importance_sampling_weight=None, kimi_k2_tau=None, kl_penalty_coef=0.0, "
        "allow_training_without_logprobs=None, plot_tensors=None, truncated_importance_sampling=None, "
        "scale_learning_rate_by_reward_std_dev=None, logprob_calculation_chunk_size=None, "
        "packed_sequence_length=None, num_trajectories_learning_rate_multiplier_power=None, "
        "kl_ref_adapter_path=None)",
    ),
    Part(
        "folder of a step's checkpoint",
        "models/agent/checkpoints/0003",
        lambda: _get("art.utils.output_dirs:get_step_checkpoint_dir")("models/agent", 3),
    ),
    Part(
        "folder of a model",
        "home/project/models/agent",
        lambda: _get("art.utils.output_dirs:get_output_dir_from_model_properties")("project", "agent", "home"),
    ),
)
