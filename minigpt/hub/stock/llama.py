"""Llama and its descendants Qwen3 and nanochat: rotary positions and RMS norms, queries, keys and values apart."""

import logging
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

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


def _stock_fields(config: MiniGPTConfig) -> dict[str, Any]:
    if config.dropout or config.embedding_dropout:
        logger.warning(
            "the stock model drops attention weights alone, should it be trained further: dropout %s on residual"
            " branches and embedding_dropout %s are not kept",
            config.dropout,
            config.embedding_dropout,
        )
    return {
        **shared_fields(config),
        "intermediate_size": config.intermediate_size,
        "num_key_value_heads": config.num_key_value_heads,
        "rope_parameters": dict(config.rope_parameters or {}),
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.attention_bias or config.attention_output_bias,
        "attention_dropout": config.dropout,
        "head_dim": config.head_dim,
    }


def _our_fields(config: PreTrainedConfig) -> dict[str, Any]:
    if config.attention_dropout:
        logger.warning(
            "attention_dropout %s acts on the residual branches too, should the MiniGPT be trained further",
            config.attention_dropout,
        )
    return {
        **shared_fields(config),
        "intermediate_size": config.intermediate_size,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None),
        "position_embedding_type": "rope",
        "rope_parameters": dict(config.rope_parameters),
        "norm_type": "rmsnorm",
        "norm_eps": config.rms_norm_eps,
        "hidden_act": "swiglu",
        "attention_bias": config.attention_bias,
        "attention_output_bias": config.attention_bias,
        "mlp_bias": False,
        "lm_head_bias": False,
        "dropout": config.attention_dropout,
    }


def _stock_weights(model: MiniGPTForCausalLM) -> Weights:
    """What a MiniGPT computes in one projection, apart; all other names are the same."""
    config: Any = model.config
    theirs: Weights = {}
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    is_gated = config.hidden_act == "swiglu"
    for name, tensor in model.state_dict().items():
        if ".qkv_proj." in name:
            parts = tensor.split([count * config.head_dim for count in heads])  # each (heads * head_dim, hidden)
            theirs |= {name.replace("qkv_proj", f"{part}_proj"): rows for part, rows in zip("qkv", parts, strict=True)}
        elif ".up_proj." in name and is_gated:
            theirs[name.replace("up_proj", "gate_proj")], theirs[name] = tensor.chunk(2)  # each (intermediate, hidden)
        else:
            theirs[name] = tensor
    return theirs


def _our_weights(model: PreTrainedModel) -> Weights:
    return _fused(model.state_dict())


