"""The text on which a trained model is scored, and which part of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from minigpt.hub.json_files import read_object
from minigpt.hub.trained import hub_has
from minigpt.training.corpus import Corpus, SplitSettings, load_text
from minigpt.training.reading import ReadSettings


def text_to_score(model: str, data: Sequence[str] | None, part: str | None) -> tuple[Corpus, str]:
    """Load a text, parted as the model's run parted its own, into documents too.

    Args:
        model: The folder or Hub id of the model.
        data: What `load_text` takes.
        part: `train`, `validation` or `all`; by default the validation split of the text that the model was trained on,
            and all of any other text.

    Returns:
        The text, and the part. All of a text is its training split.
    """
    trained_on = _trained_on(model)
    settings = trained_on.get("split", {})
    reading = ReadSettings(documents=trained_on.get("reading", {}).get("documents"))
    corpus = load_text(data, reading=reading)
    # The files of the run's validation split may be gone, or belong to another text.
    with suppress(ValueError, TypeError):
        known = {field.name: settings[field.name] for field in fields(SplitSettings) if field.name in settings}
        files = tuple(known.pop("validation_file", ()))
        parted = load_text(data, split=SplitSettings(files, **known), reading=reading)
        if parted.sha256 == trained_on.get("sha256"):
            corpus = parted
    part = part or ("validation" if corpus.sha256 == trained_on.get("sha256") else "all")
    return (corpus.all_to_train() if part == "all" else corpus), part


def _trained_on(model: str) -> dict[str, Any]:
    """Return what a run's report says of its text; nothing if there is no report."""
    file = Path(model) / "run.json"
    if not Path(model).is_dir():
        try:
            file = Path(hf_hub_download(model, "run.json", local_files_only=not hub_has(model)))
        except Exception:  # no such file, neither on the Hub nor in the cache
            return {}
    data = read_object(file).get("data") if file.is_file() else None
    return data if isinstance(data, dict) else {}
