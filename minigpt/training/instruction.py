"""Instruction tuning: conversations as rows to train on and to validate on, and a model that is let stop."""

import hashlib
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from minigpt.errors import UsageError
from minigpt.training.data.batches import IGNORED
from minigpt.training.data.chat_template import give_chat_template
from minigpt.training.data.conversation_rows import Conversations
from minigpt.training.data.conversations import load_conversations
from minigpt.training.data.labels import label_rows, prompt_of
from minigpt.training.data.text_files import CorpusError

# One conversation in so many is held back to validate on.
_HELD_BACK = 10
# Below 1, the likely is drawn more often than the model has it.
ANSWER_TEMPERATURE = 0.6
# Prompts to write samples from.
_PROMPTS = 50


@dataclass(frozen=True)
class InstructionSettings:
    """How conversations are learned from.

    Attributes:
        truncate: Whether rows longer than the block are cut to it; otherwise they are refused.
        assistant_only_loss: Whether only what the assistant says is learned, where it ends included.
    """

    truncate: bool = False
    assistant_only_loss: bool = True


@dataclass(frozen=True)
class InstructionData:
    """Conversations, ready to train on.

    Attributes:
        name: A file's name, a dataset's id, or `plays`.
        num_bytes: Size of the conversations as JSON lines.
        num_characters: Characters that the rows stand for, the template's own included.
        sha256: Hash of what is learned from: it changes with the rows, the template, the vocabulary and the settings.
        train: `input_ids` and `labels` of the rows to train on.
        validation: The same of the rows held back, the last tenth.
        prompts: Tokens of held-back rows' prompts, a few of them, each one once.
        validation_characters: Characters that the labelled tokens of the held-back rows stand for.
        block_size: Tokens that a row has at most.
        num_cut: Rows that were cut to that.
        num_left_out: Rows of which the cut left nothing to learn.
    """

    name: str
    num_bytes: int
    num_characters: int
    sha256: str
    train: datasets.Dataset
    validation: datasets.Dataset
    prompts: tuple[list[int], ...]
    validation_characters: int
    block_size: int
    num_cut: int
    num_left_out: int

    @property
    def num_targets(self) -> int:
        """How many tokens of the held-back rows are predicted."""
        return sum(label != IGNORED for labels in self.validation["labels"] for label in labels)

    def in_words(self) -> str:
        """What a person is told of the rows, in one line."""
        words = f"{len(self.train):,} conversations to train on, {len(self.validation):,} to validate"
        if self.num_cut:
            words += f"; {self.num_cut:,} longer than the block were cut to its {self.block_size} tokens"
        if self.num_left_out:
            words += f", {self.num_left_out:,} of them left out, for nothing to learn was left"
        return words

    def describe(self) -> dict[str, Any]:
        """What `run.json` says of the data."""
        splits = {"train": self.train, "validation": self.validation}
        return {
            "name": self.name,
            "bytes": self.num_bytes,
            "characters": self.num_characters,
            "sha256": self.sha256,
            "split_tokens": {split: sum(map(len, rows["input_ids"])) for split, rows in splits.items()},
            "split_rows": {split: len(rows) for split, rows in splits.items()},
            "rows_cut": self.num_cut,
            "rows_left_out": self.num_left_out,
        }


