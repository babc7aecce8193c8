"""Weights under other people's names, laid into a model of ours."""

import re
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from transformers import PreTrainedModel

from minigpt.errors import UsageError

Weights = dict[str, torch.Tensor]

# What torch.compile and DistributedDataParallel put before every name.
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.)+")
# Under what people keep the weights beside other things; nanoGPT's is the first.
_HOMES = ("model", "model_state_dict", "state_dict")


def find_weights(content: Any) -> Weights | None:
    """The weights in what a file held, by the names of the model itself: a state_dict, or a checkpoint with one in it.

    Returns:
        Names and tensors, or None if there is no state_dict.
    """
    candidates = [content, *(content.get(home) for home in _HOMES)] if isinstance(content, Mapping) else []
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate:
            weights = {_WRAPPERS.sub("", str(name)): tensor for name, tensor in candidate.items()}
            if all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
                return weights
    return None


def count_layers(weights: Weights, prefix: str) -> int:
    """How many different numbers follow `prefix` in the names."""
    numbered = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for name in weights if (found := numbered.match(name))})


def common_dtype(weights: Weights) -> torch.dtype:
    """The narrowest floating dtype that holds all of the weights."""
    dtypes = [tensor.dtype for tensor in weights.values() if tensor.is_floating_point()]
    return reduce(torch.promote_types, dtypes or [torch.float32])


def drop_masks(weights: Weights, suffix: str, block_size: int, source: str) -> Weights:
    """The weights without the causal masks that were saved among them, which say nothing but the length of the block.

    Raises:
        UsageError: A mask is of another length than the block.
    """
    for name, tensor in weights.items():
        if name.endswith(suffix) and tensor.shape[-2:] != (block_size, block_size):
            raise UsageError(
                f"{source} contradicts itself: {name} is a mask of {tuple(tensor.shape)} and there are {block_size} "
                "positions; save the weights of one model."
            )
    return {name: tensor for name, tensor in weights.items() if not name.endswith(suffix)}


@torch.no_grad()
def fill(model: PreTrainedModel, places: Weights, weights: Weights, source: str, architecture: str) -> PreTrainedModel:
    """Lays every weight in its place.

    Args:
        model: Built for these weights, in their dtype.
        places: For each of their names, the model's own memory for it.
        weights: What to lay there.
        source: Where they come from, for messages.
        architecture: Whose names these are, for messages.

    Raises:
        UsageError: A weight is missing, too many, or of another shape; the message names the first.
    """
    for name in [*places, *weights]:
        reason = None
        if name not in weights:
            reason = f"it lacks {name}"
        elif name not in places:
            reason = f"it has {name}, for which there is no place"
        elif weights[name].shape != places[name].shape:
            reason = f"its {name} is {tuple(weights[name].shape)} and should be {tuple(places[name].shape)}"
        if reason:
            raise UsageError(f"{source} is not {architecture}: {reason}; only that architecture can be imported.")
    for name, place in places.items():
        place.copy_(weights[name])
    return model.eval()
