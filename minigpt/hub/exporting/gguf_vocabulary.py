"""A tokenizer in GGUF's terms: tokens spelt in the letters that stand for bytes, their kinds, and merges.

llama.cpp cuts a text into bytes and merges them in the order of the list. A character beyond ASCII is several bytes, so
it needs merges of its own, and these always give it: no byte of one character can be taken for another's.
"""

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from minigpt.errors import UsageError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType


@dataclass(frozen=True)
class GgufVocabulary:
    """What a GGUF file holds of a byte-level tokenizer.

    Attributes:
        tokens: The spelling of each id.
        kinds: The kind of each id.
        merges: Pairs of spellings with a space between, the first to be merged first.
        pre: llama.cpp's name for how a text is cut into words, within which bytes are merged.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str


def gguf_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> GgufVocabulary:
    """Puts a vocabulary of characters, or of byte-level BPE, in GGUF's terms.

    Args:
        tokenizer: A tokenizer on the Rust backend.
        size: The model's number of tokens; ids that the tokenizer leaves free become unused tokens.

    Raises:
        UsageError: The tokenizer is of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "Python"}}
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    vocabulary = tokenizer.get_vocab()
    kinds = {index: CONTROL if added[token] else USER_DEFINED for token, index in vocabulary.items() if token in added}
    tokens = {index: token for token, index in vocabulary.items()}
    model, cutter = description["model"], description.get("pre_tokenizer")
    is_characters = cutter is None and all(len(token) == 1 for token in vocabulary.keys() - added.keys())
    if model["type"] == "BPE" and is_characters and not model["merges"]:
        tokens = {index: token if index in kinds else _spell(token) for index, token in tokens.items()}
        spelt = [token for index, token in sorted(tokens.items()) if index not in kinds]
        # Of what cuts a text into words, one that leaves out nothing and cleans up nothing.
        merges, pre = _merges_of_characters(spelt), "qwen2"
    elif model["type"] == "BPE" and _cuts_as_gpt2(cutter):
        merges, pre = [" ".join(pair) for pair in model["merges"]], "gpt-2"
    else:
        kind = f"{model['type']}{'' if cutter is None else ' after ' + cutter['type']}"
        if hasattr(tokenizer, "sentencepiece_model"):
            kind = "SentencePiece's"
        raise UsageError(
            f"GGUF takes a vocabulary of characters or GPT-2's byte-level BPE, and this one is {kind}; export to a "
            "stock architecture instead."
        )
    free = "[PAD{}]"
    return GgufVocabulary(
        tokens=[tokens.get(index, free.format(index)) for index in range(size)],
        kinds=[kinds.get(index, NORMAL if index in tokens else UNUSED) for index in range(size)],
        merges=merges,
        pre=pre,
    )


def _spell(token: str) -> str:
    letters = bytes_to_unicode()
    return "".join(letters[byte] for byte in token.encode("utf-8"))


def _merges_of_characters(spelt: list[str]) -> list[str]:
    """Each character's bytes from the left: the first to the second, both to the third."""
    merges = [f"{token[:at]} {token[at]}" for token in spelt for at in range(1, len(token))]
    return list(dict.fromkeys(merges))


def _cuts_as_gpt2(cutter: dict[str, Any] | None) -> bool:
    # The cut after GPT-2's own only bounds the length of a pre-token.
    settings = next(iter((cutter or {}).get("pretokenizers", [cutter or {}])))
    return settings.get("type") == "ByteLevel" and settings["use_regex"] and not settings["add_prefix_space"]
