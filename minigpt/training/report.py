"""What is known of a run when it is over: `run.json`, for people and for whoever publishes the model."""

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.evaluation import Evaluation
from minigpt.training.segments import ABOUT_THE_RUN, Segment, describe_changes

_TRAINING = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "gradient_checkpointing",
)
_LIBRARIES = ("minigpt-hf", "torch", "transformers", "datasets", "tokenizers", "accelerate", "numpy")


def hardware(device: torch.device) -> str:
    """What a run computes on, as a person would call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores" + ("" if device.type == "cpu" else f", {device.type}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def in_units(evaluation: Evaluation) -> dict[str, float]:
    """A loss with its other units, for JSON."""
    return {
        **asdict(evaluation),
        "bits_per_character": evaluation.bits_per_character,
        "perplexity": evaluation.perplexity,
    }


def describe_run(
    origin: dict[str, Any],
    model: PreTrainedModel,
    data: dict[str, Any],
    args: MiniGPTTrainingArguments,
    segments: Sequence[Segment],
    *,
    steps: int,
    tokens: int,
    block_size: int,
    seconds: float,
    validation: Evaluation,
    model_step: int,
    chosen_on_validation: bool,
    best: dict[str, Any] | None,
    curves: list[dict[str, float]],
    libraries: Sequence[str] = (),
) -> dict[str, Any]:
    """Gathers what `run.json` holds.

    Args:
        origin: What the run started from: its `preset`, or the `base` of a fine-tuning.
        model: The model that is saved.
        data: What it was trained on.
        args: The arguments of the run, those of its last part where they were changed.
        segments: Its parts.
        steps: How many steps were made.
        tokens: How many tokens it saw in them.
        block_size: How many of them it saw at a time, at most.
        seconds: How long training took, estimates and checkpoints included, over all parts of a resumed run.
        validation: Of the saved model, over the whole validation split.
        model_step: After which step the saved model was.
        chosen_on_validation: Whether it was taken for having the lowest estimate, the last step's model included.
        best: The checkpoint with the lowest estimate, where it is not the saved model.
        curves: `step`, `train` and `validation` of each estimate.
        libraries: Packages that had a part in it, beside those that have in every run.
    """
    arguments = args.to_dict()
    config = json.loads(model.config.to_json_string(use_diff=True))
    if (origin.get("base") or {}).get("load_in_bits"):
        config.pop("quantization_config", None)  # the adapter is for the weights as they are saved
    # PEFT's own class says nothing of the model.
    whole: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return origin | {
        "model": {
            "class": type(whole).__name__,
            "parameters": model.num_parameters(),
            "step": model_step,
            "chosen_on_validation": chosen_on_validation,
            "config": config,
        },
        "data": data,
        "training": {name: arguments[name] for name in _TRAINING}
        | _unusual(arguments)
        | {
            "steps": steps,
            "block_size": block_size,
            "processes": args.world_size,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        },
        "changes": describe_changes(segments),
        "losses": {"validation": in_units(validation), "best": best, "curves": curves},
        "versions": {"python": platform.python_version()}
        | {library: version(library) for library in (*_LIBRARIES, *libraries)},
        "hardware": {
            "device": args.device.type,
            "name": hardware(args.device),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
    }


def _unusual(arguments: dict[str, Any]) -> dict[str, Any]:
    """The other arguments that are not their defaults, whatever they are: what is left out here was not changed."""
    defaults = {field.name: field.default for field in fields(MiniGPTTrainingArguments) if field.default is not MISSING}
    return {
        name: value
        for name, value in arguments.items()
        if name in defaults and value != defaults[name] and not name.startswith((*_TRAINING, *ABOUT_THE_RUN))
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file that is there as a whole or not at all; numbers that JSON does not know become null."""
    text = json.dumps(_known_to_json(content), indent=2, ensure_ascii=False, allow_nan=False)
    staged = path.with_name(f"{path.name}.unfinished")
    staged.write_text(text + "\n", encoding="utf-8")
    staged.replace(path)


def _known_to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known_to_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_known_to_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
