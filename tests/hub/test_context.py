"""Claims about models that cannot write past their context: `generate` and `chat` stay inside, or refuse."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    XGLMConfig,
    XGLMForCausalLM,
)

from minigpt import BigramConfig, BigramForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.hub.context import Context
from minigpt.training.sample import write_sample

TOKENIZER = MiniGPTTokenizer.from_text("abcdefgh \n")
BLOCK = 16
IDS: dict[str, Any] = {"vocab_size": len(TOKENIZER), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 12}
GPT2 = {**IDS, "n_positions": BLOCK, "n_embd": 8, "n_head": 2, "n_layer": 1}
LLAMA = {**IDS, "max_position_embeddings": BLOCK, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
LLAMA["num_attention_heads"] = LLAMA["num_key_value_heads"] = 2
OPT = {**LLAMA, "ffn_dim": 8, "word_embed_proj_dim": 8}
TABLES = ("gpt2", "opt", "gptj")
BOUNDLESS = ("neox", "llama", "mistral", "xglm", "bloom")


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
        "opt": lambda: OPTForCausalLM(OPTConfig(**OPT)),
        "gptj": lambda: GPTJForCausalLM(GPTJConfig(**GPT2, rotary_dim=4)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**LLAMA)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=4)),
        "xglm": lambda: XGLMForCausalLM(
            XGLMConfig(**IDS, max_position_embeddings=BLOCK, d_model=8, ffn_dim=8, attention_heads=2, num_layers=1)
        ),
        "bloom": lambda: BloomForCausalLM(BloomConfig(**IDS, hidden_size=8, n_head=2, n_layer=1)),
        "mpt": lambda: MptForCausalLM(MptConfig(**IDS, d_model=8, n_heads=2, n_layers=1, max_seq_len=BLOCK)),
    }[kind]()
    model.generation_config.suppress_tokens = [1, *TOKENIZER.all_special_ids]  # so that no text ends early
    return model.eval()


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> str:
    build(kind).save_pretrained(tmp_path / kind)
    TOKENIZER.save_pretrained(tmp_path / kind)
    return str(tmp_path / kind)


def writes(model: PreTrainedModel, new_tokens: int) -> bool:
    prompt = torch.tensor([[2, 3, 4]])
    try:
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens)
    except (IndexError, RuntimeError):
        return False
    return output.shape[1] == 3 + new_tokens


@pytest.mark.parametrize("kind", [*TABLES, *BOUNDLESS])
def test_a_model_that_transformers_fails_with_past_its_positions_is_known(kind: str) -> None:
    model = build(kind)
    context = Context.of(model)
    assert context.is_table == (kind in TABLES)
    if context.is_table:
        most = context.new_tokens(3)
        assert [writes(model, number) for number in (most, most + 1)] == [True, False]
    else:
        assert writes(model, 3 * BLOCK)


@pytest.mark.parametrize("kind", [*TABLES, "llama", "neox"])
def test_a_text_of_no_given_length_stays_within_the_context(
    kind: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in ([], ["--stream"], ["-n", "2", "--stop", "ahahah"]):
        assert main(["generate", folder, "--prompt", "abc", "--seed", "1", *flags]) == 0
        printed = capsys.readouterr()
        assert len(printed.out) - len("\n") == BLOCK + 1 or "-n" in flags
        assert printed.err == ""


@pytest.mark.parametrize("kind", TABLES)
def test_what_does_not_fit_is_refused_with_the_number_that_does(
    kind: str, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", folder, "--prompt", "abc", "--max_new_tokens", "14"]) == 0
    assert main(["generate", folder, "--prompt", "a" * BLOCK]) == 0
    capsys.readouterr()
    assert main(["generate", folder, "--prompt", "abc", "--max_new_tokens", "15"]) == 2
    said = "minigpt: max_new_tokens is 15 and the model has positions for 14 more; use 14 or less.\n"
    assert capsys.readouterr() == ("", said)
    assert main(["generate", folder, "--prompt", "a" * (BLOCK + 1)]) == 2
    said = "minigpt: the prompt has 17 tokens and the model has positions for 16; shorten it.\n"
    assert capsys.readouterr() == ("", said)
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n"))
    assert main(["chat", folder, "--max_new_tokens", "17"]) == 2
    said = "minigpt: max_new_tokens is 17 and the model has positions for 16 more; use 16 or less.\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("kind", ["llama"])
def test_a_model_that_computes_its_positions_writes_past_its_context_and_says_so(
    kind: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [["--prompt", "abc", "--max_new_tokens", "40"], ["--prompt", "a" * 20, "--max_new_tokens", "40"]]
    for options in asked:
        assert main(["generate", folder, *options]) == 0
        printed = capsys.readouterr()
        assert len(printed.out) == len(options[1]) + 40 + len("\n")
        assert printed.err == "The text passes the 16 tokens that the model was made for, and may get worse there.\n"


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }} {% endfor %}"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_long_chat_stays_within_the_context(
    kind: str,
    template: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build(kind).save_pretrained(tmp_path)
    MiniGPTTokenizer.from_text("abcdefgh \n", chat_template=template).save_pretrained(tmp_path)
    longest = []
    forward = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[kind].generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        longest.append(output.shape[1])
        return output

    monkeypatch.setattr({"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[kind], "generate", generate)
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n" * 5))
    assert main(["chat", str(tmp_path), "--seed", "1"]) == 0
    assert len(longest) == 5
    assert max(longest) == BLOCK + 1
    assert capsys.readouterr().err.count("has outgrown the block") == 1


@pytest.mark.parametrize("kind", ["mpt"])
def test_an_error_inside_another_model_is_one_sentence(
    kind: str, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n"))
    for command in ("generate", "chat"):
        assert main([command, folder, "--max_new_tokens", "40"]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("minigpt: the mpt model failed while it generated (RuntimeError: The size of tensor a")
        assert said.endswith(
            "); try a shorter prompt and a smaller --max_new_tokens, or see where with `minigpt --debug`."
        )


def test_the_sample_of_a_bigram_has_the_length_that_was_asked_for() -> None:
    tokenizer = MiniGPTTokenizer.from_text("abc\n")
    model = BigramForCausalLM(BigramConfig(vocab_size=len(tokenizer), max_position_embeddings=8))
    assert len(write_sample(model, tokenizer, 50)) == 50
