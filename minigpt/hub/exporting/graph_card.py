"""The README of an exported graph: what goes in, what comes out, and where it ends."""

import hashlib
import re
from pathlib import Path
from typing import Any

_HEAD = """\
---
pipeline_tag: text-generation
tags:
- minigpt
- {kind}
---

# A MiniGPT in `{file}`

`config.json` holds the model's sizes, `generation_config.json` how it was meant to be sampled, and `tokenizer.json` the
vocabulary, for the `tokenizers` package and everything that is built on it.
"""

_BIGRAM = """
In: `input_ids`, int64 (batch, sequence). Out: `logits`, {dtype} (batch, sequence, {vocab_size}). A bigram looks at the
last token alone, so there is no mask, no position and no cache.
"""

_NAMES = {
    "onnx": ("`past_key_values.N.key` and `past_key_values.N.value`", "`present.N.key` and `present.N.value`"),
    "pt2": ("`past_key_values`, a list of `{key: ..., value: ...}`", "`present`, a list of the same"),
}

_DECODER = """
| in | type | shape | |
|---|---|---|---|
| `input_ids` | int64 | (batch, new) | the new tokens |
| `attention_mask` | int64 | (batch, past + new) | 0 for padding, else 1 |
| `position_ids` | int64 | (batch, new) | where the new tokens stand, from 0; padding is not counted |
| {past} | {dtype} | (batch, {heads}, past, {head_dim}) | for each of {layers} layers; past is 0 at first |

| out | type | shape | |
|---|---|---|---|
| `logits` | {dtype} | (batch, new, {vocab_size}) | of the token that follows each |
| {present} | {dtype} | (batch, {heads}, past + new, {head_dim}) | the past of the next step |

"""

_BLOCK = """\
The model sees {block} tokens at once. A position from {block} on is an error: start again from the last {block} tokens,
with positions from 0 and without a past.
"""

_WINDOW = """\
Each token sees the last {window} tokens, itself included, so a text may be of any length. Of the past, the last {kept}
columns are enough: cut `attention_mask` to match, and let `position_ids` count on.
"""


def graph_card(config: Any, file: Path) -> str:
    """Describes a graph made of the model with this configuration.

    Args:
        config: A `MiniGPTConfig` or `BigramConfig`.
        file: The graph's path in its folder, `*.onnx` or `*.pt2`.

    Returns:
        A README in Markdown, with the YAML that the Hub reads.
    """
    text = _describe(config, file)
    return f"{text}\n<!-- Written by minigpt export. {_digest(text)} -->\n"


def is_graph_card(content: str) -> bool:
    """Return True if a README is as `graph_card` made it, so that no words of a person are lost with it."""
    match = re.fullmatch(r"(.*)\n<!-- Written by minigpt export\. ([0-9a-f]{16}) -->\n", content, re.DOTALL)
    return match is not None and match[2] == _digest(match[1])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe(config: Any, file: Path) -> str:
    kind = file.suffix.removeprefix(".")
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    card = _HEAD.format(kind="onnx" if kind == "onnx" else "torch.export", file=file.as_posix())
    if config.model_type == "minigpt_bigram":
        return card + _BIGRAM.format(dtype=dtype, vocab_size=config.vocab_size)
    past, present = _NAMES[kind]
    card += _DECODER.format(
        past=past,
        present=present,
        dtype=dtype,
        heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
    )
    if config.rolls_past_block:
        return card + _WINDOW.format(window=config.sliding_window, kept=config.sliding_window - 1)
    return card + _BLOCK.format(block=config.max_position_embeddings)
