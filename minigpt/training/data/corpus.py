"""A text to train on: known by its name, size and hash, and read in chunks of bounded size."""

import hashlib
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NoReturn

from minigpt.errors import OutOfReachError
from minigpt.tokenization.text_forms import Newlines, NormalForm, convert_pieces
from minigpt.tokenization.tokenization_minigpt import END_OF_TEXT
from minigpt.training.data.documents import Documents, lines_of, separated
from minigpt.training.data.read_settings import RULES, DocumentRule, ReadSettings
from minigpt.training.data.rows import ROW_SUFFIXES, as_lines, has_rows, open_hub_rows, open_rows
from minigpt.training.data.spooled_input import spool_streams
from minigpt.training.data.text_files import SPLIT_NAMES, SUFFIXES, CorpusError, find_files, open_files
from minigpt.training.data.tiny_shakespeare import HUB_DATASET, VARIABLE, tiny_shakespeare

__all__ = ["Corpus", "CorpusError", "SplitSettings", "load_text"]

CHUNK_CHARACTERS = 2**20
PLAYS = Path(__file__).with_name("plays.txt")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class SplitSettings:
    """Settings that decide which part of a text is held back to validate on.

    Attributes:
        validation_file: Files of the validation split; the whole text is then trained on.
        validation_fraction: Fraction of the characters to hold back (of the lines, if split by line); default 0.1.
        split_by: `"position"` holds back the end of the text. `"line"` shuffles the lines first, for lists whose order
            means something.
        split_seed: Seed of that shuffle, and of that of documents.

    Raises:
        CorpusError: A value is impossible, or two exclude each other.
    """

    validation_file: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    split_by: Literal["position", "line"] = "position"
    split_seed: int = 42

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise CorpusError(
                f"validation_fraction must be above 0 and below 1, got {self.validation_fraction}; 0.1 is usual."
            )
        if self.split_by not in ("position", "line"):
            raise CorpusError(f"split_by is {self.split_by!r}; use 'position' or 'line'.")
        if self.validation_file and (self.split_by != "position" or self.validation_fraction != 0.1):
            raise CorpusError(
                "validation_file names the whole validation split; leave validation_fraction and split_by out."
            )


@dataclass(frozen=True)
class Corpus:
    """A text, and what is known of it.

    Attributes:
        name: What a person calls it: a file's name, a dataset's id, `tiny_shakespeare`, `plays`.
        num_bytes: Size of the text in UTF-8, in bytes.
        num_characters: Number of characters (code points).
        sha256: Hash of the text in UTF-8, in hexadecimal: one file's own, unless it began with a byte order mark.
        train_characters: Number of characters to train on; the others, at the end, are the validation split.
        split: Settings of the validation split.
        reading: Settings by which the text was read.
        notice: One line for the person when the text was not chosen by them or a part of it is left out, else None.
        num_documents: Number of documents; 0 if the text has none.
        train_documents: Number of documents to train on.
        is_shuffled: True if the documents were shuffled before the split.
    """

    name: str
    num_bytes: int
    num_characters: int
    sha256: str
    train_characters: int
    split: SplitSettings
    reading: ReadSettings
    notice: str | None
    _read: Callable[[], Iterator[str]] = field(repr=False, compare=False)
    num_documents: int = 0
    train_documents: int = 0
    is_shuffled: bool = False

    @property
    def documents(self) -> DocumentRule | None:
        """Rule by which the text consists of documents.

        With one, `<|endoftext|>` is after each document and means the EOS token. Without, it is ordinary text.
        """
        return self.reading.documents

    def chunks(self) -> Iterator[str]:
        """Yields the text from its beginning, 2**20 characters at a time, the last chunk shorter.

        Between documents a chunk ends up to 12 characters earlier, for `<|endoftext|>` is never cut.
        """
        return _rechunked(self._read(), END_OF_TEXT if self.documents else None)

    def characters(self, newlines: Newlines = "keep", form: NormalForm = "none") -> set[str]:
        """Returns the different characters of the text in a form, without those of the EOS token."""
        marker = END_OF_TEXT if self.documents else ""
        pieces = (chunk.replace(marker, "") if marker else chunk for chunk in self.chunks())
        return set().union(*convert_pieces(pieces, newlines, form))

    def count_characters(self, split: Literal["train", "validation", "all"] = "all") -> int:
        """Returns the number of characters of a split, EOS tokens counted as one character each."""
        whole = self.num_characters - (len(END_OF_TEXT) - 1) * self.num_documents
        train = self.train_characters - (len(END_OF_TEXT) - 1) * self.train_documents
        return {"train": train, "validation": whole - train, "all": whole}[split]

    def all_to_train(self) -> "Corpus":
        """Returns the same text without a validation split."""
        return replace(self, train_characters=self.num_characters, train_documents=self.num_documents)

    @property
    def split_sha256(self) -> str:
        """Hash of the text and of where it is split: the text's own unless `split` or its files say otherwise."""
        if self.documents:
            return hashlib.sha256(f"{self.sha256} {self.train_characters} documents".encode()).hexdigest()
        if self.train_characters == _position(self.num_characters, SplitSettings()):
            return self.sha256
        return hashlib.sha256(f"{self.sha256} {self.train_characters}".encode()).hexdigest()

    @property
    def text(self) -> str:
        """The whole text at once; for long ones, see `chunks`."""
        return "".join(self.chunks())


