"""What is settled before a run reads anything: its arguments, its device, and whether the Hub will take it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.errors import UsageError
from minigpt.hub.loading import find_device
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.presets import one_sentence


def build_arguments(
    defaults: Mapping[str, Any],
    changes: Mapping[str, Any],
    *,
    device: str | None,
    arguments_class: type[MiniGPTTrainingArguments] = MiniGPTTrainingArguments,
) -> MiniGPTTrainingArguments:
    """Builds the arguments of a run.

    Args:
        defaults: What holds unless something else was asked for.
        changes: What was asked for.
        device: `cpu`, `cuda` or `mps`; None for the best there is.
        arguments_class: What to build.

    Raises:
        UsageError: A value is impossible, or this machine has no such device.
    """
    changes = dict(changes)
    if device is not None:
        kind, _, index = device.partition(":")
        if index:
            raise UsageError(
                f"training takes no index of a device, got {device!r}; say --device {kind} and choose among several "
                f"GPUs with the environment variable CUDA_VISIBLE_DEVICES={index}."
            )
        if find_device(device).type == "cpu":
            changes["use_cpu"] = True
    if "num_train_epochs" in changes:
        changes.setdefault("max_steps", -1)  # the default number of steps would win over the epochs asked for
    try:
        args = arguments_class(**{**defaults, **changes})
    except (ValueError, TypeError) as error:
        raise UsageError(one_sentence(error)) from error
    if device is not None and args.device.type != find_device(device).type:
        raise UsageError(f"training runs on {args.device.type} here; leave --device {device} out or say --device cpu.")
    return args


def check_push(args: MiniGPTTrainingArguments, model_type: str | None, base: str | None = None) -> None:
    """Find out now what the Hub would refuse when the training is over; nothing is created there yet.

    Args:
        args: The arguments of the run.
        model_type: Type of the model, None for an adapter.
        base: Folder or Hub id of an adapter's base model.

    Raises:
        UsageError: A repository is named, and nothing is to be pushed there.
        PushFailed: The Hub would not take the run.
    """
    if args.push_to_hub:
        from minigpt.hub.publishing.push_checkpoints import open_repository
        from minigpt.hub.publishing.saved_folder import ADAPTER
        from minigpt.training.push_callback import check_base_is_published

        open_repository(
            args.hub_model_id or Path(args.output_dir).absolute().name,
            model_type or ADAPTER,
            token=args.hub_token,
            private=bool(args.hub_private_repo),
            revision=args.hub_revision,
            create=False,
        )
        if model_type is None:
            check_base_is_published(base)
    elif args.hub_model_id:
        raise UsageError(
            f"hub_model_id names {args.hub_model_id} and nothing is pushed there without push_to_hub; add "
            "--push_to_hub, or push the run with `minigpt push` when it is over."
        )
