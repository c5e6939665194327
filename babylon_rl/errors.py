"""The errors that a user of babylon_rl can cause or mend.

Each message says what is wrong and what to do about it; the command line prints it without a stack trace.
"""


class BabylonError(Exception):
    """Base of all errors that carry their own remedy."""


class SettingsError(BabylonError):
    """A setting is missing, unknown or out of range."""


class WindowIdError(BabylonError, ValueError):
    """A text is not the id of a window."""


class DatabaseError(BabylonError):
    """A database cannot be reached, used or created."""


class Unreachable(DatabaseError):
    """A database cannot be reached: `what` happened, and the remedy, which depends on who asked."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} {remedy}")
        self.what = what

    def __reduce__(self) -> tuple:
        return (_unreachable, (self.what, str(self)))


def _unreachable(what: str, told: str) -> Unreachable:
    return Unreachable(what, told[len(what) + 1 :])


class RecordingError(BabylonError):
    """A recording cannot be written or read."""


class ScoringError(BabylonError):
    """A score cannot be computed or trusted."""


class EmptyWindowError(BabylonError):
    """A window holds nothing that the step asked for can use."""


class ModelError(BabylonError):
    """Weights or tokenizer of a model are missing or damaged."""


class TrainingError(BabylonError):
    """An update cannot be made, or was not made."""


class ServingError(BabylonError):
    """The endpoint of a checkpoint cannot be started or does not answer."""


class DeskError(BabylonError):
    """Dagster's webserver or daemon cannot be started, or has ended."""


class PublishingError(BabylonError):
    """The application cannot be told of checkpoints; nothing was written there."""
