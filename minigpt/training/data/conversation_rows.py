"""Conversations, and how a row in any of the usual forms becomes one."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minigpt.errors import CorpusError
from minigpt.hub.json_files import kind_of

FORMS = '"messages", "prompt" and "completion", ShareGPT\'s "conversations", or Alpaca\'s "instruction" and "output"'
# Each role as OpenAI, ShareGPT, LangChain and Gemini spell it, in lower case.
_ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "ai", "model"), "assistant"),
}


@dataclass(frozen=True)
class Conversation:
    """One row.

    Attributes:
        where: The file and the row, for messages: `talk.jsonl, line 3`.
        messages: The turns, each with a `role` and a `content`; empty if the row is a plain prompt and completion.
        num_given: Number of turns that belong to the prompt.
        ignored: Places of the turns that have a weight of 0.
        prompt: Text of a plain prompt.
        completion: Text of a plain completion.
        converted_from: `ShareGPT` or `Alpaca` if the row was in that form.
    """

    where: str
    messages: tuple[dict[str, str], ...] = ()
    num_given: int = 0
    ignored: frozenset[int] = frozenset()
    prompt: str = ""
    completion: str = ""
    converted_from: str | None = None

    @property
    def answers(self) -> list[int]:
        """Places of the assistant turns."""
        return [place for place, turn in enumerate(self.messages) if turn["role"] == "assistant"]

    @property
    def trained_answers(self) -> list[int]:
        """Places of the assistant turns that are trained on."""
        return [place for place in self.answers if place >= self.num_given and place not in self.ignored]


@dataclass(frozen=True)
class Conversations:
    """All conversations of a source.

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

    @property
    def notice(self) -> str | None:
        """One line that counts the rows that were converted from another form, None if there are none."""
        forms = Counter(row.converted_from for row in self.rows if row.converted_from)
        counts = " and ".join(f"{number:,} {form}" for form, number in sorted(forms.items()))
        return f"{self.name}: converted {counts} of {len(self.rows):,} rows to messages." if forms else None


@dataclass(frozen=True)
class _Turn:
    role: str
    content: str
    is_ignored: bool = False
    is_converted: bool = False


def parse_row(where: str, row: Any) -> Conversation:
    """Read a conversation from a row.

    Args:
        where: The file and the row, for messages.
        row: An object in one of these forms; its other fields are not read.

            - `messages`: a list of turns, each with `role`, `content` and an optional `weight` of 0 or 1.
            - `conversations`: the same with `from` and `value` (ShareGPT).
            - `prompt` and `completion`: both text, or both lists of turns.
            - `instruction`, `output` and an optional `input` and `history` (Alpaca).

            All but `prompt` and `completion` may have a `system` text, used where no turn is the system's.

    Raises:
        CorpusError: The row has none of these forms, a turn of another role, or no answer to train on.
    """
    if not isinstance(row, Mapping):
        raise CorpusError(f"{where} is {kind_of(row)}, not an object; a row has {FORMS}.")
    # A table has one column for each field of any row; the fields that a row lacks are null.
    row = {key: value for key, value in row.items() if value is not None}
    for key in ("tools", "functions"):
        if row.get(key) not in (None, "", "[]", []):
            raise CorpusError(f"{where} has {key!r}, which no model here is trained to call; take the row out.")
    for key in ("messages", "conversations"):
        if key in row:
            turns = _turns(where, row, key)
            is_converted = key == "conversations" or any(turn.is_converted for turn in turns)
            if all(turn.role != "system" for turn in turns):
                turns = [*_system(where, row), *turns]
            return _conversation(where, turns, converted_from="ShareGPT" if is_converted else None)
    if {"prompt", "completion"} <= row.keys():
        return _prompt_and_completion(where, row)
    if {"instruction", "output"} <= row.keys():
        return _conversation(where, _alpaca_turns(where, row), converted_from="Alpaca")
    raise CorpusError(f"{where} has {', '.join(map(repr, row)) or 'nothing'}; a row has {FORMS}.")


