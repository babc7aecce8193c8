"""Spaces before punctuation, which libraries in JavaScript remove unless `tokenizer_config.json` forbids it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, TokenizersBackend

from minigpt import MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.tokenization.subword import train_bpe, train_sentencepiece
from minigpt.training.data.corpus import PLAYS

if TYPE_CHECKING:
    from tests.hub.double import Hub

TEXT = PLAYS.read_text(encoding="utf-8")
DAMAGED = "Hello , world ! It is n't ' here ' ; they 're , we 've , I 'm , he 's . Why ?\n"
TOKENIZERS: dict[str, Callable[[str], Any]] = {
    "char": MiniGPTTokenizer.from_text,
    "bpe": lambda text: train_bpe([text], 400),
    "sentencepiece": lambda text: train_sentencepiece([text], 400),
}
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "lm_head_bias": False, "hidden_act": "gelu_new"}
RUN = ["--max_steps", "1", "--eval_iters", "1", "--sample_length", "5", "--device", "cpu"]


def forbids(folder: Path) -> bool:
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return settings.get("clean_up_tokenization_spaces") is False


def save_old(folder: Path) -> Path:
    """A model that an earlier version saved, which said nothing about spaces."""
    tokenizer = MiniGPTTokenizer.from_text(TEXT[:3000])
    MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    del settings["clean_up_tokenization_spaces"]
    file.write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.extra("sentencepiece")] if kind == "sentencepiece" else [])
        for kind in TOKENIZERS
    ],
)
def test_a_run_and_its_checkpoint_keep_spaces(kind: str, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(TEXT[:20_000], encoding="utf-8", newline="\n")
    shape = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--block_size", "8"]
    folders = ["--data", str(tmp_path / "my.txt"), "--output_dir", str(tmp_path / "run")]
    assert main(["train", *folders, "--tokenizer", kind, *shape, *RUN, "--save_steps", "1"]) == 0
    assert forbids(tmp_path / "run")
    assert forbids(tmp_path / "run" / "checkpoint-1")


def test_what_is_made_of_an_old_model_keeps_spaces(tmp_path: Path) -> None:
    old = save_old(tmp_path / "old")
    (tmp_path / "my.txt").write_text(TEXT[:3000], encoding="utf-8", newline="\n")
    tuned = ["--data", str(tmp_path / "my.txt"), "--output_dir", str(tmp_path / "tuned"), *RUN]
    assert main(["finetune", str(old), *tuned]) == 0
    assert forbids(tmp_path / "tuned")
    assert main(["export", str(old), "--to", "gpt2"]) == 0
    assert forbids(tmp_path / "old-gpt2")


@pytest.mark.extra("onnx")
@pytest.mark.extra("gguf")
@pytest.mark.parametrize("form", ["onnx", "torch", "gguf"])
def test_a_file_made_of_an_old_model_keeps_spaces(form: str, tmp_path: Path) -> None:
    assert main(["export", str(save_old(tmp_path / "old")), "--to", form]) == 0
    assert forbids(tmp_path / f"old-{form}")


@pytest.mark.parametrize("says", [{}, {"clean_up_tokenization_spaces": True}])
def test_an_imported_model_keeps_spaces_whatever_its_tokenizer_said(says: dict[str, bool], tmp_path: Path) -> None:
    backend = train_bpe([TEXT[:5000]], 300).backend_tokenizer
    tokenizer = TokenizersBackend(tokenizer_object=backend, eos_token="<|endoftext|>", **says)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": len(tokenizer)}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(**sizes, **ids)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    assert not forbids(tmp_path / "gpt2")
    assert main(["import", str(tmp_path / "gpt2"), "--output_dir", str(tmp_path / "mine")]) == 0
    assert forbids(tmp_path / "mine")


def test_a_pushed_old_model_keeps_spaces_and_its_folder_is_left_as_it_was(hub: "Hub", tmp_path: Path) -> None:
    old = save_old(tmp_path / "old")
    assert main(["push", str(old), "tester/old"]) == 0
    assert json.loads(hub.files("tester/old")["tokenizer_config.json"])["clean_up_tokenization_spaces"] is False
    assert not forbids(old)


ROUND_TRIP = """
import { Tokenizer } from "@huggingface/tokenizers";
import { readFileSync } from "node:fs";
const read = (name) => JSON.parse(readFileSync(name, "utf8"));
const { folder, text } = read(0);
const tokenizer = new Tokenizer(read(`${folder}/tokenizer.json`), read(`${folder}/tokenizer_config.json`));
const { ids } = tokenizer.encode(text);
console.log(JSON.stringify({ ids, text: tokenizer.decode(ids) }));
"""


@pytest.mark.slow
@pytest.mark.extra("sentencepiece")
@pytest.mark.door("a text encoded and decoded in Node.js by `@huggingface/tokenizers` 0.2.0, exactly", "tokenizers")
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_whole_text_comes_back_exactly_in_javascript(kind: str, tmp_path: Path) -> None:
    node, packages = shutil.which("node"), Path(sys.prefix) / "node"
    if node is None or not (packages / "node_modules" / "@huggingface" / "tokenizers").is_dir():
        pytest.skip(
            f"needs Node.js and `npm install --ignore-scripts --prefix {packages} @huggingface/tokenizers@0.2.0`"
        )
    text = TEXT[:200_000] + DAMAGED
    tokenizer = TOKENIZERS[kind](text)
    tokenizer.save_pretrained(tmp_path)
    done = subprocess.run(
        [node, "--input-type=module", "--eval", ROUND_TRIP],
        cwd=packages,
        input=json.dumps({"folder": str(tmp_path), "text": text}),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=True,
    )
    read = json.loads(done.stdout)
    assert read["text"] == text
    assert read["ids"] == tokenizer(text)["input_ids"]
