"""What of a folder goes to the Hub: a whole model or adapter with all that it needs to be used, and nothing else."""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from minigpt.errors import UsageError
from minigpt.hub.adapter_folders import CONFIG, WEIGHTS, AdapterBase, base_sha256, open_adapter
from minigpt.hub.auto_classes import register
from minigpt.hub.file_names import ADAPTER, CARD, MODEL_WEIGHTS, OTHER_FORMATS, OUR_CODE, RUN, TOKENIZER, matches
from minigpt.hub.json_files import read_object, understanding
from minigpt.hub.loading import check_vocabulary
from minigpt.hub.loading_bars import no_progress_bars
from minigpt.hub.loading_errors import opening
from minigpt.hub.publishing.saved_folder import SavedFolder, read_saved_folder
from minigpt.hub.run_lock import LOCK, refuse_running
from minigpt.hub.tokenizer_loading import load_tokenizer
from minigpt.hub.unfinished import refuse_unfinished
from minigpt.hub.weights import load_whole

_WORDS = (*RUN, "LICENSE", "LICENSE.*", "NOTICE", "NOTICE.*")
_PUBLISHED = ("config.json", "generation_config.json", *MODEL_WEIGHTS, *OTHER_FORMATS, *TOKENIZER, *_WORDS)
_PUBLISHED_ADAPTER = (*ADAPTER, "generation_config.json", *TOKENIZER, *_WORDS)
# No model is another one for these.
_MAY_STAY = ("LICENSE*", "NOTICE*", *OTHER_FORMATS)


@dataclass(frozen=True)
class Release:
    """What is to be published, by its name in the repository, and what of the folder is not.

    Attributes:
        saved: The folder that it comes from.
        files: Where each file lies, all but the card's.
        left: What the folder holds besides: checkpoints, optimizer states, pickles, whatever is none of a model's.
    """

    saved: SavedFolder
    files: dict[str, Path]
    left: tuple[str, ...]

    @property
    def has_weights(self) -> bool:
        """Whether transformers or PEFT can open it; an exported graph or a GGUF file they cannot."""
        return any(matches(name, (*MODEL_WEIGHTS, WEIGHTS)) for name in self.files)

    @property
    def other_formats(self) -> dict[str, Path]:
        """The files in formats that transformers does not open."""
        return {name: file for name, file in self.files.items() if matches(name, OTHER_FORMATS)}


def prepare_release(folder: Path, staging: Path, base: AdapterBase | None = None) -> Release:
    """Collects what is to be published, once the model and its tokenizer have been opened and fit.

    A MiniGPT whose folder lacks its code, an old one's, gets that of this package.

    Args:
        folder: What `minigpt train`, `minigpt finetune`, a Trainer or `save_pretrained` wrote, or one of its
            checkpoints. Nothing in it is changed.
        staging: A folder for what has to be added.
        base: Where on the Hub what it was fine-tuned from is, if the folder says something else.

    Raises:
        FolderInUse: A run is writing to the folder, and what is opened here would not be what is sent.
        UsageError: The folder is not there, holds no whole model or adapter, or one without safetensors or a
            tokenizer; or the base is not on the Hub, or not what it was fine-tuned from.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; name one that `minigpt train` or save_pretrained wrote.")
    refuse_running(folder, "push one of its checkpoints, or wait until it ends")
    refuse_unfinished(folder)
    saved = read_saved_folder(folder, base)
    if base is not None:
        _check_base(saved, base)
    files = {name: _own_file(folder, name) for name in _names(folder) if _is_published(name, saved)}
    _own_file(folder, CARD)
    if saved.adapter is not None:
        _open_adapter(saved, files)
    else:
        files |= _whole_model(saved, files, staging)
    changed = {
        "run.json": _published_run(saved),
        CONFIG: saved.adapter,
        TOKENIZER_CONFIG_FILE: _tokenizer_config(folder),
    }
    for name, content in changed.items():
        if content is not None and content != read_object(folder / name):
            (staging / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            files[name] = staging / name
    taken = {name.partition("/")[0] for name in files} | {CARD}
    left = [path.name for path in sorted(folder.iterdir()) if path.name not in {*taken, LOCK, "__pycache__"}]
    return Release(saved, files, tuple(left))


def release_of_checkpoint(checkpoint: Path) -> Release:
    """What is published of a checkpoint that has just been written: it is whole, and is not opened."""
    saved = read_saved_folder(checkpoint)
    files = {name: _own_file(checkpoint, name) for name in _names(checkpoint) if _is_published(name, saved)}
    code = _code(checkpoint, saved.config)[0] if saved.adapter is None else {}
    return Release(saved, files | code, left=())


def is_stale(name: str, release: Release) -> bool:
    """Whether a file that a repository holds is left over from another push, and would be taken for this model's."""
    was_ours = name in OUR_CODE or (matches(name, (*_PUBLISHED, *ADAPTER)) and not matches(name, _MAY_STAY))
    return was_ours and name not in release.files


