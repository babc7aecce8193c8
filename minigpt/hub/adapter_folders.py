"""Adapters: small weights for a model that stays as it is, opened with the very model that they were trained on."""

import hashlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from minigpt.errors import UsageError
from minigpt.hub.extras import require_extra
from minigpt.hub.hub_lookup import hub_has
from minigpt.hub.json_files import read_object
from minigpt.hub.loading_errors import opening, reason_of
from minigpt.hub.tokenizer_loading import load_tokenizer
from minigpt.hub.weights import check_files, load_whole

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
# Beside an adapter: the hash of the model that it was trained on, as `base_sha256` computes it.
BASE_HASH = "base.sha256"
_SECONDS = 10
# What transformers opens, in the order in which it looks; a pickle is only read as bytes here.
_WHOLE_WEIGHTS = (
    re.compile(r"model\.safetensors"),
    re.compile(r"model-\d+-of-\d+\.safetensors"),
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"pytorch_model-\d+-of-\d+\.bin"),
)


@dataclass(frozen=True)
class AdapterBase:
    """The model that an adapter is for.

    Attributes:
        name: A folder, or a Hub repository's id.
        revision: Of the repository, None for its main branch.
    """

    name: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder that is there."""
        return Path(self.name).is_dir()


def is_adapter(source: str | Path, *, local_files_only: bool = False) -> bool:
    """Whether a folder, or what the Hub has under this name, is an adapter and no whole model.

    Args:
        source: A folder, or a Hub repository's id.
        local_files_only: Whether to look for a repository in the cache alone.
    """
    try:
        return find_adapter_config_file(str(source), local_files_only=local_files_only) is not None
    except (OSError, HFValidationError):  # no name that a repository could have
        return False


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What `adapter_config.json` says.

    Raises:
        UsageError: It cannot be read, or names no model that the adapter is for.
    """
    file = folder / CONFIG
    config = read_object(file, "save the adapter again")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(f"{file} names no model that the adapter is for; write it into base_model_name_or_path.")
    return config


def holds_whole_model(folder: Path) -> bool:
    """Whether a folder holds a model that opens without any other, be there an adapter beside it or not."""
    return (folder / "config.json").is_file() and bool(_weight_files(path.name for path in folder.iterdir()))


def base_of(folder: Path) -> AdapterBase:
    """The model that the adapter in a folder is for.

    Raises:
        UsageError: Its `adapter_config.json` cannot be read, or names none.
    """
    config = read_adapter_config(folder)
    if holds_whole_model(folder):
        return AdapterBase(str(folder))  # some tools save it beside the adapter, and transformers then takes that one
    return AdapterBase(config["base_model_name_or_path"], config.get("revision"))


def config_of_base(base: AdapterBase) -> dict[str, Any]:
    """What the `config.json` of a model holds, without opening it; nothing if it cannot be had."""
    try:
        return PreTrainedConfig.get_config_dict(
            base.name, revision=base.revision or "main", local_files_only=base.is_folder or not hub_has(base.name)
        )[0]
    except (OSError, HFValidationError):
        return {}


def base_sha256(source: str | Path, revision: str | None = None) -> str:
    """The hash of a model's weight files, their names and their bytes: that of what `sha256sum` prints of them.

    The files are those that transformers opens: `model.safetensors`, else its shards, else `pytorch_model.bin`, else
    its shards; they are read as bytes alone. Of a repository the Hub itself knows the hashes, and nothing is
    downloaded; where the Hub is out of reach, what lies in the cache is read.

    Args:
        source: A folder, or a Hub repository's id.
        revision: Of the repository, by default its main branch.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: There is no model under that name, or one without weight files.
    """
    folder = Path(source)
    if not folder.is_dir():
        if (known := _hashes_on_the_hub(str(source), revision)) is not None:
            return _digest(known, source)
        try:
            folder = Path(snapshot_download(str(source), revision=revision, local_files_only=True))
        except (OSError, HFValidationError) as error:
            raise OSError(f"{source} is neither a folder nor a model that the Hub gives out.") from error
    names = _weight_files(path.name for path in folder.iterdir())
    return _digest({name: _sha256(folder / name) for name in names}, source)


def _hashes_on_the_hub(repository: str, revision: str | None) -> dict[str, str] | None:
    """The SHA-256 of each weight file by its name, or None where the Hub does not say."""
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=_SECONDS)
    except Exception:  # no such repository, no network, offline mode: what is left is the cache
        return None
    names = set(_weight_files(file.rfilename for file in info.siblings or []))
    files = {file.rfilename: file.lfs for file in info.siblings or [] if file.rfilename in names}
    return None if None in files.values() else {name: lfs.sha256 for name, lfs in files.items() if lfs}


def _weight_files(names: Iterable[str]) -> list[str]:
    listed = sorted(names)
    found = ([name for name in listed if pattern.fullmatch(name)] for pattern in _WHOLE_WEIGHTS)
    return next((names for names in found if names), [])


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _digest(hashes: dict[str, str], source: str | Path) -> str:
    if not hashes:
        raise OSError(f"{source} holds no weights: neither model.safetensors nor pytorch_model.bin.")
    printed = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(printed.encode()).hexdigest()


