"""Talking with a model in a terminal or through a pipe: standard output is the model's, all else goes to the other."""

import sys
from contextlib import suppress
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt.errors import UsageError
from minigpt.hub.chatting.partners import Continuation, Partner, TemplatePartner
from minigpt.tokenization.tokenization_minigpt import UnknownCharacterError

# Spelled as in `transformers chat`, which has no word for the system message.
HELP = """\
!help         this
!clear        forget what was said
!system TEXT  what the model is told before you speak; without TEXT, nothing
!exit         end, as Ctrl-D does; Ctrl-C ends an answer"""


def chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None, **sampling: Any
) -> None:
    """Talks with whoever writes to standard input, line by line, until it ends or says `!exit`.

    With a chat template it is a conversation. A model without one goes on with what was written.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        system: What the model is told before anything is said.
        **sampling: Arguments of `generate()`; for what is not given, the model's generation config decides.

    Raises:
        UsageError: There is no place for `system`, or the chat template cannot be written in the vocabulary.
        UnknownCharacterError: A character vocabulary lacks a character of `system`.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    partner: Partner = (TemplatePartner if has_template else Continuation)(model, tokenizer, sampling)
    partner.instruct(system or "")
    if not has_template:
        print("This model has no chat template: it goes on with what you write.", file=sys.stderr)
    if _is_terminal():
        print("!help lists the commands, !exit ends.", file=sys.stderr)
    while (line := _read_line()) is not None and line.strip() != "!exit":
        try:
            if line.startswith("!"):
                _obey(partner, line)
            else:
                partner.answer(line)
        except (UsageError, UnknownCharacterError) as error:
            print(f"minigpt: {str(error).rstrip('.')}.", file=sys.stderr)


def _obey(partner: Partner, line: str) -> None:
    command, _, text = line.strip().partition(" ")
    if command == "!clear":
        partner.clear()
    elif command == "!system":
        partner.instruct(text.strip())
    elif command == "!help":
        print(HELP, file=sys.stderr)
    else:
        raise UsageError(f"{command!r} is no command; !help lists them.")


def _read_line() -> str | None:
    """The next line without its end, or None after the last one, Ctrl-D or Ctrl-C."""
    try:
        if not _is_terminal():
            line = sys.stdin.readline()
            return line.removesuffix("\n") if line else None
        with suppress(ImportError):
            import readline  # noqa: F401  (being there, it lets input() edit and recall lines)
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        if _is_terminal():
            print()
        return None


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
