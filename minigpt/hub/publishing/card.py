"""The model card: written from the folder's files, and never over the words of a person."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from minigpt.errors import UsageError
from minigpt.hub.adapter_folders import AdapterBase
from minigpt.hub.file_names import CARD
from minigpt.hub.json_files import understanding
from minigpt.hub.publishing.card_text import card_text, split_definition
from minigpt.hub.publishing.saved_folder import PUT_BACK, SavedFolder, read_saved_folder

# What makes the Hub treat the model as one of its own, and is true of it whatever a person writes.
_OF_LIBRARIES = ("library_name", "pipeline_tag", "tags")
_TIMELESS = (*_OF_LIBRARIES, "base_model", "base_model_relation")
# The last line of a card names the keys of the metadata that are ours, and signs them and the text. Whoever changes
# one of these has made the card their own.
_SIGNATURE = re.compile(
    r"\n*<!-- Written by minigpt from the files beside it, and anew at every push until somebody changes it\. "
    r"\[(?P<keys>[\w, -]*)\] (?P<digest>[0-9a-f]{16}) -->\s*$"
)


def model_card(
    folder: str | Path,
    repository: str | None = None,
    published: str | None = None,
    *,
    chosen: Mapping[str, Any] | None = None,
    base: AdapterBase | None = None,
) -> ModelCard:
    """Makes the card of a trained or saved model, or of an adapter.

    What it says comes from `run.json`, `config.json`, the tokenizer, the weights, `sample.txt` and `loss.png`; without
    a `run.json` it is shorter. No licence is claimed: whose weights they are chooses one.

    A card that stands already stays whatever a person has made of it. Text that they have written or changed is kept as
    it is, and only the metadata by which the Hub knows a model of transformers is added to theirs; to text of ours,
    theirs is the metadata that they have added, such as a licence.

    Args:
        folder: What `minigpt train`, a Trainer or `save_pretrained` wrote. Its `README.md` is a card that stands.
        repository: The id of the repository that the card is for; by default the card names the folder.
        published: The card that the repository has, if any. The folder's goes before it.
        chosen: Metadata that goes before all other, such as `{"license": "mit"}`.
        base: Where what it was fine-tuned from is now, in place of what the folder says.

    Returns:
        The card; its `content` is what `README.md` is to hold.

    Raises:
        UsageError: The folder holds no model, or a file in it is damaged; the message names it.
    """
    folder = Path(folder)
    saved = read_saved_folder(folder, base)
    name = repository.rpartition("/")[2] if repository else folder.resolve().name
    with understanding(folder / ("config.json" if saved.run is None else "run.json"), PUT_BACK):
        metadata = _known(_metadata(saved, name))
        text = card_text(saved, name, repository or folder.as_posix())
    theirs: dict[str, Any] = {}
    their_text = None
    for content, place in ((published, f"the card of {repository}"), (_standing(folder), str(folder / CARD))):
        if content is not None:
            data, words = _of_a_person(_read_card(content, place))
            theirs |= data
            their_text = words if words is not None else their_text
    theirs |= chosen or {}
    if their_text is not None:
        return _compose({key: metadata[key] for key in _TIMELESS if key in metadata} | theirs, their_text)
    ours = [key for key in metadata if key not in theirs]
    if "tags" in theirs:
        tags = theirs["tags"] if isinstance(theirs["tags"], list) else [theirs["tags"]]
        theirs["tags"] = list(dict.fromkeys([*tags, *metadata["tags"]]))
    return _signed(metadata | theirs, text, ours)


def is_generated(content: str) -> bool:
    """Whether a card is as `model_card` made it, so that nothing of a person's is lost with it."""
    try:
        theirs, words = _of_a_person(_read_card(content, CARD))
    except UsageError:
        return False
    return words is None and not theirs


def _metadata(saved: SavedFolder, name: str) -> ModelCardData:
    tags = [
        *(["minigpt"] if saved.is_ours else [saved.model_type]),
        *(["bigram"] if saved.model_type == "minigpt_bigram" else []),
        *(["character-level"] if saved.unit == "characters" else []),
        *(["custom_code"] if saved.carries_code else []),
        *([str(saved.adapter.get("peft_type", "adapter")).lower()] if saved.adapter is not None else []),
    ]
    began_as = saved.base_on_the_hub
    return ModelCardData(
        language=saved.known_text.language if saved.known_text else None,
        library_name="transformers" if saved.adapter is None else "peft",
        pipeline_tag=saved.task,
        tags=tags,
        datasets=[saved.hub_dataset] if saved.hub_dataset else None,
        model_name=name if saved.run is not None else None,
        eval_results=_eval_results(saved) if saved.run is not None else None,
        base_model=began_as,
        base_model_relation=("finetune" if saved.adapter is None else "adapter") if began_as else None,
    )


