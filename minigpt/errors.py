"""Every exception of the package but `UnknownCharacterError`, whose file is copied into Hub repositories.

Each message is one sentence: what is wrong, with the value, and what to do.
"""

import signal


class UsageError(ValueError):
    """The request can never be fulfilled; the command line exits with status 2."""


class CorpusError(ValueError):
    """A text cannot be used."""


class OutOfReachError(CorpusError):
    """Tiny Shakespeare is not on this machine and cannot be fetched. The message is the reason alone."""


class RunError(ValueError):
    """A run cannot start or continue in its output folder."""


class CheckpointError(ValueError):
    """There is no whole checkpoint to resume from."""


class FolderInUse(ValueError):
    """A run in another process or thread is writing to the folder."""


class SaveError(OSError):
    """A file could not be written. The message says what is whole."""


class PushFailed(RuntimeError):
    """The Hub did not accept a push."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal after its checkpoint was saved.

    Attributes:
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number
