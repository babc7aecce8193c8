"""Two ways to talk with a model: by its chat template, or, where it has none, by going on with one text."""

import sys
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt.errors import UsageError
from minigpt.hub.chatting.streaming import TokenStreamer
from minigpt.hub.context import DEFAULT_NEW_TOKENS, Context, generation_errors
from minigpt.hub.loading import encode_prompt

Message = dict[str, str]


class Partner(Protocol):
    """Whoever answers, and keeps what was said."""

    def answer(self, line: str) -> None:
        """Prints an answer while it is made. Ctrl-C ends the answer; what was said by then counts as said."""

    def instruct(self, system: str) -> None:
        """Takes what the model is to be told before anything else is said; nothing if it is empty."""

    def clear(self) -> None:
        """Forgets what was said."""


@dataclass
class TemplatePartner:
    """Turns of user and assistant, as the model's chat template writes them.

    A block holds only so much: the oldest turns are left out, each as a whole, so that the template stays well formed,
    and the system message stays. Up to half of the block is kept free for the answer. Models that roll past their
    block are shown everything.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with a chat template.
        sampling: Arguments of `generate()`.

    Raises:
        UsageError: The template needs characters that the vocabulary lacks.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: dict[str, Any]
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    is_cut: bool = False

    def __post_init__(self) -> None:
        if not hasattr(self.tokenizer, "encode_array"):
            return  # not a vocabulary of characters
        known = next(iter(self.tokenizer.stoi))
        rendered = self._render([_user(known), _assistant(known), _user(known)], system="")
        try:
            self.tokenizer(rendered, add_special_tokens=False, errors="strict")
        except ValueError as error:
            raise UsageError(f"the model's chat template cannot be written: {error}.") from error

    def answer(self, line: str) -> None:
        """Answers the user's next turn; an empty line is none.

        Raises:
            UnknownCharacterError: A character vocabulary lacks one of the line's characters.
            UsageError: The line alone is too long for the block, or the template refuses it.
        """
        if not line.strip():
            return
        encode_prompt(self.tokenizer, line)  # which refuses by name what the vocabulary lacks
        turns, input_ids = self._fit([*self.turns, _user(line)])
        said = _speak(self.model, self.tokenizer, input_ids, self.sampling, self._opening())
        self.turns = [*turns, _assistant(said.text)]

    def instruct(self, system: str) -> None:
        """Takes the system message, from the next turn on.

        Raises:
            UnknownCharacterError: A character vocabulary lacks one of its characters.
            UsageError: The template has no place for one.
        """
        encode_prompt(self.tokenizer, system)
        if system and self._render([_user("?")], system) == self._render([_user("?")], system * 2):
            raise UsageError("the model's chat template leaves a system message out; say it in your first message.")
        self.system = system

    def clear(self) -> None:
        """Forgets the turns; the system message stays."""
        self.turns, self.is_cut = [], False

    def _fit(self, turns: list[Message]) -> tuple[list[Message], torch.Tensor]:
        """The turns that are shown to the model, and their ids (1, seq)."""
        input_ids, context = self._encode(turns), Context.of(self.model)
        if (block := context.length) is None:
            return turns, input_ids
        shown = context.shown(_wanted(self.model, self.sampling))
        while len(turns) > 1 and input_ids.shape[1] > shown:
            if not self.is_cut:
                self.is_cut = True
                _say(f"The conversation has outgrown the block of {block} tokens: its oldest turns are left out.")
            turns = turns[2:]
            input_ids = self._encode(turns)
        if (length := input_ids.shape[1]) > block:
            raise UsageError(f"this makes a prompt of {length} tokens and the block has {block}; say it shorter.")
        return turns, input_ids

    def _opening(self) -> str:
        """The space or new line that the template itself writes before an answer, and after its prompt for one."""
        prompt, answered = (self._render(turns, system="") for turns in ([_user("?")], [_user("?"), _assistant("!")]))
        opening = answered.removeprefix(prompt).partition("!")[0]
        return opening if opening.isspace() else ""

    def _encode(self, turns: list[Message]) -> torch.Tensor:
        self._render(turns, self.system)  # which says what a template has to object
        return self.tokenizer.apply_chat_template(
            _messages(turns, self.system),
            add_generation_prompt=True,
            return_tensors="pt",
            # What a person writes is text, also where it spells a special token.
            sanitize_control_tokens=True,
        )["input_ids"]  # (1, seq)

    def _render(self, turns: list[Message], system: str) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(_messages(turns, system), add_generation_prompt=True, tokenize=False)
            )
        except Exception as error:  # a template raises whatever it likes
            raise UsageError(
                f"the model's chat template refuses this: {' '.join(str(error).split()).rstrip('.')}."
            ) from error


@dataclass
class Continuation:
    """One text that a person and a model without a chat template write together, line after line.

    The model goes on from what is on the screen: what was typed, with the end of its line, and what the model wrote.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        sampling: Arguments of `generate()`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: dict[str, Any]
    ids: list[int] = field(default_factory=list)
    is_inside_line: bool = False
    is_cut: bool = False

    def answer(self, line: str) -> None:
        """Appends a line and goes on from there; after an empty one, from where the text ends.

        Raises:
            UnknownCharacterError: A character vocabulary lacks one of the line's characters.
        """
        ids = self.ids if self.ids and not line else self.ids + self._encode(line)
        context = Context.of(self.model)
        # `generate()` crops the context of a MiniGPT.
        most = context.length if context.crops else context.shown(_wanted(self.model, self.sampling))
        if most is not None and len(ids) > most and not self.is_cut:
            self.is_cut = True
            _say(f"The text has outgrown the block: the model continues from the last {most} tokens.")
        shown = ids if context.crops or most is None else ids[-most:]
        said = _speak(self.model, self.tokenizer, torch.tensor([shown]), self.sampling)
        self.ids = ids + said.tokens
        self.is_inside_line = not said.text.endswith("\n")

    def instruct(self, system: str) -> None:
        """Refuses a system message.

        Raises:
            UsageError: There is no template that has a place for it.
        """
        if system:
            raise UsageError("a model without a chat template takes no system message; write it into the text.")

    def clear(self) -> None:
        """Starts a new text."""
        self.ids, self.is_inside_line, self.is_cut = [], False, False

    def _encode(self, line: str) -> list[int]:
        if not line and not self.ids:
            return list(encode_prompt(self.tokenizer, "", self.model.generation_config)[0].tolist())
        encode_prompt(self.tokenizer, line)  # alone, so that a refusal counts positions from the line's start
        text = f"\n{line}\n" if self.is_inside_line else f"{line}\n"
        if hasattr(self.tokenizer, "encode_array") and "\n" not in self.tokenizer.get_vocab():
            text = line
        ids: list[int] = encode_prompt(self.tokenizer, text)[0].tolist()
        return ids


