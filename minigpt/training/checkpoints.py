"""Whole checkpoints: how to tell one, how to find the last, and which to keep."""

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from minigpt.errors import CheckpointError, UsageError
from minigpt.hub.adapter_folders import CONFIG as ADAPTER_CONFIG
from minigpt.hub.adapter_folders import WEIGHTS as ADAPTER_WEIGHTS
from minigpt.hub.file_names import UNFINISHED
from minigpt.hub.json_files import AS_SAVED, kind_of, parse_json, read_object
from minigpt.hub.saved_json import check_json
from minigpt.hub.unfinished import CHECKPOINT
from minigpt.training.checksums import CHECKSUMS, changed_file

logger = logging.getLogger(__name__)

# The hash of the text that a checkpoint was trained on.
TEXT_HASH = "text.sha256"
# What else a run that goes on must have in common with the one that stopped.
SETTINGS = "settings.json"

# What FSDP and DeepSpeed keep their weights and optimizers in, in place of single files.
_SHARDED_STATES = ("pytorch_model_fsdp*", "optimizer_*", "global_step*")


def all_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run by their steps, the first first."""
    if not run_dir.is_dir():
        return []
    named = [(int(match[1]), path) for path in run_dir.iterdir() if (match := CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(named) if path.is_dir()]


def find_checkpoint(run_dir: Path, asked: str | bool) -> Path:
    """The checkpoint to go on from: the one that was asked for, or the run's last whole one.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    if asked is True:
        found = last_whole_checkpoint(run_dir)
        if found is None:
            raise CheckpointError(
                f"{run_dir} holds no whole checkpoint to go on from; leave resume_from_checkpoint out."
            )
        return found
    checkpoint = Path(str(asked))
    if fault := checkpoint_fault(checkpoint):
        raise CheckpointError(f"cannot go on from {checkpoint}: {fault}; name another checkpoint.")
    return checkpoint


def last_whole_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint to resume from: the last one in which nothing is missing or damaged.

    Each damaged one that is passed over is said in one line.
    """
    for checkpoint in reversed(all_checkpoints(run_dir)):
        fault = checkpoint_fault(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("%s is damaged (%s) and passed over.", checkpoint, fault)
    return None


def checkpoint_fault(checkpoint: Path) -> str | None:
    """What keeps a run from resuming from a checkpoint, in a few words, or None if it is whole."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    if (checkpoint / CHECKSUMS).exists():
        changed = changed_file(checkpoint)
        return changed and f"its {changed} is missing or damaged"
    for file in sorted({checkpoint / "trainer_state.json", *checkpoint.glob("*.json")}):
        try:
            parse_json(file.read_bytes())
        except (OSError, ValueError):
            return f"its {file.name} is missing or damaged"
    try:
        check_json(checkpoint)
        _check_state(checkpoint / "trainer_state.json")
    except UsageError as error:
        return str(error).partition(";")[0]
    if any(next(checkpoint.glob(pattern), None) for pattern in _SHARDED_STATES):
        return None
    weights = _weight_files(checkpoint)
    if not weights:
        return "its model.safetensors is missing"
    for name in _described_by(checkpoint, weights):
        if not (checkpoint / name).is_file():
            return f"its {name} is missing"
    for file in weights:
        try:
            with safe_open(file, framework="pt"):
                pass  # opening compares the header with the file's size
        except (OSError, SafetensorError):
            return f"its {file.name} is missing or damaged"
    states = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *sorted(checkpoint.glob("rng_state*.pth"))]
    if len(states) < 3:
        return "its rng_state.pth is missing"
    for file in states:
        try:
            with safe_globals():
                torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # whatever a cut file makes a zip reader and an unpickler do
            return f"its {file.name} is missing or damaged"
    return None


def _check_state(file: Path) -> None:
    """Refuse a Trainer's state with a field that is not of the type it begins with.

    Raises:
        UsageError: One is not, or is no field of it.
    """
    begins = asdict(TrainerState()) | {"best_global_step": 0}
    for name, value in read_object(file).items():
        kind = type(begins.get(name))
        # Numbers of steps may be parts of the run.
        allowed = (int, float) if kind in (int, float) and not name.endswith("global_step") else kind
        is_right = value is None or (isinstance(value, allowed) and (kind is bool or not isinstance(value, bool)))
        if name not in begins or (begins[name] is not None and not is_right):
            raise UsageError(f"its {file.name} has a {name} that is {kind_of(value)}; {AS_SAVED}.")
        if name == "log_history" and not all(isinstance(entry, dict) for entry in value):
            raise UsageError(f"its {file.name} has a {name} with an entry that is no object; {AS_SAVED}.")


def step_of(checkpoint: Path) -> int:
    """Return after how many steps a checkpoint was written."""
    return int(read_object(checkpoint / "trainer_state.json")["global_step"])


def _weight_files(checkpoint: Path) -> list[Path]:
    """The files of weights that are there, and those of which an index says that they should be."""
    shards = [
        checkpoint / shard
        for index in checkpoint.glob("*.safetensors.index.json")
        for shard in read_object(index)["weight_map"].values()
    ]
    return sorted({*shards, *checkpoint.glob("*.safetensors")})


def _described_by(checkpoint: Path, weights: list[Path]) -> list[str]:
    """The files without which those that are there mean nothing."""
    names = []
    whole = [file for file in weights if file.name.startswith("model")]
    if whole:
        names.append("config.json")
    if any(file.name == ADAPTER_WEIGHTS for file in weights):
        names.append(ADAPTER_CONFIG)
    if any("-of-" in file.name for file in whole):
        names.append("model.safetensors.index.json")
    settings = checkpoint / "tokenizer_config.json"
    if settings.is_file() and read_object(settings).get("backend") == "tokenizers":
        names.append("tokenizer.json")
    return names


def delete_surplus(run_dir: Path, limit: int | None, kept: set[Path]) -> None:
    """Deletes the oldest checkpoints beyond a limit, but never those that are to be kept.

    Oldest by when they were written: a run that went back to an earlier step must not lose what it writes next.
    """
    if limit is None or limit < 1:
        return
    written = sorted(all_checkpoints(run_dir), key=lambda path: path.stat().st_mtime_ns)
    surplus = len(written) - max(limit, len(kept))
    for checkpoint in [path for path in written if path not in kept][: max(surplus, 0)]:
        shutil.rmtree(checkpoint, ignore_errors=True)


def remove_unfinished(run_dir: Path) -> None:
    """Removes what a run that died in the middle of a checkpoint has left."""
    shutil.rmtree(run_dir / UNFINISHED, ignore_errors=True)
