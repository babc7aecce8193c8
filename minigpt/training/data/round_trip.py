"""Text that a tokenizer loses: what its tokens are decoded to is compared with what was encoded."""

from collections.abc import Sequence
from typing import Any

_SHOWN = 20


def describe_loss(text: str, ids: Sequence[int], tokenizer: Any, start: int = 0) -> str | None:
    """Name the first characters of a text that its tokens do not give back.

    A space before the text does not count: many tokenizers add one and remove it again.

    Args:
        text: What was encoded, without special tokens added.
        ids: Its tokens.
        tokenizer: What encoded it.
        start: Where the text begins in a longer one, for the position that is named.

    Returns:
        A clause about the first difference, or None if there is none.
    """
    decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if decoded == text or decoded.removeprefix(" ") == text.removeprefix(" "):
        return None
    pairs = enumerate(zip(text, decoded, strict=False))
    at = next((place for place, (one, other) in pairs if one != other), min(len(text), len(decoded)))
    given, back = text[at : at + _SHOWN], decoded[at : at + _SHOWN]
    return f"from character {start + at:,} on, {given!r} comes back as {back!r}"