def prepare_instruction(
    conversations: Any, tokenizer: Any, block_size: int, settings: InstructionSettings | None = None
) -> InstructionData:
    """Writes conversations as rows of tokens; the last tenth, one row at least, is held back.

    A tokenizer without a chat template is given ours.

    Args:
        conversations: The rows, or what `load_conversations` takes.
        tokenizer: The model's.
        block_size: Tokens that the model takes at most.
        settings: How they are learned from.

    Raises:
        UsageError: The tokenizer has no end of text, or its template does not mark what the assistant says.
        CorpusError: There are no such conversations, or a row is not one to learn from.
    """
    settings = settings or InstructionSettings()
    _end_of_text(tokenizer)
    if not isinstance(conversations, Conversations):
        conversations = load_conversations(conversations)
    if any(row.messages for row in conversations.rows):
        give_chat_template(tokenizer)
    rows = label_rows(
        conversations,
        tokenizer,
        block_size,
        truncate=settings.truncate,
        assistant_only_loss=settings.assistant_only_loss,
    )
    if len(rows.dataset) < 2:
        raise CorpusError(
            f"{conversations.name} has {len(rows.dataset)} conversation to learn from, and one more is held back to "
            "validate on; give at least 2."
        )
    num_train = len(rows.dataset) - max(len(rows.dataset) // _HELD_BACK, 1)
    validation = rows.dataset.select(range(num_train, len(rows.dataset)))
    held_back = rows.conversations[num_train:][:_PROMPTS]
    prompts = {tuple(prompt): prompt for prompt in (prompt_of(conversation, tokenizer) for conversation in held_back)}
    return InstructionData(
        name=conversations.name,
        num_bytes=conversations.num_bytes,
        num_characters=sum(_num_characters(ids, tokenizer) for ids in rows.dataset["input_ids"]),
        sha256=_hash(rows.dataset),
        train=rows.dataset.select(range(num_train)),
        validation=validation,
        prompts=tuple(prompt for prompt in prompts.values() if 0 < len(prompt) < block_size),
        validation_characters=sum(_labelled_characters(row, tokenizer) for row in validation),
        block_size=block_size,
        num_cut=rows.num_cut,
        num_left_out=rows.num_left_out,
    )


def learn_to_stop(model: Any, tokenizer: Any) -> None:
    """Re-enable EOS, which `minigpt train` suppresses because plain text never contains it.

    Exports suppress it by a bias. Other suppressed tokens, such as unknown characters and padding, stay suppressed. A
    tokenizer without a padding token pads with EOS: the labels decide what is trained on, so nothing is lost.

    Raises:
        UsageError: The tokenizer has no end of text.
    """
    generation, end = model.generation_config, _end_of_text(tokenizer)
    generation.suppress_tokens = [token for token in generation.suppress_tokens or [] if token != end] or None
    biases = generation.sequence_bias or []
    pairs = biases.items() if isinstance(biases, dict) else biases
    generation.sequence_bias = [[list(tokens), bias] for tokens, bias in pairs if list(tokens) != [end]] or None
    for settings in (model.config, generation):
        known = settings.eos_token_id
        ends = known if isinstance(known, list) else [] if known is None else [known]
        if end not in ends:
            settings.eos_token_id = [end, *ends] if ends else end
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = generation.pad_token_id = tokenizer.pad_token_id


def _end_of_text(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no end of text, by which a model says that its answer is over; give it an eos_token."
        )
    return int(tokenizer.eos_token_id)


def prefer_the_likely(model: Any) -> None:
    """Gives a model that samples the temperature at which it answers, as chat models have it (Llama 3: 0.6).

    From its whole distribution it would misspell a name now and then. A temperature of its own stays.
    """
    generation = model.generation_config
    if generation.do_sample and generation.temperature in (None, 1.0):
        generation.temperature = ANSWER_TEMPERATURE


def _labelled_characters(row: dict[str, list[int]], tokenizer: Any) -> int:
    """How many characters the targets of a row stand for; the end of text is none."""
    number, start = 0, 0
    learned = [label != IGNORED for label in row["labels"]]
    for place, (is_learned, follows) in enumerate(zip(learned, [*learned[1:], False], strict=True)):
        if is_learned and not learned[place - 1]:
            start = place
        if is_learned and not follows:
            # Not decoded alone: a text's first token may lose its space.
            ids = row["input_ids"]
            number += _num_characters(ids[: place + 1], tokenizer) - _num_characters(ids[:start], tokenizer)
    return number


def _num_characters(ids: list[int], tokenizer: Any) -> int:
    return len(tokenizer.decode(ids, skip_special_tokens=True))


def _hash(rows: datasets.Dataset) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.array([row["input_ids"], row["labels"]], np.int64).tobytes())
        digest.update(b"\n")
    return digest.hexdigest()