def load_text(
    source: Source | None = None,
    *,
    split: SplitSettings | None = None,
    reading: ReadSettings | None = None,
    subset: str | None = None,
) -> Corpus:
    """Finds a text, reads it through once, and returns it as a corpus.

    Unless `reading` says otherwise, text is taken exactly as it is, line ends included; only a byte order mark at a
    file's beginning is dropped.

    Args:
        source: One of
            - None: `input.txt` of the current folder, else Tiny Shakespeare, else (out of reach) the bundled plays;
              the corpus's `notice` says which;
            - `"tiny_shakespeare"` or `"plays"`;
            - a text file; a pattern such as `src/**/*.py`; a folder, for its `.txt` and `.md` files, subfolders
              included, sorted by path, or for its splits (see `find_files`); or several of these in a list. Files are
              joined in order, with a newline after one that does not end in one;
            - a file of rows (`.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet`) in any of these places, or a folder that
              `save_to_disk` of `datasets` wrote: every row is on a line of its own;
            - `"-"`, `/dev/stdin` or a pipe: read to its end once and kept in a temporary file while the process lasts,
              as JSON Lines if a `text_column` is set;
            - a dataset of the Hub, as `"owner/name"`: all its splits, train first, then validation and test, and every
              row on a line of its own.
        split: Settings of the validation split; by default the last tenth of the characters.
        reading: Settings that decide how the text is read.
        subset: Configuration of the Hub dataset, where it has several.

    Raises:
        CorpusError: No such text, or it is empty, binary or not UTF-8, or has no such documents.
    """
    split, reading = split or SplitSettings(), reading or ReadSettings()
    if reading.documents and split.split_by != "position":
        raise CorpusError(
            f"split_by is {split.split_by!r} and documents are split by document; leave split_by out with documents."
        )
    if isinstance(source, list | tuple) and len(source) == 1:
        source = source[0]
    if source is None:
        return _default_corpus(split, reading)
    if source == "plays":
        return _plays(split, reading)
    if source in ("tiny_shakespeare", HUB_DATASET):
        try:
            return _tiny_shakespeare(split, reading)
        except OutOfReachError as error:
            raise CorpusError(
                f"Tiny Shakespeare is out of reach ({error}); connect to the network, set {VARIABLE} to the path of a "
                "copy, or train on 'plays', the bundled text."
            ) from error
    if isinstance(source, str) and _names_hub_dataset(source):
        rows = open_hub_rows(source, reading, subset)
        if reading.documents:
            return _hub_documents(source, rows, split, reading)
        every = [*rows.values()]
        corpus = _corpus(
            source, lambda: as_lines(row for read in every for row in read()), split, reading, has_columns=True
        )
        joined = f"{source}: joining its splits {' and '.join(rows)}; the validation split is the end of the whole."
        return _noticed(corpus, joined) if len(rows) > 1 and split == SplitSettings() else corpus
    sources = [source] if isinstance(source, str | os.PathLike) else source
    return _files(spool_streams(sources, as_rows=reading.text_column is not None), split, reading)


