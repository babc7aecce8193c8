"""Positions and labels of padded rows: a padded row gives the logits and the loss that it gives alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Cache


def count_positions(inputs_embeds: torch.Tensor, attention_mask: object, past_key_values: Cache | None) -> torch.Tensor:
    """Count the positions of tokens that follow the cache, leaving out padding by a mask of (batch, total).

    Returns:
        (batch, seq), or (1, seq) without such a mask. Padding before a row's first token has position 0.
    """
    past_seen_tokens = 0 if past_key_values is None else past_key_values.get_seq_length()
    positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_seen_tokens  # (seq,)
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return positions[None]
    counted = (attention_mask.to(positions.device).long().cumsum(-1) - 1).clamp(min=0)  # (batch, total)
    return counted.index_select(1, positions)


def ignore_unpredicted(
    labels: torch.Tensor, attention_mask: object, loss_kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """Set labels that follow padding to -100: nothing predicts the first token of a row that is padded on the left.

    Args:
        labels: (batch, seq).
        attention_mask: (batch, seq), 0 for padding; anything else changes nothing.
        loss_kwargs: Arguments of the loss. With `shift_labels` among them nothing changes.

    Returns:
        The labels, and the arguments with a `num_items_in_batch` that does not count those set to -100.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape != labels.shape:
        return labels, loss_kwargs
    if loss_kwargs.get("shift_labels") is not None:
        return labels, loss_kwargs
    follows_padding = nn.functional.pad(attention_mask[:, :-1] == 0, (1, 0)).to(labels.device)  # (batch, seq)
    kept = labels.masked_fill(follows_padding, -100)
    items = loss_kwargs.get("num_items_in_batch")
    if items is not None:
        number, number_kept = ((one[:, 1:] != -100).sum() for one in (labels, kept))
        loss_kwargs = {**loss_kwargs, "num_items_in_batch": (items * number_kept / number.clamp(min=1)).clamp(min=1)}
    return kept, loss_kwargs
