from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase, TokenizersBackend
from transformers.convert_slow_tokenizer import bytes_to_unicode

from minigpt import MiniGPTTokenizer
from minigpt.errors import UsageError
from minigpt.hub.exporting.gguf_vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, GgufVocabulary, gguf_vocabulary
from minigpt.tokenization.subword import train_bpe, train_sentencepiece
from minigpt.training.data.corpus import PLAYS

# One, two, three and four bytes, a space, llama.cpp's mark for one, letters that stand for bytes, and characters that
# share their first bytes.
TEXT = "To be, or not\n é è — \u2013 “x” ▁ Ġ ĠĠ 😀 😁 漢字"


def llama_cpp(text: str, vocabulary: GgufVocabulary) -> list[int]:
    """What llama.cpp does with one word of a byte-level vocabulary, after its own source."""
    letters = bytes_to_unicode()
    symbols = [letters[byte] for byte in text.encode("utf-8")]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(vocabulary.merges)}
    while pairs := [(ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        _, at = min(pairs)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    found = [[ids[symbol]] if symbol in ids else [ids[s] for s in symbol if s in ids] for symbol in symbols]
    return [index for each in found for index in each]


def test_every_character_is_one_token_in_llama_cpp_too() -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    vocabulary = gguf_vocabulary(tokenizer, len(tokenizer))
    assert llama_cpp(TEXT, vocabulary) == tokenizer.encode_array(TEXT).tolist()


def test_what_the_vocabulary_lacks_is_left_out_and_takes_nothing_along() -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    vocabulary = gguf_vocabulary(tokenizer, len(tokenizer))
    assert llama_cpp("Z—ñ…\u2019é", vocabulary) == tokenizer.encode_array("—é").tolist()


def test_ascii_needs_no_merge() -> None:
    tokenizer = MiniGPTTokenizer.from_text("To be\n")
    vocabulary = gguf_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.merges == []
    assert vocabulary.tokens == ["Ċ", "Ġ", "T", "b", "e", "o", "<|endoftext|>", "<|unk|>", "<|pad|>"]
    assert vocabulary.kinds == [NORMAL] * 6 + [CONTROL] * 3


def test_added_tokens_are_kept_as_they_are_written_and_free_ids_are_unused() -> None:
    tokenizer = MiniGPTTokenizer.from_text("ab")
    tokenizer.add_tokens(["<think>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    vocabulary = gguf_vocabulary(tokenizer, 9)
    assert vocabulary.tokens[5:] == ["<think>", "<|user|>", "[PAD7]", "[PAD8]"]
    assert vocabulary.kinds[5:] == [USER_DEFINED, CONTROL, UNUSED, UNUSED]


def test_byte_level_bpe_comes_along_merge_by_merge() -> None:
    text = "the cat sat on the mat; the dog ate the cat. " * 9 + TEXT
    tokenizer = train_bpe([text], 270)
    vocabulary = gguf_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary.pre == "gpt-2"
    assert len(vocabulary.merges) == 12
    for word in ("the", " the", "cat", " — é"):
        assert llama_cpp(word, vocabulary) == tokenizer(word)["input_ids"]


def unigram() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("ab", -2.0)], unk_id=0))
    return TokenizersBackend(tokenizer_object=backend)


def word_level() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "to": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return TokenizersBackend(tokenizer_object=backend)


def spaced() -> PreTrainedTokenizerBase:
    return GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[], add_prefix_space=True)


@pytest.mark.parametrize(
    ("build", "kind"),
    [(unigram, "Unigram"), (word_level, "WordLevel after Whitespace"), (spaced, "BPE after ByteLevel")],
)
def test_other_vocabularies_are_refused_by_their_kind(build: object, kind: str) -> None:
    with pytest.raises(UsageError, match=rf"and this one is {kind}; export to a stock architecture instead\.$"):
        gguf_vocabulary(build(), 9)  # type: ignore[operator]


@pytest.mark.extra("sentencepiece")
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_sentencepiece_vocabulary_is_refused_by_that_name(model_type: str) -> None:
    tokenizer = train_sentencepiece([PLAYS.read_text(encoding="utf-8")[:5_000]], 350, model_type)
    with pytest.raises(UsageError, match=r"and this one is SentencePiece's; export to a stock architecture instead"):
        gguf_vocabulary(tokenizer, len(tokenizer))
