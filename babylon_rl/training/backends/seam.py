"""The one seam of training: a request in, a checkpoint out, whichever backend. Runs in the trainer's process."""

from collections.abc import Callable

from babylon_rl.database.connect import Database
from babylon_rl.errors import SettingsError
from babylon_rl.settings import Settings
from babylon_rl.training.backends.hosted import train_hosted
from babylon_rl.training.trainer import Report, TrainerRequest, TrainerResult, train_update

# Makes the update of a request whose job is in the ledger, or hands out the one that an earlier attempt made.
Train = Callable[[TrainerRequest, Database, Settings, Report], TrainerResult]


def resolved(settings: Settings) -> str:
    """Name of the backend that the settings ask for: what `auto` stands for, else itself."""
    if settings.training_backend != "auto":
        return settings.training_backend
    return "wandb" if settings.wandb_api_key is not None else "torch"


def train_on(backend: str) -> Train:
    """The backend of that name. SettingsError where there is none."""
    if backend == "torch":
        return _torch
    if backend == "wandb":
        return train_hosted
    raise SettingsError(f"There is no training backend {backend!r}; TRAINING_BACKEND is torch, wandb or art-local.")


def _torch(request: TrainerRequest, database: Database, settings: Settings, report: Report) -> TrainerResult:
    return train_update(request, database, report)