def refuse_single_document(corpus: Corpus) -> None:
    """Refuse a text that no document can be held back of.

    Raises:
        CorpusError: By its rule the text is a single document.
    """
    if corpus.documents and corpus.num_documents < 2:
        why = f" (it holds no {END_OF_TEXT} between two)" if corpus.documents == "separator" else ""
        others = ", ".join(rule for rule in RULES if rule != corpus.documents)
        raise CorpusError(
            f"{corpus.name} is a single document with --documents {corpus.documents}{why} and none can be held back; "
            f"use another rule ({others}) or leave it out."
        )


def describe_documents(corpus: Corpus) -> str:
    """Returns how many documents a text has, in a few words."""
    held_back = corpus.num_documents - corpus.train_documents
    kind = "" if corpus.documents == "separator" else f" ({corpus.documents})"
    return f"{corpus.train_documents:,} documents{kind} to train on, {held_back:,} to validate, each ended by EOS"


def _default_corpus(split: SplitSettings, reading: ReadSettings) -> Corpus:
    """Returns the text for somebody who named none, with the notice that says which it is."""
    if Path("input.txt").is_file():
        return _noticed(
            _files(["input.txt"], split, reading), "No text was named: using input.txt of the current folder."
        )
    try:
        return _noticed(_tiny_shakespeare(split, reading), "No text was named: using Tiny Shakespeare.")
    except OutOfReachError as error:
        return _noticed(
            _plays(split, reading),
            f"No text was named and Tiny Shakespeare is out of reach ({error}): using the bundled plays.",
        )


def _noticed(corpus: Corpus, *notices: str | None) -> Corpus:
    """Returns the text with these notices before its own."""
    return replace(corpus, notice="\n".join(filter(None, (*notices, corpus.notice))) or None)


def _tiny_shakespeare(split: SplitSettings, reading: ReadSettings) -> Corpus:
    text = tiny_shakespeare()
    return _corpus("tiny_shakespeare", lambda: reading.convert([text]), split, reading)


def _plays(split: SplitSettings, reading: ReadSettings) -> Corpus:
    return _corpus("plays", open_files([PLAYS], reading), split, reading)


def _files(sources: Sequence[str | os.PathLike[str]], split: SplitSettings, reading: ReadSettings) -> Corpus:
    if not sources:
        raise CorpusError("An empty list names no text; give at least one file or folder.")
    for source in sources:
        if source in ("plays", "tiny_shakespeare") and not Path(source).exists():
            raise CorpusError(f"{source!r} is a whole corpus and {len(sources)} texts were named; give it alone.")
    found = [find_files(source) for source in sources]
    train = [file for one in found for file in one.train]
    # Names that are not UTF-8 are shown with U+FFFD: no file of text, such as run.json, could hold them as they are.
    names = [os.fsencode(_name(Path(source).expanduser())).decode(errors="replace") for source in sources]
    first, *others = names
    corpus = _corpus(
        f"{first} + {len(others)} more" if others else first,
        open_files(train, reading),
        split,
        reading,
        files=train,
        validation=[file for one in found for file in one.validation],
    )
    return _noticed(corpus, *(one.notice for one in found))


def _name(path: Path) -> str:
    return path.resolve().name if path.exists() else str(path)  # a pattern


def _names_hub_dataset(source: str) -> bool:
    """Tells whether `owner/name` means the Hub: what is on this machine, or would be in a folder of it, comes first."""
    path = Path(source)
    is_file_name = path.suffix.lower() in (*SUFFIXES, *ROW_SUFFIXES)
    return bool(_HUB_ID.fullmatch(source)) and not (path.exists() or path.parent.is_dir() or is_file_name)


