"""A task that a small model can learn: to speak as whoever is named, and to know who answers whom in the plays."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from minigpt.training.data.conversation_rows import Conversation, Conversations
from minigpt.training.data.corpus import PLAYS

SPEAK = (
    "Speak as {}.",
    "Let {} speak.",
    "Be {}.",
    "Let us hear {}.",
    "Give {} the word.",
    "Speak for {}.",
)
WHO = (
    "Who answers {}?",
    "Who speaks after {}?",
    "Who talks with {}?",
    "Tell me who answers {}.",
)
REPLY = (
    "Who answers?",
    "And the answer?",
    "Go on.",
    "What is the reply?",
)

# With these a model of preset `chat` learns the task in minutes; where it begins, it knows no conversation at all.
PLAYS_TRAINING = {
    "max_steps": 1200,
    "per_device_train_batch_size": 12,
    "learning_rate": 2e-3,
    "warmup_steps": 50,
    "adam_beta2": 0.99,
    "weight_decay": 0.1,
    "eval_interval": 300,
    "eval_iters": 10,
}

# A row of characters is within a block of 256, and a chat shows the model what is said so far in half of that.
_LONGEST_ROW = 250
_LONGEST_ANSWER = 100
_LONGEST_FIRST_ANSWER = 50
_PASSES = 3
# Who answers whom is soon said, so it must be said often to weigh as much as the speeches.
_NAMED_TIMES = 3
# Of whoever says less there is too little to learn from; and a crowd is nobody.
_FEWEST_SPEECHES = 55
_CROWDS = ("ALL", "All")

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, and what an answer must be.

    Attributes:
        kind: `speech` (by the one named), `name` (of somebody who answers the one named) or `reply` (a speech of
            somebody who answers the one who spoke).
        about: Who that one is.
        messages: The conversation so far; a user's turn is the last.
        names: Whose name or speech has the asked form: for a speech one, else everybody's in the plays.
        true_names: Whose is true to the plays as well.
    """

    kind: str
    about: str
    messages: tuple[Message, ...]
    names: frozenset[str]
    true_names: frozenset[str]

    def has_asked_form(self, answer: str, *, has_ended: bool) -> bool:
        """Whether an answer is of the form that was asked for: one who may answer, something said, and an end.

        Args:
            answer: What the model said, without the end of text.
            has_ended: Whether it ended by itself.
        """
        return has_ended and self._who_answers(answer) in self.names

    def is_true(self, answer: str, *, has_ended: bool) -> bool:
        """Whether an answer has the asked form, and is by one who does answer in the plays."""
        return self.has_asked_form(answer, has_ended=has_ended) and self._who_answers(answer) in self.true_names

    def _who_answers(self, answer: str) -> str | None:
        answer = answer.removeprefix(" ")
        if self.kind == "name":
            name, _, rest = answer.partition(" answers ")
            return name if rest == f"{self.about}." else None
        name, _, speech = answer.partition(":\n")
        return name if speech.strip() and "\n\n" not in speech else None


@dataclass(frozen=True)
class _Speech:
    name: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}:\n{self.words}"


def plays_conversations() -> Conversations:
    """The conversations to learn from, the same ones each time."""
    rows = list(_rows())
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in rows]
    content = "".join(lines).encode()
    return Conversations(
        "plays",
        len(content),
        hashlib.sha256(content).hexdigest(),
        tuple(Conversation(f"plays, row {number}", messages) for number, messages in enumerate(rows, start=1)),
    )


def held_out_prompts() -> tuple[Prompt, ...]:
    """Prompts of which no conversation has the phrase and the name together, though it has each of them."""
    prompts, anybody = [], frozenset(speech.name for speech in _speeches())
    for name in _names():
        one, answering = frozenset({name}), frozenset(_answering()[name])
        prompts.append(Prompt("speech", name, (_user(_held_out(SPEAK, name).format(name)),), one, one))
        prompts.append(Prompt("name", name, (_user(_held_out(WHO, name).format(name)),), anybody, answering))
        first = min(
            (speech for speech, _ in _exchanges() if speech.name == name and len(str(speech)) <= _LONGEST_FIRST_ANSWER),
            key=lambda speech: _draw("first", str(speech)),
            default=None,
        )
        if first is not None:
            said = (_bidding(name, "first"), _assistant(str(first)), _user(_held_out(REPLY, name)))
            prompts.append(Prompt("reply", name, said, anybody, answering))
    return tuple(prompts)


