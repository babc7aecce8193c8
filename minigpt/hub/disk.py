"""Writing to a disk that may be full: files forced to it, and errors in one sentence."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from minigpt.errors import SaveError

_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def plain_save_errors(name: Path, remedy: Callable[[], str]) -> Iterator[None]:
    """Turns what the libraries raise when a disk takes no more into one sentence.

    Args:
        name: What is written in the block.
        remedy: Finds out what is left and what to do.

    Raises:
        SaveError: The disk took no more.
    """
    try:
        yield
    except SaveError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _fault_of_disk(error, name)
        if reason is None:
            raise
        raise SaveError(f"{name} could not be written ({reason}); {remedy()}.") from error


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or the nearest of its parents that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def force_to_disk(path: Path) -> None:
    """Make sure that a file or the names in a folder outlive a power failure."""
    if path.is_dir() and sys.platform == "win32":
        return  # Windows opens no folders
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fault_of_disk(error: Exception, name: Path) -> str | None:
    """Return what the disk said, or None if the error is of another kind."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _FAULTS else None
    if isinstance(error, SafetensorError):
        said = re.search(r"([^:]+) \(os error \d+\)", str(error))
        return said[1].strip() if said else None
    if re.search(r"PytorchStreamWriter|inline_container|iostream error", str(error)):  # torch drops what the disk said
        free = shutil.disk_usage(nearest_existing(name)).free
        return f"the disk takes no more, {free / 1e6:,.1f} MB are free"
    return None
