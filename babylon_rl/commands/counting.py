"""How far a look at many rows has come, on standard error where a terminal shows it."""

import contextlib
from collections.abc import Callable, Iterator

from babylon_rl.console import errors


@contextlib.contextmanager
def counting() -> Iterator[Callable[[int], None]]:
    """Function that is told the number of rows so far."""
    if not errors.is_terminal:
        yield lambda rows: None
        return
    with errors.status("looking at the recordings") as line:
        yield lambda rows: line.update(f"{rows:,} rows")
