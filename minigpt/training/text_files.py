"""Reading text files exactly as they are, in bounded memory, and refusing what is not text."""

import codecs
import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

SUFFIXES = (".txt", ".md")
CHUNK_BYTES = 2**20


class CorpusError(ValueError):
    """A text that cannot be used: the message names it, what is wrong with it and what to do."""


def text_files(path: str | os.PathLike[str]) -> list[Path]:
    """Returns the file at `path`, or the text files of the folder there.

    In a folder every `.txt` and `.md` file counts, those of its subfolders too, sorted by path; hidden ones do not.

    Raises:
        CorpusError: Nothing is there (the message names the nearest name), or the folder has no text file.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.exists():
        raise CorpusError(
            f"There is no file or folder {str(path)!r}{_did_you_mean(path)}; give the path of a text file."
        )
    inside = [file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    visible = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    if not visible:
        raise CorpusError(
            f"The folder {str(path)!r} holds no text file ({' or '.join(SUFFIXES)}); put one there or name a file."
        )
    return [path / file for file in sorted(visible, key=Path.as_posix)]


def read_files(paths: Iterable[Path]) -> Iterator[str]:
    """Yields the text of the files in order, with a newline between two where the first does not end with one."""
    ended = True
    for path in paths:
        for position, text in enumerate(_read_file(path)):
            if position == 0 and not ended:
                yield "\n"
            yield text
            ended = text.endswith("\n")


def _read_file(path: Path) -> Iterator[str]:
    """Yields the file's text, line ends as they are, in pieces that are never empty, without its byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(CHUNK_BYTES)
                if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise CorpusError(
                        f"{path} is not UTF-8 but UTF-16 (its byte order mark says so); save it as UTF-8."
                    )
                if (nul := data.find(0)) >= 0:
                    raise CorpusError(f"{path} is a binary file (NUL byte at offset {offset + nul}); give a text file.")
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    # What the decoder saw begins with bytes that it had kept from the chunk before.
                    position = offset + len(data) - len(error.object) + error.start
                    raise CorpusError(
                        f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {position} "
                        f"({error.reason}); save it as UTF-8."
                    ) from None
                if offset == 0:
                    text = text.removeprefix("\ufeff")
                if text:
                    yield text
                if not data:
                    return
                offset += len(data)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}.") from error


def _did_you_mean(path: Path) -> str:
    """Returns a hint at the entry of the same folder whose name is nearest, or nothing."""
    try:
        neighbours = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f" (nor a folder {str(path.parent)!r})"
    nearest = get_close_matches(path.name, neighbours, n=1)
    return f" (did you mean {str(path.parent / nearest[0])!r}?)" if nearest else ""
