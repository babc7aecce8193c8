"""The text of a model's training as its run recorded it."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from minigpt.hub.hub_lookup import hub_has
from minigpt.hub.json_files import read_object
from minigpt.training.checkpoints import SETTINGS
from minigpt.training.data.read_settings import ReadSettings


def recorded_text(model: str | Path) -> dict[str, Any]:
    """Return what a run's report says of its text, or a checkpoint of how it was read; nothing without either.

    Args:
        model: A folder, or a Hub id.
    """
    folder = Path(model)
    if folder.is_dir():
        file = folder / "run.json"
        if not file.is_file() and (folder / SETTINGS).is_file():
            return {"reading": read_object(folder / SETTINGS).get("reading")}
    else:
        try:
            file = Path(hf_hub_download(str(model), "run.json", local_files_only=not hub_has(str(model))))
        except Exception:  # no such file, neither on the Hub nor in the cache
            return {}
    data = read_object(file).get("data") if file.is_file() else None
    return data if isinstance(data, dict) else {}


def recorded_reading(model: str | Path) -> ReadSettings:
    """Return the settings by which the text of a model's training was read."""
    return ReadSettings.recorded(recorded_text(model).get("reading"))
