"""Files that a person may damage: whichever command meets one names it, and what to do, in one sentence."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt import MiniGPTTokenizer
from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.hub.json_files import AS_SAVED, read_object
from minigpt.hub.stock.conversion import save_stock
from minigpt.training.checksums import CHECKSUMS
from minigpt.training.data.corpus import PLAYS

TEXT = PLAYS.read_text(encoding="utf-8")[:2000]
# Words of Python, Rust or torch that tell a person nothing.
RAW = re.compile(
    r"NoneType|PyErr|Result::unwrap|Traceback|has no attribute|subscriptable|iterable|unhashable|untagged|must be str|"
    r"not supported between|positional|unexpected keyword|indices|maximum recursion|unpack|codec|Errno|\w+Error\b"
)
NO_JSON = {
    "empty": b"",
    "cut": b'{"a": ',
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "a string": b'"x"',
    "deep": b"[" * 100_000,
    "undecodable": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
}
TRAINING = (
    *("--n_layer", "1", "--n_embd", "8", "--n_head", "2", "--block_size", "8", "--device", "cpu", "--max_steps", "2"),
    *("--eval_interval", "1", "--eval_iters", "1", "--save_steps", "1", "--sample_length", "0"),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its checkpoints, a stock model, and the text of both."""
    root = tmp_path_factory.mktemp("damaged")
    (root / "text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    assert main(["train", "--data", str(root / "text.txt"), "--output_dir", str(root / "run"), *TRAINING]) == 0
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    save_stock(GPT2LMHeadModel(config), tokenizer, root / "stock")
    return root


@pytest.fixture
def copied(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", "hf_tester")
    shutil.copytree(folders, tmp_path / "here")
    return tmp_path / "here"


def command(name: str, root: Path) -> list[str]:
    run, text, out = str(root / "run"), str(root / "text.txt"), str(root / "out")
    resumed = ("--resume_from_checkpoint", str(root / "run" / "checkpoint-1"))
    return {
        "generate": ["generate", run, "--max_new_tokens", "3"],
        "chat": ["chat", run],
        "eval": ["eval", run, "--data", text],
        "export": ["export", run, "--to", "torch", "--output_dir", out],
        "finetune": ["finetune", run, "--data", text, "--output_dir", out, "--max_steps", "1", "--device", "cpu"],
        "push": ["push", run, "tester/model"],
        "import": ["import", str(root / "stock"), "--output_dir", out],
        "resume": ["train", "--data", text, "--output_dir", run, *TRAINING, *resumed],
        "sft": ["finetune", run, "--data", str(root / "talk.jsonl"), "--sft", "--output_dir", out, "--device", "cpu"],
    }[name]


def refuses(name: str, root: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that is to refuse a file, and return its sentence."""
    capsys.readouterr()
    assert main(command(name, root)) in (1, 2)
    _, error = capsys.readouterr()
    (sentence,) = error.splitlines()
    assert file.name in sentence
    assert "; " in sentence, "there is no remedy"
    assert not RAW.search(sentence), sentence
    assert not (root / "out").exists()
    return sentence


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | fields), encoding="utf-8")


READERS = ("generate", "chat", "eval", "export", "finetune", "push")
FILES = {
    **{f"run/{name}.json": READERS for name in ("config", "generation_config", "tokenizer", "tokenizer_config")},
    "run/model.safetensors.index.json": READERS,
    "run/run.json": ("push",),
    "stock/config.json": ("import",),
    "stock/generation_config.json": ("import",),
    "stock/tokenizer.json": ("import",),
    **{
        f"run/checkpoint-1/{name}.json": ("resume",)
        for name in ("trainer_state", "config", "tokenizer", "generation_config", "running_loss")
    },
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_no_json_object_is_named(file: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in NO_JSON.values():
        (copied / file).write_bytes(content)
        # What the commands share is tried once, and each of them with one kind of damage.
        for name in FILES[file] if content == b"null" else FILES[file][-1:]:
            refuses(name, copied, copied / file, capsys)


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    *(("run/config.json", "generate", {"hidden_size": value}) for value in (None, "x", [], {}, 1.5)),
    ("run/config.json", "generate", {"layer_types": {}}),
    ("run/config.json", "generate", {"dtype": 5}),
    ("run/config.json", "generate", {"model_type": None}),
    ("run/config.json", "push", {"auto_map": "x"}),
    ("run/config.json", "push", {"architectures": 5}),
    *(("run/generation_config.json", "generate", {"top_k": value}) for value in ("x", [], {}, True, 1.5)),
    ("run/generation_config.json", "generate", {"temperature": "hot"}),
    ("run/generation_config.json", "generate", {"eos_token_id": {}}),
    ("run/generation_config.json", "generate", {"suppress_tokens": ["x"]}),
    ("run/generation_config.json", "generate", {"do_sample": "x"}),
    ("run/tokenizer.json", "generate", {"model": None}),
    ("run/tokenizer.json", "generate", {"decoder": "x"}),
    ("run/tokenizer.json", "push", {"added_tokens": None}),
    ("run/tokenizer_config.json", "generate", {"unk_token": None}),
    ("run/tokenizer_config.json", "eval", {"eos_token": 5}),
    ("run/model.safetensors.index.json", "generate", {"weight_map": 5}),
    ("run/model.safetensors.index.json", "generate", {"weight_map": {"a": "../elsewhere.safetensors"}}),
    ("run/run.json", "push", {"base": 5}),
    ("stock/config.json", "import", {"model_type": []}),
    ("stock/config.json", "import", {"model_type": None}),
    ("stock/config.json", "import", {"n_layer": "x"}),
    ("run/checkpoint-1/trainer_state.json", "resume", {"log_history": 5}),
    ("run/checkpoint-1/trainer_state.json", "resume", {"log_history": ["x"]}),
    ("run/checkpoint-1/trainer_state.json", "resume", {"global_step": "x"}),
    ("run/checkpoint-1/trainer_state.json", "resume", {"best_global_step": {}}),
    ("run/checkpoint-1/trainer_state.json", "resume", {"soul": 1}),
    ("run/checkpoint-1/tokenizer.json", "resume", {"model": 5}),
    ("run/checkpoint-1/running_loss.json", "resume", {"loss": "x"}),
]


@pytest.mark.parametrize(("file", "name", "fields"), WRONG)
def test_a_field_of_a_wrong_type_is_refused_with_its_file(
    file: str, name: str, fields: dict[str, Any], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (copied / file).exists():
        (copied / file).write_text("{}", encoding="utf-8")
    change(copied / file, **fields)
    (copied / "run" / "checkpoint-1" / CHECKSUMS).unlink()  # as in a checkpoint of an older version
    refuses(name, copied, copied / file, capsys)


@pytest.mark.parametrize("name", READERS)
def test_two_tokens_with_one_id_are_refused(name: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copied / "run" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["e"] = tokenizer["model"]["vocab"]["a"]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    index = tokenizer["model"]["vocab"]["a"]
    assert f"tokenizer.json gives both 'a' and 'e' the id {index}; " in refuses(name, copied, file, capsys)


@pytest.mark.extra("sft")
@pytest.mark.parametrize("line", [*NO_JSON.values()][1:])
def test_a_damaged_line_of_conversations_is_named_by_its_number(
    line: bytes, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / "talk.jsonl"
    file.write_bytes(b'{"prompt": "a", "completion": "b"}\n' + line + b"\n")
    assert "talk.jsonl, line 2 " in refuses("sft", copied, file, capsys)


@pytest.mark.parametrize("option", ["model", "--data", "-o", "--meta", "--output_dir", "--resume_from_checkpoint"])
@pytest.mark.parametrize("path", ["nu\0l", "x" * 300], ids=["NUL", "300 characters"])
def test_a_path_that_no_file_can_have_is_one_sentence(
    option: str, path: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, text = str(copied / "run"), str(copied / "text.txt")
    argv = {
        "model": ["generate", path],
        "--data": ["eval", run, "--data", path],
        "-o": ["export", run, "--to", "torch", "-o", path],
        "--meta": ["import", text, "--meta", path],
        "--output_dir": ["train", "--data", text, "--output_dir", path, "--device", "cpu"],
        "--resume_from_checkpoint": ["train", "--data", text, "--resume_from_checkpoint", path, "--device", "cpu"],
    }[option]
    capsys.readouterr()
    assert main(argv) in (1, 2)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert not RAW.search(sentence), sentence
    assert "embedded null" not in sentence


def test_a_file_that_is_as_it_was_saved_is_read(folders: Path) -> None:
    for name in ("run/config.json", "run/tokenizer.json", "run/checkpoint-2/trainer_state.json"):
        assert read_object(folders / name) == json.loads((folders / name).read_text(encoding="utf-8"))
    with pytest.raises(UsageError, match=rf"nothing\.json cannot be read \(.+\); {AS_SAVED}"):
        read_object(folders / "nothing.json")
