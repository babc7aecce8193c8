"""Splits of tokens as files: written a row at a time, given their name when they are whole, and memory-mapped."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from minigpt.training.checksums import changed_file, write_checksums

SPLITS = ("train", "validation")

# Tokens for which there is no place in the cache lie here until the process ends.
_temporary_folders: list[tempfile.TemporaryDirectory[str]] = []


def writable_folder(folder: Path | None) -> Path:
    """Returns the folder, made if need be; if it cannot be written or is None, a temporary one."""
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            pass
    _temporary_folders.append(tempfile.TemporaryDirectory(prefix="minigpt-", ignore_cleanup_errors=True))
    return Path(_temporary_folders[-1].name)


def write_rows(
    path: Path, arrays: Iterable[NDArray[np.unsignedinteger]], dtype: np.dtype[np.unsignedinteger], row_tokens: int
) -> None:
    """Writes the arrays end to end into a column `tokens`, each row of `row_tokens` a record batch of its own.

    One row is in memory at a time. The last row has what is left.
    """
    schema = datasets.Features({"tokens": datasets.List(datasets.Value(dtype.name))}).arrow_schema
    row, filled = np.empty(row_tokens, dtype), 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:

        def write_row() -> None:
            tokens = pa.ListArray.from_arrays(pa.array([0, filled], pa.int32()), pa.array(row[:filled]))
            writer.write_batch(pa.record_batch([tokens], schema=schema))

        for array in arrays:
            start = 0
            while start < len(array):
                taken = array[start : start + row_tokens - filled]
                row[filled : filled + len(taken)] = taken
                start += len(taken)
                filled += len(taken)
                if filled == row_tokens:
                    write_row()
                    filled = 0
        if filled:
            write_row()


def open_splits(folder: Path) -> datasets.DatasetDict | None:
    """Returns the splits in the folder, memory-mapped, or None if they are not there or damaged."""
    try:
        if changed_file(folder):
            return None
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_file(str(folder / f"{split}.arrow"), split=datasets.NamedSplit(split))
                for split in SPLITS
            }
        )
    except (OSError, pa.ArrowInvalid):
        return None


def publish(staged: Path, folder: Path) -> datasets.DatasetDict:
    """Gives the finished folder `staged` its name and opens it, or opens what another process was quicker to finish."""
    write_checksums(staged)
    try:
        staged.rename(folder)
    except OSError:
        theirs = open_splits(folder)
        if theirs is not None:
            return theirs
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        staged.rename(folder)
    ours = open_splits(folder)
    assert ours is not None
    return ours
