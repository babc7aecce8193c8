"""The arguments that each part of a resumed run was trained with, kept in its checkpoints as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from minigpt.errors import UsageError

SEGMENTS = "segments.json"

# Where a run is, who is told of it, and what it runs on: of no concern to what is learned.
ABOUT_THE_RUN = (
    *("output_dir", "run_name", "report_to", "project", "resume_", "disable_tqdm", "local_rank", "use_cpu"),
    "activation_checkpointing",  # the other name of gradient_checkpointing
    *("push_to_hub", "hub_", "trackio_", "log_", "logging_", "save_", "dataloader_", "remove_unused_columns"),
)
# How a run is watched and computed: they change what is reported, or how fast, and not the weights.
_WITHOUT_EFFECT = (
    *("eval_", "per_device_eval_batch_size", "sample_length", "keep_best", "early_stopping_patience"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "prediction_loss_only"),
    *("include_for_metrics", "batch_eval_metrics", "include_num_input_tokens_seen", "skip_memory_metrics"),
    *("gradient_checkpointing", "ddp_", "do_", "debug", "torch_empty_cache_steps", "enable_jit_checkpoint"),
    "threads",  # they change the last digits only
)
# The state of one optimizer means nothing to another.
_OPTIMIZER = ("optim", "optim_args", "optim_target_modules")
# A checkpoint keeps these in the state of its optimizer and its schedule.
_SCHEDULE = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
_OVERWRITTEN = (*_SCHEDULE, "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
_LENGTH = ("max_steps", "num_train_epochs")
# Schedules that are the same however long a run is, and those that follow the losses.
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")
_ADAPTIVE = ("reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True)
class Segment:
    """A part of a run.

    Attributes:
        after_step: The step that it continued from, 0 for the first part.
        arguments: What it was trained with.
    """

    after_step: int
    arguments: dict[str, Any]


def training_segments(checkpoint: Path | None, args: TrainingArguments) -> list[Segment]:
    """Return the parts of a run; the last one is about to be trained.

    A part begins where an argument was changed. A checkpoint that records no parts counts as one with the same
    arguments.

    Args:
        checkpoint: The checkpoint to resume from, if any.
        args: The arguments of the run.

    Raises:
        UsageError: They train otherwise than before and `resume_with_changes` is not set, or the state that the
            checkpoint holds is of no use to them.
    """
    now = _effective(args)
    file = checkpoint and checkpoint / SEGMENTS
    if checkpoint is None or file is None or not file.is_file():
        return [Segment(0, now)]
    segments = [Segment(**segment) for segment in json.loads(file.read_text(encoding="utf-8"))]
    before = segments[-1].arguments
    if effects := _effects(before, now):
        named = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in effects)
        if {*effects} <= {*_LENGTH}:
            named += f", which stretches the {now['lr_scheduler_type']} schedule"
        if not getattr(args, "resume_with_changes", False):
            raise UsageError(
                f"{checkpoint} was trained with other options ({named}); resume with the old ones, or add "
                "--resume_with_changes to continue with the new ones."
            )
        follows_losses = {before["lr_scheduler_type"], now["lr_scheduler_type"]} & {*_ADAPTIVE}
        if {*effects} & {*_OPTIMIZER, *(_SCHEDULE if follows_losses else ())}:
            raise UsageError(
                f"{checkpoint} holds the state of another optimizer or schedule ({named}); resume with the old one, or "
                f"fine-tune its weights with `minigpt finetune {checkpoint}`."
            )
    if before == now:
        return segments
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return [*segments, Segment(state["global_step"], now)]


def write_segments(folder: Path, segments: Sequence[Segment]) -> None:
    """Records the parts of a run in a checkpoint."""
    text = json.dumps([asdict(segment) for segment in segments], indent=2)
    (folder / SEGMENTS).write_text(f"{text}\n", encoding="utf-8")


def describe_changes(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """Returns what was changed on the way and after which step, for `run.json`."""
    return [
        {
            "after_step": after.after_step,
            "before": {name: before.arguments.get(name) for name in changed},
            "after": {name: after.arguments.get(name) for name in changed},
        }
        for before, after in pairwise(segments)
        for changed in [_differences(before.arguments, after.arguments)]
    ]


def rows_trained(segments: Sequence[Segment], steps: int) -> int:
    """Returns how many rows a run of so many steps has seen, batches of all sizes together."""
    starts = [segment.after_step for segment in segments]
    return sum(
        (stop - start) * segment.arguments["global_batch_size"]
        for segment, start, stop in zip(segments, starts, [*starts[1:], steps], strict=False)
    )


def threads_of(segments: Sequence[Segment]) -> list[int]:
    """Returns the numbers of threads that the parts of a run on a CPU computed with, each once, the first first."""
    return list(dict.fromkeys(part.arguments["threads"] for part in segments if "threads" in part.arguments))


def overrides_checkpoint(segments: Sequence[Segment], step: int) -> bool:
    """Returns True if the part that begins at a step has another optimizer setting or schedule than the one before."""
    if len(segments) < 2 or segments[-1].after_step != step:
        return False
    before, now = (segment.arguments for segment in segments[-2:])
    return bool({*_effects(before, now)} & {*_OVERWRITTEN, *_LENGTH})


def _effective(args: TrainingArguments) -> dict[str, Any]:
    """Returns all that may have a part in what is learned or reported, as JSON has it."""
    named = {name: value for name, value in args.to_dict().items() if not name.startswith(ABOUT_THE_RUN)}
    named["processes"] = args.world_size
    named["global_batch_size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.device.type == "cpu":
        named["threads"] = torch.get_num_threads()
    return json.loads(json.dumps(named, default=str))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    # What only another version knows of is not compared.
    return [name for name, value in now.items() if name in before and before[name] != value]


def _effects(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns the differences that train otherwise."""
    effects = [name for name in _differences(before, now) if not name.startswith(_WITHOUT_EFFECT)]
    endless = before["lr_scheduler_type"] in (*_ENDLESS, *_ADAPTIVE) and not 0 < now["warmup_steps"] < 1
    if endless:
        return [name for name in effects if name not in _LENGTH]
    by_steps = before["max_steps"] > 0 and now["max_steps"] > 0
    return [name for name in effects if not (by_steps and name == "num_train_epochs")]
