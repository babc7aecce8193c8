"""A lock on a run's folder, held by the operating system as long as the run lives."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from minigpt.errors import FolderInUse

logger = logging.getLogger(__name__)

# The Hub's clients upload no name that begins with an underscore.
LOCK = "_run.lock"
_IN_USE = "another run is writing to {}; wait until it ends, or name another --output_dir."
# The folders that this process holds, and by which thread.
_held: dict[Path, int] = {}


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder. The thread that holds it may enter again.

    The lock ends with the process, however it ends. Its file and folders that hold nothing else are removed.

    Raises:
        FolderInUse: Another run holds the folder.
        OSError: The folder cannot be made.
    """
    folder = folder.resolve()
    if _held.get(folder) == threading.get_ident():
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if folder in _held:
        raise FolderInUse(_IN_USE.format(folder))
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUse(_IN_USE.format(folder)) from error
    except OSError as error:  # a disk without locks is no reason not to train
        logger.warning("%s cannot be locked (%s): see that no other run writes to it.", folder, error)
    _held[folder] = threading.get_ident()
    try:
        yield
    finally:
        del _held[folder]
        with suppress(OSError):  # Windows deletes no open file
            (folder / LOCK).unlink()  # before it is released: who waits for it notices, and makes a new one
        lock.release()
        with suppress(OSError):  # the first one that holds something
            for path in made:
                path.rmdir()


def refuse_running(folder: Path, remedy: str) -> None:
    """Refuses a folder into which another process trains at this moment.

    Raises:
        FolderInUse: One does. The message ends with the remedy.
    """
    folder = folder.resolve()
    if folder in _held or not (folder / LOCK).is_file():
        return
    try:
        FileLock(folder / LOCK, timeout=0).acquire().lock.release()
    except Timeout as error:
        raise FolderInUse(f"a run is writing to {folder}; {remedy}.") from error
    except OSError:
        return  # no permission, or a read-only disk: the lock cannot be tested
