"""Runs that were stopped: their folder holds checkpoints, and the model only once they end."""

import re
from pathlib import Path

from minigpt.errors import UsageError

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_MODELS = ("config.json", "adapter_config.json")


def refuse_unfinished(folder: Path) -> None:
    """Refuse the folder of a run that has checkpoints and no model yet.

    Raises:
        UsageError: It is one; the sentence names the last checkpoint that can be used as a model.
    """
    if not folder.is_dir() or _holds_model(folder):
        return
    steps = {path: int(match[1]) for path in folder.iterdir() if (match := CHECKPOINT.fullmatch(path.name))}
    if checkpoints := [path for path in steps if _holds_model(path)]:
        last = max(checkpoints, key=steps.__getitem__)
        raise UsageError(
            f"the run in {folder} has not ended, so the folder holds no model; use its last checkpoint, {last}, or "
            "finish the run with --resume_from_checkpoint."
        )


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MODELS)