def _prompt_and_completion(where: str, row: Mapping[str, Any]) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str) or not isinstance(completion, str):
        given = _turns(where, row, "prompt")
        return _conversation(where, [*given, *_turns(where, row, "completion")], num_given=len(given))
    if not completion:
        raise CorpusError(f"{where} has an empty completion; fill it or take the row out.")
    return Conversation(where, prompt=prompt, completion=completion)


def _conversation(
    where: str, turns: list[_Turn], *, num_given: int = 0, converted_from: str | None = None
) -> Conversation:
    conversation = Conversation(
        where,
        messages=tuple({"role": turn.role, "content": turn.content} for turn in turns),
        num_given=num_given,
        ignored=frozenset(place for place, turn in enumerate(turns) if turn.is_ignored),
        converted_from=converted_from,
    )
    if not conversation.trained_answers:
        weight = " with a weight of 1" if conversation.ignored else ""
        raise CorpusError(
            f"{where} has no assistant turn{weight}; only those are trained on, so add one or take the row out."
        )
    for place in conversation.trained_answers:
        if not turns[place].content:
            raise CorpusError(f"{where}: turn {place + 1} is an empty answer; fill it or take the row out.")
    return conversation


def _turns(where: str, row: Mapping[str, Any], key: str) -> list[_Turn]:
    turns = row[key]
    if not isinstance(turns, list):
        raise CorpusError(f"{where} has {key!r} that is {kind_of(turns)}; write a list of turns.")
    return [_turn(f"{where}: turn {number} of {key!r}", turn) for number, turn in enumerate(turns, start=1)]


def _turn(where: str, turn: Any) -> _Turn:
    if not isinstance(turn, Mapping):
        raise CorpusError(f"{where} is {kind_of(turn)}; write an object with a role and a content.")
    fields = {key: value for key, value in turn.items() if value is not None}
    spelled, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
    role = _ROLES.get(str(spelled).lower())
    if role is None:
        raise CorpusError(f"{where} has the role {spelled!r}, not system, user or assistant; take the row out.")
    if any(fields.get(key) for key in ("tool_calls", "function_call")):
        raise CorpusError(f"{where} calls a tool, which no model here is trained to do; take the row out.")
    if not isinstance(content, str):
        raise CorpusError(f'{where} has no text; a turn has a "role" and a "content", or a "from" and a "value".')
    weight = fields.get("weight", int(role == "assistant"))
    if isinstance(weight, bool) or weight not in (0, 1):
        raise CorpusError(f"{where} has a weight of {weight!r}; give 1, or 0 for a turn that is not trained on.")
    if weight == 1 and role != "assistant":
        raise CorpusError(
            f"{where} has a weight of 1 and the role {spelled!r}, but only assistant turns are trained on; take the "
            "weight out."
        )
    is_converted = spelled != role or "content" not in fields
    return _Turn(role, content, is_ignored=role == "assistant" and weight == 0, is_converted=is_converted)


def _alpaca_turns(where: str, row: Mapping[str, Any]) -> list[_Turn]:
    question = "\n".join(filter(None, (_text(where, row, "instruction"), _text(where, row, "input"))))
    history = row.get("history", [])
    pairs = history if isinstance(history, list) else [history]
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise CorpusError(
                f"{where}: part {number} of 'history' is no pair of texts; write [[instruction, output], ...]."
            )
    turns = _system(where, row)
    for instruction, output in [*pairs, [question, _text(where, row, "output")]]:
        turns += [_Turn("user", instruction), _Turn("assistant", output)]
    return turns


def _system(where: str, row: Mapping[str, Any]) -> list[_Turn]:
    text = _text(where, row, "system")
    return [_Turn("system", text)] if text else []


def _text(where: str, row: Mapping[str, Any], key: str) -> str:
    text = row.get(key, "")
    if not isinstance(text, str):
        raise CorpusError(f"{where} has {key!r} that is {kind_of(text)}; write a text.")
    return text
