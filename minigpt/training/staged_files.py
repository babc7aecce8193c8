"""Files that appear whole or not at all: written into a folder of their own, forced to the disk, then moved."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer import TRAINING_ARGS_NAME

from minigpt.hub.adapter_folders import CONFIG as ADAPTER_CONFIG
from minigpt.hub.disk import force_to_disk
from minigpt.hub.file_names import CARD, RUN
from minigpt.training.checksums import write_checksums


def publish_checkpoint(staged: Path, final: Path) -> None:
    """Rename a finished checkpoint to its final name; from then on it survives a power failure."""
    write_checksums(staged, but=(TRAINING_ARGS_NAME,))  # nothing reads it, and it is not pushed
    for path in (*staged.rglob("*"), staged):
        force_to_disk(path)
    if final.exists():  # a damaged one, or one of another run in the same folder
        final.rename(staged.parent / "replaced")
    staged.rename(final)
    force_to_disk(final.parent)
    shutil.rmtree(staged.parent, ignore_errors=True)


def publish_files(staged: Path, folder: Path) -> None:
    """Move files into a folder, in an order that never pairs results with another model's weights.

    Old results are deleted first. The config is moved after the weights, and the new results last.
    """
    for path in (*staged.rglob("*"), staged):
        force_to_disk(path)
    late = ("config.json", ADAPTER_CONFIG, *reversed(RUN))
    names = sorted((path.name for path in staged.iterdir()), key=lambda name: late.index(name) if name in late else -1)
    for name in set(RUN) & set(names):
        (folder / name).unlink(missing_ok=True)
    force_to_disk(folder)
    for name in names:
        if (folder / name).is_dir():  # of DeepSpeed
            shutil.rmtree(folder / name)
        (staged / name).replace(folder / name)
    force_to_disk(folder)


@contextmanager
def unchanged_card(folder: Path, *, is_ours: bool) -> Iterator[None]:
    """Keep the model card as it is: PEFT writes a template beside each adapter that it saves, or edits the card there.

    Args:
        folder: Folder that a model is saved in.
        is_ours: True in the process that saves.
    """
    card = folder / CARD
    before = card.read_bytes() if card.is_file() else None
    chatty = logging.getLogger("huggingface_hub")
    level = chatty.level
    chatty.setLevel(logging.ERROR)  # of a card without metadata
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="peft")
            yield
    finally:
        chatty.setLevel(level)
        if is_ours and before is not None:
            card.write_bytes(before)
        elif is_ours:
            card.unlink(missing_ok=True)
