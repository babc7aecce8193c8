"""Conversations to learn from: read row by row, and refused where a row is not what it should be."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.hub.json_files import kind_of, parse_json
from minigpt.training.text_files import CorpusError

ROLES = ("system", "user", "assistant")
_SHAPES = '"messages", or "prompt" and "completion"'


@dataclass(frozen=True)
class Conversation:
    """One row.

    Attributes:
        where: Where it stands, for messages: `talk.jsonl, line 3`.
        messages: The turns, each with a `role` and a `content`; empty where the row is a bare prompt and completion.
        num_given: How many of the turns are given: the answers after them are learned from.
        prompt: What a bare completion goes on from.
        completion: The bare completion.
    """

    where: str
    messages: tuple[dict[str, str], ...] = ()
    num_given: int = 0
    prompt: str = ""
    completion: str = ""


@dataclass(frozen=True)
class Conversations:
    """All rows of a source, and what is known of it.

    Attributes:
        name: A file's name or a dataset's id.
        num_bytes: Size of the rows as JSON lines, a file's own size.
        sha256: Hash of the rows as JSON lines, a file's own.
        rows: In order.
    """

    name: str
    num_bytes: int
    sha256: str
    rows: tuple[Conversation, ...]


def load_conversations(source: Any) -> Conversations:
    """Reads a JSONL file, or a dataset of the Hub by its id, or makes the conversations of `plays`.

    A row has `messages` (a list of turns, each with `role` and `content`), or `prompt` and `completion`, which are both
    text or both such lists.

    Raises:
        CorpusError: There is no such file or dataset, or a row is not one of these; the message names file and line.
    """
    if not isinstance(source, str | Path):
        raise CorpusError(
            f"conversations come from one source, got {source!r}; give a JSONL file, the id of a dataset on the Hub, "
            "or plays."
        )
    if source == "plays":
        from minigpt.training.finetuning.plays_task import plays_conversations

        return plays_conversations()
    path = Path(source).expanduser()
    if path.is_file():
        return _from_file(path)
    if path.suffix in (".jsonl", ".json") or path.is_dir() or str(source).count("/") != 1:
        raise CorpusError(
            f"There is no file {str(source)!r}; give a JSONL file, the id of a dataset on the Hub, or plays."
        )
    return _from_hub(str(source))


def _from_file(path: Path) -> Conversations:
    content = path.read_bytes()
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{path.name}, line {number}"
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            remedy = "save the file as UTF-8" if "UTF-8" in str(error) else "write one JSON object on each line"
            raise CorpusError(f"{where} {error}; {remedy}.") from error
        rows.append(_conversation(where, row))
    return Conversations(path.name, len(content), hashlib.sha256(content).hexdigest(), _not_empty(path.name, rows))


def _from_hub(name: str) -> Conversations:
    rows, digest, num_bytes = [], hashlib.sha256(), 0
    for number, row in enumerate(_hub_rows(name), start=1):
        line = json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n"
        digest.update(line)
        num_bytes += len(line)
        rows.append(_conversation(f"{name}, row {number}", row))
    return Conversations(name, num_bytes, digest.hexdigest(), _not_empty(name, rows))


def _hub_rows(name: str) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the network, a missing repository, several configurations, a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(f"{name!r} is no file here and cannot be loaded from the Hub: {reason}") from error
    for split in sorted(splits, key=lambda split: split != "train"):
        # Rows of one table have all columns; the ones that a row does not use are null.
        yield from ({key: value for key, value in row.items() if value is not None} for row in splits[split])


def _not_empty(name: str, rows: list[Conversation]) -> tuple[Conversation, ...]:
    if not rows:
        raise CorpusError(f"{name} holds no conversation; write one JSON object on each line, with {_SHAPES}.")
    return tuple(rows)


def _conversation(where: str, row: Any) -> Conversation:
    if not isinstance(row, Mapping):
        raise CorpusError(f"{where} is {kind_of(row)}, not an object; a row has {_SHAPES}.")
    if "messages" in row:
        turns = _turns(where, "messages", row["messages"])
        return _answered(where, turns, 0)
    if "prompt" not in row or "completion" not in row:
        raise CorpusError(f"{where} has {', '.join(map(repr, row)) or 'nothing'}; a row has {_SHAPES}.")
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion:
            raise CorpusError(
                f"{where} has an empty completion, from which nothing is learned; fill it or take it out."
            )
        return Conversation(where, prompt=prompt, completion=completion)
    given = _turns(where, "prompt", prompt)
    return _answered(where, given + _turns(where, "completion", completion), len(given))


def _answered(where: str, turns: tuple[dict[str, str], ...], num_given: int) -> Conversation:
    if all(turn["role"] != "assistant" for turn in turns[num_given:]):
        raise CorpusError(f"{where} has no assistant turn, from which alone is learned; add one or take the row out.")
    for number, turn in enumerate(turns[num_given:], start=num_given + 1):
        if turn["role"] == "assistant" and not turn["content"]:
            raise CorpusError(f"{where}: turn {number} is an empty answer; fill it or take the row out.")
    return Conversation(where, turns, num_given)


def _turns(where: str, key: str, turns: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(turns, list):
        raise CorpusError(f"{where} has {key!r} that is {kind_of(turns)}; it is a list of turns.")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise CorpusError(f'{where}: turn {number} of {key!r} has no text; a turn has a "role" and a "content".')
        if turn.get("role") not in ROLES:
            raise CorpusError(f"{where}: turn {number} of {key!r} has the role {turn.get('role')!r}, not {_one_of()}.")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _one_of() -> str:
    return f"{', '.join(ROLES[:-1])} or {ROLES[-1]}"
