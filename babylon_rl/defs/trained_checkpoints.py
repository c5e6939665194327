"""Asset `trained_checkpoints`: the model's state after each hour; updates run in the trainer's own process."""

import os
import sys

import dagster as dg
import msgspec
import pandas as pd

from babylon_rl.defs.failures import typed_failures
from babylon_rl.defs.metadata import checkpoints_metadata
from babylon_rl.defs.partitions import SHARED, window_ids
from babylon_rl.defs.resources import DatabaseResource
from babylon_rl.defs.trainer_process import DATABASE_VARIABLE, EMBEDDED_VARIABLE
from babylon_rl.errors import BabylonError
from babylon_rl.settings import get_settings
from babylon_rl.training.updates import Launch, TrainerRequest, TrainerResult, update_checkpoints


@dg.asset(
    **SHARED,
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
    description="One row a window: the checkpoint after it, the update that ended there, or why there was none.",
)
@typed_failures()
def trained_checkpoints(
    context: dg.AssetExecutionContext, database: DatabaseResource, trainer: dg.PipesSubprocessClient
) -> dg.Output[pd.DataFrame]:
    opened = database.open()
    launch = _launch(context, trainer, opened.url, opened.embedded)
    try:
        frame = update_checkpoints(opened, get_settings(), window_ids(context), launch)
    except BabylonError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return dg.Output(frame, metadata=checkpoints_metadata(frame))


def _launch(context: dg.AssetExecutionContext, client: dg.PipesSubprocessClient, url: str, embedded: bool) -> Launch:
    def launch(request: TrainerRequest) -> TrainerResult:
        completed = client.run(
            context=context,
            command=[sys.executable, "-m", "babylon_rl.defs.trainer_process"],
            extras={"request": msgspec.to_builtins(request)},
            # The URL may hold a password; extras are kept in the event log, the environment is not.
            env={**os.environ, DATABASE_VARIABLE: url, EMBEDDED_VARIABLE: "1" if embedded else ""},
        )
        message = completed.get_custom_messages()[-1]
        if "error" in message:
            raise BabylonError(message["error"])
        return msgspec.convert(message["result"], TrainerResult)

    return launch
