"""How an asset hands its rows over: the output for the IO manager, with what a person sees of each window beside it."""

import dagster as dg
import pandas as pd

from babylon_rl.defs.metadata.windows import Describe, describe_windows
from babylon_rl.defs.partitions import window_ids


def written(context: dg.AssetExecutionContext, frame: pd.DataFrame, describe: Describe) -> dg.Output[pd.DataFrame]:
    """The run's rows as the asset's output; `describe` says what a person sees of a window's own rows."""
    return dg.Output(frame, metadata=describe_windows(context, window_ids(context), frame, describe))
