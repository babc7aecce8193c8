"""What a saved folder says about its model, read from its files without loading it and without running its code."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from minigpt.errors import UsageError
from minigpt.hub.adapter_folders import (
    CONFIG,
    WEIGHTS,
    AdapterBase,
    base_of,
    config_of_base,
    holds_whole_model,
    read_adapter_config,
)
from minigpt.hub.json_files import read_object, understanding
from minigpt.hub.publishing.known_texts import KNOWN_TEXTS, KnownText

# What a head is for: the Hub's task, and the class that opens it.
_HEADS = {
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "LMHeadModel": ("text-generation", "AutoModelForCausalLM"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": ("token-classification", "AutoModelForTokenClassification"),
    "Model": ("feature-extraction", "AutoModel"),
}
# What a repository of an adapter holds, where others hold a type of model.
ADAPTER = "adapter"
PUT_BACK = "put it back as it was, or take it away"


@dataclass(frozen=True)
class SavedVocabulary:
    """What the tokens of a model are.

    Attributes:
        characters: In the order of their ids, if each token is one character; else None.
        subwords: Their number, if the tokens are pieces of words; else None.
        special: How many special tokens there are.
        kind: What made the subwords, if that can be told.
    """

    characters: tuple[str, ...] | None
    subwords: int | None
    special: int
    kind: str | None = None


@dataclass(frozen=True)
class SavedFolder:
    """A model's or an adapter's folder, as `minigpt train`, a Trainer or `save_pretrained` left it.

    Attributes:
        path: Where it is.
        config: What its `config.json` holds, or that of the model that an adapter is for, as far as it is known.
        adapter: What its `adapter_config.json` holds, or None for a whole model.
        run: What its `run.json` holds, or None without one.
        state: What its `trainer_state.json` holds, or None without one.
        text_hash: What its `text.sha256` holds, or None without one: checkpoints have it.
        vocabulary: Its tokens, or None without a `tokenizer.json`.
        parameters: How many there are in its safetensors files, an adapter's own, or None without any.
        sample: What its `sample.txt` holds, or None without one.
        has_picture: Whether it holds a `loss.png`.
    """

    path: Path
    config: dict[str, Any]
    adapter: dict[str, Any] | None
    run: dict[str, Any] | None
    state: dict[str, Any] | None
    text_hash: str | None
    vocabulary: SavedVocabulary | None
    parameters: int | None
    sample: str | None
    has_picture: bool

    @property
    def model_type(self) -> str:
        """The config's `model_type`."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def published_type(self) -> str:
        """What a repository holds that it is pushed to: nothing else may be pushed there."""
        return ADAPTER if self.adapter is not None else self.model_type

    @property
    def base(self) -> AdapterBase | None:
        """What it was fine-tuned from, or as an adapter is for, as its config or its run calls it."""
        if self.adapter is not None:
            return AdapterBase(self.adapter["base_model_name_or_path"], self.adapter.get("revision"))
        named = (self.run or {}).get("base")
        return AdapterBase(str(named["name"]), named.get("revision")) if named else None

    @property
    def base_on_the_hub(self) -> str | None:
        """The id on the Hub of what it was fine-tuned from, or None if that is a folder."""
        base = self.base
        if base is None or is_on_this_machine(base.name):
            return None
        # A published run keeps only the last name of a folder, which then looks like an id from before there were
        # owners: of what came from the Hub, the commit is recorded too.
        is_told = self.adapter is not None or base.revision is not None or is_hub_id(base.name)
        return base.name if is_told else None

    @property
    def is_instructed(self) -> bool:
        """Whether it has learned to answer, from conversations."""
        return self.run is not None and "split_rows" in self.run["data"]

    @property
    def is_ours(self) -> bool:
        """Whether it is a MiniGPT or a bigram."""
        return self.model_type in ("minigpt", "minigpt_bigram")

    @property
    def carries_code(self) -> bool:
        """Whether whoever lacks its class can load it from the code beside it, or beside an adapter's model."""
        return bool(self.config.get("auto_map")) or (self.is_ours and self.adapter is not None)

    @property
    def unit(self) -> str:
        """What a token is called, in the plural."""
        return "characters" if self.vocabulary and self.vocabulary.characters is not None else "tokens"

    @property
    def text_sha256(self) -> str | None:
        """Hash of the text it was trained on, where that is recorded."""
        return self.text_hash if self.run is None else str(self.run["data"]["sha256"])

    @property
    def known_text(self) -> KnownText | None:
        """The text it was trained on, if it is one that many are trained on."""
        return KNOWN_TEXTS.get(self.text_sha256 or "")

    @property
    def hub_dataset(self) -> str | None:
        """The id on the Hub of what it was trained on; a file's name has no owner."""
        if self.known_text:
            return self.known_text.hub_dataset
        name = str(self.run["data"]["name"]) if self.run is not None else ""
        return name if is_hub_id(name) else None

    @property
    def task(self) -> str | None:
        """The Hub's name of what the saved head is for, or None if that is not known."""
        return self._head[0]

    @property
    def auto_class(self) -> str:
        """The class that opens the model with its head: of transformers, or for an adapter of PEFT."""
        return self._head[1]

    @property
    def _head(self) -> tuple[str | None, str]:
        if self.adapter is not None:
            return "text-generation", "AutoPeftModelForCausalLM"
        (architecture, *_) = self.config.get("architectures") or [""]
        found = (head for suffix, head in _HEADS.items() if str(architecture).endswith(suffix))
        return next(found, (None, "AutoModel"))


