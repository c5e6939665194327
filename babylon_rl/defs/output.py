"""How an asset hands its rows over: the output for the IO manager, with what a person sees beside it."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import pandas as pd

Describe = Callable[[pd.DataFrame], Mapping[str, Any]]


def written(context: dg.AssetExecutionContext, frame: pd.DataFrame, describe: Describe) -> dg.Output[pd.DataFrame]:
    """The run's rows as the asset's output, described by `describe`."""
    return dg.Output(frame, metadata=describe(frame))