def open_adapter(
    source: str | Path, *, local_files_only: bool = False, base: AdapterBase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads an adapter with the model that it is for, on the CPU and in that model's own precision, and its tokenizer.

    Args:
        source: The adapter's folder, or its Hub repository's id.
        local_files_only: Whether to look for a repository in the cache alone.
        base: Where the model that it is for is now, in place of what the adapter says.

    Returns:
        The model with the adapter merged into its weights, so that it is a plain one with the same logits, or where
        that cannot be (virtual tokens, quantized weights) around it; and the adapter's tokenizer, or without one the
        model's. A `generation_config.json` beside the adapter goes before the model's.

    Raises:
        UsageError: PEFT is not installed; the adapter's weights are a pickle or do not fit; the model is not there
            any more, or is another one than the adapter was trained on.
        OSError: There is no such repository, or what it holds cannot be read.
    """
    require_extra("lora", f"{source}, an adapter,", "peft")
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(
            snapshot_download(
                str(source),
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", PICKLE, BASE_HASH],
            )
        )
    _refuse_without_safetensors(folder, source)
    task = read_adapter_config(folder).get("task_type") or "CAUSAL_LM"
    if task != "CAUSAL_LM":
        raise UsageError(f"{source} is an adapter for the task {task}; only one for CAUSAL_LM can be opened here.")
    base = base or base_of(folder)
    place = _find_base(base, folder, source)
    check_base(folder, place, base.revision, source=source, called=base.name)
    model = _load_base(place, base)
    tokenizer = load_tokenizer(
        folder if (folder / "tokenizer_config.json").is_file() else place, revision=base.revision or "main"
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        # As PEFT's own loader does: the adapter brings the rows of the new tokens.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = _add_adapter(model, folder)
    if (folder / "generation_config.json").is_file():
        with opening(folder):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(source)
    return model, tokenizer


def check_base(
    folder: Path,
    base: str | Path,
    revision: str | None = None,
    *,
    source: str | Path | None = None,
    called: str | Path | None = None,
) -> None:
    """Refuses to put an adapter on another model than the one that it was trained on, where it says which that was.

    Args:
        folder: The adapter's.
        base: The model's folder, or its Hub repository's id.
        revision: Of the repository, by default its main branch.
        source: What to call the adapter, by default its folder.
        called: What to call the model, by default `base`.

    Raises:
        UsageError: The model's weights have another hash than the one in `base.sha256`.
        OSError: There is no model under that name, or one without weight files.
    """
    expected = folder / BASE_HASH
    if expected.is_file() and base_sha256(base, revision) != expected.read_text(encoding="utf-8").strip():
        raise UsageError(
            f"{source or folder} is an adapter for another base: the weights of {called or base} are not those that "
            "it was trained on; put these back, name the base that has them, or train it again."
        )


def _refuse_without_safetensors(folder: Path, source: str | Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if (folder / PICKLE).is_file():
        raise UsageError(f"{source} holds its weights as a pickle, {PICKLE}; save the adapter again as safetensors.")
    raise UsageError(f"{source} holds no {WEIGHTS}; save the adapter again.")


def _find_base(base: AdapterBase, folder: Path, source: str | Path) -> str | Path:
    """Where the model is now: its folder, its id where the Hub gives it out, or where it lies in the cache."""
    if base.is_folder:
        return Path(base.name)
    if hub_has(base.name):
        return base.name
    try:
        return Path(snapshot_download(base.name, revision=base.revision, local_files_only=True))
    except (OSError, HFValidationError) as error:
        remedy = f"put it back, or write where it is now into base_model_name_or_path of {folder / CONFIG}"
        if not Path(source).is_dir():
            remedy = "ask for it where the adapter comes from"
        raise UsageError(
            f"{source} is an adapter for {base.name}, which is neither a folder nor a model that the Hub gives out; "
            f"{remedy}."
        ) from error


def _load_base(place: str | Path, base: AdapterBase) -> PreTrainedModel:
    local_only = isinstance(place, Path)
    with opening(place, base.revision):
        return load_whole(
            AutoModelForCausalLM.from_pretrained,
            place,
            revision=base.revision or "main",
            local_files_only=local_only,
            adapter_kwargs={"local_files_only": local_only},
        )


def _add_adapter(model: PreTrainedModel, folder: Path) -> Any:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, folder, torch_device="cpu", ignore_mismatched_sizes=True)
        refuse_unfit_adapter(adapted, folder)
        if getattr(model, "is_quantized", False) or not hasattr(adapted, "merge_and_unload"):
            return adapted
        return adapted.merge_and_unload()
    except UsageError:
        raise
    except Exception as error:  # whatever PEFT makes of a config that is not what it expects
        raise UsageError(
            f"{folder / CONFIG} describes no adapter that fits the model it is for{reason_of(error)}; train it again."
        ) from error


def refuse_unfit_adapter(adapted: Any, folder: Path) -> None:
    """Refuse an adapter's weights that are not those of the adapter that a model has.

    PEFT draws at random what the file lacks and drops what is left over.

    Args:
        adapted: A model with an adapter of the same settings.
        folder: The adapter's.

    Raises:
        UsageError: Weights are missing, left over, of another shape or not finite; the sentence names them.
    """
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT also saves tables of embeddings that were resized, and modules that are trained as a whole twice.
    known = {name.replace(f".{adapted.active_adapter}.", ".") for name in adapted.state_dict()}
    check_files(folder, WEIGHTS, expected, optional=known - expected.keys())
