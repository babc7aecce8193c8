"""Tiny MiniGPTs that stock architectures can express, with weights that hide nothing."""

from typing import Any

import torch
from transformers import PreTrainedModel

from minigpt import MiniGPTConfig, MiniGPTForCausalLM

BLOCK, VOCABULARY = 12, 17
TINY = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"lm_head_bias": False}
LLAMA = {
    "position_embedding_type": "rope",
    "norm_type": "rmsnorm",
    "hidden_act": "swiglu",
    "attention_output_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
}
QWEN3 = {**LLAMA, "qk_norm": "before_rotary"}
NANOCHAT = {
    **LLAMA,
    "norm_type": "unweighted_rmsnorm",
    "hidden_act": "relu2",
    "qk_norm": "after_rotary",
    "embedding_norm": True,
    "final_logit_softcapping": 15,
}
PURE = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3, "nanochat": NANOCHAT}


def sharpen(model: PreTrainedModel, std: float = 0.3) -> PreTrainedModel:
    """Draws every parameter anew, so that no bias or norm is at its neutral value and attention is sharp."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(noise + 1 if parameter.ndim == 1 and name.endswith("weight") else noise)
    return model.eval()


def minigpt(**fields: Any) -> MiniGPTForCausalLM:
    """A tiny sharp MiniGPT."""
    return sharpen(MiniGPTForCausalLM(MiniGPTConfig(**{**TINY, "max_position_embeddings": BLOCK, **fields})))


def draw_ids(rows: int = 3, length: int = BLOCK) -> torch.Tensor:
    """Random ids, the same each time, (rows, length)."""
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
