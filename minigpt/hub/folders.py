"""Folders that are there as a whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt.errors import UsageError


def check_output(output: Path, *, overwrite: bool = False) -> None:
    """Refuses a folder that `staged_folder` would refuse to make, before anything else is done.

    Raises:
        UsageError: `output` is a file, or a folder that holds something and is not to be replaced.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; name another --output.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UsageError(f"{output} already holds something; replace it with --overwrite, or name another --output.")


@contextmanager
def staged_folder(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a folder to write into, which becomes `output` when the block ends well and vanishes when it does not.

    Args:
        output: The folder to make. Its parents are made too.
        overwrite: Whether a folder of that name is replaced.

    Raises:
        UsageError: Before anything is written: `output` is a file, or a folder that holds something and is not to be
            replaced, or cannot be written.
    """
    check_output(output, overwrite=overwrite)
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        # Beside it, so that the last step is a rename on one file system.
        staging = Path(tempfile.mkdtemp(prefix=f".{output.name}-unfinished-", dir=output.absolute().parent))
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error.strerror or error}); name another --output.") from error
    try:
        staging.chmod(0o755)  # mkdtemp makes folders for their owner alone
        yield staging
        if output.exists():
            shutil.rmtree(output)
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
