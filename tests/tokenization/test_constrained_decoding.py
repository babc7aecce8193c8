from collections.abc import Callable
from typing import Any

import pytest

from minigpt.tokenization.subword import train_bpe, train_sentencepiece
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.data.corpus import PLAYS

TEXT = PLAYS.read_text(encoding="utf-8")[:60_000] + "é 中 😀 \u2581 Ġ <0x41>"
KINDS: dict[str, Callable[[], Any]] = {
    "char": lambda: MiniGPTTokenizer.from_text(TEXT),
    "bpe": lambda: train_bpe([TEXT], 400),
    "sentencepiece-unigram": lambda: train_sentencepiece([TEXT], 400),
    "sentencepiece-bpe": lambda: train_sentencepiece([TEXT], 400, "bpe"),
}


@pytest.mark.extra("structured")
@pytest.mark.extra("sentencepiece")
@pytest.mark.parametrize("kind", KINDS)
def test_llguidance_opens_the_tokenizer_and_reads_every_token_as_its_own_text(kind: str) -> None:
    llguidance = pytest.importorskip("llguidance")
    from llguidance.hf import from_tokenizer

    tokenizer = KINDS[kind]()
    opened = from_tokenizer(tokenizer)
    assert (opened.vocab_size, opened.eos_token) == (len(tokenizer), tokenizer.eos_token_id)
    for index in range(len(tokenizer)):
        text = tokenizer.decode([index])
        if "\ufffd" not in text:  # a byte of a longer character
            assert opened.decode_bytes([index]) == text.encode()

    allowed = "ab 中\n"
    grammar = llguidance.LLMatcher.grammar_from_regex(f"[{allowed}]+")
    matcher = llguidance.LLMatcher(opened, grammar)
    mask = matcher.compute_bitmask()
    bits = [index for index in range(len(tokenizer)) if mask[index // 8] >> (index % 8) & 1]
    wanted = [index for index in range(len(tokenizer)) if set(tokenizer.decode([index])) <= set(allowed)]
    assert set(wanted) <= set(bits)
    # Besides, only a byte that 中 begins with.
    assert {opened.decode_bytes([index]) for index in set(bits) - set(wanted)} <= {b"\xe4", b"\xe4\xb8"}
