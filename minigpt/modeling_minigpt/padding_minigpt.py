"""Labels of padded rows: a padded row has the loss that it has alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


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
