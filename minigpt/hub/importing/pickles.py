"""Pickles that other people made, read without running anything that they ask for."""

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from minigpt.errors import UsageError

# Every character of Unicode, in both directions, takes less.
META_BYTES = 4 * 2**20
_ZIP = b"PK\x03\x04"  # how torch's format begins since 2020
# What makes dict, list, str and int, and what remembers them: nothing here can name a class or call a function.
_CONTAINERS = {"EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"}
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_MEMORY = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"}
_ADMITTED = {"PROTO", "FRAME", "MARK", "STOP"} | _CONTAINERS | _STRINGS | _INTEGERS | _MEMORY
_PLACES = {"PUT", "BINPUT", "LONG_BINPUT"}


def load_checkpoint(path: Path) -> Any:
    """Reads what `torch.save` wrote: tensors and plain containers, on the CPU, and nothing else.

    Args:
        path: A file of any size; a new one's tensors are mapped, and read when they are used.

    Raises:
        UsageError: There is no such file, or it is damaged, or no checkpoint, or holds objects other than weights.
    """
    with _open(path) as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    if is_zip:
        _refuse_damage(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file is said in one sentence, below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # whatever bytes that are no pickle make the reader stumble over
        message = " ".join(str(error).split())
        if found := re.search(r"GLOBAL (\S+)", message):
            raise UsageError(
                f"{path} holds a Python object ({found[1]}), and loading it would run code; save the weights alone "
                "with torch.save(model.state_dict(), 'weights.pt') and import that."
            ) from error
        if "TorchScript" in message:
            raise UsageError(
                f"{path} is a TorchScript program; save the weights alone with "
                "torch.save(model.state_dict(), 'weights.pt') and import that."
            ) from error
        if path.name == "meta.pkl":
            raise UsageError(f"{path} is a vocabulary; name the checkpoint, and this with --meta.") from error
        raise UsageError(f"{path} is damaged, or not a file that torch.save wrote; copy or save it again.") from error


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _refuse_damage(path: Path) -> None:
    """Compares checksums, as torch does not: it reads damaged numbers without a word."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # of every kind, as above
        raise UsageError(f"{path} is damaged ({error}); copy or save it again.") from error
    if damaged is not None:
        raise UsageError(f"{path} is damaged (its part {damaged} fails its checksum); copy or save it again.")


def load_meta(path: Path) -> list[str]:
    """Reads nanoGPT's `meta.pkl`, which says which characters the ids stand for.

    Args:
        path: A pickle of `{"vocab_size": int, "itos": {int: str}, "stoi": {str: int}}`; `itos` may be a list too.

    Returns:
        The characters of the ids 0, 1, 2, …

    Raises:
        UsageError: There is no such file, it holds anything but dict, list, str and int, or what it holds is no
            vocabulary of characters. Nothing of it is run.
    """
    with _open(path) as file:
        content = file.read(META_BYTES + 1)
    if len(content) > META_BYTES:
        _refuse(path, f"it has more than {META_BYTES:,} bytes")
    return _characters(path, _unpickle(path, content))


class _PlainUnpickler(pickle.Unpickler):
    """Knows no name, so that no class and no function can be had."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object kept elsewhere")


def _unpickle(path: Path, content: bytes) -> Any:
    try:
        # First as a mere list of instructions: what is not admitted never gets as far as an unpickler.
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in _ADMITTED or isinstance(argument, bool):
                _refuse(path, f"it holds {opcode.name}, where only dict, list, str and int are admitted")
            if opcode.name in _PLACES and (argument or 0) > len(content):
                _refuse(path, f"it asks for {argument:,} places")  # which the unpickler would make room for
        return _PlainUnpickler(io.BytesIO(content)).load()
    except UsageError:
        raise
    except Exception as error:  # whatever bytes that are no pickle make the reader stumble over
        _refuse(path, f"it cannot be read ({' '.join(str(error).split())})")


def _characters(path: Path, meta: Any) -> list[str]:
    stoi, itos = (meta.get("stoi"), meta.get("itos")) if type(meta) is dict else (None, None)
    if type(itos) is list:
        itos = dict(enumerate(itos))
    if type(stoi) is not dict or type(itos) is not dict:
        _refuse(path, "it has no 'stoi' and 'itos'")
    if not all(type(key) is str and type(value) is int for key, value in stoi.items()):
        _refuse(path, "its 'stoi' does not map str to int")
    if not all(type(key) is int and type(value) is str for key, value in itos.items()):
        _refuse(path, "its 'itos' does not map int to str")
    if {index: text for text, index in stoi.items()} != itos or len(stoi) != len(itos):
        _refuse(path, "its 'stoi' and 'itos' contradict each other")
    if not itos or sorted(itos) != list(range(len(itos))):
        _refuse(path, f"its {len(itos)} ids are not 0, 1, 2, …")
    vocab_size = meta.get("vocab_size", len(itos))
    if type(vocab_size) is not int or vocab_size != len(itos):
        _refuse(path, f"its 'vocab_size' is not the {len(itos)} of its ids")
    for text in stoi:
        if len(text) != 1 or "\ud800" <= text <= "\udfff":
            _refuse(path, f"its {text[:20]!a} is not a character")
    return [itos[index] for index in range(len(itos))]


def _refuse(path: Path, reason: str) -> NoReturn:
    raise UsageError(
        f"{path} is not nanoGPT's vocabulary of characters: {reason}; give the meta.pkl that nanoGPT's prepare.py "
        "wrote, or the text with --text."
    )
