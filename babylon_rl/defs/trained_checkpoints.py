"""Asset `trained_checkpoints`: the model's state after each hour; updates run in the trainer's own process."""

import sys

import dagster as dg
import msgspec
from dagster._core.errors import DagsterPipesExecutionError

from babylon_rl.database.connect import Database
from babylon_rl.database.window_rows import WindowRows
from babylon_rl.defs.declarations import declared
from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata.models import checkpoints_described
from babylon_rl.defs.output import written
from babylon_rl.defs.partitions import window_ids
from babylon_rl.defs.publishing import publish_finished, with_metadata
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.defs.trainer_process import DATABASE_VARIABLE, EMBEDDED_VARIABLE
from babylon_rl.errors import TrainingError
from babylon_rl.settings import get_settings
from babylon_rl.training.trainer import TrainerRequest, TrainerResult
from babylon_rl.training.updates import keep_rows, update_checkpoints
from babylon_rl.training.working import Launch

DESCRIPTION = """\
A row is an hour: the checkpoint that the model stands at after it, and the update that ended there, or the reason
why there was none. **A partition** depends on the one before it, so a range is taken in order.

**No update?** `reason` says it: the batch is not full, the run is over, an alarm led back. **An alarm?** The check
`learning_is_steady` and `alarms` show what the batch looked like and what was done. **Failed?** The parent stays, and
the next attempt takes up the same job. Materializing an hour again whose groups changed trains a new branch; what was
trained before is never rewritten.

Made from `art_groups`; read by `checkpoint_evaluations`.
"""


@dg.asset(
    **declared("trained_checkpoints", "training", rerun="trains"),
    deps=[
        "art_groups",
        dg.AssetDep(
            "trained_checkpoints", partition_mapping=dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
        ),
    ],
    pool="trainer",
    group_name="models",
    kinds={"postgres", "pytorch"},
    code_version="1",
    description=DESCRIPTION,
)
@typed_failures()
def trained_checkpoints(
    context: dg.AssetExecutionContext, database: DatabaseResource, trainer: dg.PipesSubprocessClient
) -> dg.Output[WindowRows]:
    opened = database.open()
    launch = launcher(context, trainer, opened)

    def keep(rows: WindowRows) -> None:
        keep_rows(opened, rows)
        for window_id in rows.frame.get("window_id", ()):
            context.log_event(dg.AssetMaterialization(context.asset_key, partition=window_id))

    try:
        rows = update_checkpoints(opened, get_settings(), window_ids(context), launch, keep)
    finally:  # an update that failed is told too
        published = publish_finished(context.log, opened)
    return with_metadata(written(context, opened, rows, checkpoints_described(opened)), published)


def launcher(context: dg.AssetExecutionContext, client: dg.PipesSubprocessClient, database: Database) -> Launch:
    """Function that makes an update in a process of its own; TrainingError with what that process said went wrong."""

    def launch(request: TrainerRequest) -> TrainerResult:
        try:
            completed = client.run(
                context=context,
                command=[sys.executable, "-m", "babylon_rl.defs.trainer_process"],
                extras={"request": msgspec.to_builtins(request)},
                # The URL may hold a password; the run's log may show extras, and never the environment.
                env={DATABASE_VARIABLE: database.url, EMBEDDED_VARIABLE: "1" if database.embedded else ""},
            )
        except DagsterPipesExecutionError as error:
            raise TrainingError(
                f"The trainer's process ended without a result ({error}). The run's log has its stack trace; code -9 "
                "without one means that the system stopped it, mostly for lack of memory. The parent checkpoint stays."
            ) from error
        messages = completed.get_custom_messages()
        if not messages:
            raise TrainingError("The trainer's process ended without a result; the run's log says what it did last.")
        if "error" in messages[-1]:
            raise TrainingError(messages[-1]["error"])
        return msgspec.convert(messages[-1]["result"], TrainerResult)

    return launch
