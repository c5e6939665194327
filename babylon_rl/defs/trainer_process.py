"""Entry point of the trainer's process, started through Dagster Pipes: reports steps, then the result or the error."""

import contextlib
import os
import sys

import msgspec
from dagster_pipes import open_dagster_pipes

from babylon_rl.database.connect import Database
from babylon_rl.errors import BabylonError
from babylon_rl.settings import get_settings
from babylon_rl.training.backends.art_contract import explanation
from babylon_rl.training.backends.seam import train_on
from babylon_rl.training.trainer import TrainerRequest

DATABASE_VARIABLE = "BABYLON_RL_TRAINER_DATABASE"
EMBEDDED_VARIABLE = "BABYLON_RL_TRAINER_EMBEDDED"


def main() -> None:
    """Train what the run asks for. A user's mistake travels back as its message, anything else as the exit code."""
    with open_dagster_pipes() as pipes:
        request = msgspec.convert(pipes.get_extra("request"), TrainerRequest)
        database = Database(os.environ[DATABASE_VARIABLE], embedded=bool(os.environ[EMBEDDED_VARIABLE]))

        def report(metrics: dict[str, float]) -> None:
            said = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            pipes.log.info(f"{request.checkpoint_id}: {said}")

        try:
            # ART prints and draws progress bars; the run's log has ours.
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
            ):
                result = train_on(request.backend)(request, database, get_settings(), report)
        except BabylonError as error:
            pipes.report_custom_message({"error": str(error)})
        except Exception as error:
            # Another ART than the pinned one fails anywhere; then its version is the message, and not a stack trace.
            said = explanation()
            if said is None:
                raise
            pipes.report_custom_message({"error": f"{said} ({type(error).__name__}: {error})"})
        else:
            pipes.report_custom_message({"result": msgspec.to_builtins(result)})


if __name__ == "__main__":
    sys.exit(main())
