import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt import MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.errors import UsageError
from minigpt.hub import extras
from minigpt.hub.exporting.gguf_file import export_gguf
from minigpt.hub.stock.conversion import to_stock
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.tokenization.subword import train_bpe
from tests.hub.stock_shapes import GPT2, LLAMA, NANOCHAT, QWEN3, draw_ids, minigpt

TEXT = "To be, or not .\nThat is 'it'!"
GELU_NEW = {**GPT2, "hidden_act": "gelu_new"}
EXPRESSIBLE = {
    "gpt2": ("gpt2", GELU_NEW),
    "gpt2, tied, keys shared": (
        "gpt2",
        {**GELU_NEW, "tie_word_embeddings": True, "num_key_value_heads": 2, "norm_eps": 0.1, "attention_bias": True},
    ),
    "llama": ("llama", LLAMA),
    "llama, tied, grouped, wide heads": (
        "llama",
        {
            **LLAMA,
            "tie_word_embeddings": True,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "intermediate_size": 20,
            "norm_eps": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "qwen3": ("qwen3", QWEN3),
    "qwen3, tied, grouped, wide heads": (
        "qwen3",
        {**QWEN3, "tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 6},
    ),
}


def build(text: str = TEXT, **fields: Any) -> tuple[MiniGPTForCausalLM, MiniGPTTokenizer]:
    """A model and a tokenizer that fit each other."""
    tokenizer = MiniGPTTokenizer.from_text(text)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = minigpt(vocab_size=len(tokenizer), **special, **fields)
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **special)
    return model, tokenizer


@pytest.mark.extra("gguf")
@pytest.mark.door("`--to gguf`: transformers reads the file back, logits equal", "transformers", "gguf")
@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_transformers_reads_the_file_back_and_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    architecture, fields = EXPRESSIBLE[name]
    model, tokenizer = build(**fields)
    export_gguf(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert loaded.config.model_type == architecture
    assert loaded.config.max_position_embeddings == model.config.max_position_embeddings
    assert loaded.config.tie_word_embeddings == model.config.tie_word_embeddings
    # GGUF keeps float32, and the epsilon of the norms in it too: nothing more is lost.
    torch.testing.assert_close(loaded(draw_ids()).logits, model(draw_ids()).logits, atol=5e-6, rtol=0)


@pytest.mark.extra("gguf")
def test_weights_in_bfloat16_are_written_without_loss(tmp_path: Path) -> None:
    model, tokenizer = build(**LLAMA)
    export_gguf(model.to(torch.bfloat16), tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    expected = to_stock(model, "llama").state_dict()
    assert all(torch.equal(weight, expected[name].float()) for name, weight in loaded.state_dict().items())


@pytest.mark.extra("gguf")
def test_transformers_reads_an_ascii_tokenizer_from_the_file_alone(tmp_path: Path) -> None:
    model, tokenizer = build(**GELU_NEW)
    (tmp_path / "whole").mkdir()
    (tmp_path / "alone").mkdir()
    export_gguf(model, tokenizer, tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "model.gguf", tmp_path / "alone")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "alone", gguf_file="model.gguf")
    text = f"{TEXT}<|endoftext|>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(TEXT)["input_ids"]) == TEXT
    assert len(loaded) == len(tokenizer)
    for name in ("eos_token", "unk_token", "pad_token"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


@pytest.mark.extra("gguf")
def test_the_tokenizer_beside_the_file_reads_every_character(tmp_path: Path) -> None:
    text = "é — “x” 😀 ▁"
    model, tokenizer = build(text, **QWEN3)
    export_gguf(model, tokenizer, tmp_path)
    for options in ({}, {"gguf_file": "model.gguf"}):
        loaded = AutoTokenizer.from_pretrained(tmp_path, **options)
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


@pytest.mark.extra("gguf")
def test_a_byte_level_tokenizer_is_read_from_the_file_alone(tmp_path: Path) -> None:
    text = "the cat sat on the mat — the dog ate the cat\u2019s hat. " * 5
    tokenizer = train_bpe([text], 270, chat_template="{{ messages }}")
    model = minigpt(**GELU_NEW, vocab_size=272)
    (tmp_path / "whole").mkdir()
    (tmp_path / "alone").mkdir()
    export_gguf(model, tokenizer, tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "model.gguf", tmp_path / "alone")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "alone", gguf_file="model.gguf")
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.chat_template == tokenizer.chat_template


@pytest.mark.extra("gguf")
def test_the_file_says_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    from gguf import GGUFReader

    model, tokenizer = build(**LLAMA, num_key_value_heads=2, head_dim=6)
    export_gguf(model, tokenizer, tmp_path)
    reader = GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.attention.key_length"] == fields["llama.rope.dimension_count"] == 6
    assert fields["llama.attention.head_count_kv"] == 2
    # It wants the list, also if there is nothing in it.
    assert fields["tokenizer.ggml.merges"] == []
    # Nothing comes before a text, and the token that llama.cpp wants for it is no letter.
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.suppress_tokens"] == tokenizer.all_special_ids
    assert len(fields["tokenizer.ggml.tokens"]) == model.config.vocab_size
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}


@pytest.mark.extra("gguf")
@pytest.mark.parametrize(
    ("fields", "nearest", "switches"),
    [
        ({}, "gpt2", ["lm_head_bias=True", "hidden_act='relu'"]),
        ({**GPT2, "hidden_act": "gelu"}, "gpt2", ["hidden_act='gelu' (it has 'gelu_new')"]),
        ({**GELU_NEW, "intermediate_size": 20}, "gpt2", ["intermediate_size=20 (it has 4 * hidden_size)"]),
        ({**LLAMA, "mlp_bias": True}, "llama", ["mlp_bias=True"]),
        ({**LLAMA, "attention_bias": True}, "llama", ["attention_bias=True"]),
        ({**LLAMA, "attention_output_bias": True}, "llama", ["attention_output_bias=True"]),
        (
            {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "llama",
            ["rope_parameters={", "(it has the default type)"],
        ),
        ({**QWEN3, "sliding_window": 4}, "qwen3", ["sliding_window=4 (it has None)"]),
        (NANOCHAT, "qwen3", ["embedding_norm=True", "final_logit_softcapping=15"]),
    ],
    ids=str,
)
def test_a_switch_in_the_way_is_named(
    fields: dict[str, Any], nearest: str, switches: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        export_gguf(*build(**fields), tmp_path)
    assert str(caught.value).startswith(f"{nearest} in a GGUF file cannot express ")
    assert all(switch in str(caught.value) for switch in switches)
    assert "--preset nano-cpu or nano with --hidden_act gelu_new" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=r"the export to GGUF needs gguf: pip install 'minigpt-hf\[gguf\]'"):
        export_gguf(*build(**GELU_NEW), tmp_path)
    assert list(tmp_path.iterdir()) == []
