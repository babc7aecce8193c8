"""Conversations to train on, from a file, a folder or a dataset on the Hub."""

import codecs
import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minigpt.errors import CorpusError
from minigpt.hub.json_files import parse_json
from minigpt.training.data.conversation_rows import FORMS, Conversations, parse_row
from minigpt.training.data.plays_task import plays_conversations

_SOURCES = "a JSON, CSV or Parquet file, the id of a dataset on the Hub, or plays"


def load_conversations(source: Any) -> Conversations:
    """Read a file, a folder that `save_to_disk` wrote, or a dataset on the Hub, or make the conversations of `plays`.

    A file is JSON Lines, one JSON array, CSV or Parquet. `parse_row` lists the forms of a row; a source may mix them.

    Raises:
        CorpusError: There is no such source, or a row is not a conversation; the message names the file and the row.
    """
    if not isinstance(source, str | Path):
        raise CorpusError(f"conversations come from one source, got {source!r}; give {_SOURCES}.")
    if source == "plays":
        return plays_conversations()
    path = Path(source).expanduser()
    if path.is_file():
        return _from_file(path)
    if path.is_dir():
        return _from_dataset(path.name, _saved_dataset(path))
    if path.suffix in (".jsonl", ".json", ".csv", ".parquet") or str(source).count("/") != 1:
        raise CorpusError(f"There is no file {str(source)!r}; give {_SOURCES}.")
    return _from_dataset(str(source), _hub_dataset(str(source)))


def _from_file(path: Path) -> Conversations:
    content = path.read_bytes()
    if path.suffix.lower() == ".csv":
        rows = _csv_rows(path)
    elif path.suffix.lower() == ".parquet":
        rows = _parquet_rows(path)
    elif content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        rows = _array_rows(path.name, content)
    else:
        rows = _line_rows(path.name, content)
    conversations = tuple(parse_row(where, row) for where, row in rows)
    return _checked(Conversations(path.name, len(content), hashlib.sha256(content).hexdigest(), conversations))


def _line_rows(name: str, content: bytes) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            where = f"{name}, line {number}"
            yield where, _parsed(where, line, "write one JSON object on each line, or one array of them all")


def _array_rows(name: str, content: bytes) -> Iterator[tuple[str, Any]]:
    rows = _parsed(name, content, "write one JSON array of objects, or one object on each line")
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))


def _parsed(where: str, content: bytes, remedy: str) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise CorpusError(
            f"{where} {error}; {'save the file as UTF-8' if 'UTF-8' in str(error) else remedy}."
        ) from error


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for number, row in enumerate(reader, start=1):
                where = f"{path.name}, row {number}"
                if None in row or None in row.values():
                    raise CorpusError(f"{where} has more or fewer cells than the header; quote cells that hold commas.")
                yield where, row
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{path.name} is not UTF-8 text (byte {error.start:,}); save the file as UTF-8."
            ) from error
        except csv.Error as error:
            raise CorpusError(
                f"{path.name}, line {reader.reader.line_num} cannot be read ({error}); save the file again, or as JSON."
            ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise CorpusError(f"{path.name} is not Parquet ({str(error).rstrip('.')}); save the file again.") from error
    return ((f"{path.name}, row {number}", row) for number, row in enumerate(rows, start=1))


def _saved_dataset(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise CorpusError(f"{str(path)!r} is a folder that save_to_disk did not write; give {_SOURCES}.") from error


def _hub_dataset(name: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name)
    except Exception as error:  # the network, a missing repository, several configurations, a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(f"{name!r} is no file here and cannot be loaded from the Hub: {reason}") from error


def _from_dataset(name: str, dataset: Any) -> Conversations:
    splits = dataset if isinstance(dataset, Mapping) else {"train": dataset}
    ordered = sorted(splits, key=lambda split: split != "train")
    conversations, digest, num_bytes = [], hashlib.sha256(), 0
    for number, row in enumerate((row for split in ordered for row in splits[split]), start=1):
        # Rows of one table have all columns; the ones that a row does not use are null.
        row = {key: value for key, value in row.items() if value is not None}
        line = json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n"
        digest.update(line)
        num_bytes += len(line)
        conversations.append(parse_row(f"{name}, row {number}", row))
    return _checked(Conversations(name, num_bytes, digest.hexdigest(), tuple(conversations)))


def _checked(conversations: Conversations) -> Conversations:
    if not conversations.rows:
        raise CorpusError(f"{conversations.name} holds no conversation; write rows that have {FORMS}.")
    return conversations
