"""Ctrl-C while a model trains: the step is finished and kept, and a second Ctrl-C is obeyed at once."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


class TrainingInterrupted(KeyboardInterrupt):
    """The training was stopped by Ctrl-C after a checkpoint; the message says where that is and how to go on."""


@contextmanager
def exit_130_if_interrupted() -> Iterator[None]:
    """Ends a command that was interrupted as a shell expects it, with what there is to say about it."""
    try:
        yield
    except TrainingInterrupted as interruption:
        print(interruption, file=sys.stderr)
        raise SystemExit(130) from None


class StopOnInterrupt(TrainerCallback):
    """Within its context, Ctrl-C ends the training after the current step, with a checkpoint.

    Outside the main thread, where Python takes no signals, it does nothing.

    Attributes:
        requested: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "StopOnInterrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks the Trainer to save and stop."""
        if self.requested:
            control.should_save = control.should_training_stop = True

    def _on_signal(self, *signal_and_frame: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nSaving a checkpoint; press Ctrl-C again to stop at once.", file=sys.stderr, flush=True)
