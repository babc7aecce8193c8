"""The models of the lecture's scripts under their own names: its GPT, heads apart, and its bigram."""

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from minigpt.errors import UsageError
from minigpt.hub.importing.state_dicts import Weights, common_dtype, count_layers, drop_masks, fill
from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.modeling_minigpt.textbook import lecture_weights

# By which width's root a script divides its attention scores. The lecture writes `C**-0.5`, C being the embedding's.
AttentionScale = Literal["head_size", "n_embd"]
SCALES: tuple[AttentionScale, ...] = get_args(AttentionScale)

_TABLE, _POSITIONS = "token_embedding_table.weight", "position_embedding_table.weight"
_KEY, _UP = "blocks.0.sa.heads.0.key.weight", "blocks.0.ffwd.net.0.weight"
# The block of the lecture's bigram.py, which its weights do not show.
BIGRAM_BLOCK = 8
# How many tokens of a text are measured, and how few are too few.
_MOST_TOKENS, _FEWEST_TOKENS = 8192, 512
# A text tells two scales apart by this many nats, or it does not tell.
_CLEARLY = 0.01


def is_bigram(weights: Weights) -> bool:
    """Whether this is the table of the lecture's bigram."""
    return weights.keys() == {_TABLE} and weights[_TABLE].ndim == 2 and len(set(weights[_TABLE].shape)) == 1


def is_lecture(weights: Weights) -> bool:
    """Whether these are the names of one of the lecture's GPTs, finished or not."""
    return _TABLE in weights and weights.keys() != {_TABLE}


def from_bigram(weights: Weights) -> BigramForCausalLM:
    """Makes a bigram of the lecture's table, with the same logits."""
    config = BigramConfig(vocab_size=len(weights[_TABLE]), max_position_embeddings=BIGRAM_BLOCK)
    model = BigramForCausalLM(config).to(common_dtype(weights))
    model.load_state_dict(weights)
    return model.eval()


def from_lecture(
    weights: Weights,
    source: str,
    *,
    n_head: int | None = None,
    hidden_act: str | None = None,
    attention_scale: AttentionScale = "head_size",
) -> MiniGPTForCausalLM:
    """Makes a model of the weights of the lecture's GPT, with the same logits.

    Args:
        weights: By the lecture's names, on the CPU.
        source: Where they come from, for messages.
        n_head: The number of heads; the names tell it too, and must agree.
        hidden_act: The activation; the lecture's ReLU by default.
        attention_scale: By the root of which width the script divides its attention scores.

    Raises:
        UsageError: The weights are not those of the lecture's finished GPT.
    """
    weights = _with_final_norm(weights)
    for name in (_TABLE, _POSITIONS, _KEY, _UP):
        if name not in weights or weights[name].ndim != 2:
            raise UsageError(
                f"{source} is not the lecture's finished GPT: it has no matrix {name}; finish the script, with blocks, "
                "residual connections and layer norms, and train it again."
            )
    (vocab_size, n_embd), block_size = weights[_TABLE].shape, len(weights[_POSITIONS])
    head_size = len(weights[_KEY])
    heads = count_layers(weights, "blocks.0.sa.heads")
    if n_head not in (None, heads):
        raise UsageError(f"{source} has {heads} heads; leave --n_head {n_head} out.")
    weights = drop_masks(weights, ".tril", block_size, source)
    config = MiniGPTConfig(
        vocab_size=vocab_size,
        n_embd=n_embd,
        n_layer=count_layers(weights, "blocks"),
        n_head=heads,
        head_dim=head_size,
        block_size=block_size,
        intermediate_size=len(weights[_UP]),
        hidden_act=hidden_act or "relu",
        lm_head_bias="lm_head.bias" in weights,
    )
    model = MiniGPTForCausalLM(config).to(common_dtype(weights))
    places = lecture_weights(model)
    fill(model, places, weights, source, "the lecture's finished GPT")
    if attention_scale == "n_embd":
        with torch.no_grad():
            for name, place in places.items():
                if name.endswith(".query.weight"):
                    # Ours divides by the root of the head's size: the queries bring the rest along.
                    place *= (head_size / n_embd) ** 0.5
    return model


def scale_matters(weights: Weights) -> bool:
    """Whether the two scales differ: with a single head as wide as the embedding they are the same."""
    return _KEY in weights and len(set(weights[_KEY].shape)) > 1


@torch.no_grad()
def choose_scale(candidates: Mapping[AttentionScale, MiniGPTForCausalLM], ids: torch.Tensor) -> AttentionScale | None:
    """The scale under which a text is clearly likeliest, or None if the text does not tell.

    Args:
        candidates: The same weights as a model of either scale.
        ids: The tokens of the text, int64 (length,); the first 8,192 are measured.
    """
    config = next(iter(candidates.values())).config
    rows = min(len(ids) - 1, _MOST_TOKENS) // config.block_size
    if rows * config.block_size < _FEWEST_TOKENS:
        return None
    x, y = (ids[start:][: rows * config.block_size].view(rows, -1) for start in (0, 1))  # (rows, block)
    losses = {
        scale: F.cross_entropy(model(x).logits.float().flatten(0, 1), y.flatten()).item()
        for scale, model in candidates.items()
    }
    best, second = sorted(losses, key=losses.__getitem__)
    # Weights that do no better than a guess have not been trained on this text, with either scale.
    has_learned = losses[best] < math.log(config.vocab_size)
    return best if has_learned and losses[best] < losses[second] - _CLEARLY else None


def _with_final_norm(weights: Weights) -> Weights:
    """With the last layer norm under the finished script's name: the one before has it at the end of the blocks."""
    if "ln_f.weight" in weights:
        return weights
    at_the_end = f"blocks.{count_layers(weights, 'blocks') - 1}"
    names = {f"{at_the_end}.{part}": f"ln_f.{part}" for part in ("weight", "bias")}
    return {names.get(name, name): tensor for name, tensor in weights.items()}
