"""How an error that a user can mend appears in Dagster: a failure whose description is the error's own message."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from babylon_rl.errors import BabylonError


@contextlib.contextmanager
def typed_failures() -> Iterator[None]:
    """Turn a BabylonError into a dg.Failure that is not tried again: the same input would fail the same way."""
    try:
        yield
    except BabylonError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