def _rows() -> Iterator[tuple[Message, ...]]:
    """Rows as full as they may be, of questions that have nothing to do with each other."""
    for number in range(_PASSES):
        exchanges = [*_speaking(number), *_NAMED_TIMES * list(_naming()), *_replying(number)]
        # Drawn by place: the same question is there several times.
        order = sorted(range(len(exchanges)), key=lambda place: _draw(f"pass {number}", str(place)))
        row: tuple[Message, ...] = ()
        for exchange in (exchanges[place] for place in order):
            if _length(row) + _length(exchange) > _LONGEST_ROW:
                yield row
                # Every other one is asked for a reply as in a chat that has left out what was said before.
                row = exchange[2:] if len(exchange) == 4 and _draw("cut", *_contents(exchange)) % 2 else exchange
            else:
                row += exchange
        yield row


def _speaking(number: int) -> Iterator[tuple[Message, ...]]:
    known = set(_names())
    for at, speech in enumerate(_speeches()):
        if speech.name in known and len(str(speech)) <= _LONGEST_ANSWER:
            yield (_bidding(speech.name, f"speech {number} {at}"), _assistant(str(speech)))


def _naming() -> Iterator[tuple[Message, ...]]:
    for name in _names():
        for phrase in WHO:
            if phrase != _held_out(WHO, name):
                for other in _answering()[name]:
                    yield (_user(phrase.format(name)), _assistant(f"{other} answers {name}."))


def _replying(number: int) -> Iterator[tuple[Message, ...]]:
    for at, (first, second) in enumerate(_exchanges()):
        if len(str(first)) <= _LONGEST_FIRST_ANSWER and len(str(second)) <= _LONGEST_ANSWER:
            asked = _bidding(first.name, f"exchange {number} {at}")
            reply = _user(_phrase(REPLY, first.name, f"reply {number} {at}"))
            yield (asked, _assistant(str(first)), reply, _assistant(str(second)))


def _contents(turns: tuple[Message, ...]) -> Iterator[str]:
    return (turn["content"] for turn in turns)


def _length(turns: tuple[Message, ...]) -> int:
    """Characters of some turns as the chat template writes them, the end of text as one."""
    return sum(len(f"{turn['role']}: {turn['content']}\n") + (turn["role"] == "assistant") for turn in turns)


def _bidding(name: str, key: str) -> Message:
    return _user(_phrase(SPEAK, name, key).format(name))


@cache
def _speeches() -> tuple[_Speech, ...]:
    speeches = []
    for part in PLAYS.read_text(encoding="utf-8").strip("\n").split("\n\n"):
        name, _, words = part.partition(":\n")
        speeches.append(_Speech(name, words))
    return tuple(speeches)


@cache
def _names() -> tuple[str, ...]:
    spoken = Counter(speech.name for speech in _speeches())
    return tuple(sorted(name for name, times in spoken.items() if times >= _FEWEST_SPEECHES and name not in _CROWDS))


@cache
def _exchanges() -> tuple[tuple[_Speech, _Speech], ...]:
    """Two speeches, one after the other, of two different people."""
    known = set(_names())
    return tuple((a, b) for a, b in pairwise(_speeches()) if a.name != b.name and {a.name, b.name} <= known)


@cache
def _answering() -> dict[str, tuple[str, ...]]:
    """Of each name those who answer it in the plays, most often first."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in _names()}
    for first, second in _exchanges():
        counts[first.name][second.name] += 1
    return {name: tuple(other for other, _ in answering.most_common()) for name, answering in counts.items()}


def _held_out(phrases: Sequence[str], name: str) -> str:
    return phrases[_draw("held out", phrases[0], name) % len(phrases)]


def _phrase(phrases: Sequence[str], name: str, key: str) -> str:
    """One of the phrases that go with a name in what is learned from."""
    learned = [phrase for phrase in phrases if phrase != _held_out(phrases, name)]
    return learned[_draw(key, name) % len(learned)]


def _draw(*parts: str) -> int:
    """A number that looks random and is the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