def _corpus(
    name: str,
    read: Callable[[], Iterator[str]],
    split: SplitSettings,
    reading: ReadSettings,
    *,
    has_columns: bool = False,
    files: Sequence[Path] = (),
    validation: Sequence[Path] = (),
) -> Corpus:
    """Read the text once, for its size, its hash and the place where it is split.

    Args:
        name: What a person calls it.
        read: Reads the text.
        split: Settings of the validation split.
        reading: Settings that decide how the text is read.
        has_columns: True if it is a dataset of the Hub.
        files: The files that it is read from, if any.
        validation: Files of the validation split that come with it.
    """
    if reading.text_column and not has_columns and not any(map(has_rows, files)):
        raise CorpusError(f"{name} has no columns, so none is called {reading.text_column!r}; leave text_column out.")
    sources = spool_streams(split.validation_file, as_rows=reading.text_column is not None)
    held_back = [file for source in sources for file in find_files(source).train] or validation
    if held_back:
        _refuse_other_split(name, held_back[0].name, split)
    if reading.documents:
        units = _units_of_files(files, reading) if files else _units(name, reading.documents, read())
        apart = _units_of_files(held_back, reading) if held_back else None
        return _corpus_of_documents(name, units, apart, split, reading)
    if held_back:
        parts: list[Callable[[], Iterator[str]]] = [lambda: _ended(read()), open_files(held_back, reading)]
    elif split.split_by == "line":
        parts = [lambda: _shuffled_lines(read, split)[0], lambda: _shuffled_lines(read, split)[1]]
    else:
        parts = [read]
    measure = _Measure(name, parts)
    markers = (
        f"{name} holds {END_OF_TEXT} {measure.num_markers:,} times, as {len(END_OF_TEXT)} ordinary characters each; "
        "--documents separator makes it the end of a document."
    )
    returns = _notice_returns(name, measure, reading)
    return Corpus(
        name,
        measure.num_bytes,
        measure.num_characters,
        measure.sha256,
        train_characters=measure.ends[0] if len(parts) > 1 else _position(measure.num_characters, split),
        split=split,
        reading=replace(reading, newlines=reading.newlines or "keep"),
        notice="\n".join(filter(None, (markers * (measure.num_markers > 0), returns))) or None,
        _read=lambda: chain.from_iterable(part() for part in parts),
    )


def _corpus_of_documents(
    name: str,
    units: Iterable[str],
    held_back: Iterable[str] | None,
    split: SplitSettings,
    reading: ReadSettings,
) -> Corpus:
    """Reads documents through once; given those to hold back, all keep their order, else they are shuffled."""
    train = Documents(units)
    if held_back is not None:
        validation = Documents(held_back)
        parts = [partial(train.read, range(len(train))), partial(validation.read, range(len(validation)))]
        number, cut = len(train) + len(validation), len(train)
    else:
        validation, number, order = train, len(train), train.shuffled(split.split_seed)
        # One at least in each split.
        cut = min(max(int((1 - split.validation_fraction) * number), 1), max(number - 1, 1))
        parts = [partial(train.read, order[:cut]), partial(train.read, order[cut:])]
    measure = _Measure(name, parts)
    each = {train, validation}
    blank, divided = sum(one.num_blank for one in each), sum(one.num_cut for one in each)
    notices = [
        f"{name}: {blank:,} blank {'document is' if blank == 1 else 'documents are'} left out." * (blank > 0),
        f"{name}: {END_OF_TEXT} is inside {divided:,} of its {reading.documents} and ends a document there too."
        * (divided > 0),
        _notice_returns(name, measure, reading),
    ]
    return Corpus(
        name,
        measure.num_bytes,
        measure.num_characters,
        measure.sha256,
        train_characters=measure.ends[0],
        split=split,
        reading=replace(reading, newlines=reading.newlines or "keep"),
        notice="\n".join(filter(None, notices)) or None,
        _read=lambda: chain.from_iterable(part() for part in parts),
        num_documents=number,
        train_documents=cut,
        is_shuffled=held_back is None,
    )


def _notice_returns(name: str, measure: "_Measure", reading: ReadSettings) -> str:
    """Returns a notice of carriage returns that nobody has asked to keep, else nothing."""
    if reading.newlines is not None or not measure.num_returns:
        return ""
    return (
        f"{name} holds carriage returns (\\r, as in the line ends of Windows) {measure.num_returns:,} times, which are "
        "kept as characters; --newlines unix reads every line end as \\n."
    )


def _units_of_files(files: Sequence[Path], reading: ReadSettings) -> Iterator[str]:
    """Returns what the rule cuts files into; a file ends its last document."""
    if reading.documents == "rows":
        for file in files:
            if not has_rows(file):
                _refuse_rows(str(file))
        readers = [open_rows(file, reading) for file in files]
        return chain.from_iterable(read() for read in readers)
    return chain.from_iterable(_units(str(file), reading.documents, open_files([file], reading)()) for file in files)


def _units(name: str, rule: DocumentRule | None, text: Iterator[str]) -> Iterator[str]:
    if rule == "rows":
        _refuse_rows(name)
    if rule == "lines":
        return lines_of(text)
    if rule == "separator":
        return separated(text)
    return iter(["".join(text)])


