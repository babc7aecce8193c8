"""What makes up a stock architecture: what it can express of a MiniGPT, and the way there and back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Need:
    """A switch that an architecture does not have every way.

    Attributes:
        switch: The field of the config.
        has: What the architecture has there, in words.
        is_met: Whether a config asks for no more than that.
    """

    switch: str
    has: str
    is_met: Callable[[Any], bool]


def exactly(switch: str, *values: Any) -> Need:
    """A switch that must have one of these values."""
    return Need(switch, " or ".join(map(repr, values)), lambda config: getattr(config, switch) in values)


def name_switches(config: PreTrainedConfig, needs: Iterable[Need]) -> str:
    """The switches that are in the way, how a config has them, and how they would have to be."""
    return ", ".join(f"{need.switch}={getattr(config, need.switch)!r} (it has {need.has})" for need in needs)


# None of the stock architectures has a bias in its head.
NO_HEAD_BIAS = exactly("lm_head_bias", False)
NO_SOFT_CAP = exactly("final_logit_softcapping", None)
NO_WINDOW = Need("sliding_window", "None", lambda config: "sliding_attention" not in config.layer_types)
NO_GATE = Need("hidden_act", "no gate", lambda config: config.hidden_act != "swiglu")


@dataclass(frozen=True)
class Architecture:
    """A stock causal language model that a MiniGPT can become, and be made of.

    Attributes:
        model_class: The model's class in transformers.
        needs: What a MiniGPT's config has to be for it.
        stock_config: From a MiniGPT's config to the stock one.
        stock_weights: From a MiniGPT to the stock model's weights by their names. A bias or a norm's weight that the
            MiniGPT lacks is left out: it is filled with what does nothing, zeros and ones.
        needs_of_stock: What a stock config has to be, the other way.
        our_config: From a stock config to a MiniGPT's.
        our_weights: From a stock model to a MiniGPT's weights.
    """

    model_class: type[PreTrainedModel]
    needs: tuple[Need, ...]
    stock_config: Callable[[MiniGPTConfig], PreTrainedConfig]
    stock_weights: Callable[[MiniGPTForCausalLM], Weights]
    needs_of_stock: tuple[Need, ...]
    our_config: Callable[[Any], MiniGPTConfig]
    our_weights: Callable[[PreTrainedModel], Weights]

    def obstacles(self, config: MiniGPTConfig) -> list[Need]:
        """The switches of a MiniGPT that the architecture cannot express, none if it can express it all."""
        return [need for need in self.needs if not need.is_met(config)]


def shared_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that stock configs and a MiniGPT's have in common, under the names that all of them understand."""
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "tie_word_embeddings",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    return {name: getattr(config, name) for name in names} | {"initializer_range": float(config.initializer_range)}
