"""Reading text files exactly as they are, in bounded memory, and refusing what is not text."""

import codecs
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

SUFFIXES = (".txt", ".md")
CHUNK_BYTES = 2**20
# What the file of each split is called, without its ending.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


class CorpusError(ValueError):
    """A text that cannot be used: the message names it, what is wrong with it and what to do."""


@dataclass(frozen=True)
class FoundFiles:
    """Text files, and which split they are for.

    Attributes:
        train: Files to train on.
        validation: Files to validate on; without any, a part of the text is held back.
        notice: One line that names what was left out, None if nothing was.
    """

    train: list[Path]
    validation: list[Path] = field(default_factory=list)
    notice: str | None = None


def find_files(path: str | os.PathLike[str]) -> FoundFiles:
    """Find the file at `path`, the files that match it as a pattern, or the text files of the folder there.

    A folder's text files are its `.txt` and `.md` files, those of its subfolders too, sorted by path; hidden ones are
    not among them. If one of them lies in the folder itself and is called `train`, the files are splits: `train` is
    trained on, `valid`, `val`, `validation` or `dev` is validated on, and `test` and all others are left out.

    Raises:
        CorpusError: Nothing is there (the message names the nearest name), or the folder has no text file.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return FoundFiles([path])
    if not path.exists() and glob.has_magic(str(path)):
        # Unlike Path.glob, it leaves hidden files out.
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        if not matches:
            raise CorpusError(f"No file matches {str(path)!r}; check the pattern.")
        return FoundFiles(matches)
    if not path.exists():
        raise CorpusError(
            f"There is no file or folder {str(path)!r}{_did_you_mean(path)}; give the path of a text file."
        )
    inside = sorted((file.relative_to(path) for file in path.rglob("*") if file.is_file()), key=Path.as_posix)
    visible = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    texts = [file for file in visible if file.suffix.lower() in SUFFIXES]
    if not texts:
        raise CorpusError(
            f"The folder {str(path)!r} holds no text file ({' or '.join(SUFFIXES)}); put one there or name files, as "
            f"in --data {str(path / '**' / '*.py')!r}."
        )
    named = {split: [file for file in texts if _split_of(file) == split] for split in SPLIT_NAMES}
    read = [*named["train"], *named["validation"]] if named["train"] else texts
    notice = _notice(path, visible, read, is_split=bool(named["train"]))
    if not named["train"]:
        return FoundFiles([path / file for file in texts], notice=notice)
    return FoundFiles([path / file for file in named["train"]], [path / file for file in named["validation"]], notice)


def _split_of(file: Path) -> str | None:
    """Return the split that a file's name means; files in subfolders mean none."""
    if len(file.parts) > 1:
        return None
    return next((split for split, names in SPLIT_NAMES.items() if file.stem.lower() in names), None)


def _notice(folder: Path, visible: list[Path], read: list[Path], *, is_split: bool) -> str | None:
    left_out = [file for file in visible if file not in read]
    if not left_out and not is_split:
        return None
    if is_split:
        said = [", ".join(f"{file} is the {_split_of(file)} split" for file in read)]
        said += [f"leaving out {_counted(left_out)}"] if left_out else []
    else:
        example = folder / "**" / f"*{left_out[0].suffix}"
        said = [f"reading {_counted(read)}", f"leaving out {_counted(left_out)}; --data '{example}' reads others"]
    return f"{folder}: {'; '.join(said)}."


def _counted(files: list[Path]) -> str:
    """Return how many files there are of each ending, the most frequent first."""
    if len(files) <= 2:
        return " and ".join(map(str, files))
    endings = Counter(file.suffix.lower() or "without an ending" for file in files).most_common(6)
    rest = len(files) - sum(count for _, count in endings)
    shown = [f"{count:,} {ending}" for ending, count in endings] + ([f"{rest:,} others"] if rest else [])
    return f"{len(files):,} files ({', '.join(shown)})"


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
