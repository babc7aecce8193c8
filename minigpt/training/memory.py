"""The least memory that a run takes, compared with the machine's before any of it is taken."""

import copy

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from minigpt.errors import UsageError
from minigpt.training.arguments import MiniGPTTrainingArguments

_FLOAT = 4
_COPIES = 4  # weights, gradients, and two averages of AdamW


def count_parameters(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> int:
    """Count the parameters of a model on the meta device, which takes no memory.

    A model of one block and one of two tell how large every further block is.

    Raises:
        UsageError: A single tensor is larger than torch can describe.
    """
    blocks: int | None = getattr(config, "num_hidden_layers", None)
    counts = []
    for depth in (1, 2) if blocks else (None,):
        shallow = copy.deepcopy(config)
        if depth:
            shallow.num_hidden_layers, shallow.layer_types = depth, config.layer_types[:1] * depth
        try:
            with torch.device("meta"):
                counts.append(model_class(shallow).num_parameters())
        except (RuntimeError, OverflowError) as error:
            raise UsageError(
                "a tensor of this model has more bytes than can be counted; use a smaller model."
            ) from error
    return counts[0] if not blocks else counts[0] + (blocks - 1) * (counts[1] - counts[0])


def check_memory(trained: int, config: PreTrainedConfig, args: MiniGPTTrainingArguments, block_size: int) -> None:
    """Refuse a run that cannot fit into the memory of its device.

    The estimate is a lower bound: float32 weights with gradients and AdamW's averages, the logits of a batch, and one
    activation a block.

    Args:
        trained: Number of trained parameters.
        config: Configuration of the model.
        args: Arguments of the run.
        block_size: Tokens in a crop.

    Raises:
        UsageError: It needs more.
    """
    weights = trained * _COPIES * _FLOAT
    tokens = args.per_device_train_batch_size * block_size
    width = getattr(config, "hidden_size", 0) * getattr(config, "num_hidden_layers", 0)
    batch = tokens * (getattr(config, "vocab_size", 0) + width) * _FLOAT
    there = _memory_of(args.device)
    if weights + batch > there:
        raise UsageError(
            f"the run needs at least {_size(weights + batch)} of memory ({_size(weights)} for {trained:,} trained "
            f"parameters, {_size(batch)} for a batch of {tokens:,} tokens) and this machine's {args.device.type} has "
            f"{_size(there)}; use a smaller model, rank, block or batch."
        )


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total + psutil.swap_memory().total)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
