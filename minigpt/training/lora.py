"""LoRA: small trainable matrices beside the frozen weights of a model (Hu et al. 2021, through PEFT)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from minigpt.errors import RunError, UsageError
from minigpt.hub.adapter_folders import CONFIG
from minigpt.hub.extras import require_extra
from minigpt.hub.json_files import read_object, understanding

ALL_LINEAR = "all-linear"
_SAME = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout"}


@dataclass(frozen=True)
class LoraSettings:
    """What an adapter is like.

    Attributes:
        r: Rank of each pair of matrices.
        alpha: The adapter's output is multiplied by `alpha / r`.
        dropout: Probability for the adapter's input.
        targets: Names of the layers that get one, or `all-linear` for all linear layers but the output head.
    """

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ALL_LINEAR

    def __post_init__(self) -> None:
        if self.targets != ALL_LINEAR:
            names = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
            object.__setattr__(self, "targets", names)

    def check(self) -> None:
        """Refuses what no adapter can be.

        Raises:
            UsageError: A number is out of its range, or PEFT is not installed.
        """
        if self.r < 1 or self.r % 1:
            raise UsageError(f"lora_r must be a whole number of at least 1, got {self.r}.")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"lora_alpha must be a number above 0, got {self.alpha:g}.")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"lora_dropout must be at least 0 and below 1, got {self.dropout:g}.")
        if not self.targets:
            raise UsageError(f"lora_targets names no layer; name some, or say {ALL_LINEAR}.")
        require_extra("lora", "--lora", "peft")


def add_lora(model: PreTrainedModel, settings: LoraSettings, base_name: str, revision: str | None = None) -> Any:
    """Freezes a model and puts an adapter into it.

    Args:
        model: The model; its layers are replaced in place.
        settings: What the adapter is like.
        base_name: The model's folder or Hub id, under which whoever loads the adapter finds it.
        revision: Of the Hub repository.

    Returns:
        A `PeftModelForCausalLM`, of which only the adapter trains.

    Raises:
        UsageError: The model has no such layers.
    """
    from peft import LoraConfig, get_peft_model

    if isinstance(settings.targets, tuple):
        _refuse_unfit(model, settings.targets)
    elif not any(_is_linear(layer) for layer in model.modules() if layer is not model.get_output_embeddings()):
        raise UsageError(f"a {model.config.model_type} has no linear layers to put an adapter in; fine-tune it whole.")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets if isinstance(settings.targets, str) else list(settings.targets),
        # GPT-2's linear layers keep their weights the other way round, and PEFT would warn that it has seen it.
        fan_in_fan_out=any(type(layer).__name__ == "Conv1D" for layer in model.modules()),
    )
    adapted = get_peft_model(model, config, revision=revision)
    ours = adapted.peft_config["default"]
    ours.base_model_name_or_path = base_name
    # PEFT keeps a set, which it would write in another order each time.
    ours.target_modules = sorted(ours.target_modules)
    return adapted


def count_lora_parameters(model: PreTrainedModel, settings: LoraSettings) -> int:
    """Count the parameters that an adapter would have, without making it."""
    head = model.get_output_embeddings()
    if settings.targets == ALL_LINEAR:
        layers = [layer for layer in model.modules() if _is_linear(layer) and layer is not head]
    else:
        named = model.named_modules()
        layers = [layer for name, layer in named if f".{name}".endswith(tuple(f".{one}" for one in settings.targets))]
    return sum(settings.r * sum(_shape(layer)) for layer in layers if _takes_adapter(layer))


def _shape(layer: Any) -> tuple[int, ...]:
    # Quantized weights are packed into another shape.
    return (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else tuple(layer.weight.shape)


def _refuse_unfit(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    """Refuses names of layers of which PEFT would pass over some without a word, or say nothing of what they share."""
    layers = dict(model.named_modules())
    named = {
        target: [layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")] for target in targets
    }
    unknown = [target for target, found in named.items() if not found or not all(map(_takes_adapter, found))]
    if unknown:
        linear = sorted({name.rpartition(".")[2] for name, layer in layers.items() if _is_linear(layer)})
        raise UsageError(
            f"lora_targets {', '.join(unknown)} fit no layer of this model; its linear layers are "
            f"{', '.join(linear) or 'none'}."
        )
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return
    shared = [name for name, layer in layers.items() if layer is head or layer is table]
    for target in targets:
        if any(f".{name}".endswith(f".{target}") for name in shared):
            raise UsageError(
                f"lora_targets {target} shares its weights with {' and '.join(shared)} in this model, and an adapter "
                "on one could not be merged; leave it out."
            )


def describe_adapter(adapted: Any, settings: LoraSettings) -> dict[str, Any]:
    """What `run.json` says of an adapter."""
    trainable, total = adapted.get_nb_trainable_parameters()
    return {
        "r": settings.r,
        "alpha": settings.alpha,
        "dropout": settings.dropout,
        "targets": settings.targets if isinstance(settings.targets, str) else list(settings.targets),
        "trainable": trainable,
        "share": trainable / total,
    }


def check_same_adapter(checkpoint: Path, adapted: Any) -> None:
    """Refuses to go on from a checkpoint without an adapter, or with another one.

    Raises:
        RunError: The rank, another setting or the layers differ.
    """
    file = checkpoint / CONFIG
    if not file.is_file():
        raise RunError(f"{checkpoint} holds a whole model and no adapter; go on without --lora.")
    saved, ours = read_object(file), adapted.peft_config["default"]
    for name, option in _SAME.items():
        if saved.get(name) != getattr(ours, name):
            raise RunError(
                f"{checkpoint} has lora_{option} {saved.get(name)} and this run {getattr(ours, name)}; give the "
                "options of the run that is to go on."
            )
    with understanding(file):
        theirs = sorted(set(saved["target_modules"]))
    if theirs != sorted(set(ours.target_modules)):
        raise RunError(
            f"{checkpoint} has its adapter in {', '.join(map(str, theirs))} and this run in "
            f"{', '.join(sorted(ours.target_modules))}; give the options of the run that is to go on."
        )


def _takes_adapter(layer: Any) -> bool:
    return _is_linear(layer) or isinstance(layer, nn.Embedding)


def _is_linear(layer: Any) -> bool:
    return "Linear" in type(layer).__name__ or type(layer).__name__ == "Conv1D"
