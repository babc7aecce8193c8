"""`truncation=True` cuts to the block, and whole texts are still encoded and continued without a warning."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, TokenizersBackend, pipeline

from minigpt import MiniGPTTokenizer, import_model
from minigpt.cli import main
from minigpt.hub.exporting.formats import export_model
from minigpt.hub.stock.conversion import to_stock
from minigpt.tokenization.subword import train_bpe, train_sentencepiece
from minigpt.training.data.corpus import PLAYS
from tests.hub import stock_shapes
from tests.hub.foreign_models import LectureBigram, NanoGPT, save_nanogpt
from tests.hub.sharp_models import BLOCK, KINDS, bigram, gpt, lecture_loop, save

TEXT = PLAYS.read_text(encoding="utf-8")[:20_000]
LONG = TEXT[:300]
LEARN: dict[str, Any] = {
    "char": MiniGPTTokenizer.from_text,
    "bpe": lambda text: train_bpe([text], 280),
    "sentencepiece": lambda text: train_sentencepiece([text], 360),
}
VOCABULARIES = [
    pytest.param(kind, marks=pytest.mark.extra("sentencepiece") if kind == "sentencepiece" else ()) for kind in LEARN
]
TINY = ["--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", str(BLOCK), "--device", "cpu"]
SHORT = ["--max_steps", "2", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0"]


@pytest.fixture
def warnings_of_length() -> Iterator[list[str]]:
    """What transformers warns of the length of a text."""
    seen: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "longer than the specified maximum" in record.getMessage():
                seen.append(record.getMessage())

    logger, listener = logging.getLogger("transformers"), Listener(logging.WARNING)
    logger.addHandler(listener)
    yield seen
    logger.removeHandler(listener)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8", newline="\n")
    return file


def assert_cuts(folder: Path, length: int = BLOCK) -> None:
    """Checks the tokenizer of a folder, opened with the package and as whoever lacks the package opens it."""
    for tokenizer in (AutoTokenizer.from_pretrained(folder), TokenizersBackend.from_pretrained(folder)):
        whole = tokenizer(LONG)["input_ids"]
        assert len(whole) > length
        assert tokenizer(LONG, truncation=True)["input_ids"] == whole[:length]
        assert len(tokenizer("a", padding="max_length")["input_ids"]) == length


def save_of_old(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A folder as it was saved before the length was."""
    save(folder, model, tokenizer)
    assert AutoTokenizer.from_pretrained(folder).model_max_length > 10**9
    return folder


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_trained_and_a_fine_tuned_tokenizer_cut_to_the_block(kind: str, text_file: Path, tmp_path: Path) -> None:
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    vocabulary = [] if kind == "char" else ["--tokenizer", kind, "--vocab_size", "360"]
    data = ["--data", str(text_file)]
    assert main(["train", *data, "--output_dir", str(run), *vocabulary, *TINY, *SHORT]) == 0
    assert_cuts(run)
    assert_cuts(run / "checkpoint-2")
    # A shorter crop is no shorter block.
    shorter = ["--block_size", "4", "--device", "cpu"]
    assert main(["finetune", str(run), *data, "--output_dir", str(tuned), *shorter, *SHORT]) == 0
    assert_cuts(tuned)


def test_a_folder_saved_without_a_length_opens_and_is_fine_tuned_into_one_with_it(
    text_file: Path, tmp_path: Path
) -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    old = save_of_old(tmp_path / "old", gpt(tokenizer), tokenizer)
    assert main(["generate", str(old), "--prompt", "O", "--max_new_tokens", "3", "--device", "cpu"]) == 0
    tuned = ["--output_dir", str(tmp_path / "tuned"), "--device", "cpu", *SHORT]
    assert main(["finetune", str(old), "--data", str(text_file), *tuned]) == 0
    assert_cuts(tmp_path / "tuned")


