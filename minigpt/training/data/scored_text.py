"""The text on which a trained model is scored, and which part of it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from minigpt.training.data.corpus import Corpus, CorpusError, Source, SplitSettings, load_text
from minigpt.training.data.read_settings import ReadSettings
from minigpt.training.data.recorded_text import recorded_text
from minigpt.training.data.spooled_input import is_stream, spool_streams


def text_to_score(
    model: str, data: Sequence[str] | None, part: str | None, reading: ReadSettings | None = None
) -> tuple[Corpus, str]:
    """Load a text, read and split as the model's run read and split its own, into documents too.

    Args:
        model: The folder or Hub id of the model.
        data: What `load_text` takes.
        part: `train`, `validation` or `all`; by default the validation split of the text that the model was trained on,
            and all of any other text.
        reading: Settings that decide how the text is read, in place of those of the run. Where the run's encoding or
            column does not suit another text, the defaults are used, and lines where documents were rows.

    Returns:
        The text, and the part. All of a text is its training split.
    """
    asked = reading or ReadSettings()
    sources = data and spool_streams(data, as_rows=asked.text_column is not None)
    trained_on = recorded_text(model)
    settings = trained_on.get("split", {})
    own = ReadSettings.recorded(trained_on.get("reading"))
    corpus = None
    # The files of the run's validation split may be gone, or belong to another text.
    with suppress(ValueError, TypeError):
        known = {field.name: settings[field.name] for field in fields(SplitSettings) if field.name in settings}
        files = tuple(file for file in known.pop("validation_file", ()) if not is_stream(file))
        same = load_text(sources, split=SplitSettings(files, **known), reading=asked.over(own))
        if same.sha256 == trained_on.get("sha256"):
            corpus = same
    if corpus is None:
        corpus = _load_other(sources, asked, own)
        if missing := [file for file in settings.get("validation_file") or () if not Path(file).exists()]:
            notice = (
                f"{missing[0]}, the run's validation split, is not here: {corpus.name} may be what the run was trained "
                "on."
            )
            corpus = replace(corpus, notice="\n".join(filter(None, (notice, corpus.notice))))
    part = part or ("validation" if corpus.sha256 == trained_on.get("sha256") else "all")
    return (corpus.all_to_train() if part == "all" else corpus), part


def _load_other(sources: Source | None, asked: ReadSettings, own: ReadSettings) -> Corpus:
    """Load a text that is not the run's own: it may have another encoding or column, or no rows."""
    own = replace(own, encoding=None)
    ways = [own, replace(own, text_column=None)]
    if own.documents == "rows":
        ways += [replace(way, documents="lines") for way in ways]
    *first, last = dict.fromkeys(asked.over(way) for way in ways)
    for reading in first:
        with suppress(CorpusError):
            return load_text(sources, reading=reading)
    return load_text(sources, reading=last)
