"""What can be said about a training run: every stock argument, with defaults for small models, and a few of ours."""

from dataclasses import dataclass, field, fields

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

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
        logging_steps: As in transformers; 0 for `eval_steps`.
        save_steps: As in transformers; 0 for five times `eval_steps`.

    `per_device_eval_batch_size` is the number of crops evaluated at a time: it decides about speed and memory, not
    about what is estimated.

    Raises:
        ValueError: If one of ours is out of its range.
    """

    _argument_group_name = "training"

    eval_interval: int = field(default=100, metadata={"help": "steps between two estimates of the loss"})
    eval_iters: int = field(
        default=50, metadata={"help": "batches of each split that an estimate averages over"}
    )
    sample_length: int = field(
        default=80, metadata={"help": "tokens of the sample at each estimate, 0 for none"}
    )
    keep_best: bool = field(default=True, metadata={"help": "save whenever the validation loss is the lowest so far"})
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "stop after so many estimates without a lower validation loss, and keep the best model"},
    )

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
    # A diverging loss should be seen; and the filter waits for the device at every step.
    logging_nan_inf_filter: bool = field(default=False, metadata=_STOCK["logging_nan_inf_filter"])
    # Every parameter of our models takes part in every step.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata=_STOCK["ddp_find_unused_parameters"])

    def __post_init__(self) -> None:
        for name, least in (
            ("eval_interval", 1),
            ("eval_iters", 1),
            ("sample_length", 0),
            ("early_stopping_patience", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        self.eval_steps = self.eval_steps or self.eval_interval
        self.logging_steps = self.logging_steps or self.eval_steps
        # A fraction stands for a part of the run, and five parts may be more than the whole.
        self.save_steps = self.save_steps or (5 * self.eval_steps if self.eval_steps >= 1 else self.eval_steps)
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
        super().__post_init__()
        if self.device.type != "cuda":
            self.dataloader_pin_memory = False