def _hub_documents(
    name: str, rows: Mapping[str, Callable[[], Iterator[str]]], split: SplitSettings, reading: ReadSettings
) -> Corpus:
    """Reads the documents of a Hub dataset, whose own validation split is held back; its test split is not read."""
    kinds = {one: next((kind for kind, names in SPLIT_NAMES.items() if one in names), "train") for one in rows}
    if "train" not in kinds.values():
        kinds = dict.fromkeys(rows, "train")

    def units(kind: str) -> Iterator[str]:
        chosen = (row for one, read in rows.items() if kinds[one] == kind for row in read())
        return chosen if reading.documents == "rows" else _units(name, reading.documents, as_lines(chosen))

    apart, left_out = None, [one for one, kind in kinds.items() if kind == "test"]
    if split.validation_file:
        sources = spool_streams(split.validation_file, as_rows=reading.text_column is not None)
        apart = _units_of_files([file for one in sources for file in find_files(one).train], reading)
        left_out = [one for one, kind in kinds.items() if kind != "train"]
    elif "validation" in kinds.values():
        _refuse_other_split(name, next(one for one, kind in kinds.items() if kind == "validation"), split)
        apart = units("validation")
    corpus = _corpus_of_documents(name, units("train"), apart, split, reading)
    return _noticed(corpus, f"{name}: leaving out the split {' and '.join(left_out)}." if left_out else None)


def _refuse_other_split(name: str, held_back: str, split: SplitSettings) -> None:
    if split != SplitSettings(split.validation_file):
        raise CorpusError(
            f"{name} comes with a validation split ({held_back}); leave validation_fraction and split_by out."
        )


def _refuse_rows(name: str) -> NoReturn:
    raise CorpusError(
        f"{name} has no rows, as files of JSON Lines, CSV and Parquet have; use --documents lines, files or separator."
    )


class _Measure:
    """Size and hash of a text in parts, found by reading it through once.

    Raises:
        CorpusError: The first part is empty.
    """

    def __init__(self, name: str, parts: Iterable[Callable[[], Iterator[str]]]) -> None:
        digest = hashlib.sha256()
        self.num_bytes = self.num_characters = self.num_markers = self.num_returns = 0
        self.ends: list[int] = []
        before = ""
        for part in parts:
            for chunk in part():
                data = chunk.encode()
                digest.update(data)
                self.num_bytes += len(data)
                self.num_characters += len(chunk)
                self.num_returns += chunk.count("\r")
                self.num_markers += (before + chunk).count(END_OF_TEXT)
                before = (before + chunk)[1 - len(END_OF_TEXT) :]
            self.ends.append(self.num_characters)
        if not self.ends[0]:
            raise CorpusError(f"{name} is empty; give a text with at least a few thousand characters.")
        self.sha256 = digest.hexdigest()


def _position(num_characters: int, split: SplitSettings) -> int:
    return int((1 - split.validation_fraction) * num_characters)


def _ended(pieces: Iterable[str]) -> Iterator[str]:
    """Yields the text, and a newline if it does not end in one."""
    piece = "\n"
    for piece in pieces:
        yield piece
    if not piece.endswith("\n"):
        yield "\n"


def _shuffled_lines(read: Callable[[], Iterator[str]], split: SplitSettings) -> tuple[Iterator[str], Iterator[str]]:
    """Returns the lines to train on and those to validate on."""
    lines = [f"{line}\n" for line in "".join(_ended(read())).split("\n")[:-1]]
    random.Random(split.split_seed).shuffle(lines)
    cut = int((1 - split.validation_fraction) * len(lines))
    return iter(lines[:cut]), iter(lines[cut:])


def _rechunked(pieces: Iterable[str], marker: str | None = None) -> Iterator[str]:
    """Yields the same text in chunks of `CHUNK_CHARACTERS`: many short rows together, or a part of a huge one.

    A marker is cut nowhere: it begins the next chunk.
    """
    waiting: list[str] = []
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= CHUNK_CHARACTERS:
            text, start = "".join(waiting), 0
            while length - start >= CHUNK_CHARACTERS:
                end = start + CHUNK_CHARACTERS
                if marker and (inside := text.rfind(marker, end - len(marker) + 1, end + len(marker) - 1)) > start:
                    end = inside
                yield text[start:end]
                start = end
            waiting, length = [text[start:]], length - start
    if length:
        yield "".join(waiting)
