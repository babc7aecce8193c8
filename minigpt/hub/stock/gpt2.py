"""GPT-2, and with it nanoGPT: learned positions, layer norms, biases everywhere but in the head."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt.hub.stock.architecture import (
    NO_GATE,
    NO_HEAD_BIAS,
    NO_SOFT_CAP,
    NO_WINDOW,
    Architecture,
    Need,
    Weights,
    exactly,
    shared_fields,
)
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

logger = logging.getLogger(__name__)

_QKV = "self_attn.qkv_proj"
_LAYER = {
    "ln_1": "input_layernorm",
    "attn.c_attn": _QKV,
    "attn.c_proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def _modules(num_layers: int) -> Iterator[tuple[str, str]]:
    """Every module's name in a GPT-2 and in a MiniGPT."""
    yield "transformer.wte", "model.embed_tokens"
    yield "transformer.wpe", "model.embed_positions"
    for index in range(num_layers):
        for theirs, ours in _LAYER.items():
            yield f"transformer.h.{index}.{theirs}", f"model.layers.{index}.{ours}"
    yield "transformer.ln_f", "model.norm"
    yield "lm_head", "lm_head"


def _turn(name: str, weight: torch.Tensor) -> torch.Tensor:
    # GPT-2's Conv1D keeps (in, out) where nn.Linear keeps (out, in).
    return weight.T if ".c_" in name else weight


def _stock_config(config: MiniGPTConfig) -> GPT2Config:
    return GPT2Config(
        **shared_fields(config),
        n_inner=config.intermediate_size,
        activation_function=config.hidden_act,
        layer_norm_epsilon=config.norm_eps,
        resid_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        embd_pdrop=config.embedding_dropout,
    )


def _stock_weights(model: MiniGPTForCausalLM) -> Weights:
    ours, theirs = model.state_dict(), {}
    for their_name, our_name in _modules(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            tensor = ours.get(f"{our_name}.{kind}")
            if tensor is None:
                continue
            if our_name.endswith(_QKV):
                tensor = _one_key_for_each_query(tensor, model.config)
            theirs[f"{their_name}.{kind}"] = _turn(their_name, tensor) if kind == "weight" else tensor
    return theirs


def _one_key_for_each_query(tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Writes a key and value head that several query heads share once for each of them: GPT-2 knows no sharing."""
    queries, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    heads = tensor.unflatten(0, (-1, config.head_dim))  # (all heads, head_dim, hidden), a bias without the hidden
    keys_and_values = heads[queries:].repeat_interleave(groups, dim=0)  # (2 * query heads, head_dim, hidden)
    return torch.cat((heads[:queries], keys_and_values)).flatten(0, 1)  # (3 * query heads * head_dim, hidden)


def _our_config(config: GPT2Config) -> MiniGPTConfig:
    if config.resid_pdrop != config.attn_pdrop:
        logger.warning(
            "a MiniGPT has one dropout for its attention weights and residual branches: resid_pdrop %s is kept and"
            " attn_pdrop %s is not",
            config.resid_pdrop,
            config.attn_pdrop,
        )
    return MiniGPTConfig(
        **shared_fields(config),
        intermediate_size=config.n_inner,
        hidden_act=config.activation_function,
        norm_eps=config.layer_norm_epsilon,
        dropout=config.resid_pdrop,
        embedding_dropout=config.embd_pdrop,
        attention_bias=True,
        lm_head_bias=False,
        residual_init="scaled",
    )


def _our_weights(model: GPT2LMHeadModel) -> Weights:
    theirs, ours = model.state_dict(), {}
    for their_name, our_name in _modules(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            if f"{their_name}.{kind}" in theirs:
                tensor = theirs[f"{their_name}.{kind}"]
                ours[f"{our_name}.{kind}"] = _turn(their_name, tensor) if kind == "weight" else tensor
    for index, block in enumerate(model.transformer.h):
        # A MiniGPT divides every score by the root of the head's width; what GPT-2 does beyond that, its queries take.
        factor = block.attn.scaling * block.attn.head_dim**0.5
        if factor != 1:
            for kind in ("weight", "bias"):
                name = f"model.layers.{index}.{_QKV}.{kind}"
                queries, rest = ours[name].tensor_split([model.config.hidden_size])
                ours[name] = torch.cat((queries * factor, rest))  # (3 * hidden, hidden), a bias without the last
    return ours


GPT2 = Architecture(
    model_class=GPT2LMHeadModel,
    needs=(
        exactly("position_embedding_type", "learned"),
        exactly("norm_type", "layernorm"),
        exactly("embedding_norm", False),
        exactly("qk_norm", None),
        NO_GATE,
        Need(
            "head_dim",
            "hidden_size / num_attention_heads",
            lambda config: config.head_dim * config.num_attention_heads == config.hidden_size,
        ),
        NO_WINDOW,
        NO_HEAD_BIAS,
        NO_SOFT_CAP,
    ),
    stock_config=_stock_config,
    stock_weights=_stock_weights,
    needs_of_stock=(exactly("add_cross_attention", False),),
    our_config=_our_config,
    our_weights=_our_weights,
)