class _Answer(TokenStreamer):
    """Prints an answer on lines of its own, and keeps it; what every answer opens with is no part of its text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, opening: str) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.tokens: list[int] = []
        self.text = ""
        self.opening = opening

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.tokens += value.flatten().tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text and self.opening:
            text, self.opening = text.removeprefix(self.opening), ""
        self.text += text
        print(text, end="\n" if stream_end and not self.text.endswith("\n") else "", flush=True)


def _speak(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    sampling: dict[str, Any],
    opening: str = "",
) -> _Answer:
    """Prints what follows on ids (1, seq), until its end or Ctrl-C."""
    input_ids, answer = input_ids.to(model.device), _Answer(tokenizer, opening)
    new_tokens = Context.of(model).fit(input_ids.shape[1], _wanted(model, sampling))
    try:
        with generation_errors(model):
            model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                streamer=answer,
                tokenizer=tokenizer,  # for stop strings, should the generation config have any
                **{**sampling, "max_new_tokens": new_tokens},
            )
    except KeyboardInterrupt:
        answer.end()
    return answer


def _wanted(model: PreTrainedModel, sampling: dict[str, Any]) -> int:
    """Return the number of tokens that an answer has at most."""
    return int(sampling.get("max_new_tokens") or model.generation_config.max_new_tokens or DEFAULT_NEW_TOKENS)


def _messages(turns: list[Message], system: str) -> list[Message]:
    return [{"role": "system", "content": system}, *turns] if system else turns


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _say(notice: str) -> None:
    print(notice, file=sys.stderr)