def is_hub_id(name: str) -> bool:
    """Whether a name can be one of the Hub's, with an owner: a file's name has none."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def is_on_this_machine(base: str) -> bool:
    """Whether what an adapter or a run calls its base is a folder: one is recorded as a whole path, an id never is.

    The Hub's oldest models have ids without an owner: `gpt2`.
    """
    is_id = re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", base, re.ASCII) is not None
    return not is_id or Path(base).is_dir()


def read_saved_folder(path: Path, base: AdapterBase | None = None) -> SavedFolder:
    """Reads what is known of the model or the adapter in a folder.

    Args:
        path: The folder.
        base: Where what it was fine-tuned from is now, in place of what the folder says.

    Raises:
        UsageError: The folder holds neither, or one of its JSON or weight files cannot be read.
    """
    run, config, adapter = _read_json(path / "run.json"), _read_json(path / "config.json"), None
    if (path / CONFIG).is_file() and not holds_whole_model(path):
        adapter = read_adapter_config(path)
        with understanding(path / "run.json", PUT_BACK):
            known = dict((run or {}).get("model", {}).get("config") or {})
        config = known or config_of_base(base_of(path))
    if config is None:
        raise UsageError(f"the folder {path} holds no model: it has no config.json.")
    if base is not None:
        if adapter is not None:
            adapter |= {"base_model_name_or_path": base.name, "revision": base.revision}
        if run is not None and run.get("base"):
            with understanding(path / "run.json", PUT_BACK):
                run["base"] |= {"name": base.name, "revision": base.revision}
    with understanding(path / "tokenizer.json"):
        vocabulary = _read_vocabulary(path)
    saved = SavedFolder(
        path=path,
        config=config,
        adapter=adapter,
        run=run,
        state=_read_json(path / "trainer_state.json"),
        text_hash=(_read_text(path / "text.sha256") or "").strip() or None,
        vocabulary=vocabulary,
        parameters=_count_parameters(path, "model*.safetensors" if adapter is None else WEIGHTS),
        sample=_read_text(path / "sample.txt"),
        has_picture=(path / "loss.png").is_file(),
    )
    with understanding(path / "run.json", PUT_BACK):
        _ = saved.base, saved.is_instructed, saved.text_sha256
    return saved


def _read_text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _read_json(file: Path) -> dict[str, Any] | None:
    return read_object(file, PUT_BACK) if file.is_file() else None


def _read_vocabulary(path: Path) -> SavedVocabulary | None:
    tokenizer = _read_json(path / "tokenizer.json")
    if tokenizer is None:
        return None
    added = tokenizer.get("added_tokens", ())
    special = {token["content"] for token in added if token.get("special")}
    model = tokenizer.get("model", {})
    vocab = model.get("vocab", {})
    # Unigram models list their pieces with scores.
    tokens = vocab if isinstance(vocab, dict) else {piece: place for place, (piece, *_) in enumerate(vocab)}
    tokens = tokens | {token["content"]: token["id"] for token in added}
    ordinary = sorted(tokens.keys() - special, key=lambda token: tokens[token])
    kind = None
    if (path / "tokenizer.model").is_file():
        kind = f"SentencePiece, {'unigram' if model.get('type') == 'Unigram' else model.get('type')}"
    elif model.get("type") == "BPE" and (tokenizer.get("decoder") or {}).get("type") == "ByteLevel":
        kind = "byte-level BPE"
    if kind is None and not model.get("merges") and ordinary and all(len(token) == 1 for token in ordinary):
        return SavedVocabulary(characters=tuple(ordinary), subwords=None, special=len(special))
    return SavedVocabulary(characters=None, subwords=len(ordinary), special=len(special), kind=kind)


def _count_parameters(path: Path, pattern: str) -> int | None:
    files = sorted(path.glob(pattern))
    if not files:
        return None
    count = 0
    for file in files:
        try:
            with safe_open(file, framework="np") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a mapping
                    size = 1
                    for length in weights.get_slice(name).get_shape():
                        size *= length
                    count += size
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{file} cannot be read ({error}); save the model again.") from error
    return count
