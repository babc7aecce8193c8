"""What of a folder goes to the Hub: a whole model with all that it needs to be used, and nothing else."""

import ast
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

import minigpt
from minigpt.hub.loading_bars import no_progress_bars
from minigpt.hub.publishing.saved_folder import SavedFolder, read_saved_folder
from minigpt.hub.trained import AskedWrongly, check_vocabulary
from minigpt.modeling_minigpt import configuration_minigpt

_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_OTHER_FORMATS = ("*.onnx", "*.onnx_data", "onnx/*", "*.pt2", "export.json", "*.gguf")
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model"),
)
_WORDS = ("run.json", "loss.png", "sample.txt", "LICENSE", "LICENSE.*", "NOTICE", "NOTICE.*")
_PUBLISHED = ("config.json", "generation_config.json", *_WEIGHTS, *_OTHER_FORMATS, *_TOKENIZER, *_WORDS)
# No model is another one for these.
_MAY_STAY = ("LICENSE*", "NOTICE*", *_OTHER_FORMATS)
_OUR_CODE = frozenset(file.name for file in Path(configuration_minigpt.__file__).parent.glob("*_*.py"))
CARD = "README.md"


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
        """Whether transformers can open it; an exported graph or a GGUF file it cannot."""
        return any(_matches(name, _WEIGHTS) for name in self.files)

    @property
    def other_formats(self) -> dict[str, Path]:
        """The files in formats that transformers does not open."""
        return {name: file for name, file in self.files.items() if _matches(name, _OTHER_FORMATS)}


def prepare_release(folder: Path, staging: Path) -> Release:
    """Collects what is to be published, once the model and its tokenizer have been opened and fit.

    A MiniGPT whose folder lacks its code, an old one's, gets that of this package.

    Args:
        folder: What `minigpt train`, a Trainer or `save_pretrained` wrote, or one of its checkpoints. Nothing in it is
            changed.
        staging: A folder for what has to be added.

    Raises:
        AskedWrongly: The folder is not there, holds no whole model, or one without safetensors or a tokenizer.
    """
    if not folder.is_dir():
        raise AskedWrongly(f"there is no folder {folder}; name one that `minigpt train` or save_pretrained wrote.")
    if not (folder / "config.json").is_file() and (checkpoints := sorted(folder.glob("checkpoint-*"), key=_step)):
        raise AskedWrongly(
            f"the run in {folder} is not finished; go on with it (--resume_from_checkpoint), or push {checkpoints[-1]}."
        )
    saved = read_saved_folder(folder)
    files = {name: folder / name for name in _names(folder) if _is_published(name)}
    model = _open(saved, files)
    code, missing = _code(folder, saved.config)
    if saved.is_ours and model is not None and (missing or not code):
        model.config.save_pretrained(staging)
        custom_object_save(model, staging)
        files["config.json"] = staging / "config.json"
        code = {file.name: file for file in staging.glob("*.py")}
    elif missing:
        raise AskedWrongly(f"{folder} lacks {', '.join(missing)}, code that its config.json names; save it again.")
    files |= code
    taken = {name.partition("/")[0] for name in files} | {CARD}
    left = [path.name for path in sorted(folder.iterdir()) if path.name not in taken and path.name != "__pycache__"]
    return Release(saved, files, tuple(left))


def release_of_checkpoint(checkpoint: Path) -> Release:
    """What is published of a checkpoint that has just been written: it is whole, and is not opened."""
    saved = read_saved_folder(checkpoint)
    files = {name: checkpoint / name for name in _names(checkpoint) if _is_published(name)}
    code, _ = _code(checkpoint, saved.config)
    return Release(saved, files | code, left=())


def is_stale(name: str, release: Release) -> bool:
    """Whether a file that a repository holds is left over from another push, and would be taken for this model's."""
    was_ours = name in _OUR_CODE or (_is_published(name) and not _matches(name, _MAY_STAY))
    return was_ours and name not in release.files


def _names(folder: Path) -> Iterator[str]:
    """The files of a folder, and those one level down, that are not hidden."""
    for path in sorted([*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _is_published(name: str) -> bool:
    return _matches(name, _PUBLISHED)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # fnmatch's star would take a slash for a letter.
    return any(name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _step(checkpoint: Path) -> int:
    step = checkpoint.name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def _open(saved: SavedFolder, files: dict[str, Path]) -> PreTrainedModel | None:
    """Opens the model and its tokenizer, as whoever downloads them will; a model in another format stays closed."""
    folder = saved.path
    if not any(_matches(name, _TOKENIZER) for name in files):
        raise AskedWrongly(f"{folder} holds no tokenizer; save it there: tokenizer.save_pretrained({str(folder)!r}).")
    minigpt.register()
    tokenizer = _load(AutoTokenizer.from_pretrained, folder, "tokenizer")
    if not any(_matches(name, _WEIGHTS) for name in files):
        if any(_matches(name, _OTHER_FORMATS) for name in files):
            return None
        raise AskedWrongly(f"{folder} holds no model.safetensors; save the model there with save_pretrained.")
    auto_class = getattr(transformers, saved.auto_class)
    with no_progress_bars():
        model, report = _load(auto_class.from_pretrained, folder, "model", output_loading_info=True)
    for what, names in report.items():
        if names:
            raise AskedWrongly(
                f"the weights in {folder} do not fit its config ({what}: {_some(names)}); save it again."
            )
    try:
        check_vocabulary(model, tokenizer)
    except ValueError as error:
        raise AskedWrongly(f"the model in {folder} is not whole: {error}") from error
    return model


def _load(load: Any, folder: Path, what: str, **options: Any) -> Any:
    try:
        return load(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # whatever a library says of a damaged file, or of code that it will not run
        reason = " ".join(str(error).split())
        raise AskedWrongly(f"the {what} in {folder} cannot be opened ({reason}); save it again.") from error


def _some(names: Any) -> str:
    listed = sorted(str(name) for name in names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _code(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Path], list[str]]:
    """The files of code that a config names and those which they import, and the names of those that are not there."""
    classes = config.get("auto_map", {}).values()
    named = [one for value in classes for one in (value if isinstance(value, list) else [value]) if one]
    # Before two dashes stands the repository that has the code.
    waiting = {name.partition(".")[0] for name in named if "--" not in name}
    found: dict[str, Path] = {}
    missing: list[str] = []
    while waiting:
        file = folder / f"{waiting.pop()}.py"
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
        raise AskedWrongly(f"{file} is no Python that can be read ({error}); save the model again.") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            yield node.module.partition(".")[0]


def default_message(release: Release) -> str:
    """What a commit is called: how far the model has come, where the run says so."""
    run = release.saved.run
    try:
        if run:
            model, validation = run["model"], run["losses"]["validation"]
            return f"{model['class']}, step {model['step']:,}: validation loss {validation['loss']:.4f}"
    except (KeyError, TypeError, ValueError):
        pass
    (architecture, *_) = release.saved.config.get("architectures") or [release.saved.model_type]
    return f"Upload {architecture}"
