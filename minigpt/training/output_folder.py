"""The folder of a run: looked at before any work starts, so that nothing is lost in it and nothing runs out of it."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from minigpt.hub.adapters import BASE_HASH
from minigpt.hub.json_files import read_object, understanding
from minigpt.hub.opening import opening
from minigpt.hub.publishing.card import CARD, is_generated
from minigpt.modeling_minigpt import configuration_minigpt
from minigpt.training.checkpoints import SETTINGS, TEXT_HASH, UNFINISHED, all_checkpoints

# What a run writes beside its checkpoints, and so what `--overwrite` may delete.
_WRITTEN = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
    "training_args.bin",
    "trainer_state.json",
    BASE_HASH,
    "run.json",
    "loss.png",
    "sample.txt",
)
# Weights of another model than a run's, which would be taken for this one's.
_SHARDS = ("model-*-of-*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")
_BYTES_A_PARAMETER = 4
_ADAM_STATES = 2


class RunError(ValueError):
    """A run that cannot start or go on: the message names the folder, what is wrong with it and what to do."""


def check_folder(folder: Path, *, resuming: bool, overwrite: bool) -> None:
    """Refuses a folder that already holds a run, unless that is to be continued or replaced, and one without writing.

    Raises:
        RunError: It holds a model or a checkpoint, is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; name another --output_dir.")
    holds_model = any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
    if not resuming and not overwrite and (holds_model or all_checkpoints(folder)):
        raise RunError(
            f"{folder} already holds a model; go on with --resume_from_checkpoint, replace it with --overwrite, "
            "or name another --output_dir."
        )
    try:
        with tempfile.TemporaryFile(dir=_nearest_existing(folder)):
            pass
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror or error}); name another --output_dir.") from error


def check_room(folder: Path, num_parameters: int, checkpoints: int | None) -> None:
    """Refuses a disk on which the model and its checkpoints have no room.

    Args:
        folder: Where they are to lie.
        num_parameters: Of the model.
        checkpoints: How many are kept; None for all, of which two are counted. One more is counted, for a new one is
            whole before an old one goes.

    Raises:
        RunError: There is too little room.
    """
    weights = num_parameters * _BYTES_A_PARAMETER
    needed = weights + ((checkpoints or 2) + 1) * weights * (1 + _ADAM_STATES)
    free = shutil.disk_usage(_nearest_existing(folder)).free
    if free < needed:
        raise RunError(
            f"the run needs about {needed / 1e6:,.1f} MB and the disk of {folder} has {free / 1e6:,.1f} MB free; make "
            "room or name another --output_dir."
        )


def clear_folder(folder: Path) -> None:
    """Deletes the run that a folder holds, and leaves alone whatever no run has written."""
    for checkpoint in (*all_checkpoints(folder), folder / UNFINISHED):
        shutil.rmtree(checkpoint, ignore_errors=True)
    copied_code = [file.name for file in Path(configuration_minigpt.__file__).parent.glob("[!_]*_*.py")]
    shards = [file.name for pattern in _SHARDS for file in folder.glob(pattern)]
    for name in (*_WRITTEN, *shards, *copied_code):
        (folder / name).unlink(missing_ok=True)
    card = folder / CARD
    if card.is_file() and is_generated(card.read_text(encoding="utf-8", errors="replace")):
        card.unlink()


def check_same_text(checkpoint: Path, sha256: str) -> None:
    """Refuses to go on with another text: what was held back to validate on would be among what is trained on.

    Raises:
        RunError: The checkpoint was trained on a text of another hash. One without a hash is taken.
    """
    began_with = _kept_hash(checkpoint / TEXT_HASH, sha256)
    if began_with != sha256:
        raise RunError(
            f"{checkpoint} was trained on another text (of SHA-256 {began_with[:12]}..., and this one's is "
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


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
