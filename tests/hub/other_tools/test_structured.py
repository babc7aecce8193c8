"""xgrammar, outlines and llguidance hold a text to a grammar, and end it there, in our classes and in stock ones."""

import json
import re
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt import MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.hub.stock.conversion import save_stock, to_stock
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from tests.hub.stock_shapes import GPT2

pytestmark = pytest.mark.extra("structured")

OBJECT = r'\{"[a-c]{2}": [1-9][0-9]{2}\}'


@pytest.fixture(scope="module", params=["ours", "stock"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model and its tokenizer, opened as a reader opens them; no special token was trained on."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = MiniGPTTokenizer.from_text('{}":, 0123456789abcdefghijklmnopqrstuvwxyz\n')
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = MiniGPTForCausalLM(MiniGPTConfig(**{**GPT2, "vocab_size": len(tokenizer), "block_size": 48, **special}))
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **special)
    if request.param == "ours":
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        save_stock(to_stock(model, "gpt2"), tokenizer, folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.door("xgrammar: a text that follows a grammar and ends with it", "xgrammar", "transformers")
@pytest.mark.parametrize("how", [{"do_sample": True}, {"do_sample": False}, {"do_sample": True, "top_k": 3}], ids=str)
def test_xgrammar_holds_every_row_to_a_grammar_and_ends_it_there(opened: tuple[Any, Any], how: dict[str, Any]) -> None:
    import xgrammar

    model, tokenizer = opened
    vocabulary = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    grammar = xgrammar.GrammarCompiler(vocabulary).compile_regex(OBJECT)
    inputs = tokenizer(["a\n", "b\n"], return_tensors="pt")
    for seed in range(3):
        torch.manual_seed(seed)
        processor = xgrammar.contrib.hf.LogitsProcessor(grammar)
        ids = model.generate(**inputs, logits_processor=[processor], **how)
        for row in ids[:, 2:].tolist():
            assert row[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(row, skip_special_tokens=True)
            assert re.fullmatch(OBJECT, text)
            assert len(json.loads(text)) == 1


@pytest.mark.door("outlines: choices and regular expressions", "outlines", "transformers")
@pytest.mark.parametrize("backend", ["outlines_core", "xgrammar", "llguidance"])
def test_outlines_writes_what_a_type_allows(opened: tuple[Any, Any], backend: str) -> None:
    import outlines

    model = outlines.from_transformers(*opened)
    for kind, pattern in ((Literal["romeo", "juliet"], "romeo|juliet"), (outlines.types.Regex(OBJECT), OBJECT)):
        write = outlines.Generator(model, kind, backend=backend)
        for seed in range(3):
            torch.manual_seed(seed)
            assert re.fullmatch(pattern, write("a\n"))