@pytest.mark.extra("peft")
def test_an_adapter_and_what_it_is_merged_into_cut_to_the_block(text_file: Path, tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    old, adapter = save_of_old(tmp_path / "old", gpt(tokenizer), tokenizer), tmp_path / "adapter"
    options = ["--lora", "--output_dir", str(adapter), "--device", "cpu", *SHORT]
    assert main(["finetune", str(old), "--data", str(text_file), *options]) == 0
    assert_cuts(adapter)
    assert_cuts(export_model(adapter, "merged"))


@pytest.mark.extra("trl")
def test_conversations_longer_than_the_block_are_cut_without_a_warning(
    tmp_path: Path, warnings_of_length: list[str]
) -> None:
    tokenizer = train_bpe([TEXT], 280)
    base = save_of_old(tmp_path / "base", gpt(tokenizer, max_position_embeddings=64), tokenizer)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": LONG}]
    rows = [{"messages": turns}] * 4
    data = tmp_path / "talk.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["--sft", "--truncate", "--data", str(data), "--output_dir", str(tmp_path / "sft"), "--device", "cpu"]
    assert main(["finetune", str(base), *options, *SHORT]) == 0
    assert not warnings_of_length
    assert_cuts(tmp_path / "sft", 64)


@pytest.mark.parametrize(
    ("to", "kind", "fields"),
    [
        *((to, "char", fields) for to, fields in stock_shapes.PURE.items()),
        ("gpt2", "bpe", stock_shapes.GPT2),
        pytest.param("llama", "sentencepiece", stock_shapes.LLAMA, marks=pytest.mark.extra("sentencepiece")),
        pytest.param("gguf", "char", stock_shapes.LLAMA, marks=pytest.mark.extra("gguf")),
        pytest.param("onnx", "char", {}, marks=pytest.mark.extra("onnx")),
        pytest.param("torch", "bpe", {}, marks=pytest.mark.slow),
    ],
)
def test_every_export_cuts_to_the_block(to: str, kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = LEARN[kind](TEXT)
    assert_cuts(export_model(save_of_old(tmp_path / "old", gpt(tokenizer, **fields), tokenizer), to))


def test_what_is_imported_cuts_to_its_own_block(text_file: Path, tmp_path: Path) -> None:
    size = len(set(TEXT))
    checkpoint = save_nanogpt(NanoGPT(vocab_size=size, block_size=12), tmp_path / "ckpt.pt")
    assert_cuts(import_model(checkpoint, tmp_path / "nano", text=text_file), 12)
    torch.save(LectureBigram(size).state_dict(), tmp_path / "bigram.pt")
    assert_cuts(import_model(tmp_path / "bigram.pt", tmp_path / "bigram", text=text_file), 8)
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    stock = to_stock(gpt(tokenizer, **stock_shapes.LLAMA), "llama")
    old = save_of_old(tmp_path / "llama", stock, tokenizer)
    assert_cuts(import_model(old, tmp_path / "ours"))


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("model", [*KINDS, "bigram"])
def test_a_pipeline_continues_a_prompt_longer_than_the_block_without_a_warning(
    model: str, kind: str, tmp_path: Path, warnings_of_length: list[str]
) -> None:
    tokenizer = LEARN[kind](TEXT)
    tokenizer.model_max_length = BLOCK
    network = bigram(tokenizer) if model == "bigram" else gpt(tokenizer, **KINDS[model])
    folder = save(tmp_path, network.double(), tokenizer)
    write = pipeline("text-generation", model=str(folder), device="cpu")
    found = write(LONG, do_sample=False, max_new_tokens=BLOCK)[0]["generated_text"]
    assert found == lecture_loop(network, tokenizer, LONG, BLOCK)
    assert not warnings_of_length


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_commands_take_texts_longer_than_the_block_whole_and_without_a_warning(
    kind: str,
    text_file: Path,
    tmp_path: Path,
    warnings_of_length: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = LEARN[kind](TEXT)
    if kind == "bpe":  # as it was saved before it had a class of its own
        tokenizer = TokenizersBackend(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>"
        )
    folder = str(save(tmp_path / "model", gpt(tokenizer), tokenizer))
    assert main(["generate", folder, "--prompt", LONG, "--max_new_tokens", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(LONG)
    assert main(["eval", folder, "--data", str(text_file), "--device", "cpu"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(LONG.replace("\n", " ") + "\n!exit\n"))
    assert main(["chat", folder, "--device", "cpu"]) == 0
    assert not warnings_of_length
