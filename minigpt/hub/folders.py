"""Output folders: checked before any work, and there as a whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt.errors import UsageError
from minigpt.hub.disk import force_to_disk, plain_save_errors
from minigpt.hub.exporting.graph_card import is_graph_card
from minigpt.hub.file_names import CARD, written_files
from minigpt.hub.run_lock import LOCK, refuse_running


def check_path(folder: Path, option: str = "--output_dir") -> Path:
    """Refuses a folder that holds more than a model, or that cannot be moved.

    Args:
        folder: An output folder of any command.
        option: What it was given with, for the message.

    Returns:
        The folder, with nothing in its path left to resolve.

    Raises:
        UsageError: It is a link, a file, a mount point, or the current folder or one of its parents.
    """
    resolved = folder.resolve()
    if folder.is_symlink():
        raise UsageError(f"{option} {folder} is a link; name the folder that it leads to: {resolved}.")
    current = Path.cwd().resolve()
    if resolved in (current, *current.parents):
        raise UsageError(f"{option} {folder} is or holds the current folder; name a folder of the model's own.")
    if os.path.ismount(resolved):
        raise UsageError(f"{option} {folder} is a mount point; name a folder in it.")
    if resolved.exists() and not resolved.is_dir():
        raise UsageError(f"{folder} is a file; name another {option}.")
    return resolved


def check_output(output: Path, *, overwrite: bool = False) -> Path:
    """Refuses a folder that `staged_folder` would refuse to make, before anything else is done.

    Returns:
        The folder, with nothing in its path left to resolve.

    Raises:
        UsageError: `check_path` refuses it, or it holds something and is not to be replaced.
        FolderInUse: A run is writing to it.
    """
    folder = check_path(output)
    if folder.is_dir():
        if not overwrite and any(path.name != LOCK for path in folder.iterdir()):
            raise UsageError(
                f"{output} already holds something; replace its model with --overwrite, or name another --output_dir."
            )
        refuse_running(folder, "name another --output_dir")
    return folder


def clear_folder(folder: Path) -> None:
    """Deletes the model or the run that a folder holds, and leaves what no command has written."""
    for path in _ours(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def staged_folder(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a folder to write into, which becomes `output` when the block ends well and vanishes when it does not.

    Args:
        output: The folder to make. Its parents are made too.
        overwrite: Whether the model in a folder of that name is replaced. What no command has written stays there.

    Raises:
        UsageError: Before anything is written: `check_output` refuses it, or it cannot be written.
        SaveError: The disk is full. What the folder held is still there.
    """
    folder = check_output(output, overwrite=overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, so that the last step is a rename on one file system.
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"{output} cannot be written ({error.strerror or error}); name another --output_dir."
        ) from error
    try:
        with plain_save_errors(output, lambda: "make room on that disk, and run the same command again"):
            staging.chmod(0o755)  # mkdtemp makes folders for their owner alone
            yield staging
            for path in (*staging.rglob("*"), staging):
                force_to_disk(path)
            if folder.exists():
                _replace(folder, staging)
            else:
                staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(folder: Path, staging: Path) -> None:
    """Puts a folder in the place of another. Killed at any moment, it leaves the old files in one of three folders."""
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}-replaced-", dir=folder.parent))
    old = folder.rename(aside / folder.name)
    try:
        staging.rename(folder)
    except OSError:
        old.rename(folder)
        aside.rmdir()
        raise
    _carry_over(old, folder, set(_ours(old)))
    shutil.rmtree(aside, ignore_errors=True)


def _carry_over(old: Path, new: Path, ours: set[Path]) -> None:
    """Moves what no command has written from a replaced folder into the one in its place."""
    for path in old.iterdir():
        target = new / path.name
        if path in ours or path.name == LOCK:
            continue
        if path.is_symlink() or not path.is_dir():
            if not target.exists() or path.name == CARD:  # a person's own words
                path.replace(target)
        elif target.is_dir() or any(one.is_relative_to(path) for one in ours):
            target.mkdir(exist_ok=True)
            _carry_over(path, target, ours)
            if not any(target.iterdir()):
                target.rmdir()
        else:
            path.rename(target)


def _ours(folder: Path) -> list[Path]:
    return [*written_files(folder), *([folder / CARD] if _is_our_card(folder / CARD) else [])]


def _is_our_card(card: Path) -> bool:
    if not card.is_file():
        return False
    from minigpt.hub.publishing.card import is_generated  # only a folder with a card needs the code that publishes

    text = card.read_text(encoding="utf-8", errors="replace")
    return is_generated(text) or is_graph_card(text)
