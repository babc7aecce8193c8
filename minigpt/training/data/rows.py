"""Texts that come in rows: JSON Lines, JSON, CSV and Parquet files, datasets saved to disk, datasets of the Hub."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.errors import CorpusError
from minigpt.training.data.foreign_files import refuse_foreign
from minigpt.training.data.read_settings import ReadSettings

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_ORDER = ("train", "validation", "test")
ROWS_AT_ONCE = 256
# The loader of `datasets` for each ending, and what it is called.
_LOADERS = {
    ".jsonl": ("json", "JSON Lines"),
    ".json": ("json", "JSON"),
    ".csv": ("csv", "CSV"),
    ".tsv": ("csv", "TSV"),
    ".parquet": ("parquet", "Parquet"),
}
ROW_SUFFIXES = tuple(_LOADERS)
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
# What pandas calls the cells of a row that has more of them than the header.
_SURPLUS = "__index_level_0__"


def is_saved_dataset(path: Path) -> bool:
    """Return True if `Dataset.save_to_disk` wrote the folder; each split of a saved `DatasetDict` is such a folder."""
    return (path / _SAVED).is_file() and (path / "dataset_info.json").is_file()


def saved_splits(path: Path) -> list[str]:
    """Return the names of the splits of a folder that `DatasetDict.save_to_disk` wrote; none for any other folder."""
    if not (path / _SAVED_SPLITS).is_file():
        return []
    return sorted(split.name for split in path.iterdir() if is_saved_dataset(split))


def has_rows(path: Path) -> bool:
    """Return True if a file or folder holds rows: its ending says so, or it is a dataset saved to disk."""
    return path.suffix.lower() in ROW_SUFFIXES or is_saved_dataset(path)


def open_rows(path: Path, reading: ReadSettings | None = None) -> Callable[[], Iterator[str]]:
    """Open a file or a saved dataset, and return a function that reads the text of its rows from the start.

    Each text is returned as it is, unless `reading` says otherwise. Rows without text (null) are skipped.

    Args:
        path: A path for which `has_rows` is True.
        reading: Settings that decide how the text is read. Parquet files and saved datasets know their encoding.

    Raises:
        CorpusError: The file is damaged, or it has no such column, or more than one that it could be.
    """
    if path.is_file() and not path.stat().st_size:
        return lambda: iter(())
    reading = reading or ReadSettings()
    if path.is_file() and path.suffix.lower() != ".parquet":
        refuse_foreign(path, reading.codec)
    dataset = _load(path, reading.text_column, reading.codec)
    chosen = _text_column(str(path), dataset, reading.text_column)
    return lambda: _rows(str(path), dataset, chosen, reading)


def open_hub_rows(
    name: str, reading: ReadSettings | None = None, subset: str | None = None
) -> dict[str, Callable[[], Iterator[str]]]:
    """Download a dataset (once: `datasets` keeps it), and return functions that read the text of its rows by split.

    The splits are in order, train first, then validation and test: the Hub's held-out text stays at the end, where our
    own validation split is. Rows without text (null) are skipped.

    Args:
        name: The dataset's id, `owner/name`.
        reading: Settings that decide how the text is read.
        subset: Configuration of the dataset, where it has several.

    Raises:
        CorpusError: The Hub does not have the dataset, or it has no such column, or more than one that it could be.
    """
    import datasets

    reading = reading or ReadSettings()
    try:
        splits = datasets.load_dataset(name, subset)
    except Exception as error:  # the network, a missing repository, a script, several configurations, a broken file
        raise CorpusError(f"{name!r} is no file here and cannot be loaded from the Hub: {_reason(error)}") from error
    assert isinstance(splits, datasets.DatasetDict)
    ordered = sorted(splits, key=lambda split: SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER))
    chosen = _text_column(name, splits[ordered[0]], reading.text_column)
    return {split: partial(_rows, name, splits[split], chosen, reading) for split in ordered}


def as_lines(rows: Iterable[str]) -> Iterator[str]:
    """Yield the rows, with a newline after each that does not end in one."""
    return (text if text.endswith("\n") else text + "\n" for text in rows)


def _load(path: Path, column: str | None, encoding: str) -> "Dataset":
    import datasets

    from minigpt.training.data.token_files import writable_folder

    try:
        with _quiet():
            if not path.is_file():
                dataset = datasets.load_from_disk(str(path))
            else:
                dataset = datasets.load_dataset(
                    _LOADERS[path.suffix.lower()][0],
                    data_files=_escaped(path.absolute()),
                    split="train",
                    cache_dir=str(writable_folder(Path(datasets.config.HF_DATASETS_CACHE))),
                    **_options(path, column, encoding),
                )
    except Exception as error:  # of pyarrow, pandas, json, datasets or the disk
        kind = _LOADERS[path.suffix.lower()][1] if path.is_file() else "a dataset saved to disk"
        needs_encoding = any(isinstance(one, UnicodeError) for one in (error, error.__cause__))
        remedy = "name the encoding with --encoding" if needs_encoding else "write it again"
        if getattr(error.__cause__ or error, "errno", None) in (ENOSPC, EDQUOT):
            remedy = "make room for a copy of it, or set HF_DATASETS_CACHE to another folder"
        raise CorpusError(f"{path} cannot be read as {kind} ({_reason(error)}); {remedy}.") from error
    assert isinstance(dataset, datasets.Dataset)
    if _SURPLUS in dataset.features:
        raise CorpusError(
            f"{path} has rows with more cells than its header names; write quotation marks around text with commas."
        )
    return dataset


def _options(path: Path, column: str | None, encoding: str) -> dict[str, Any]:
    """Return the options of the loader."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        # Else pandas takes texts like "NA" and "null" for missing, and "007" for a number.
        kept = {"keep_default_na": False, "converters": {column or "text": str}}
        return {"encoding": encoding, "sep": "\t" if kind == ".tsv" else ",", **kept}
    return {} if kind == ".parquet" else {"encoding": encoding}


def _escaped(path: Path) -> str:
    """Return the path as a pattern of `datasets`, which only this file matches."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path))


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong below; `datasets` often wraps it in a sentence that says nothing."""
    cause = error.__cause__ if type(error).__name__.startswith("DatasetGeneration") and error.__cause__ else error
    return str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the bars and messages of `datasets` about a file that is read in no time, or reported by us."""
    import datasets

    shown, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


def _text_column(name: str, dataset: "Dataset", column: str | None) -> str:
    """Return the column to read, or name those that there are."""
    kinds = {key: getattr(kind, "dtype", None) or type(kind).__name__ for key, kind in dataset.features.items()}
    strings = [key for key, kind in kinds.items() if kind in ("string", "large_string", "string_view")]
    column = column or (strings[0] if len(strings) == 1 else "text")
    if column not in strings:
        shown = ", ".join(key if key in strings else f"{key} ({kind})" for key, kind in kinds.items())
        raise CorpusError(
            f"{name} has no text in a column {column!r}; choose a column of strings with --text_column"
            f" ({', '.join(strings) or 'there is none'}; all columns: {shown})."
        )
    return column


def _rows(name: str, dataset: "Dataset", column: str, reading: ReadSettings) -> Iterator[str]:
    try:
        for batch in dataset.select_columns([column]).with_format(None).iter(batch_size=ROWS_AT_ONCE):
            yield from ("".join(reading.convert([text])) for text in batch[column] if text is not None)
    except UnicodeDecodeError as error:  # the JSON reader of pyarrow copies bytes without a look at them
        raise CorpusError(
            f"{name} has text that is not UTF-8 ({_reason(error)}); name the encoding with --encoding."
        ) from error
