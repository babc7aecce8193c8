"""What can be said about a training run: every stock argument, with defaults for small models, and a few of ours."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available, is_torch_xla_available

# Below these a run would fail after it has begun, or do nothing.
_LEAST = {
    "eval_interval": 1,
    "eval_iters": 1,
    "sample_length": 0,
    "early_stopping_patience": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "logging_steps": 0,
    "save_steps": 0,
    "warmup_steps": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "label_smoothing_factor": 0,
    "neftune_noise_alpha": 0,
    "eval_delay": 0,
    "seed": 0,
    "data_seed": 0,
}
_ABOVE_0 = ("eval_steps", "num_train_epochs")
_BELOW_1 = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
_LARGEST_SEED = 2**32 - 1  # NumPy's
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

# The help of the stock fields that get another default.
_STOCK = {stock.name: stock.metadata for stock in fields(TrainingArguments)}


@dataclass
class MiniGPTTrainingArguments(TrainingArguments):
    """Stock `TrainingArguments` with our additions and, for how a run is watched and kept, our defaults.

    Args:
        eval_interval: Steps between two estimates of the loss; `eval_steps` and `logging_steps` where they are not
            given.
        eval_iters: Batches of the training's size that each estimate averages over, on each split.
        sample_length: Tokens of the sample that is shown at each estimate; 0 for none.
        keep_best: Whether a checkpoint is also saved whenever the estimated validation loss is the lowest so far. It
            stays, whatever `save_total_limit` says, and `load_best_model_at_end` brings it back at the end.
        early_stopping_patience: Stop after so many estimates without a lower validation loss, and keep the best model
            (sets `load_best_model_at_end`); None for the full number of steps.
        resume_with_changes: Whether a resumed run may be trained with other arguments than before.
        logging_steps: As in transformers; 0 for `eval_steps`.
        save_steps: As in transformers; 0 for five times `eval_steps`.

    `per_device_eval_batch_size` is the number of crops evaluated at a time: it decides about speed and memory, not
    about what is estimated. With `bf16`, and on GPUs `fp16`, training and estimates compute in half precision; the
    weights stay whole, and so are those that are saved. `gradient_checkpointing` is `activation_checkpointing`.

    Raises:
        ValueError: If a number is out of its range, the message names it and the limit; or if a precision is none of
            the device's.
    """

    _argument_group_name = "training"

    eval_interval: int = field(default=100, metadata={"help": "steps between two estimates of the loss"})
    eval_iters: int = field(default=50, metadata={"help": "batches of each split that an estimate averages over"})
    sample_length: int = field(default=80, metadata={"help": "tokens of the sample at each estimate, 0 for none"})
    keep_best: bool = field(default=True, metadata={"help": "save whenever the validation loss is the lowest so far"})
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "stop after so many estimates without a lower validation loss, and keep the best model"},
    )

    resume_with_changes: bool = field(default=False, metadata={"help": "resume with other options than before"})

    eval_strategy: IntervalStrategy | str = field(default="steps", metadata=_STOCK["eval_strategy"])
    eval_steps: float | None = field(default=None, metadata=_STOCK["eval_steps"])
    eval_on_start: bool = field(default=True, metadata=_STOCK["eval_on_start"])
    logging_steps: float = field(default=0, metadata=_STOCK["logging_steps"])
    save_steps: float = field(default=0, metadata=_STOCK["save_steps"])
    save_total_limit: int | None = field(default=2, metadata=_STOCK["save_total_limit"])
    metric_for_best_model: str | None = field(default="loss", metadata=_STOCK["metric_for_best_model"])
    per_device_eval_batch_size: int = field(default=64, metadata=_STOCK["per_device_eval_batch_size"])
    # Our batches are whole before the Trainer sees them.
    remove_unused_columns: bool = field(default=False, metadata=_STOCK["remove_unused_columns"])
    # A bar is for terminals alone, and how much libraries log has nothing to do with it.
    disable_tqdm: bool | None = field(default=False, metadata=_STOCK["disable_tqdm"])
    # A diverging loss should be seen; and the filter waits for the device at every step.
    logging_nan_inf_filter: bool = field(default=False, metadata=_STOCK["logging_nan_inf_filter"])
    # Every parameter of our models takes part in every step.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata=_STOCK["ddp_find_unused_parameters"])

    def __post_init__(self) -> None:
        self._check_ranges()
        # An older name, of which transformers would warn whoever uses it.
        for older, newer in _RENAMED.items():
            if getattr(self, newer) is None:
                setattr(self, newer, getattr(self, older))
        self.eval_steps = self.eval_steps or self.eval_interval
        self.logging_steps = self.logging_steps or self.eval_steps
        # A fraction stands for a part of the run, and five parts may be more than the whole.
        self.save_steps = self.save_steps or (5 * self.eval_steps if self.eval_steps >= 1 else self.eval_steps)
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
        # Accelerate joins processes without an accelerator only if it is told that there is none.
        if not torch.accelerator.is_available() and not is_torch_xla_available():
            self.use_cpu: bool = True
        self._check_precision()
        super().__post_init__()
        self._check_processes()
        _refuse_non_finite(self.lr_scheduler_kwargs or {})  # which may have been JSON until now
        if self.device.type != "cuda":
            self.dataloader_pin_memory = False
        # `accelerate launch --mixed_precision` says it in its own way.
        self.fp16: bool = self.fp16 or self.mixed_precision == "fp16"
        self.bf16: bool = self.bf16 or self.mixed_precision == "bf16"
        if self.fp16 and self.device.type == "cpu":
            raise ValueError(
                "fp16 is for GPUs, and this trains on the CPU, where nothing would come of it; say bf16 instead."
            )
        self._check_recomputation()

    def _check_precision(self) -> None:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 are two precisions for the same numbers, got both; choose one.")
        for name in ("fp16_full_eval", "bf16_full_eval"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} would round the weights themselves, for good; say {name.partition('_')[0]} instead, with "
                    "which estimates are computed in half precision and the weights stay whole."
                )
        if self.tf32 and (self.use_cpu or not is_torch_tf32_available()):
            raise ValueError("tf32 is a precision of NVIDIA's GPUs since Ampere, and there is none here; leave it out.")
        if self.bf16 and not self.use_cpu and not is_torch_bf16_gpu_available():
            raise ValueError("bf16 is not among the precisions of this GPU; say fp16 instead, or use_cpu.")

    def _check_processes(self) -> None:
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if asked > 1 and self.world_size == 1:
            raise ValueError(
                f"the environment variable WORLD_SIZE is {asked} but this process would train alone on "
                f"{self.device.type}; start all processes with torchrun, say use_cpu, or unset WORLD_SIZE."
            )

    def _check_recomputation(self) -> None:
        how = self.activation_checkpointing_kwargs or {}
        if how and not self.activation_checkpointing:
            raise ValueError(
                "gradient_checkpointing_kwargs say how, and not that it be done; add gradient_checkpointing."
            )
        every = how.get("every_n_layers", 1)
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every_n_layers of gradient_checkpointing_kwargs must be at least 1, got {every!r}.")

    def _check_ranges(self) -> None:
        _refuse_non_finite(vars(self))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        for name in _ABOVE_0:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        for name in _BELOW_1:
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name)}.")
        for name in ("eval_steps", "logging_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and value > 1 and value % 1:
                raise ValueError(f"{name} must be a whole number, or below 1 a part of the run, got {value}.")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, or -1 for num_train_epochs, got {self.max_steps}.")
        for name in ("seed", "data_seed"):
            if (getattr(self, name) or 0) > _LARGEST_SEED:
                raise ValueError(f"{name} must be at most {_LARGEST_SEED}, got {getattr(self, name)}.")


def _refuse_non_finite(numbers: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}.")
