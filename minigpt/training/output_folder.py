"""The folder of a run: looked at before any work starts, so that nothing is lost in it and nothing runs out of it."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedConfig, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from minigpt.errors import RunError
from minigpt.hub.adapter_folders import BASE_HASH
from minigpt.hub.disk import nearest_existing
from minigpt.hub.file_names import written_files
from minigpt.hub.folders import check_path
from minigpt.hub.json_files import read_object, understanding
from minigpt.hub.loading_errors import opening
from minigpt.training.checkpoints import SETTINGS, TEXT_HASH, all_checkpoints

_ADAM_STATES = 2
_BYTES_A_STATE = 4


def check_folder(folder: Path, *, resuming: bool, overwrite: bool) -> None:
    """Refuses a folder that already holds a run, unless that is to be continued or replaced, and one without writing.

    Raises:
        UsageError: `check_path` refuses it.
        RunError: It holds a model or a checkpoint, or cannot be written.
    """
    if not resuming or folder.is_file():  # what a run has begun in any folder, it may go on with there
        check_path(folder, "--output_dir")
    holds_model = any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
    if not resuming and not overwrite and (holds_model or all_checkpoints(folder)):
        raise RunError(
            f"{folder} already holds a model; go on with --resume_from_checkpoint, replace it with --overwrite, "
            "or name another --output_dir."
        )
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            pass
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror or error}); name another --output_dir.") from error


def check_room(folder: Path, network: nn.Module, args: TrainingArguments, *, resuming: bool) -> None:
    """Refuses a disk on which the model and its checkpoints have no room.

    Counted are the checkpoints that are kept (two if that is all of them), one more that is written before an old one
    goes, and the finished model, which is written before the one of an earlier run goes. What a run that is continued
    or overwritten has written already needs no new room.

    Args:
        folder: Where they are to lie.
        network: What is trained. Of one with an adapter only the trained weights are saved.
        args: Of the run.
        resuming: Whether the folder's checkpoints stay.

    Raises:
        RunError: There is too little room.
    """
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    saved = trained if is_peft_model(network) else [*network.parameters()]
    weights = sum(weight.numel() * weight.element_size() for weight in saved)
    states = 0 if args.save_only_model else _ADAM_STATES * _BYTES_A_STATE * sum(weight.numel() for weight in trained)
    kept = 0 if args.save_strategy == SaveStrategy.NO else max(args.save_total_limit or 2, 2) + 1
    needed = kept * (weights + states) + weights
    free = shutil.disk_usage(nearest_existing(folder)).free
    written = sum(_size(path) for path in written_files(folder)) if folder.is_dir() else 0
    if not resuming:
        free += written
    elif args.save_total_limit:
        needed = max(needed - written, weights + states)
    if free < needed:
        raise RunError(
            f"the run needs about {needed / 1e6:,.1f} MB and the disk of {folder} has {free / 1e6:,.1f} MB free; make "
            "room or name another --output_dir."
        )


def check_same_text(checkpoint: Path, sha256: str) -> None:
    """Refuses to go on with another text: what was held back to validate on would be among what is trained on.

    Raises:
        RunError: The checkpoint was trained on a text of another hash. One without a hash is taken.
    """
    began_with = _kept_hash(checkpoint / TEXT_HASH, sha256)
    if began_with != sha256:
        raise RunError(
            f"{checkpoint} was trained on another text or split (of SHA-256 {began_with[:12]}..., and this one's is "
            f"{sha256[:12]}...); go on with the text that it began with, or train anew with --overwrite."
        )


def check_same_base(checkpoint: Path, sha256: str) -> None:
    """Refuses to go on with a fine-tuning of another model.

    Raises:
        RunError: The checkpoint began with weights of another hash. One without a hash is taken.
    """
    began_with = _kept_hash(checkpoint / BASE_HASH, sha256)
    if began_with != sha256:
        raise RunError(
            f"{checkpoint} began with another base (its weights have the hash {began_with[:12]}..., and this one's "
            f"{sha256[:12]}...); go on with the base that it began with, or train anew with --overwrite."
        )


def check_same_settings(checkpoint: Path, settings: Mapping[str, Any]) -> None:
    """Refuses to go on with other settings of ours, which neither the arguments nor the model tell.

    Raises:
        RunError: One of them differs. A checkpoint that keeps none is taken.
    """
    file = checkpoint / SETTINGS
    began_with = read_object(file) if file.is_file() else settings
    for name, value in settings.items():
        if began_with.get(name) != value:
            raise RunError(
                f"{checkpoint} has {name} {began_with.get(name)} and this run {value}; give the options of the run "
                "that is to go on."
            )


def check_same_model(checkpoint: Path, config: PreTrainedConfig, tokenizer: Any) -> None:
    """Refuses to go on from a checkpoint of another model or vocabulary.

    Raises:
        RunError: The kind of model, a field of its config or the vocabulary differs.
    """
    if not (checkpoint / "config.json").is_file():
        raise RunError(f"{checkpoint} holds an adapter and no whole model; go on with --lora.")
    kind = read_object(checkpoint / "config.json").get("model_type")
    if kind != config.model_type:
        raise RunError(
            f"{checkpoint} holds a model of type {kind!r} and this run trains one of type {config.model_type!r}; name "
            "the preset that it began with."
        )
    with opening(checkpoint):
        saved = type(config).from_pretrained(checkpoint).to_dict()
    ours = config.to_dict()
    own_fields = [name for name in type(config).__dataclass_fields__ if not hasattr(PreTrainedConfig, name)]
    for name in (name for name in own_fields if name != "use_cache"):
        if saved.get(name) != ours.get(name):
            raise RunError(
                f"{checkpoint} has {name} {saved.get(name)!r} and this run {ours.get(name)!r}; give the options of the "
                "run that is to go on."
            )
    check_same_vocabulary(checkpoint, tokenizer)


def check_same_vocabulary(checkpoint: Path, tokenizer: Any) -> None:
    """Refuses to go on from a checkpoint of another vocabulary.

    Raises:
        RunError: It has other tokens. One whose tokens no file tells is taken.
    """
    file = checkpoint / "tokenizer.json"
    if file.is_file() and hasattr(tokenizer, "backend_tokenizer"):
        saved, ours = read_object(file), json.loads(tokenizer.backend_tokenizer.to_str())
        with understanding(file):
            is_same = saved["model"]["vocab"] == ours["model"]["vocab"] and _added(saved) == _added(ours)
        if not is_same:
            raise RunError(
                f"{checkpoint} has another vocabulary than this run; go on with the text and the kind of tokenizer "
                "that it began with."
            )


def _added(vocabulary: dict[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in vocabulary["added_tokens"]}


def _kept_hash(file: Path, unless_kept: str) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else unless_kept


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
