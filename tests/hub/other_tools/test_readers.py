"""Programs that know stock models and tokenizers by their names read what was exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt import MiniGPTTokenizer
from minigpt.cli import main
from minigpt.tokenization.subword import train_bpe, train_sentencepiece
from minigpt.training.data.corpus import PLAYS
from tests.hub.stock_shapes import PURE, minigpt

pytestmark = pytest.mark.extra("readers")

TEXT = PLAYS.read_text(encoding="utf-8")[:20_000]
PROMPT = "To b"
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "char": lambda: MiniGPTTokenizer.from_text(TEXT),
    "bpe": lambda: train_bpe([TEXT], 300),
    "sentencepiece-bpe": lambda: train_sentencepiece([TEXT], 400, "bpe"),
}


@pytest.fixture(
    scope="module",
    params=[(kind, architecture) for kind in ("char", "bpe") for architecture in ("gpt2", "llama")],
    ids="-".join,
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, architecture = request.param
    folder = tmp_path_factory.mktemp("runs") / "mine"
    tokenizer = TOKENIZERS[kind]()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    minigpt(vocab_size=len(tokenizer), **ids, **PURE[architecture]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert main(["export", str(folder), "--to", architecture]) == 0
    return folder.with_name(f"mine-{architecture}")


def our_logits(exported: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of the prompt and what the MiniGPT that was exported says of them."""
    ids = AutoTokenizer.from_pretrained(exported)(PROMPT, return_tensors="pt")["input_ids"]  # (1, seq)
    with torch.no_grad():
        return ids, AutoModelForCausalLM.from_pretrained(exported.with_name("mine")).eval()(ids).logits


@pytest.mark.door("minicons: scores with and without a BOS token", "minicons")
def test_minicons_scores_a_text_with_and_without_a_bos_token(exported: Path) -> None:
    scorer = pytest.importorskip("minicons.scorer").IncrementalLMScorer(str(exported), "cpu")
    ids, logits = our_logits(exported)
    expected = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean().item()
    assert scorer.sequence_score([PROMPT]) == pytest.approx([expected], abs=1e-5)
    first, *rest = scorer.token_score([PROMPT], bos_token=True)[0]
    assert (first, len(rest)) == (("<|endoftext|>", 0.0), ids.shape[1])


@pytest.mark.door("ctranslate2 converts an export and gives its logits", "ctranslate2")
def test_ctranslate2_gives_the_same_logits(exported: Path, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(exported)).convert(str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), device="cpu", intra_threads=1)
    ids, logits = our_logits(exported)
    tokens = AutoTokenizer.from_pretrained(exported).convert_ids_to_tokens(ids[0])
    theirs = torch.from_numpy(np.array(generator.forward_batch([tokens])))  # (1, seq, vocab)
    torch.testing.assert_close(theirs, logits, atol=1e-5, rtol=0)


@pytest.mark.door("transformer-lens opens an export: logits to 1e-5, cached activations", "transformer-lens")
def test_transformer_lens_gives_the_same_logits_without_a_bos_token(exported: Path) -> None:
    bridge = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge
    model = bridge.boot_transformers(str(exported), device="cpu")
    ids, logits = our_logits(exported)
    with torch.no_grad():
        theirs, cache = model.run_with_cache(PROMPT, prepend_bos=False)
    torch.testing.assert_close(theirs, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(cache["blocks.0.attn.hook_pattern"].sum(-1), torch.ones(1, 4, ids.shape[1]))


@pytest.mark.door("fastokens: the same tokens of characters, byte-level BPE and SentencePiece BPE", "fastokens")
@pytest.mark.extra("sentencepiece")
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_fastokens_gives_the_same_tokens_and_text(kind: str, tmp_path: Path) -> None:
    fastokens = pytest.importorskip("fastokens")
    tokenizer = TOKENIZERS[kind]()
    tokenizer.save_pretrained(tmp_path)
    text = f"{TEXT} a , b .<|endoftext|>  é\n\n"
    expected = tokenizer(text)["input_ids"]
    fastokens.patch_transformers()
    try:
        fast = AutoTokenizer.from_pretrained(tmp_path)
        assert type(fast.backend_tokenizer).__module__.startswith("fastokens")
        assert fast(text)["input_ids"] == expected
        assert fast.decode(expected) == tokenizer.decode(expected)
    finally:
        fastokens.unpatch_transformers()
