"""Text that can be read only once (standard input, pipes), kept in a temporary file so that it can be read again."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from minigpt.errors import CorpusError
from minigpt.training.data.token_files import writable_folder


def is_stream(source: str | os.PathLike[str]) -> bool:
    """Return True for `-`, devices, and pipes with or without a name, such as those of `<(command)`."""
    path = Path(source).expanduser()
    # On some systems /dev/stdin continues where the reader before has stopped, even if it is a file.
    return source == "-" or (
        path.exists() and not path.is_dir() and (not path.is_file() or path.parts[:2] == ("/", "dev"))
    )


def spool_streams(sources: Sequence[str | os.PathLike[str]], *, as_rows: bool = False) -> list[str | os.PathLike[str]]:
    """Read streams to their end, and return the sources with temporary files in place of them.

    The files are deleted when the process ends.

    Args:
        sources: Files, folders, patterns and streams.
        as_rows: The streams hold JSON Lines.

    Raises:
        CorpusError: A stream cannot be read or kept, or several processes would share it.
    """
    return [_spool(source, ".jsonl" if as_rows else "") if is_stream(source) else source for source in sources]


def _spool(source: str | os.PathLike[str], suffix: str) -> Path:
    path = Path(source).expanduser()
    is_stdin = str(source) in ("-", "/dev/stdin", "/dev/fd/0")
    name = "stdin" if is_stdin else "pipe" if path.parent.name == "fd" else path.name
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CorpusError(
            f"{source} can be read by one process only, and WORLD_SIZE is {os.environ['WORLD_SIZE']}; save the text to "
            "a file."
        )
    if is_stdin and sys.stdin is None:
        raise CorpusError(f"{source} is closed; name a file.")
    kept = writable_folder(None) / f"{name}{suffix}"
    try:
        with kept.open("wb") as file:
            if is_stdin:
                shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                with path.open("rb") as stream:
                    shutil.copyfileobj(stream, file)
    except (OSError, ValueError) as error:  # a closed file is a ValueError
        raise CorpusError(f"{source} cannot be read to its end ({error}); save the text to a file.") from error
    return kept
