"""The variants that a configuration chooses by name: norms, positions, activations, attention spelled out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .configuration_minigpt import MiniGPTConfig


class UnweightedRMSNorm(nn.Module):
    """Root-mean-square norm without a weight (nanochat)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(hidden_states, hidden_states.shape[-1:], eps=self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


def build_norm(config: MiniGPTConfig, size: int) -> nn.Module:
    """The configuration's norm over the last `size` features."""
    if config.norm_type == "layernorm":
        return nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias)
    if config.norm_type == "rmsnorm":
        return nn.RMSNorm(size, eps=config.norm_eps)
    return UnweightedRMSNorm(config.norm_eps)


class LearnedPositions(nn.Embedding):
    """One learned vector for each position, added to the token's (GPT-2)."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config.max_position_embeddings, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        if position_ids.shape[-1] != hidden_states.shape[1]:
            # A sum would stretch one token over all of the positions, without a word.
            given = f"{position_ids.shape[-1]} position_ids were given for {hidden_states.shape[1]} tokens"
            raise ValueError(f"{given}; give one for each token.")
        try:
            return hidden_states + super().forward(position_ids)  # (batch, seq, hidden)
        except IndexError as error:
            raise ValueError(
                f"a position is outside the block of {self.num_embeddings} learned positions; crop the input to it."
            ) from error


class NoPositions(nn.Module):
    """Nothing added to the token's vector: rotary models turn queries and keys instead."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__()

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return hidden_states


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the positions' angles (RoFormer), in the layout of transformers' Llama.

    `inv_freq` and `original_inv_freq` are named as `PreTrainedModel` expects them: it recomputes them after a model was
    built on the meta device.
    """

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = rope_init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: MiniGPTConfig, device: torch.device | None = None, **kwargs: object
    ) -> tuple[torch.Tensor, float]:
        """The frequencies theta^(-2i/d), shape (head_dim / 2), and a scaling of 1 for the cosines and sines."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Angles are taken in float32 whatever the model's dtype: bfloat16 cannot tell position 257 from 258.
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * inv_freq  # (batch, seq, head_dim / 2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (batch, 1, seq, head_dim)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


class NoRotation(nn.Module):
    """No angles: learned positions are already in the hidden states."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__()

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> None:
        return None


def rotate(states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns each pair (i, i + head_dim / 2) of `states` (batch, heads, seq, head_dim) by its position's angle."""
    cos, sin = position_embeddings
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def keep(states: torch.Tensor, position_embeddings: None) -> torch.Tensor:
    """Leaves queries and keys as they are."""
    return states


class Positions(NamedTuple):
    """How a model knows where a token stands: what the embeddings get, what the heads get, and what they do with it."""

    embedding: type[nn.Module]
    rotary: type[nn.Module]
    rotate: Callable[[torch.Tensor, Any], torch.Tensor]


POSITIONS = {
    "learned": Positions(LearnedPositions, NoRotation, keep),
    "rope": Positions(NoPositions, RotaryEmbedding, rotate),
}


class SwiGLU(nn.Module):
    """SiLU of one half times the other (Shazeer, "GLU variants improve Transformer"); the gate comes first."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = hidden_states.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up


def build_activation(hidden_act: str) -> tuple[nn.Module, int]:
    """The activation by its name, and how many features go in for one that comes out."""
    return (SwiGLU(), 2) if hidden_act == "swiglu" else (ACT2FN[hidden_act], 1)


class SoftCap(nn.Module):
    """Bounds logits smoothly to (-cap, cap) (Gemma 2)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.cap * torch.tanh(logits / self.cap)

    def extra_repr(self) -> str:
        return f"cap={self.cap}"


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention written out, the one implementation that can show its weights.

    Args:
        module: The attention that asks; its `num_key_value_groups` query heads share a key and value head.
        query: (batch, heads, seq, head_dim).
        key: (batch, key-value heads, total, head_dim).
        value: (batch, key-value heads, total, head_dim).
        attention_mask: Added to the scores, (batch, 1, seq, total); None to see everything.
        scaling: Factor of the scores.
        dropout: Probability of dropping a weight while training.
        **kwargs: What other implementations need; ignored.

    Returns:
        The output, (batch, seq, heads, head_dim), and the weights, (batch, heads, seq, total).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # (batch, heads, total, head_dim)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)  # (batch, heads, total, head_dim)
    scores = query @ key.transpose(2, 3) * scaling  # (batch, heads, seq, total)
    # Never less precise than the mask, whose least number would turn to minus infinity, and a row of it to NaN.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (batch, seq, heads, head_dim)
