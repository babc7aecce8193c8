"""Claims about opening a trained model: the tokenizer is its own, and what is no model is refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from minigpt import BigramConfig, BigramForCausalLM, MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.hub.loading import default_block_size, encode_prompt, open_trained
from minigpt.training.data.corpus import PLAYS

TEXT = PLAYS.read_text(encoding="utf-8")[:3000]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def models(vocab_size: int) -> dict[str, torch.nn.Module]:
    gpt2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    llama = {**SMALL, "intermediate_size": 8, "max_position_embeddings": 4096}
    return {
        "minigpt": MiniGPTForCausalLM(MiniGPTConfig(vocab_size=vocab_size, **SMALL, max_position_embeddings=2048)),
        "bigram": BigramForCausalLM(BigramConfig(vocab_size=vocab_size)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_positions=32, **gpt2)),
        "llama": LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **llama)),
        "bloom": BloomForCausalLM(BloomConfig(vocab_size=vocab_size, hidden_size=8, n_layer=1, n_head=2)),
    }


@pytest.mark.parametrize("kind", models(3))
def test_a_model_without_its_tokenizer_is_refused_with_what_to_do(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models(300)[kind].save_pretrained(tmp_path / "mine")
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "mine")]) == 2
    assert capsys.readouterr().err == (
        f"minigpt: {tmp_path / 'mine'} holds no tokenizer; save it there with tokenizer.save_pretrained.\n"
    )


def test_a_file_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"whatever it holds")
    assert main(["generate", str(file)]) == 2
    assert capsys.readouterr().err == f"minigpt: {file} is a file; name the model's folder.\n"


def test_how_a_tokenizer_was_loaded_is_not_saved_with_it(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT, model_max_length=2048)
    tokenizer.save_pretrained(tmp_path / "mine")
    models(len(tokenizer))["minigpt"].save_pretrained(tmp_path / "mine")
    open_trained(tmp_path / "mine", "cpu")[1].save_pretrained(tmp_path / "again")
    first, again = (
        json.loads((tmp_path / name / "tokenizer_config.json").read_text(encoding="utf-8"))
        for name in ("mine", "again")
    )
    assert not {"local_files_only", "is_local"} & again.keys()
    assert again == first


def test_ones_own_model_is_shown_its_block_and_another_at_most_1024_tokens() -> None:
    blocks = {kind: default_block_size(model) for kind, model in models(10).items()}
    assert blocks == {"minigpt": 2048, "bigram": 32, "gpt2": 32, "llama": 1024, "bloom": 1024}


def test_a_model_that_names_no_longest_text_writes_and_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    tokenizer.save_pretrained(tmp_path / "bloom")
    models(len(tokenizer))["bloom"].save_pretrained(tmp_path / "bloom")
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    assert main(["generate", str(tmp_path / "bloom"), "--prompt", "What", "--max_new_tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("What")
    assert main(["eval", str(tmp_path / "bloom"), "--data", str(tmp_path / "my.txt"), "--split", "validation"]) == 0
    assert "validation split, 299 tokens: loss " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "starts_with_bos"),
    [
        ({"bos_token_id": 7, "eos_token_id": 7}, True),
        ({"bos_token_id": 7, "eos_token_id": [5, 7]}, True),
        ({"eos_token_id": 7}, False),
        ({"bos_token_id": 6, "eos_token_id": 7}, False),
        # Plain text never contains the token: `minigpt train` and `minigpt export` hold it back.
        ({"bos_token_id": 7, "eos_token_id": 7, "suppress_tokens": [7]}, False),
        ({"bos_token_id": 7, "eos_token_id": 7, "sequence_bias": [[[7], -1e6]]}, False),
        ({"bos_token_id": 7, "eos_token_id": 7, "sequence_bias": {(7,): -1e6}}, False),
    ],
)
def test_an_empty_prompt_begins_a_document_where_a_model_was_trained_on_documents(
    settings: dict[str, object], starts_with_bos: bool
) -> None:
    tokenizer = MiniGPTTokenizer.from_text("abcde\n")  # "\n" has the id 0
    config = GenerationConfig(**settings)
    assert encode_prompt(tokenizer, "", config).tolist() == [[7 if starts_with_bos else 0]]
    assert encode_prompt(tokenizer, "ab", config).tolist() == [[1, 2]]
