"""Tiny models with weights that hide nothing: sharp attention, and no bias or norm at its neutral value."""

import pytest
import torch
from transformers import PreTrainedModel

from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

TINY = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "block_size": 12}


def sharpen_weights(model: PreTrainedModel, std: float = 0.3, seed: int = 0) -> PreTrainedModel:
    """Draws every parameter anew; one-dimensional weights (norms) around 1, all else around 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            is_norm_weight = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise + 1 if is_norm_weight else noise)
    return model.eval()


@pytest.fixture(scope="session")
def sharpen():
    return sharpen_weights


@pytest.fixture(scope="session")
def build():
    """`build(model_class, std=0.3, **fields)`: a tiny sharp model in evaluation mode."""

    def build_model(model_class=MiniGPTForCausalLM, std=0.3, seed=0, **fields):
        return sharpen_weights(model_class(MiniGPTConfig(**{**TINY, **fields})), std=std, seed=seed)

    return build_model


@pytest.fixture(scope="session")
def draw_ids():
    """`draw_ids(rows, length)`: random token ids, the same for the same arguments."""

    def draw(rows, length, seed=0, vocab_size=TINY["vocab_size"]):
        return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(scope="session")
def no_forward():
    """`no_forward(model)`: a context in which any forward pass of the model fails the test."""
    return ForbiddenForward


class ForbiddenForward:
    def __init__(self, model: PreTrainedModel) -> None:
        self.modules = [model, *model.model.modules()]

    def __enter__(self) -> None:
        def refuse(*args):
            raise AssertionError("a forward pass ran")

        self.handles = [module.register_forward_pre_hook(refuse) for module in self.modules]

    def __exit__(self, *args) -> None:
        for handle in self.handles:
            handle.remove()
