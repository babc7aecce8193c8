"""Finding files of text, reading them exactly as they are, in bounded memory, and refusing what is not text."""

import codecs
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from minigpt.errors import CorpusError as CorpusError
from minigpt.training.data.foreign_files import refuse_foreign
from minigpt.training.data.read_settings import ReadSettings
from minigpt.training.data.rows import ROW_SUFFIXES, as_lines, has_rows, is_saved_dataset, open_rows, saved_splits

SUFFIXES = (".txt", ".md")
CHUNK_BYTES = 2**20
_ENCODING = "name its encoding with --encoding, such as cp1252 or latin-1, or save it as UTF-8"
# Files of rows that a folder is searched for; a JSON file of a folder may be anything.
_FOUND_ROWS = tuple(suffix for suffix in ROW_SUFFIXES if suffix != ".json")
# What the file of each split is called, without its ending.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
# One of several files of a split, as the Hub names them: train-00000-of-00002.parquet.
_SHARD = re.compile(r"-\d+-of-\d+$")


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
    not among them. If there are none but a README, they are its `.jsonl`, `.csv`, `.tsv` and `.parquet` files. If a
    file in the folder itself is called `train`, the files are splits: `train` is trained on, `valid`, `val`,
    `validation` or `dev` is validated on, and `test` and all others are left out. A split may be in several files,
    called `train-00000-of-00002.parquet` and so on, in subfolders too.

    A folder that `save_to_disk` of `datasets` wrote is one such file, or has one for each split.

    Raises:
        CorpusError: Nothing is there (the message names the nearest name), or the folder has no text file.
    """
    path = Path(path).expanduser()
    if path.is_file() or is_saved_dataset(path):
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
    if splits := saved_splits(path):
        return _splits_or_all(path, list(map(Path, splits)), list(map(Path, splits)))
    inside = sorted((file.relative_to(path) for file in path.rglob("*") if file.is_file()), key=Path.as_posix)
    visible = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    texts = [file for file in visible if file.suffix.lower() in SUFFIXES]
    rows = [file for file in visible if file.suffix.lower() in _FOUND_ROWS]
    if rows and all(file.stem.lower() == "readme" for file in texts):
        texts = rows
    if any(_split_of(file) == "train" for file in visible if file.suffix.lower() in (*SUFFIXES, *ROW_SUFFIXES)):
        texts = [file for file in visible if file.suffix.lower() in (*SUFFIXES, *ROW_SUFFIXES)]
    if not texts:
        raise CorpusError(
            f"The folder {str(path)!r} holds no text file ({', '.join(SUFFIXES)}, {', '.join(_FOUND_ROWS)}); put one "
            f"there or name files, as in --data {str(path / '**' / '*.py')!r}."
        )
    return _splits_or_all(path, visible, texts)


def _splits_or_all(path: Path, visible: list[Path], texts: list[Path]) -> FoundFiles:
    """Return a folder's files by their splits if there is one to train on, else all of its texts."""
    named = {split: [file for file in texts if _split_of(file) == split] for split in SPLIT_NAMES}
    read = [*named["train"], *named["validation"]] if named["train"] else texts
    notice = _notice(path, visible, read, is_split=bool(named["train"]))
    if not named["train"]:
        return FoundFiles([path / file for file in texts], notice=notice)
    return FoundFiles([path / file for file in named["train"]], [path / file for file in named["validation"]], notice)


def _split_of(file: Path) -> str | None:
    """Return the split that a file's name means; in subfolders only the names of the Hub mean any."""
    name, shards = _SHARD.subn("", file.stem.lower())
    if len(file.parts) > 1 and not shards:
        return None
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


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


def open_files(paths: Iterable[Path], reading: ReadSettings | None = None) -> Callable[[], Iterator[str]]:
    """Open files, and return a function that reads their text from the start.

    The files are joined in order, with a newline between two where the first does not end in one. Each row of a file of
    rows is on a line of its own.

    Args:
        paths: Files, or folders that `save_to_disk` of `datasets` wrote.
        reading: Settings that decide how they are read.

    Raises:
        CorpusError: A file of rows is damaged, or has no such column.
    """
    readers = [_open_file(path, reading or ReadSettings()) for path in paths]
    return lambda: _joined(readers)


def _open_file(path: Path, reading: ReadSettings) -> Callable[[], Iterator[str]]:
    if has_rows(path):
        rows = open_rows(path, reading)
        return lambda: as_lines(rows())
    return lambda: reading.convert(_read_file(path, reading.codec))


def _joined(readers: Iterable[Callable[[], Iterator[str]]]) -> Iterator[str]:
    ended = True
    for read in readers:
        for position, text in enumerate(read()):
            if position == 0 and not ended:
                yield "\n"
            yield text
            ended = text.endswith("\n")


def _read_file(path: Path, codec: str = "utf-8") -> Iterator[str]:
    """Yields the file's text, line ends as they are, in pieces that are never empty, without its byte order mark."""
    decoder = codecs.getincrementaldecoder(codec)()
    offset = 0
    started = False
    refuse_foreign(path, codec)
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(CHUNK_BYTES)
                if codec == "utf-8" and (nul := data.find(0)) >= 0:
                    raise CorpusError(f"{path} is a binary file (NUL byte at offset {offset + nul}); give a text file.")
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    # What the decoder saw begins with bytes that it had kept from the chunk before.
                    position = offset + len(data) - len(error.object) + error.start
                    raise CorpusError(
                        f"{path} is not {codec.upper()}: byte 0x{error.object[error.start]:02x} at offset {position} "
                        f"({error.reason}); {_ENCODING}."
                    ) from None
                except UnicodeError as error:  # UTF-16 and UTF-32 without a byte order mark
                    raise CorpusError(f"{path} is not {codec.upper()} ({error}); {_ENCODING}.") from None
                if "\0" in text:
                    raise CorpusError(f"{path} has NUL characters in {codec.upper()}; {_ENCODING}.")
                if text and not started:
                    text, started = text.removeprefix("\ufeff"), True
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
