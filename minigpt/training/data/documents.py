"""Documents of a text: found by a rule, kept in a temporary file, and read in any order."""

import random
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from minigpt.errors import CorpusError
from minigpt.tokenization.tokenization_minigpt import END_OF_TEXT


class Documents:
    """Documents in a temporary file, so that no text is too long to be shuffled.

    `<|endoftext|>` ends a document under every rule. One line end after it belongs to it. Documents that consist of
    white space are left out.

    Args:
        units: What the rule cuts the text into: lines, rows, files, or what is between separators.

    Attributes:
        num_blank: Number of documents that were left out; those at the end do not count.
        num_cut: Number of units that `<|endoftext|>` cut.

    Raises:
        CorpusError: There is no room for the file.
    """

    def __init__(self, units: Iterable[str]) -> None:
        self.num_blank = self.num_cut = 0
        self._ends = array("q", [0])
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  deleted with this object
            blank = 0
            for unit in units:
                parts = _MARKER.split(unit)
                self.num_cut += len(parts) > 1
                for part in parts:
                    if not part or part.isspace():
                        blank += 1
                        continue
                    self.num_blank, blank = self.num_blank + blank, 0
                    self._ends.append(self._ends[-1] + self._file.write(part.encode()))
            self._file.flush()
        except OSError as error:
            raise CorpusError(
                f"The documents cannot be written to {tempfile.gettempdir()} ({error.strerror or error}); make room "
                "there or set TMPDIR to another folder."
            ) from error

    def __len__(self) -> int:
        return len(self._ends) - 1

    def read(self, places: Iterable[int]) -> Iterator[str]:
        """Yield the documents at these places, each followed by `<|endoftext|>`."""
        content = np.memmap(self._file, np.uint8, mode="r") if len(self) else np.empty(0, np.uint8)
        for place in places:
            yield content[self._ends[place] : self._ends[place + 1]].tobytes().decode()
            yield END_OF_TEXT

    def shuffled(self, seed: int) -> Sequence[int]:
        """Return the places of all documents in the order of a seed."""
        places = array("q", range(len(self)))
        random.Random(seed).shuffle(places)
        return places


def lines_of(pieces: Iterable[str]) -> Iterator[str]:
    r"""Yield the lines of a text without their ends, which are `\n` or `\r\n`."""
    return (line.removesuffix("\r") for line in _cut(pieces, "\n"))


def separated(pieces: Iterable[str]) -> Iterator[str]:
    """Yield what is between the separators of a text. One line end after a separator belongs to it."""
    units = _cut(pieces, END_OF_TEXT)
    yield next(units)
    yield from (_LINE_END.sub("", unit) for unit in units)


_LINE_END = re.compile(r"\A\r?\n")
_MARKER = re.compile(rf"{re.escape(END_OF_TEXT)}(?:\r?\n)?")


def _cut(pieces: Iterable[str], mark: str) -> Iterator[str]:
    """Yield what is between the marks, in time linear in the length of the text."""
    rest, searched = "", 0
    for piece in pieces:
        rest += piece
        if rest.find(mark, searched) >= 0:
            *units, rest = rest.split(mark)
            yield from units
        searched = max(0, len(rest) - len(mark))
    yield rest
