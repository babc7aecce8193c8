"""The bars that transformers draws while it opens a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Spares a person the bars of transformers over files that are read and written in no time."""
    shown, uploads_are_hidden = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # and with it those of the Hub's client, which may be pushing
        if uploads_are_hidden:
            disable_progress_bars()
