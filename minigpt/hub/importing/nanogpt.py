"""nanoGPT's GPT under its own names, as a MiniGPT; minGPT's has the same names."""

from collections.abc import Mapping
from typing import Any

import torch

from minigpt.errors import UsageError
from minigpt.hub.importing.state_dicts import Weights, common_dtype, count_layers, drop_masks, fill
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

_BLOCK_NAMES = {
    "ln_1": "input_layernorm",
    "attn.c_attn": "self_attn.qkv_proj",
    "attn.c_proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_ARGUMENTS = {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}
_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
_MASK = ".attn.bias"
_POSITIONS, _QKV, _UP = (
    "transformer.wpe.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.0.mlp.c_fc.weight",
)


def is_nanogpt(weights: Weights) -> bool:
    """Whether these are the names of nanoGPT's GPT."""
    return _POSITIONS in weights and count_layers(weights, "transformer.h") > 0


def nanogpt_weights(model: MiniGPTForCausalLM) -> Weights:
    """A model's own memory under nanoGPT's names: writing into it writes into the model."""
    names = {
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": "model.embed_positions",
        "transformer.ln_f": "model.norm",
        "lm_head": "lm_head",
    }
    for i in range(model.config.num_hidden_layers):
        names |= {f"transformer.h.{i}.{theirs}": f"model.layers.{i}.{ours}" for theirs, ours in _BLOCK_NAMES.items()}
    ours = model.state_dict()
    return {
        f"{their_name}.{part}": ours[f"{our_name}.{part}"]
        for their_name, our_name in names.items()
        for part in ("weight", "bias")
        if f"{our_name}.{part}" in ours
    }


def from_nanogpt(
    weights: Weights,
    arguments: Mapping[str, Any],
    source: str,
    *,
    n_head: int | None = None,
    hidden_act: str | None = None,
) -> MiniGPTForCausalLM:
    """Makes a model of nanoGPT's weights, with the same logits.

    Args:
        weights: By nanoGPT's names, on the CPU.
        arguments: The checkpoint's `model_args`; empty for weights alone.
        source: Where they come from, for messages.
        n_head: The number of heads, where `arguments` does not say it.
        hidden_act: The activation; by default the exact GELU that nanoGPT has, or its approximation by tanh for
            minGPT's weights and for checkpoints from before nanoGPT's `bias` argument.

    Raises:
        UsageError: The number of heads is not known, or the weights are not those of nanoGPT's GPT or contradict
            `arguments`.
    """
    if unknown := sorted(map(str, arguments.keys() - _ARGUMENTS)):
        raise UsageError(
            f"{source} has {unknown[0]!r} in its model_args, which nanoGPT's GPT does not know; where it changes "
            "nothing, save the weights with torch.save(model.state_dict(), 'weights.pt') and import them with --n_head."
        )
    weights = _with_both_tables(weights)
    for name in (_EMBEDDING, _POSITIONS, _QKV, _UP):
        if name not in weights or weights[name].ndim != 2:
            raise UsageError(f"{source} is not nanoGPT's GPT: it has no matrix {name}; save the whole state_dict.")
    (vocab_size, n_embd), block_size = weights[_EMBEDDING].shape, len(weights[_POSITIONS])
    if weights[_QKV].shape == (n_embd, 3 * n_embd):
        raise UsageError(
            f"{source} holds the weights of transformers' GPT-2, whose matrices are the other way round; import the "
            "folder that has them beside their config.json."
        )
    is_tied = torch.equal(weights[_EMBEDDING], weights[_HEAD])
    # minGPT never tied the head and always saved its masks. nanoGPT tied the head before it computed GELU exactly.
    is_mingpt = not arguments and not is_tied and any(name.endswith(_MASK) for name in weights)
    has_tanh = is_mingpt or (bool(arguments) and "bias" not in arguments)
    weights = drop_masks(weights, _MASK, block_size, source)
    found = {
        "vocab_size": vocab_size,
        "n_embd": n_embd,
        "block_size": block_size,
        "n_layer": count_layers(weights, "transformer.h"),
    }
    for name, value in found.items():
        if name in arguments and arguments[name] != value:
            raise UsageError(
                f"{source} contradicts itself: its model_args say {name}={arguments[name]!r} and its weights "
                f"{name}={value}; save the checkpoint again."
            )
    dropout = arguments.get("dropout", 0.0)
    config = MiniGPTConfig(
        **found,
        n_head=_heads(arguments, n_head, n_embd, source),
        intermediate_size=len(weights[_UP]),
        hidden_act=hidden_act or ("gelu_new" if has_tanh else "gelu"),
        norm_bias="transformer.ln_f.bias" in weights,
        attention_bias="transformer.h.0.attn.c_attn.bias" in weights,
        attention_output_bias="transformer.h.0.attn.c_proj.bias" in weights,
        mlp_bias="transformer.h.0.mlp.c_fc.bias" in weights,
        lm_head_bias=False,
        tie_word_embeddings=is_tied,
        dropout=dropout,
        embedding_dropout=dropout,
        residual_init="scaled",
    )
    model = MiniGPTForCausalLM(config).to(common_dtype(weights))
    return fill(model, nanogpt_weights(model), weights, source, "nanoGPT's GPT")


def _with_both_tables(weights: Weights) -> Weights:
    """The token embedding and the head are one tensor in nanoGPT, and a safetensors file keeps it once."""
    for one, other in ((_EMBEDDING, _HEAD), (_HEAD, _EMBEDDING)):
        if one in weights and other not in weights:
            return weights | {other: weights[one]}
    return weights


def _heads(arguments: Mapping[str, Any], n_head: int | None, n_embd: int, source: str) -> int:
    said = arguments.get("n_head")
    if said is None and n_head is None:
        raise UsageError(f"{source} holds weights alone, which do not say how many heads there are; give --n_head.")
    if said is not None and n_head not in (None, said):
        raise UsageError(f"{source} has n_head={said!r}; leave --n_head {n_head} out.")
    heads = n_head if said is None else said
    if type(heads) is not int or heads < 1 or n_embd % heads:
        remedy = "give another --n_head" if said is None else "save the checkpoint again"
        raise UsageError(f"{source} has a width of {n_embd}, which n_head={heads!r} does not divide; {remedy}.")
    return heads
