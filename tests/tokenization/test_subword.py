import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from minigpt.tokenization.subword import train_bpe, train_sentencepiece
from minigpt.training.data.corpus import PLAYS

TEXT = PLAYS.read_text(encoding="utf-8")[:60_000]
SIZE = 400
KINDS: dict[str, Callable[..., Any]] = {
    "bpe": train_bpe,
    "sentencepiece-unigram": train_sentencepiece,
    "sentencepiece-bpe": lambda chunks, size, **kwargs: train_sentencepiece(chunks, size, "bpe", **kwargs),
}
# What subword tokenizers are known to lose: runs of spaces, other spaces, line ends, controls, marks that compose, the
# spellings of their own bytes and special tokens, and SentencePiece's own mark for a space.
ODDITIES = [
    *(" ", "  ", "\n", "\r\n", "\t", "\x00", "\x7f", "\u00a0", "\u200b", "\u2028", "\ufeff", "\U0010ffff"),
    *("é", "e\u0301", "ﬁ", "Å", "中", "😀", "👩‍👧", "Ġ", "Ċ", "\u2581", "##", "<", "<0x", "<0x41>", "<unk>", "</s>"),
    *("a", "the ", "ROMEO:", "<|endoftext|>", "<|pad|>"),
]


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[] if kind == "bpe" else pytest.mark.extra("sentencepiece")) for kind in KINDS],
)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]([TEXT], SIZE)


def odd_texts() -> list[str]:
    draw = random.Random(0)
    return ["", *ODDITIES, *("".join(draw.choices(ODDITIES, k=draw.randint(1, 30))) for _ in range(400))]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def test_no_text_is_lost(tokenizer: Any) -> None:
    for text in (*odd_texts(), TEXT):
        assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_the_vocabulary_has_the_size_asked_for_and_its_special_tokens_last(tokenizer: Any) -> None:
    assert len(tokenizer) == SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(SIZE))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (SIZE - 2, SIZE - 1)
    assert tokenizer.bos_token is tokenizer.unk_token is None
    assert len(ids_of(tokenizer, TEXT)) < 0.7 * len(TEXT)


def test_the_same_text_gives_the_same_vocabulary_however_it_is_cut(tokenizer: Any, request: Any) -> None:
    make = KINDS[request.node.callspec.params["tokenizer"]]
    pieces = [TEXT[at : at + 777] for at in range(0, len(TEXT), 777)]
    assert make(pieces, SIZE).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_saved_vocabulary_opens_with_auto_tokenizer_and_saves_the_same_again(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "once")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "once")
    loaded.save_pretrained(tmp_path / "twice")
    again = AutoTokenizer.from_pretrained(tmp_path / "twice")
    for text in odd_texts():
        assert ids_of(again, text) == ids_of(loaded, text) == ids_of(tokenizer, text)
        assert again.decode(ids_of(again, text)) == text
    files = {"tokenizer.json"} | ({"tokenizer.model"} if hasattr(tokenizer, "sentencepiece_model") else set())
    assert {path.name for path in (tmp_path / "twice").iterdir()} == files | {"tokenizer_config.json"}
    for name in files:
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


def test_training_on_other_texts_gives_a_vocabulary_that_loses_no_text_either(tokenizer: Any, tmp_path: Path) -> None:
    other = ["Where is my horse, sir?\n" * 20, ["And mine, sir?\n" * 20, TEXT[:5000]]]
    texts = [text for batch in other for text in ([batch] if isinstance(batch, str) else batch)]
    new = tokenizer.train_new_from_iterator(iter([texts]), 350, new_special_tokens=["<|new|>"])
    assert type(new) is type(tokenizer)
    assert new.special_tokens_map == tokenizer.special_tokens_map
    new.save_pretrained(tmp_path)
    for opened in (new, AutoTokenizer.from_pretrained(tmp_path)):
        for text in (*odd_texts(), *texts, "a<|new|>b"):
            assert opened.decode(ids_of(opened, text)) == text
    assert (tmp_path / "tokenizer.model").is_file() == hasattr(tokenizer, "sentencepiece_model")


@pytest.mark.extra("sentencepiece")
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_tokens_are_those_of_sentencepieces_own_model(model_type: str, tmp_path: Path) -> None:
    import sentencepiece

    tokenizer = train_sentencepiece([TEXT], SIZE, model_type)
    tokenizer.save_pretrained(tmp_path)
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert [own.id_to_piece(index).replace("\u2581", " ") for index in range(SIZE - 2)] == [
        tokenizer.convert_ids_to_tokens(index) for index in range(SIZE - 2)
    ]
    texts = [text for text in odd_texts() if "\u2581" not in text and "<|" not in text]
    for text in (*TEXT.splitlines(keepends=True), *texts):
        assert ids_of(tokenizer, text) == own.encode(text), text


@pytest.mark.parametrize("unspaced", ["ACGT", "中文字", "  ", "'", "7"])
def test_no_pre_token_grows_with_a_text_without_spaces(unspaced: str) -> None:
    text = "".join(random.Random(0).choices(unspaced, k=20_000))
    tokenizer = train_bpe([text], 258)
    pre_tokens = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert max(len(pre_token) for pre_token, _ in pre_tokens) == 1024
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_bounding_pre_tokens_leaves_ordinary_text_to_gpt2s_cuts() -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in (TEXT, "A" * 1023):
        assert train_bpe([TEXT], 258).backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) == gpt2.pre_tokenize_str(
            text
        )


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 258, got 257\.$"):
        train_bpe([TEXT], 257)
    assert len(train_bpe([TEXT], 258)) == 258


@pytest.mark.extra("sentencepiece")
def test_a_vocabulary_without_room_for_the_characters_is_refused() -> None:
    characters = len(set(TEXT) - {"\n"})
    with pytest.raises(ValueError, match=rf"at least {256 + characters + 4}, got {256 + characters + 3}\.$"):
        train_sentencepiece([TEXT], 256 + characters + 3)
    assert len(train_sentencepiece([TEXT], 256 + characters + 4, "bpe")) == 256 + characters + 4
    with pytest.raises(ValueError, match="model_type is 'word'"):
        train_sentencepiece([TEXT], SIZE, "word")


def test_a_text_too_small_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocabulary of 2\d\d tokens and vocab_size is 1000; lower it"):
        train_bpe(["to be or not to be"], 1000)


@pytest.mark.extra("sentencepiece")
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_text_too_small_for_sentencepiece_is_refused(model_type: str) -> None:
    text = ["to be or not to be\n" * 9]
    with pytest.raises(
        ValueError, match=r"for a vocabulary of \d+ tokens and vocab_size is 1000; lower it or"
    ) as refusal:
        train_sentencepiece(text, 1000, model_type)
    most = int(re.search(r"vocabulary of (\d+) tokens", str(refusal.value))[1])
    assert len(train_sentencepiece(text, most, model_type)) == most
    with pytest.raises(ValueError, match=f"vocabulary of {most} tokens and vocab_size is {most + 1};"):
        train_sentencepiece(text, most + 1, model_type)
