"""Ctrl-C or SIGTERM while a model trains: the step is finished and saved, and a second signal is obeyed at once."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from minigpt.errors import TrainingInterrupted

# What a terminal sends for Ctrl-C, and what a cluster or a container sends before it kills.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def exit_if_interrupted() -> Iterator[None]:
    """Ends a command that was interrupted as a shell expects it, with what there is to say about it.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        yield
    except TrainingInterrupted as interruption:
        print(interruption, file=sys.stderr)
        raise SystemExit(128 + interruption.signal_number) from None


class StopOnInterrupt(TrainerCallback):
    """Within its context, Ctrl-C and SIGTERM end the training after the current step, with a checkpoint.

    Outside the main thread, where Python takes no signals, it does nothing.

    Attributes:
        received: The signal that came, if one did.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopOnInterrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks the Trainer to save and stop."""
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def _on_signal(self, number: int, frame: Any) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("\nSaving a checkpoint; press Ctrl-C again to stop at once.", file=sys.stderr, flush=True)