def _fused(theirs: Weights) -> Weights:
    """The way back of `_stock_weights`."""
    ours: Weights = {}
    for name, tensor in theirs.items():
        if ".q_proj." in name:
            parts = [theirs[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            ours[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)  # (all heads * head_dim, hidden)
        elif ".gate_proj." in name:
            up = name.replace("gate_proj", "up_proj")
            ours[up] = torch.cat((tensor, theirs[up]))  # (2 * intermediate, hidden)
        elif not any(part in name for part in (".k_proj.", ".v_proj.", ".up_proj.")):
            ours[name] = tensor
    return ours


_NANOCHAT_NAMES = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}


def _nanochat_weights(model: MiniGPTForCausalLM) -> Weights:
    config: Any = model.config
    theirs: Weights = {}
    for name, tensor in _stock_weights(model).items():
        for our_name, stock in _NANOCHAT_NAMES.items():
            name = name.replace(our_name, stock)
        theirs[name] = tensor
    return _with_halves_swapped(theirs, config.head_dim)


def _weights_of_nanochat(model: NanoChatForCausalLM) -> Weights:
    ours: Weights = {}
    head_dim = model.model.layers[0].self_attn.head_dim
    for name, tensor in _fused(_with_halves_swapped(model.state_dict(), head_dim)).items():
        for our_name, stock in _NANOCHAT_NAMES.items():
            name = name.replace(stock, our_name)
        ours[name] = tensor
    return ours


def _with_halves_swapped(weights: Weights, head_dim: int) -> Weights:
    """Swaps the halves of each query and key head: nanochat turns the other way, and so both ways are one."""
    return {
        # (heads, head_dim, hidden), rolled by a half, (heads * head_dim, hidden); a bias without the hidden
        name: tensor.unflatten(0, (-1, head_dim)).roll(head_dim // 2, dims=1).flatten(0, 1)
        if ".q_proj." in name or ".k_proj." in name
        else tensor
        for name, tensor in weights.items()
    }


def _norms_commute(config: MiniGPTConfig) -> bool:
    """Whether queries and keys may be normed before or after their rotation: it keeps their length, and so the norm.

    A weight would be turned with them, and yarn changes the length.
    """
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    return config.norm_type == "unweighted_rmsnorm" and rope_type != "yarn"


ROTARY = exactly("position_embedding_type", "rope")
# The weights of a norm without weights are ones.
RMS_NORM = exactly("norm_type", "rmsnorm", "unweighted_rmsnorm")
NO_EMBEDDING_NORM = exactly("embedding_norm", False)
GATE = exactly("hidden_act", "swiglu")
GATE_OF_STOCK = exactly("hidden_act", "silu", "swish")
NO_FEED_FORWARD_BIAS = exactly("mlp_bias", False)


def _llama_config(config: MiniGPTConfig) -> LlamaConfig:
    return LlamaConfig(**_stock_fields(config), mlp_bias=config.mlp_bias)


def _of_llama(config: LlamaConfig) -> MiniGPTConfig:
    return MiniGPTConfig(**{**_our_fields(config), "mlp_bias": config.mlp_bias})


LLAMA = Architecture(
    model_class=LlamaForCausalLM,
    needs=(
        ROTARY,
        RMS_NORM,
        NO_EMBEDDING_NORM,
        exactly("qk_norm", None),
        GATE,
        Need(
            "num_attention_heads",
            "a divisor of hidden_size",
            lambda config: config.hidden_size % config.num_attention_heads == 0,
        ),
        NO_WINDOW,
        NO_HEAD_BIAS,
        NO_SOFT_CAP,
    ),
    stock_config=_llama_config,
    stock_weights=_stock_weights,
    needs_of_stock=(GATE_OF_STOCK,),
    our_config=_of_llama,
    our_weights=_our_weights,
)


def _qwen3_config(config: Any) -> Qwen3Config:
    return Qwen3Config(
        **_stock_fields(config),
        use_sliding_window="sliding_attention" in config.layer_types,
        sliding_window=config.sliding_window,
        layer_types=list(config.layer_types),
    )


def _of_qwen3(config: Qwen3Config) -> MiniGPTConfig:
    return MiniGPTConfig(
        **_our_fields(config),
        qk_norm="before_rotary",
        sliding_window=config.sliding_window if "sliding_attention" in config.layer_types else None,
        layer_types=list(config.layer_types),
    )


QWEN3 = Architecture(
    model_class=Qwen3ForCausalLM,
    needs=(
        ROTARY,
        RMS_NORM,
        NO_EMBEDDING_NORM,
        Need(
            "qk_norm",
            "'before_rotary'",
            lambda config: (
                config.qk_norm == "before_rotary" or (config.qk_norm == "after_rotary" and _norms_commute(config))
            ),
        ),
        GATE,
        NO_FEED_FORWARD_BIAS,
        NO_HEAD_BIAS,
        NO_SOFT_CAP,
    ),
    stock_config=_qwen3_config,
    stock_weights=_stock_weights,
    needs_of_stock=(GATE_OF_STOCK,),
    our_config=_of_qwen3,
    our_weights=_our_weights,
)


def _nanochat_config(config: MiniGPTConfig) -> NanoChatConfig:
    cap = config.final_logit_softcapping
    return NanoChatConfig(
        **_stock_fields(config),
        hidden_act=config.hidden_act,
        final_logit_softcapping=None if cap is None else float(cap),
    )


def _of_nanochat(config: NanoChatConfig) -> MiniGPTConfig:
    own = {
        "norm_type": "unweighted_rmsnorm",
        "qk_norm": "after_rotary",
        "embedding_norm": True,
        "hidden_act": config.hidden_act,
        "final_logit_softcapping": config.final_logit_softcapping,
    }
    return MiniGPTConfig(**{**_our_fields(config), **own})


NANOCHAT = Architecture(
    model_class=NanoChatForCausalLM,
    needs=(
        ROTARY,
        exactly("norm_type", "unweighted_rmsnorm"),
        exactly("embedding_norm", True),
        Need(
            "qk_norm",
            "'after_rotary'",
            lambda config: (
                config.qk_norm == "after_rotary" or (config.qk_norm == "before_rotary" and _norms_commute(config))
            ),
        ),
        NO_GATE,
        NO_WINDOW,
        NO_FEED_FORWARD_BIAS,
        NO_HEAD_BIAS,
    ),
    stock_config=_nanochat_config,
    stock_weights=_nanochat_weights,
    needs_of_stock=(),
    our_config=_of_nanochat,
    our_weights=_weights_of_nanochat,
)