def _eval_results(saved: SavedFolder) -> list[EvalResult]:
    assert saved.run is not None
    data, validation = saved.run["data"], saved.run["losses"]["validation"]
    metrics = [
        ("cross_entropy", "validation loss, nats a token", validation["loss"]),
        ("bits_per_character", "bits a character", validation["bits_per_character"]),
        ("perplexity", "perplexity a token", validation["perplexity"]),
    ]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=saved.hub_dataset or "text",
            dataset_name=saved.known_text.title if saved.known_text else " ".join(data["name"].split()),
            dataset_split="validation",
            dataset_args={
                "definition": split_definition(saved),
                "targets": validation["targets"],
                "sha256": data["sha256"],
            },
            metric_type=kind,
            metric_name=called,
            metric_value=round(value, 6),
        )
        for kind, called, value in metrics
        if value is not None
    ]


def _standing(folder: Path) -> str | None:
    file = folder / CARD
    try:
        return file.read_text(encoding="utf-8-sig") if file.is_file() else None
    except ValueError as error:
        raise UsageError(f"{file} is not UTF-8 ({error}); save it as UTF-8.") from error


def _read_card(content: str, place: str) -> ModelCard:
    if not REGEX_YAML_BLOCK.search(content):
        content = f"---\n{{}}\n---\n{content}"  # the library would complain of a card without metadata
    try:
        return ModelCard(content)
    except Exception as error:  # of a YAML reader, or of the library over what is in it
        reason = " ".join(str(error).split())
        raise UsageError(f"the metadata at the top of {place} cannot be read ({reason}); correct it.") from error


def _of_a_person(card: ModelCard) -> tuple[dict[str, Any], str | None]:
    """The metadata that a person has chosen, and their text, or None if they have written none."""
    metadata = _known(card.data)
    match = _SIGNATURE.search(card.text)
    if match is None:
        if _is_empty_form(card.text):
            return {key: value for key, value in metadata.items() if key not in _OF_LIBRARIES}, None
        if _is_form_of_peft(card.text):
            # Its base is called what the folder was when it was trained.
            return {key: value for key, value in metadata.items() if key not in _TIMELESS}, None
        return metadata, card.text if card.text.strip() else None
    keys = [key for key in match["keys"].split(", ") if key]
    if match["digest"] != _digest({key: metadata.get(key) for key in keys}, card.text[: match.start()]):
        return metadata, card.text[: match.start()]
    return {key: value for key, value in metadata.items() if key not in keys}, None


def _is_empty_form(text: str) -> bool:
    """Whether this is the form that a model's own `push_to_hub` puts there to be filled in, and nobody has."""
    form = ModelCard.from_template(ModelCardData(), model_description="(what it is)").text
    before, after = (_with_line_feeds(part) for part in form.split("(what it is)"))
    said = _with_line_feeds(text)
    return (
        said.startswith(before)
        and said.endswith(after)
        and "automatically generated" in said[len(before) : -len(after)]
    )


def _is_form_of_peft(text: str) -> bool:
    """Whether this is the form that PEFT puts beside every adapter that it saves, and nobody has filled in."""
    form = _with_line_feeds(ModelCard.from_template(ModelCardData()).text)
    return re.sub(r"\s*### Framework versions\s+- PEFT \S+$", "", _with_line_feeds(text)) == form


def _signed(metadata: dict[str, Any], text: str, ours: list[str]) -> ModelCard:
    # Read back once, so that what is signed is what a reader of the file will see.
    card = _compose(metadata, text)
    written = _known(card.data)
    line = (
        "<!-- Written by minigpt from the files beside it, and anew at every push until somebody changes it. "
        f"[{', '.join(ours)}] {_digest({key: written.get(key) for key in ours}, card.text)} -->"
    )
    return _compose(metadata, f"{text.rstrip()}\n\n{line}\n")


def _compose(metadata: dict[str, Any], text: str) -> ModelCard:
    header = ModelCardData(**metadata).to_yaml(line_break="\n")
    return ModelCard(f"---\n{header}\n---\n\n" + text.lstrip("\r\n"))


def _known(metadata: CardData) -> dict[str, Any]:
    """What is set, as it stands in a file."""
    return metadata.to_dict()  # type: ignore[no-untyped-call]


def _digest(metadata: dict[str, Any], text: str) -> str:
    said = json.dumps([metadata, _with_line_feeds(text)], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").strip()
