"""A folder or a Hub repository opened, or refused in one sentence that names the file at fault and what to do."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from minigpt.errors import UsageError
from minigpt.hub.json_files import AS_SAVED
from minigpt.hub.saved_json import READ, check_json

_OF_TYPES = (TypeError, AttributeError, LookupError, UnicodeError)
_PYTHONS = re.compile(r"unpack|invalid literal|could not convert|object|embedded null")
# Of a config's field, `@strict` says in Python's words what it expected.
_FIELD = re.compile(r"Validation error for field '(\w+)'")
# The messages of these are written for a person; those of the others speak of Python's or Rust's insides.
_PLAIN = (OSError, SafetensorError, StrictDataclassError, ValueError)


def check_name(source: str | Path) -> None:
    """Refuse what can be neither a folder nor a Hub id.

    Raises:
        UsageError: It is empty, a file, or no name that a system takes.
    """
    if not str(source):
        raise UsageError("the model's name is empty; name a folder or a Hub id.")
    refuse_impossible_path(source)
    if Path(source).is_file():
        raise UsageError(f"{source} is a file; name the model's folder.")


def refuse_impossible_path(path: str | Path) -> None:
    """Refuse a path that no file can have.

    Raises:
        UsageError: It holds a NUL character, or is too long for this system.
    """
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r} holds a NUL character, which no file's name can; give another name.")
    try:
        os.stat(path)  # noqa: PTH116 - Path.exists hides some of these errors, and which depends on Python's version
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:
        shown = f"{str(path)[:40]}... ({len(str(path)):,} characters)" if len(str(path)) > 80 else str(path)
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{shown} is no name of a file here ({reason}); give another name.") from error


@contextmanager
def opening(
    source: str | Path,
    revision: str | None = None,
    *,
    what: str = "model",
    remedy: str = "check the name, or train one with `minigpt train`",
) -> Iterator[None]:
    """Turn whatever the libraries raise while a block opens a model or a tokenizer into one sentence.

    Args:
        source: A folder, or a Hub repository's id.
        revision: Of the repository.
        what: What is opened.
        remedy: What to do if it is neither a folder nor on the Hub.

    Raises:
        UsageError: A file cannot be used; the sentence names it.
        OSError: There is nothing of this name.
    """
    folder = Path(source)
    if folder.is_dir():
        check_json(folder)
    try:
        yield
        if not folder.is_dir() and (cached := _cached(source, revision)) is not None:
            check_json(cached)
    except (UsageError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not _is_fault(error):
            raise
        cached = folder if folder.is_dir() else _cached(source, revision)
        if cached is None and isinstance(error, (OSError, HFValidationError)):
            raise OSError(f"{source} is neither a folder nor a {what} that the Hub gives out; {remedy}.") from error
        if "trust_remote_code" in str(error):
            named_in = Path(source) / ("tokenizer_config.json" if what == "tokenizer" else "config.json")
            raise UsageError(
                f"{named_in} asks for code of its own, which no command runs; open it from Python instead."
            ) from error
        if cached is not None:
            check_json(cached)
        at_fault = (cached and _file_at_fault(cached)) or source
        raise UsageError(f"{at_fault} cannot be opened{reason_of(error)}; {AS_SAVED}.") from error


def reason_of(error: BaseException) -> str:
    """Return the reason that a library gives, in parentheses, where it is one that a person can use."""
    if isinstance(error, StrictDataclassError) and (field := _FIELD.search(str(error))):
        return f" (its {field[1]} has a value that it cannot have)"
    if isinstance(error, _OF_TYPES) or (isinstance(error, ValueError) and _PYTHONS.search(str(error))):
        return " (it holds a value of a wrong type)"
    if not isinstance(error, _PLAIN):
        return ""
    return f" ({' '.join(str(error).split()).rstrip('.')[:300]})"


def _is_fault(error: BaseException) -> bool:
    # A panic in a Rust library is a BaseException and not an Exception.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _cached(source: str | Path, revision: str | None) -> Path | None:
    """Return the folder of the cache that holds a Hub repository's files, if any have been downloaded."""
    try:
        found = (try_to_load_from_cache(str(source), name, revision=revision) for name in READ)
        return next((Path(file).parent for file in found if isinstance(file, str)), None)
    except HFValidationError:
        return None


def _file_at_fault(folder: Path) -> Path | None:
    """Return the first file that cannot be used by itself, read as transformers reads it."""
    readers: dict[str, Callable[[], Any]] = {
        "config.json": partial(_build, folder),
        "generation_config.json": partial(GenerationConfig.from_pretrained, folder),
        "tokenizer.json": partial(Tokenizer.from_file, str(folder / "tokenizer.json")),
        "tokenizer_config.json": partial(AutoTokenizer.from_pretrained, folder, local_files_only=True),
    }
    files = {folder / name: read for name, read in readers.items()}
    files |= {file: partial(safe_open, file, "pt") for file in sorted(folder.glob("*.safetensors"))}
    for file, read in files.items():
        try:
            if file.is_file():
                read()
        except BaseException as error:
            if not _is_fault(error):
                raise
            return file
    return None


def _build(folder: Path) -> None:
    """Make the model that a config describes, without any weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config)
