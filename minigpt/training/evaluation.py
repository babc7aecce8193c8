"""How well a model predicts: the lecture's estimate while it trains, a whole split's exact loss when it is done."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.training.data.batches import IGNORED, RandomCrops, Windows, collate
from minigpt.training.data.token_stream import TokenStream


@dataclass(frozen=True)
class Evaluation:
    """A loss, and what it amounts to in other units.

    Attributes:
        loss: Nats a token, the mean over `targets`.
        targets: Number of tokens that were predicted.
        characters: Number of characters that these tokens stand for.
    """

    loss: float
    targets: int
    characters: float

    @property
    def bits_per_character(self) -> float:
        """The loss in bits a character, by which models with different tokenizers compare."""
        return self.loss * self.targets / self.characters / math.log(2)

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model is as unsure."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def estimate_loss(
    model: nn.Module,
    streams: Mapping[str, TokenStream],
    block_size: int,
    *,
    num_crops: int = 800,
    batch_size: int = 64,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Estimates the loss on each stream from random crops, as the lecture does at every `eval_interval`.

    The crops are a function of the seed alone, so every call scores the same ones. Two estimates of one run then differ
    by what the model has learned and not by the luck of the draw: curves are smooth, and the best checkpoint is chosen
    fairly. No generator is touched. All crops have the same length, so how many are scored at a time does not matter.

    Args:
        model: A causal language model; it is scored in evaluation mode and left in the mode it was in.
        streams: What to score, by name.
        block_size: Tokens of input in a crop, which has as many targets.
        num_crops: How many crops of each stream; the lecture's `eval_iters` times its batch size.
        batch_size: How many of them at a time.
        seed: Which crops.
        rank: Which process this is of the `world_size` that share the crops.
        world_size: How many processes share them.
        total: Sums a tensor over these processes.

    Returns:
        Nats a token, by name.
    """
    losses = {}
    for name, stream in streams.items():
        crops = RandomCrops(stream, block_size, seed=seed, length=num_crops)
        mine = range(num_crops)[rank::world_size]
        nats, targets = sum_of_losses(model, _batches(crops, mine, batch_size))
        if total is not None:
            sums = torch.tensor([nats, targets], dtype=torch.float64, device=_device(model))
            nats, targets = total(sums).tolist()
        losses[name] = nats / targets
    return losses


def validation_loss(
    model: nn.Module,
    stream: TokenStream,
    block_size: int,
    batch_size: int = 64,
    *,
    characters_per_token: float = 1.0,
) -> Evaluation:
    """Scores every token of a stream but the first, once each, in windows of `block_size`.

    Nothing is drawn, so the result depends on nothing but the model and the text. The shorter last window counts by
    its number of tokens.

    Args:
        model: A causal language model; it is scored in evaluation mode and left in the mode it was in.
        stream: What to score, at least two tokens.
        block_size: Tokens of input in a window; the first of them is predicted without any context before the window.
        batch_size: How many windows at a time: a question of speed and memory.
        characters_per_token: For bits a character; 1 for a character vocabulary.

    Raises:
        CorpusError: The stream has no two tokens.
    """
    windows = Windows(stream, block_size)
    nats, targets = sum_of_losses(model, _batches(windows, range(len(windows)), batch_size))
    return Evaluation(nats / targets, targets, targets * characters_per_token)


def _batches(dataset: RandomCrops | Windows, indices: range, batch_size: int) -> Iterator[dict[str, Tensor]]:
    for first in range(0, len(indices), batch_size):
        yield collate(dataset.__getitems__(indices[first : first + batch_size]))


@torch.no_grad()
def sum_of_losses(model: nn.Module, batches: Iterator[dict[str, Tensor]]) -> tuple[float, int]:
    """Scores batches as `collate` makes them.

    Returns:
        The sum of the losses of all targets, in nats, and how many targets there are.
    """
    nats, targets = 0.0, 0
    device = _device(model)
    with evaluating(model):
        for batch in batches:
            labels = batch["shift_labels"].to(device)  # (batch, seq)
            logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits  # (batch, seq, vocab)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)  # (batch * seq, vocab)
            losses = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")  # (batch * seq)
            # On the CPU, for MPS has no double precision.
            nats += losses.cpu().double().sum().item()
            targets += int((batch["shift_labels"] != IGNORED).sum())
    return nats, targets


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
