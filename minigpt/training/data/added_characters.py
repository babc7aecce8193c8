"""A new text's characters and a trained vocabulary: refused with a list where it lacks them, or added at its end."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedModel

from minigpt.errors import UsageError
from minigpt.tokenization.text_forms import suggest_option
from minigpt.training.data.corpus import Corpus

_NAMED = 50


def lacking_characters(characters: set[str], tokenizer: Any) -> list[str]:
    """The characters that a tokenizer cannot express, in the order of their code points."""
    if hasattr(tokenizer, "stoi"):
        return sorted(characters - tokenizer.stoi.keys())
    return [character for character in sorted(characters) if _is_lost(character, tokenizer)]


def _is_lost(character: str, tokenizer: Any) -> bool:
    """Whether a character becomes the unknown token or, where there is none, nothing; a space may be a word's."""
    ids = tokenizer(character, add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id in ids or not (ids or character.isspace())


def refuse_lacking(
    lacking: Sequence[str], corpus: Corpus, tokenizer: Any, source: str, *, may_extend: bool = True
) -> None:
    """Refuses a text with characters that the vocabulary lacks.

    Args:
        lacking: The characters.
        corpus: The text.
        tokenizer: What lacks them.
        source: The model.
        may_extend: Whether they could be added; an adapter has no rows for them.

    Raises:
        UsageError: There are any; the message lists them.
    """
    if not lacking:
        return
    named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in lacking[:_NAMED])
    more = f" and {len(lacking) - _NAMED:,} more" if len(lacking) > _NAMED else ""
    number = f"{len(lacking):,} character{'s' if len(lacking) > 1 else ''}"
    remedy = "add them with --extend_vocabulary" + (
        "" if may_extend else " and without --lora, and put the adapter on what that makes"
    )
    found = suggest_option(lambda *form: {*lacking_characters(corpus.characters(*form), tokenizer)})
    if found:
        remedy = f"add {found[0]}, {found[1]}; or {remedy}"
    raise UsageError(
        f"{corpus.name} has {number} that the vocabulary of {source} lacks: {named}{more}; {remedy}, or take them out."
    )


def extend_vocabulary(model: PreTrainedModel, tokenizer: Any, characters: Sequence[str]) -> None:
    """Adds characters at the end of a vocabulary: what was there keeps its ids.

    The new rows of the model's tables are drawn around the mean of the old ones, as `resize_token_embeddings` does it
    (Hewitt 2021).
    """
    tokenizer.add_tokens([AddedToken(character, normalized=False) for character in characters])
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
