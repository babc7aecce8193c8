"""Conversations as tokens, with labels where something is to be learned: in the assistant's answers."""

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import datasets
from jinja2 import TemplateError

from minigpt.errors import UsageError
from minigpt.tokenization.text_forms import convert, suggest_option
from minigpt.training.data.batches import IGNORED
from minigpt.training.data.conversation_rows import Conversation, Conversations
from minigpt.training.data.round_trip import describe_loss
from minigpt.training.data.text_files import CorpusError

_NAMED = 5


@dataclass(frozen=True)
class LabelledRows:
    """Rows of tokens to train on.

    Attributes:
        dataset: `input_ids` and `labels` of each row, of one length; -100 where nothing is learned, as at each row's
            beginning.
        num_cut: Rows that were cut to the block.
        num_left_out: Rows that were left out, for the cut took all that was to be learned.
        conversations: What each row of the dataset was written from.
    """

    dataset: datasets.Dataset
    num_cut: int
    num_left_out: int
    conversations: tuple[Conversation, ...]


def label_rows(
    conversations: Conversations,
    tokenizer: Any,
    block_size: int,
    *,
    truncate: bool = False,
    assistant_only_loss: bool = True,
) -> LabelledRows:
    """Writes conversations in the tokenizer's chat template, and labels what the assistant says.

    The end of an answer is labelled too where the template's generation marks take it in: that is how a model learns
    to stop. A bare prompt and completion are written without a template, and end with the end of text.

    Args:
        conversations: What was read.
        tokenizer: A tokenizer with a chat template; bare prompts and completions need none.
        block_size: Tokens that the model takes at most.
        truncate: Whether longer rows are cut to their first `block_size` tokens; otherwise they are refused.
        assistant_only_loss: Whether only the assistant's tokens (of bare rows, the completion's) are learned.

    Raises:
        UsageError: The template does not mark what the assistant says, or not that it ends, or there is none.
        CorpusError: A row is longer than the block, has a character that the vocabulary lacks, or nothing is left.
    """
    if any(row.messages for row in conversations.rows):
        _check_template(tokenizer, assistant_only_loss)
    rows: list[tuple[list[int], list[int]]] = []
    too_long: list[tuple[str, int]] = []
    for conversation in conversations.rows:
        _refuse_unknown(conversation, tokenizer)
        ids, is_learned = _tokens(conversation, tokenizer, assistant_only_loss)
        if len(ids) > block_size:
            too_long.append((conversation.where, len(ids)))
        labels = [token if learned else IGNORED for token, learned in zip(ids, is_learned, strict=True)]
        # The first token is nobody's target, and trainers that count targets count some models' first ones too.
        labels[:1] = [IGNORED]
        rows.append((ids[:block_size], labels[:block_size]))
    if too_long and not truncate:
        where, length = too_long[0]
        raise CorpusError(
            f"{len(too_long):,} of {len(rows):,} rows are longer than the block of {block_size} tokens (the first is "
            f"{where}, with {length:,}); cut them with --truncate, shorten them, or take a model of a longer block."
        )
    learns_to_stop = any(tokenizer.eos_token_id in labels for _, labels in rows)
    if assistant_only_loss and not learns_to_stop and not too_long:
        raise UsageError(
            f"the chat template ends no answer with {tokenizer.eos_token}, the tokenizer's end of text, so that a "
            "model would never stop; write it before {% endgeneration %}, or make the template's own end the eos_token."
        )
    kept = [place for place, (_, labels) in enumerate(rows) if any(label != IGNORED for label in labels)]
    if not kept:
        raise CorpusError(
            f"no row of {conversations.name} has an answer within its first {block_size} tokens; shorten the prompts, "
            "or take a model of a longer block."
        )
    dataset = datasets.Dataset.from_dict(
        {"input_ids": [rows[place][0] for place in kept], "labels": [rows[place][1] for place in kept]}
    )
    return LabelledRows(
        dataset,
        num_cut=len(too_long),
        num_left_out=len(rows) - len(kept),
        conversations=tuple(conversations.rows[place] for place in kept),
    )


