"""A text to train on: known by its name, size and hash, and read in chunks of bounded size."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from minigpt.training.hub_dataset import hub_dataset_reader
from minigpt.training.text_files import SUFFIXES, CorpusError, read_files, text_files
from minigpt.training.tiny_shakespeare import HUB_DATASET, VARIABLE, OutOfReachError, tiny_shakespeare

__all__ = ["Corpus", "CorpusError", "load_text"]

CHUNK_CHARACTERS = 2**20
PLAYS = Path(__file__).with_name("plays.txt")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class Corpus:
    """A text, and what is known of it.

    Attributes:
        name: What a person calls it: a file's name, a dataset's id, `tiny_shakespeare`, `plays`.
        num_bytes: Size of the text in UTF-8, in bytes.
        num_characters: Number of characters (code points).
        sha256: Hash of the text in UTF-8, in hexadecimal: one file's own, unless it began with a byte order mark.
        notice: One line for the person when the text was not chosen by them, else None.
    """

    name: str
    num_bytes: int
    num_characters: int
    sha256: str
    notice: str | None
    _read: Callable[[], Iterator[str]] = field(repr=False, compare=False)

    def chunks(self) -> Iterator[str]:
        """Yields the text from its beginning, 2**20 characters at a time, the last chunk shorter."""
        return _rechunked(self._read())

    @property
    def text(self) -> str:
        """The whole text at once; for long ones, see `chunks`."""
        return "".join(self.chunks())


def load_text(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    text_column: str | None = None,
    subset: str | None = None,
) -> Corpus:
    """Finds a text, reads it through once, and returns it as a corpus.

    Text is taken exactly as it is, line ends included; only a UTF-8 byte order mark at a file's beginning is dropped.

    Args:
        source: One of
            - None: `input.txt` of the current folder, else Tiny Shakespeare, else (out of reach) the bundled plays;
              the corpus's `notice` says which;
            - `"tiny_shakespeare"` or `"plays"`;
            - a text file; a folder, for its `.txt` and `.md` files, subfolders included, sorted by path; or several of
              these in a list. Files are joined in order, with a newline after one that does not end in one;
            - a dataset of the Hub, as `"owner/name"`: all its splits, train first, then validation and test, and every
              row on a line of its own.
        text_column: Column of the Hub dataset; by default `text`, or the only column of strings.
        subset: Configuration of the Hub dataset, where it has several.

    Raises:
        CorpusError: No such text, or it is empty, binary or not UTF-8.
    """
    if isinstance(source, list | tuple) and len(source) == 1:
        return load_text(source[0], text_column=text_column, subset=subset)
    if source is None:
        return _default_corpus()
    if source == "plays":
        return _plays()
    if source in ("tiny_shakespeare", HUB_DATASET):
        try:
            return _tiny_shakespeare()
        except OutOfReachError as error:
            raise CorpusError(
                f"Tiny Shakespeare is out of reach ({error}); connect to the network, set {VARIABLE} to the path of a "
                "copy, or train on 'plays', the bundled text."
            ) from error
    if isinstance(source, str) and _names_hub_dataset(source):
        return _corpus(source, hub_dataset_reader(source, text_column, subset))
    return _files([source] if isinstance(source, str | os.PathLike) else source)


def _default_corpus() -> Corpus:
    """Returns the text for somebody who named none, with the notice that says which it is."""
    if Path("input.txt").is_file():
        return replace(_files(["input.txt"]), notice="No text was named: using input.txt of the current folder.")
    try:
        return replace(_tiny_shakespeare(), notice="No text was named: using Tiny Shakespeare.")
    except OutOfReachError as error:
        return replace(
            _plays(),
            notice=f"No text was named and Tiny Shakespeare is out of reach ({error}): using the bundled plays.",
        )


def _tiny_shakespeare() -> Corpus:
    text = tiny_shakespeare()
    return _corpus("tiny_shakespeare", lambda: iter([text]))


def _plays() -> Corpus:
    return _corpus("plays", lambda: read_files([PLAYS]))


def _files(sources: Sequence[str | os.PathLike[str]]) -> Corpus:
    if not sources:
        raise CorpusError("An empty list names no text; give at least one file or folder.")
    for source in sources:
        if source in ("plays", "tiny_shakespeare") and not Path(source).exists():
            raise CorpusError(f"{source!r} is a whole corpus and {len(sources)} texts were named; give it alone.")
    files = [file for source in sources for file in text_files(source)]
    # Names that are not UTF-8 are shown with U+FFFD: no file of text, such as run.json, could hold them as they are.
    names = [os.fsencode(Path(source).expanduser().resolve().name).decode(errors="replace") for source in sources]
    first, *others = names
    return _corpus(f"{first} + {len(others)} more" if others else first, lambda: read_files(files))


def _names_hub_dataset(source: str) -> bool:
    """Tells whether `owner/name` means the Hub: what is on this machine, or would be in a folder of it, comes first."""
    path = Path(source)
    return bool(_HUB_ID.fullmatch(source)) and not (path.exists() or path.parent.is_dir() or path.suffix in SUFFIXES)


def _corpus(name: str, read: Callable[[], Iterator[str]]) -> Corpus:
    """Reads the text through once, for its size and hash."""
    digest = hashlib.sha256()
    num_bytes = num_characters = 0
    for chunk in read():
        data = chunk.encode()
        digest.update(data)
        num_bytes += len(data)
        num_characters += len(chunk)
    if not num_characters:
        raise CorpusError(f"{name} is empty; give a text with at least a few thousand characters.")
    return Corpus(name, num_bytes, num_characters, digest.hexdigest(), notice=None, _read=read)


def _rechunked(pieces: Iterable[str]) -> Iterator[str]:
    """Yields the same text in chunks of `CHUNK_CHARACTERS`: many short rows together, or a part of a huge one."""
    waiting: list[str] = []
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= CHUNK_CHARACTERS:
            text = "".join(waiting)
            whole = length - length % CHUNK_CHARACTERS
            for start in range(0, whole, CHUNK_CHARACTERS):
                yield text[start : start + CHUNK_CHARACTERS]
            waiting, length = [text[whole:]], length - whole
    if length:
        yield "".join(waiting)
