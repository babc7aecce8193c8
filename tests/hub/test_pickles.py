"""Other people's pickles are read, and nothing that they ask for is run."""

import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from minigpt.errors import UsageError
from minigpt.hub.importing import pickles
from minigpt.hub.importing.pickles import META_BYTES, load_checkpoint, load_meta
from tests.hub.foreign_models import NanoGPT, save_nanogpt

CHARACTERS = ["z", "\n", "é", "𝄞", "a"]


def meta(characters: list[str] = CHARACTERS, **changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {character: index for index, character in enumerate(characters)},
    } | changes


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_meta_is_read_whatever_the_protocol_and_keeps_its_order(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta(source="input.txt", splits=["train", "val"], size=2**70), protocol=protocol))
    assert load_meta(path) == CHARACTERS


def test_meta_may_list_its_characters(tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta(itos=CHARACTERS)))
    assert load_meta(path) == CHARACTERS


def test_meta_of_a_large_alphabet_is_read(tmp_path: Path) -> None:
    characters = [chr(code) for code in range(0x20, 0x1_0000) if not 0xD800 <= code < 0xE000]
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta(characters)))
    assert load_meta(path) == characters


class Running:
    """Pickled as a call that leaves a file behind: the proof that it was run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.proof,)


def code(proof: Path) -> bytes:
    """A tuple of one str, the Python that leaves a file behind."""
    python = f"open({str(proof)!r}, 'w').close()".encode()
    return b"(X" + struct.pack("<I", len(python)) + python + b"t"


CRAFTED: dict[str, Callable[[Path], bytes]] = {
    "what pickle makes of an object": lambda proof: pickle.dumps(meta(extra=Running(proof))),
    "the same in the first protocol": lambda proof: pickle.dumps(meta(extra=Running(proof)), protocol=0),
    "GLOBAL, REDUCE": lambda proof: b"cbuiltins\nexec\n" + code(proof) + b"R.",
    "STACK_GLOBAL, REDUCE": lambda proof: b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93" + code(proof) + b"R.",
    "INST": lambda proof: code(proof)[:-1] + b"ibuiltins\nexec\n.",
    "OBJ": lambda proof: b"(cbuiltins\nexec\n" + code(proof)[1:-1] + b"o.",
    "NEWOBJ": lambda proof: b"\x80\x02cpathlib\nPath\n" + code(proof) + b"\x81.",
    "BUILD": lambda proof: b"\x80\x02}}X\x01\x00\x00\x00a}sb.",
    "EXT1": lambda proof: b"\x80\x02\x82\xf0.",
    "EXT4": lambda proof: b"\x80\x02\x84\x00\x00\x00\x7f.",
    "PERSID": lambda proof: b"Psomewhere\n.",
    "BINPERSID": lambda proof: b"\x80\x02X\x01\x00\x00\x00aQ.",
    "after a whole vocabulary": lambda proof: pickle.dumps(meta())[:-1] + b"cbuiltins\nexec\n" + code(proof) + b"R.",
    "tuple": lambda proof: pickle.dumps(meta(extra=())),
    "float": lambda proof: pickle.dumps(meta(extra=1.0)),
    "None": lambda proof: pickle.dumps(meta(extra=None)),
    "bytes": lambda proof: pickle.dumps(meta(extra=b"bytes")),
    "bool": lambda proof: pickle.dumps(meta(extra=True)),
    "bool in the first protocol": lambda proof: pickle.dumps(meta(extra=True), protocol=0),
    "set": lambda proof: pickle.dumps(meta(extra={1})),
    "numpy's int": lambda proof: pickle.dumps(meta(vocab_size=np.int64(5))),
    "a character too many": lambda proof: pickle.dumps(meta(["a", "b", "ab"])),
    "half a surrogate pair": lambda proof: pickle.dumps(meta(["a", "\ud800"])),
    "itos and stoi contradict": lambda proof: pickle.dumps(meta(stoi={"z": 1, "\n": 0, "é": 2, "𝄞": 3, "a": 4})),
    "two characters of one id": lambda proof: pickle.dumps(meta(stoi=meta()["stoi"] | {"b": 4})),
    "ids with a hole": lambda proof: pickle.dumps({"itos": {0: "a", 2: "b"}, "stoi": {"a": 0, "b": 2}}),
    "ids from 1": lambda proof: pickle.dumps({"itos": {1: "a", 2: "b"}, "stoi": {"a": 1, "b": 2}}),
    "no character": lambda proof: pickle.dumps(meta([])),
    "another size": lambda proof: pickle.dumps(meta(vocab_size=6)),
    "ids that are str": lambda proof: pickle.dumps({"itos": {"0": "a"}, "stoi": {"a": "0"}}),
    "a list": lambda proof: pickle.dumps(CHARACTERS),
    "no stoi": lambda proof: pickle.dumps({"itos": {0: "a"}}),
    "nothing": lambda proof: b"",
    "no pickle": lambda proof: b"vocab_size: 65\n",
    "cut off": lambda proof: pickle.dumps(meta())[:-20],
    "a dict as a key": lambda proof: b"\x80\x02}}K\x01s.",
    "places for a billion": lambda proof: b"\x80\x02}r\xff\xff\xff\x3f.",
    "places for a billion, in the first protocol": lambda proof: b"}p1073741823\n.",
    "a str longer than the file": lambda proof: b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.",
    "a number of too many digits": lambda proof: b"L" + b"9" * 100_000 + b"L\n.",
    "more than 4 MiB": lambda proof: pickle.dumps(meta(extra="a" * META_BYTES)),
}


@pytest.mark.door("`minigpt import`: a crafted meta.pkl is refused and runs nothing", "torch")
@pytest.mark.parametrize("craft", CRAFTED.values(), ids=CRAFTED.keys())
def test_a_crafted_meta_is_refused_in_one_sentence_and_runs_nothing(
    tmp_path: Path, craft: Callable[[Path], bytes]
) -> None:
    proof = tmp_path / "proof"
    path = tmp_path / "meta.pkl"
    path.write_bytes(craft(proof))
    with pytest.raises(UsageError, match=r"^.*meta\.pkl is not nanoGPT's vocabulary of characters: .*--text\.$"):
        load_meta(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "name", ["what pickle makes of an object", "GLOBAL, REDUCE", "STACK_GLOBAL, REDUCE", "INST", "OBJ"]
)
def test_the_payloads_do_run_where_nobody_looks(tmp_path: Path, name: str) -> None:
    proof = tmp_path / "proof"
    pickle.loads(CRAFTED[name](proof))
    assert proof.exists()


@pytest.mark.parametrize("name", [name for name in CRAFTED if name.isupper() or "REDUCE" in name or "pickle" in name])
def test_the_unpickler_alone_runs_nothing_either(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles.pickletools, "genops", lambda content: ())
    proof = tmp_path / "proof"
    (tmp_path / "meta.pkl").write_bytes(CRAFTED[name](proof))
    with pytest.raises(UsageError):
        load_meta(tmp_path / "meta.pkl")
    assert not proof.exists()


def test_a_meta_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"meta\.pkl cannot be read: No such file"):
        load_meta(tmp_path / "meta.pkl")


@pytest.mark.parametrize("new_format", [True, False])
def test_checkpoints_of_both_formats_are_read(tmp_path: Path, new_format: bool) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    torch.save(weights, tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    read = load_checkpoint(tmp_path / "w.pt")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


@pytest.mark.door("`minigpt import`: a crafted checkpoint is refused and runs nothing", "torch")
@pytest.mark.parametrize("new_format", [True, False])
def test_a_crafted_checkpoint_is_refused_and_runs_nothing(tmp_path: Path, new_format: bool) -> None:
    proof = tmp_path / "proof"
    torch.save({"model": Running(proof)}, tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UsageError, match=r"holds a Python object \(\S+\), and loading it would run code; save"):
        load_checkpoint(tmp_path / "w.pt")
    assert not proof.exists()


def test_a_whole_model_and_a_program_are_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"\(torch\.nn\.modules\.linear\.Linear\).*torch\.save\(model\.state_dict\(\)"):
        load_checkpoint(tmp_path / "w.pt")


def damage(content: bytes, kind: str) -> bytes:
    middle = len(content) // 2
    return {
        "cut off": content[:middle],
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "a text": b"First Citizen:\n",
        "a page of the web": b"<!DOCTYPE html><html></html>",
    }[kind]


@pytest.mark.parametrize("kind", ["cut off", "one bit", "empty", "a text", "a page of the web"])
def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path = save_nanogpt(NanoGPT(), tmp_path / "ckpt.pt")
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(UsageError, match=r"^\S+ckpt\.pt is damaged.*; copy or save it again\.$"):
        load_checkpoint(path)


def test_a_checkpoint_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load_checkpoint(tmp_path / "ckpt.pt")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permission")
def test_a_checkpoint_that_may_not_be_read_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)
