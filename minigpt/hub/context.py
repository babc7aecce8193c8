"""Context length of a model: the number of tokens it can write after a prompt, and the errors past its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from minigpt.errors import UsageError

DEFAULT_NEW_TOKENS = 500
OUR_TYPES = ("minigpt", "minigpt_bigram")


@dataclass(frozen=True)
class Context:
    """The context of a model, and what happens past its end.

    Attributes:
        length: Context length in tokens, or None if there is no limit.
        crops: True if `generate()` crops the context, as for a MiniGPT.
        is_table: True if the model looks positions up in a table and fails past its last one.
    """

    length: int | None
    crops: bool = False
    is_table: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Context":
        """Read the context of a model from its config and its modules."""
        config = model.config
        length: int | None = getattr(config, "max_position_embeddings", None)
        if length is None or config.model_type == "minigpt_bigram" or _rolls(config):
            return cls(None)
        virtual = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0
        is_ours = config.model_type in OUR_TYPES
        return cls(length - virtual, crops=is_ours, is_table=not is_ours and _has_table(model, length))

    def fit(self, prompt: int, wanted: int = DEFAULT_NEW_TOKENS) -> int:
        """Return the number of new tokens, at most `wanted`, that stay within the context if the prompt does."""
        if self.length is None or self.crops or prompt > self.length:
            return wanted
        return min(wanted, self.length + 1 - prompt)  # the last token is written and not read

    def new_tokens(self, prompt: int, asked: int | None = None) -> int:
        """Choose the number of tokens to write after a prompt.

        Args:
            prompt: Tokens of the prompt.
            asked: Tokens that were asked for, or None for up to 500 within the context.

        Raises:
            UsageError: The model has no positions for the prompt, or for that many tokens after it.
        """
        if self.is_table and self.length is not None:
            if prompt > self.length:
                raise UsageError(
                    f"the prompt has {prompt:,} tokens and the model has positions for {self.length:,}; shorten it."
                )
            if asked is not None and asked > (room := self.fit(prompt, asked)):
                raise UsageError(
                    f"max_new_tokens is {asked} and the model has positions for {room} more; use {room} or less."
                )
        return self.fit(prompt) if asked is None else asked

    def notice(self, prompt: int, new_tokens: int) -> str | None:
        """Return a sentence about a text that meets the context's end, or None."""
        if self.length is None:
            return None
        if self.crops:
            cropped = f"The prompt has {prompt} tokens: the model continues from the last {self.length}."
            return cropped if prompt > self.length else None
        if prompt + new_tokens > self.length + 1:
            return f"The text passes the {self.length:,} tokens that the model was made for, and may get worse there."
        return None

    def shown(self, new_tokens: int) -> int | None:
        """Return the most tokens of a long conversation to show: up to half the context is left for the answer."""
        return None if self.length is None else self.length - min(new_tokens, self.length // 2)


@contextmanager
def generation_errors(model: PreTrainedModel) -> Iterator[None]:
    """Turn what a model of another library raises while it generates into one sentence.

    Raises:
        RuntimeError: It raised anything but an error of memory or of the system.
    """
    try:
        yield
    except (UsageError, MemoryError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:
        if model.config.model_type in OUR_TYPES:
            raise  # they explain themselves
        reason = " ".join(str(error).split()).rstrip(".")
        raise RuntimeError(
            f"the {model.config.model_type} model failed while it generated ({type(error).__name__}: {reason[:300]}); "
            "try a shorter prompt and a smaller --max_new_tokens, or see where with `minigpt --debug`."
        ) from error


def _rolls(config: PreTrainedConfig) -> bool:
    """Return True if every layer sees a window of tokens only, wherever it is."""
    if config.model_type == "minigpt":
        return bool(config.rolls_past_block)
    if layer_types := getattr(config, "layer_types", None):
        return set(layer_types) == {"sliding_attention"}
    return bool(getattr(config, "sliding_window", None)) and bool(getattr(config, "use_sliding_window", True))


def _has_table(model: PreTrainedModel, length: int) -> bool:
    """Return True if a module or a buffer has a row for each position, as GPT-2's and GPT-J's have."""
    tokens = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not tokens]
    rows = [table.num_embeddings for table in tables]
    rows += [buffer.shape[0] for buffer in model.buffers() if buffer.ndim == 2 and buffer.is_floating_point()]
    # OPT's table begins with two rows of no use. XGLM's, a buffer that grows, does too.
    return length in rows or any(table.num_embeddings == length + 2 for table in tables)