def _names(folder: Path) -> Iterator[str]:
    """The files of a folder, and those one level down, that are not hidden."""
    for path in sorted([*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _own_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder that is about to be published.

    Raises:
        UsageError: It is somewhere else, and the name is a link to it. The Hub's cache keeps its own files like that.
    """
    home, file = folder.resolve(), (folder / name).resolve()
    caches = home.parents[1:3] if home.parent.name == "snapshots" else ()  # the repository's, and that of all
    is_own = file == home / name and file.is_relative_to(home)
    if not is_own and not any(file.is_relative_to(cache / "blobs") for cache in caches):
        raise UsageError(
            f"{folder / name} is a link to {file}, which is not published; put a copy in its place, or take it away."
        )
    return folder / name


def _is_published(name: str, saved: SavedFolder) -> bool:
    # Beside a whole model, an adapter's files would be taken for one that it is to be opened with.
    return matches(name, _PUBLISHED if saved.adapter is None else _PUBLISHED_ADAPTER)


def _check_base(saved: SavedFolder, base: AdapterBase) -> None:
    """Makes sure that a base is what the model was fine-tuned from, as far as that is recorded."""
    if saved.adapter is not None:
        return  # it is opened with it
    recorded = (saved.run or {}).get("base")
    if not recorded:
        raise UsageError(
            f"{saved.path} is no adapter and records no base that it was fine-tuned from; leave --base out."
        )
    if recorded["sha256"] != base_sha256(base.name, base.revision):
        raise UsageError(
            f"{saved.path} was fine-tuned from another base: the weights of {base.name} are not those that it began "
            "as; name the base that has them."
        )


def _open_adapter(saved: SavedFolder, files: dict[str, Path]) -> None:
    """Opens an adapter and its tokenizer, as whoever downloads them will: with a model that is on the Hub."""
    folder, base = saved.path, saved.base
    assert base is not None
    assert saved.adapter is not None
    if saved.base_on_the_hub is None:
        raise UsageError(
            f"{folder} is an adapter for {base.name}, which is on this machine alone; push that first "
            f"(`minigpt push {base.name} OWNER/NAME`), then push the adapter with --base OWNER/NAME."
        )
    if saved.adapter.get("task_type") is None:
        raise UsageError(f"{folder / CONFIG} names no task_type, by which PEFT opens it; write CAUSAL_LM there.")
    _refuse_without_tokenizer(folder, files)
    model, tokenizer = open_adapter(folder, base=base)
    _refuse_what_does_not_fit(folder, model, tokenizer)


def _published_run(saved: SavedFolder) -> dict[str, Any] | None:
    """What `run.json` holds, without where on this machine a base lies."""
    base = saved.base
    if saved.run is None or not saved.run.get("base") or base is None or saved.base_on_the_hub:
        return saved.run
    return saved.run | {"base": saved.run["base"] | {"name": Path(base.name).name}}


def _tokenizer_config(folder: Path) -> dict[str, Any] | None:
    """The tokenizer's settings, by which libraries in JavaScript keep spaces before punctuation."""
    file = folder / TOKENIZER_CONFIG_FILE
    return read_object(file) | {"clean_up_tokenization_spaces": False} if file.is_file() else None


def _whole_model(saved: SavedFolder, files: dict[str, Path], staging: Path) -> dict[str, Path]:
    """The code of a model that has been opened, and what else has to be another file than the folder's."""
    folder, model = saved.path, _open(saved, files)
    with understanding(folder / "config.json"):
        code, missing = _code(folder, saved.config)
    if saved.is_ours and model is not None and (missing or not code):
        model.config.save_pretrained(staging)
        custom_object_save(model, staging)
        return {"config.json": staging / "config.json"} | {file.name: file for file in staging.glob("*.py")}
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(missing)}, code that its config.json names; save it again.")
    return code


def _open(saved: SavedFolder, files: dict[str, Path]) -> PreTrainedModel | None:
    """Opens the model and its tokenizer, as whoever downloads them will; a model in another format stays closed."""
    folder = saved.path
    _refuse_without_tokenizer(folder, files)
    register()
    tokenizer = load_tokenizer(folder, local_files_only=True, trust_remote_code=False)
    if not any(matches(name, MODEL_WEIGHTS) for name in files):
        if any(matches(name, OTHER_FORMATS) for name in files):
            return None
        raise UsageError(f"{folder} holds no model.safetensors; save the model there with save_pretrained.")
    with understanding(folder / "config.json"):
        auto_class = getattr(transformers, saved.auto_class)
    with no_progress_bars(), opening(folder):
        model = load_whole(auto_class.from_pretrained, folder, local_files_only=True, trust_remote_code=False)
    _refuse_what_does_not_fit(folder, model, tokenizer)
    return model


def _refuse_without_tokenizer(folder: Path, files: dict[str, Path]) -> None:
    if not any(matches(name, TOKENIZER) for name in files):
        raise UsageError(f"{folder} holds no tokenizer; save it there: tokenizer.save_pretrained({str(folder)!r}).")


def _refuse_what_does_not_fit(folder: Path, model: Any, tokenizer: Any) -> None:
    try:
        check_vocabulary(model, tokenizer)
    except ValueError as error:
        raise UsageError(f"the model in {folder} is not whole: {error}") from error


def _code(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Path], list[str]]:
    """The files of code that a config names and those which they import, and the names of those that are not there."""
    classes = config.get("auto_map", {}).values()
    named = [one for value in classes for one in (value if isinstance(value, list) else [value]) if one]
    # Before two dashes stands the repository that has the code.
    waiting = {name.partition(".")[0] for name in named if "--" not in name}
    found: dict[str, Path] = {}
    missing: list[str] = []
    while waiting:
        file = _own_file(folder, f"{waiting.pop()}.py")
        if file.is_file():
            found[file.name] = file
            waiting |= {module for module in _siblings(file) if f"{module}.py" not in found}
        elif file.name not in missing:
            missing.append(file.name)
    return found, sorted(missing)


def _siblings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{file} is no Python that can be read ({error}); save the model again.") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            yield node.module.partition(".")[0]


def default_message(release: Release) -> str:
    """What a commit is called: how far the model has come, where the run says so."""
    run = release.saved.run
    try:
        if run:
            model, validation = run["model"], run["losses"]["validation"]
            called = model["class"] if release.saved.adapter is None else "Adapter"
            return f"{called}, step {model['step']:,}: validation loss {validation['loss']:.4f}"
    except (KeyError, TypeError, ValueError):
        pass
    if release.saved.adapter is not None:
        return "Upload adapter"
    (architecture, *_) = release.saved.config.get("architectures") or [release.saved.model_type]
    return f"Upload {architecture}"
