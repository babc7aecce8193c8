"""A task that a small model can learn: to speak as whoever is named, and to know who answers whom in the plays."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from minigpt.training.corpus import PLAYS
from minigpt.training.finetuning.conversations import Conversation, Conversations

SPEAK = (
    "Speak as {}.",
    "Let {} speak.",
    "What says {}?",
    "Be {}.",
    "Let us hear {}.",
    "Give {} the word.",
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

# A conversation of two turns must be within a block of 256 characters, and a chat shows the model what is said so far
# in half of it.
_LONGEST_ANSWER = 160
_LONGEST_FIRST_ANSWER = 60
_LONGEST_SECOND_ANSWER = 120
# Of whoever says less there is too little to learn from; and a crowd is nobody.
_FEWEST_SPEECHES = 10
_CROWDS = ("ALL", "All")

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, and what an answer must be.

    Attributes:
        kind: `speech` (by the one named), `name` (of somebody who answers the one named) or `reply` (a speech of
            somebody who answers the one who spoke).
        messages: The conversation so far; a user's turn is the last.
        names: Who may be named, or speak.
    """

    kind: str
    messages: tuple[Message, ...]
    names: frozenset[str]

    def has_asked_form(self, answer: str, *, has_ended: bool) -> bool:
        """Whether an answer is what was asked for.

        Args:
            answer: What the model said, without the end of text.
            has_ended: Whether it ended by itself.
        """
        if not has_ended:
            return False
        answer = answer.removeprefix(" ")
        if self.kind == "name":
            return answer.endswith(".") and answer[:-1] in self.names
        name, colon, speech = answer.partition(":\n")
        return bool(colon) and name in self.names and bool(speech.strip()) and "\n\n" not in speech


@dataclass(frozen=True)
class _Speech:
    name: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}:\n{self.words}"


def plays_conversations() -> Conversations:
    """The conversations to learn from, the same ones each time."""
    rows = sorted(_rows(), key=lambda messages: _draw(*(message["content"] for message in messages)))
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
    prompts = []
    for name in _names():
        answering = frozenset(_answering()[name])
        prompts.append(Prompt("speech", (_user(_held_out(SPEAK, name).format(name)),), frozenset({name})))
        prompts.append(Prompt("name", (_user(_held_out(WHO, name).format(name)),), answering))
        first = min(
            (speech for speech, _ in _exchanges() if speech.name == name and len(str(speech)) <= _LONGEST_FIRST_ANSWER),
            key=lambda speech: _draw("first", str(speech)),
            default=None,
        )
        if first is not None:
            said = (_bidding(name, "first"), _assistant(str(first)), _user(_held_out(REPLY, name)))
            prompts.append(Prompt("reply", said, answering))
    return tuple(prompts)


def _rows() -> Iterator[tuple[Message, ...]]:
    singles = [*_speaking(), *_naming()]
    yield from singles
    yield from _replying()
    # Questions one after the other have nothing to do with each other.
    brief = [turn for turn in singles if len(turn[-1]["content"]) <= _LONGEST_FIRST_ANSWER]
    for number, turn in enumerate(brief):
        yield (*turn, *brief[_draw("next", str(number)) % len(brief)])


def _speaking() -> Iterator[tuple[Message, ...]]:
    known = set(_names())
    for number, speech in enumerate(_speeches()):
        if speech.name in known and len(str(speech)) <= _LONGEST_ANSWER:
            yield (_bidding(speech.name, f"speech {number}"), _assistant(str(speech)))


def _naming() -> Iterator[tuple[Message, ...]]:
    for name in _names():
        for phrase in WHO:
            if phrase != _held_out(WHO, name):
                for other in _answering()[name]:
                    yield (_user(phrase.format(name)), _assistant(f"{other}."))


def _replying() -> Iterator[tuple[Message, ...]]:
    for number, (first, second) in enumerate(_exchanges()):
        if len(str(first)) <= _LONGEST_FIRST_ANSWER and len(str(second)) <= _LONGEST_SECOND_ANSWER:
            reply = (_user(_phrase(REPLY, first.name, f"reply {number}")), _assistant(str(second)))
            yield (_bidding(first.name, f"exchange {number}"), _assistant(str(first)), *reply)
            if number % 4 == 0:
                yield reply  # as where a chat has left out what was said before


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