def prompt_of(conversation: Conversation, tokenizer: Any) -> list[int]:
    """Return the tokens before the first answer that is trained on, up to where it begins."""
    if not conversation.messages:
        return _encode(conversation.prompt, tokenizer)
    before = conversation.messages[: conversation.trained_answers[0]]
    if not before:  # the assistant speaks first, and a template needs a turn
        return []
    written = _write(conversation, tokenizer, before, add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(written["input_ids"])


def _check_template(tokenizer: Any, assistant_only_loss: bool) -> None:
    template = tokenizer.chat_template
    if template is None:
        raise UsageError("the tokenizer has no chat template to write messages in; give it one.")
    if assistant_only_loss and not re.search(r"\{%-?\s*generation\s*-?%\}", str(template)):
        raise UsageError(
            "the tokenizer's chat template has no {% generation %} marks, which tell the assistant's tokens from the "
            "others; give it a template that has them, or learn from all tokens with --assistant_only_loss false."
        )


def _tokens(conversation: Conversation, tokenizer: Any, assistant_only_loss: bool) -> tuple[list[int], list[bool]]:
    """Return the ids of a row, and of each whether it is trained on."""
    if not conversation.messages:
        given, answer = _encode(conversation.prompt, tokenizer), _encode(conversation.completion, tokenizer)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        is_learned = [not assistant_only_loss] * len(given) + [True] * (len(answer) + len(end))
        return [*given, *answer, *end], is_learned
    settings = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    written = _write(conversation, tokenizer, conversation.messages, **settings)
    ids, mask = list(written["input_ids"]), [bool(marked) for marked in written["assistant_masks"]]
    is_learned = list(mask) if assistant_only_loss else [True] * len(ids)
    ignored = set(conversation.ignored)
    if assistant_only_loss:
        ignored.update(place for place in conversation.answers if place < conversation.num_given)
    if ignored:
        for place, turn in enumerate(_answer_of_each_token(conversation, mask)):
            is_learned[place] &= turn not in ignored
    return ids, is_learned


def _answer_of_each_token(conversation: Conversation, mask: list[bool]) -> list[int | None]:
    """Return for each token the place of the assistant turn that it belongs to, None outside of those turns."""
    starts = [place for place, marked in enumerate(mask) if marked and not (place and mask[place - 1])]
    if len(starts) != len(conversation.answers):
        raise UsageError(
            f"{conversation.where} has answers that are not trained on, but the chat template marks {len(starts)} "
            f"separate answers of {len(conversation.answers)}; give a template with {{% generation %}} marks around "
            "each answer, or take those answers out."
        )
    begun = accumulate(place in starts for place in range(len(mask)))
    return [conversation.answers[number - 1] if marked else None for number, marked in zip(begun, mask, strict=True)]


def _write(conversation: Conversation, tokenizer: Any, turns: tuple[dict[str, str], ...], **asked: Any) -> Any:
    """Write turns of a conversation in the tokenizer's chat template."""
    try:
        return tokenizer.apply_chat_template(list(turns), **asked)
    except TemplateError as error:
        raise CorpusError(
            f"{conversation.where} does not fit the chat template ({error}); change the row, or give another template."
        ) from error


def _encode(text: str, tokenizer: Any) -> list[int]:
    """Encode text of a person's: where it spells a control token it is text too."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _refuse_unknown(conversation: Conversation, tokenizer: Any) -> None:
    """Refuses a row that cannot be written in the vocabulary, the words that the template adds included."""
    text = conversation.prompt + conversation.completion
    if conversation.messages:
        _refuse_control_tokens(conversation, tokenizer)
        text = _write(conversation, tokenizer, conversation.messages, tokenize=False)
    if hasattr(tokenizer, "stoi"):
        for token in tokenizer.all_special_tokens if conversation.messages else ():
            text = text.replace(token, "")  # the template's
        lacking = sorted(set(text) - tokenizer.stoi.keys())
    else:
        # Where the unknown token is the end of text as well, as in GPT-2, a row may hold it.
        is_lost = tokenizer.unk_token_id not in (None, tokenizer.eos_token_id) and (
            tokenizer.unk_token_id
            in tokenizer(text, add_special_tokens=False, split_special_tokens=not conversation.messages)["input_ids"]
        )
        lacking = [tokenizer.unk_token] if is_lost else []
    if lacking:
        named = ", ".join(map(repr, lacking[:_NAMED])) + (" and more" if lacking[_NAMED:] else "")
        known = getattr(tokenizer, "stoi", {}).keys()
        found = suggest_option(lambda *form: {*convert(text, *form)} - known) if known else None
        form = f"write it in the form that {found[0]} gives a text, {found[1]}; or " if found else ""
        raise CorpusError(
            f"{conversation.where} has what the vocabulary lacks ({named}); {form}take it out, or fine-tune the model "
            "on a text that has it with --extend_vocabulary, and then on conversations."
        )
    if not hasattr(tokenizer, "stoi"):
        _refuse_lossy(conversation, tokenizer)


def _refuse_control_tokens(conversation: Conversation, tokenizer: Any) -> None:
    """Refuse a turn that spells a control token, which could not be told from those that the template writes."""
    control = {*tokenizer.all_special_tokens}
    control |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for number, turn in enumerate(conversation.messages, start=1):
        for token in sorted(control):
            if token in turn["content"]:
                raise CorpusError(
                    f"{conversation.where}: turn {number} spells {token}, which would be read as a control token and "
                    "not as text; take it out, or write it otherwise."
                )


def _refuse_lossy(conversation: Conversation, tokenizer: Any) -> None:
    """Refuse a row whose tokens do not decode to its messages; a template may add spaces to its own text."""
    said = [turn["content"] for turn in conversation.messages] or [conversation.prompt, conversation.completion]
    for text in said:
        if loss := describe_loss(text, tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer):
            raise CorpusError(
                f"the tokenizer ({type(tokenizer).__name__}) loses text of {conversation.where}: {loss}; take a model "
                "whose tokenizer keeps every character, or a text that this one keeps."
            )
