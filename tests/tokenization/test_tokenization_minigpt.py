import ast
import copy
import inspect
import json
import logging
import pickle
import random
import string
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, TokenizersBackend

from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.tokenization import MiniGPTTokenizer, UnknownCharacterError, tokenization_minigpt

SHAKESPEARE_CHARACTERS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase

DIFFICULT_TEXTS = {
    "empty": "",
    "spaces": "   two  spaces and one at the end ",
    "newlines": "\n\na\r\nb\rc\u2028d\u0085",
    "tabs": "\ta\t\tb\v\f",
    "control characters": "\x00a\x00\x01\x1b[0m\x7f",
    "combining": "e\u0301 is not \u00e9, \u1e9b\u0323",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇵🇱 1️⃣",
    "astral": "𝄞𝄢 𐍈 \U0010ffff",
    "byte order mark": "\ufeffa\ufeff",
    "right to left": "\u202eabc\u202c עברית",
    "noncharacters": "\ufffe\uffff\ufffd",
    "marks of other tokenizers": "Ġthe ▁the ##the </w> <0x0A> Ċ",
    "what clean-up would change": "a , b . c ' s do n't ! ?",
    "a special token spelled out": "a<|endoftext|>b<|unk|><|pad|>",
    "almost a special token": "<|endoftext| > <|endoftex <|pad|",
}


@pytest.fixture
def shakespeare() -> MiniGPTTokenizer:
    return MiniGPTTokenizer.from_text(SHAKESPEARE_CHARACTERS)


def random_text(rng: random.Random, length: int) -> str:
    """Characters of every plane, the rare ones as likely as the common ones; no surrogates."""
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(length))


# The vocabulary


def test_characters_have_the_ids_of_sorted_set():
    text = "To be, or not to be: 🎭\n"
    tokenizer = MiniGPTTokenizer.from_text(text)
    expected = sorted(set(text))
    assert tokenizer.stoi == {character: index for index, character in enumerate(expected)}
    assert list(tokenizer.stoi) == expected
    assert tokenizer.itos == dict(enumerate(expected))


def test_tiny_shakespeares_characters_have_the_lectures_ids(shakespeare):
    ids = [46, 47, 47, 1, 58, 46, 43, 56, 43]
    assert shakespeare.encode("hii there") == ids
    assert shakespeare.encode_array("hii there").tolist() == ids
    assert shakespeare.decode(ids) == shakespeare.decode_array(ids) == "hii there"


def test_three_special_tokens_follow_the_characters(shakespeare):
    assert (shakespeare.eos_token, shakespeare.eos_token_id) == ("<|endoftext|>", 65)
    assert (shakespeare.unk_token, shakespeare.unk_token_id) == ("<|unk|>", 66)
    assert (shakespeare.pad_token, shakespeare.pad_token_id) == ("<|pad|>", 67)
    assert shakespeare.bos_token is None
    assert len(shakespeare) == shakespeare.vocab_size == 68


def test_order_repetition_and_chunks_of_the_text_do_not_matter():
    text = "zebra, zebu\n" * 3
    expected = MiniGPTTokenizer.from_text(text).get_vocab()
    assert MiniGPTTokenizer.from_text(text[::-1]).get_vocab() == expected
    assert MiniGPTTokenizer.from_iterator(iter([text[:5], "", text[5:]])).get_vocab() == expected


def test_from_iterator_holds_no_more_than_a_chunk_and_the_set():
    chunk_size = 100_000
    tracemalloc.start()
    MiniGPTTokenizer.from_iterator(chr(97 + i) * chunk_size for i in range(20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * chunk_size


def test_characters_can_have_ids_in_an_order_of_their_own(tmp_path):
    stoi = {character: i for i, character in enumerate("é a\nZ𝄞b")}
    MiniGPTTokenizer.from_characters(list(stoi)).save_pretrained(tmp_path)
    text = "ab Z\n𝄞é aé"
    for tokenizer in (MiniGPTTokenizer.from_pretrained(tmp_path), MiniGPTTokenizer.from_characters(list(stoi))):
        assert tokenizer.stoi == stoi
        assert tokenizer(text)["input_ids"] == tokenizer.encode_array(text).tolist() == [stoi[c] for c in text]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == tokenizer.decode_array(tokenizer.encode_array(text))
        assert tokenizer.decode_array(tokenizer.encode_array(text)) == text
        assert tokenizer.all_special_ids == [7, 8, 9]


@pytest.mark.parametrize(
    ("characters", "reason"),
    [
        ([], "got none"),
        (["a", "bc"], "'bc' at place 1"),
        (["a", ""], "'' at place 1"),
        (["a", "b", "a"], "'a' .* twice"),
    ],
)
def test_characters_that_cannot_have_an_id_each_are_refused(characters, reason):
    with pytest.raises(ValueError, match=reason):
        MiniGPTTokenizer.from_characters(characters)


@pytest.mark.parametrize("chunks", [[], [""], ["", ""]])
def test_no_characters_are_refused(chunks):
    with pytest.raises(ValueError, match="at least one character"):
        MiniGPTTokenizer.from_iterator(chunks)


def test_empty_text_is_refused():
    with pytest.raises(ValueError, match="at least one character"):
        MiniGPTTokenizer.from_text("")


def test_bytes_are_refused():
    with pytest.raises(TypeError, match="not bytes; decode"):
        MiniGPTTokenizer.from_text(b"abc")


def test_half_a_surrogate_pair_is_refused(shakespeare):
    with pytest.raises(ValueError, match=r"U\+DC80.*half of a surrogate pair"):
        MiniGPTTokenizer.from_text("a\udc80")
    with pytest.raises(ValueError, match=r"U\+D83D.*half of a surrogate pair"):
        shakespeare(["fine", "not \ud83d"])


def test_a_vocabulary_of_longer_tokens_is_refused(tmp_path):
    backend = Tokenizer(BPE(vocab={"t": 0, "h": 1, "th": 2}, merges=[("t", "h")]))
    TokenizersBackend(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'th' is one token"):
        MiniGPTTokenizer.from_pretrained(tmp_path).encode_array("th")


# Round trips


@pytest.mark.parametrize("text", DIFFICULT_TEXTS.values(), ids=DIFFICULT_TEXTS.keys())
def test_difficult_text_comes_back_exactly(text):
    tokenizer = MiniGPTTokenizer.from_text("".join(DIFFICULT_TEXTS.values()))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"]) == text
    assert tokenizer.decode_array(tokenizer.encode_array(text)) == text
    assert tokenizer.batch_decode(tokenizer([text, "a"])["input_ids"]) == [text, "a"]


@pytest.mark.parametrize("seed", range(20))
def test_random_unicode_agrees_with_a_dictionary_and_comes_back(seed):
    rng = random.Random(seed)
    alphabet = random_text(rng, rng.randint(1, 300))
    text = "".join(rng.choices(alphabet, k=rng.randint(1, 2000)))
    tokenizer = MiniGPTTokenizer.from_text(alphabet)
    index_of = {character: index for index, character in enumerate(sorted(set(alphabet)))}
    expected = [index_of[character] for character in text]
    assert tokenizer.encode_array(text).tolist() == tokenizer(text)["input_ids"] == expected
    assert tokenizer.decode_array(expected) == tokenizer.decode(expected) == text


@pytest.mark.parametrize("seed", range(20))
def test_random_unknown_characters_become_one_unknown_token_each(seed):
    rng = random.Random(seed)
    alphabet = random_text(rng, 50)
    text = "".join(rng.choices(alphabet + random_text(rng, 50), k=500))
    tokenizer = MiniGPTTokenizer.from_text(alphabet)
    index_of = {character: index for index, character in enumerate(sorted(set(alphabet)))}
    expected = [index_of.get(character, tokenizer.unk_token_id) for character in text]
    assert tokenizer.encode_array(text, errors="unk").tolist() == tokenizer(text)["input_ids"] == expected


def test_special_tokens_can_be_left_out_of_the_text(shakespeare):
    ids = [shakespeare.pad_token_id, *shakespeare.encode("so"), shakespeare.unk_token_id, shakespeare.eos_token_id]
    assert shakespeare.decode(ids) == "<|pad|>so<|unk|><|endoftext|>"
    assert shakespeare.decode(ids, skip_special_tokens=True) == "so"


def test_spelled_out_special_token_is_characters_in_a_corpus_and_a_token_in_a_prompt():
    tokenizer = MiniGPTTokenizer.from_text("so <|endoftext|>")
    text = "so<|endoftext|>"
    as_characters = [tokenizer.stoi[character] for character in text]
    assert tokenizer.encode_array(text).tolist() == as_characters
    assert tokenizer(text)["input_ids"] == [*as_characters[:2], tokenizer.eos_token_id]
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == as_characters


def test_splitting_special_tokens_can_be_a_setting_and_is_saved(tmp_path):
    tokenizer = MiniGPTTokenizer.from_text("so<|endoftext|>", split_special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    for same in (tokenizer, MiniGPTTokenizer.from_pretrained(tmp_path), TokenizersBackend.from_pretrained(tmp_path)):
        assert same("so<|endoftext|>")["input_ids"] == tokenizer.encode_array("so<|endoftext|>").tolist()


# Arrays


def test_arrays_are_uint16_until_the_vocabulary_outgrows_it():
    assert MiniGPTTokenizer.from_text("ab").encode_array("ab").dtype == np.uint16
    fits = "".join(map(chr, range(0x10000, 0x20000 - 3)))
    tokenizer = MiniGPTTokenizer.from_text(fits)
    assert len(tokenizer) == 65536
    assert tokenizer.encode_array(fits).dtype == np.uint16
    tokenizer.add_tokens("one too many")
    ids = tokenizer.encode_array(fits)
    assert ids.dtype == np.uint32
    assert np.array_equal(ids, np.arange(len(fits)))


def test_arrays_of_nothing_are_empty(shakespeare):
    ids = shakespeare.encode_array("")
    assert (ids.shape, ids.dtype) == ((0,), np.uint16)
    assert shakespeare.decode_array(ids) == shakespeare.decode_array([]) == ""


def test_tables_are_no_larger_than_the_characters_need(shakespeare):
    tracemalloc.start()
    shakespeare.decode_array(shakespeare.encode_array("a"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_decode_array_gives_special_tokens_their_text(shakespeare):
    ids = [65, 66, *shakespeare.encode("so"), 67, 67, *shakespeare.encode("it goes"), 65]
    assert (
        shakespeare.decode_array(ids)
        == shakespeare.decode(ids)
        == "<|endoftext|><|unk|>so<|pad|><|pad|>it goes<|endoftext|>"
    )


@pytest.mark.parametrize("convert", [list, torch.tensor, np.int64, np.uint8, lambda ids: np.array(ids)[::1]])
def test_decode_array_takes_integers_of_any_kind(shakespeare, convert):
    assert shakespeare.decode_array(convert(shakespeare.encode("any kind"))) == "any kind"


@pytest.mark.parametrize(("ids", "named"), [([0, 68], "id 68 at position 1"), ([0, 1, -1], "id -1 at position 2")])
def test_decode_array_names_the_id_that_the_vocabulary_lacks(shakespeare, ids, named):
    with pytest.raises(ValueError, match=f"{named} is outside the vocabulary, which ends at 67"):
        shakespeare.decode_array(ids)


@pytest.mark.parametrize("ids", [[[1, 2]], 3, [1.0], [True]])
def test_decode_array_refuses_what_is_not_a_row_of_integers(shakespeare, ids):
    with pytest.raises(ValueError, match="integers in one row"):
        shakespeare.decode_array(ids)


# Unknown characters


def test_the_ordinary_door_can_be_strict_too(shakespeare):
    with pytest.raises(UnknownCharacterError) as caught:
        shakespeare(["to be", "or naïve<|endoftext|>"], errors="strict")
    assert caught.value.first_positions == {"ï": 5}
    assert shakespeare("to be<|endoftext|>", errors="strict")["input_ids"][-1] == shakespeare.eos_token_id
    with pytest.raises(ValueError, match="can only be"):
        shakespeare("to be", errors="ignore")


def test_strict_encoding_names_characters_code_points_positions_and_the_remedy(shakespeare):
    with pytest.raises(UnknownCharacterError) as caught:
        shakespeare.encode_array("Naïve Zoë — 🎭, naïve — Æ")
    message = str(caught.value)
    assert "'ï' (U+00EF) first at position 2, 'ë' (U+00EB) first at position 8, '—' (U+2014) first at" in message
    assert "position 10, '🎭' (U+1F3AD) first at position 12, 'Æ' (U+00C6) first at position 23; " in message
    assert message.endswith("take out what is missing, or train on text that has it")
    assert caught.value.first_positions == {"ï": 2, "ë": 8, "—": 10, "🎭": 12, "Æ": 23}
    assert isinstance(caught.value, ValueError)


def test_strict_encoding_finds_characters_beyond_and_between_the_known_ones():
    tokenizer = MiniGPTTokenizer.from_text("bd")
    for unknown in ["a", "c", "e", "f", "\x00", "\U0010ffff", "\ud800"]:
        with pytest.raises(UnknownCharacterError) as caught:
            tokenizer.encode_array("bd" + unknown)
        assert caught.value.first_positions == {unknown: 2}


def test_many_unknown_characters_are_counted_instead_of_listed(shakespeare):
    with pytest.raises(UnknownCharacterError, match=r"'0'.*'5' \(U\+0035\) first at position 4 and 3 more; "):
        shakespeare.encode_array("01245678")


def test_unknown_character_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(UnknownCharacterError({"é": 3})))
    assert error.first_positions == {"é": 3}
    assert "U+00E9" in str(error)


def test_another_way_to_treat_errors_is_refused(shakespeare):
    with pytest.raises(ValueError, match="'ignore'"):
        shakespeare.encode_array("a", errors="ignore")


@pytest.fixture
def warnings_of(caplog):
    def run(call) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            call()
        return [record.getMessage() for record in caplog.records]

    return run


def test_unknown_characters_are_warned_about_once_per_tokenizer(warnings_of):
    for _ in range(2):
        tokenizer = MiniGPTTokenizer.from_text("abc")
        (message,) = warnings_of(lambda tokenizer=tokenizer: tokenizer("aéb—"))
        assert "'é' (U+00E9), '—' (U+2014)" in message
        assert "<|unk|>" in message
        assert warnings_of(lambda tokenizer=tokenizer: tokenizer("ö")) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda tokenizer: tokenizer(["ab", "é"]),
        lambda tokenizer: tokenizer("ab", "é"),
        lambda tokenizer: tokenizer(["ab", "ab"], ["ab", "é"]),
        lambda tokenizer: tokenizer(["a", "é"], is_split_into_words=True),
        lambda tokenizer: tokenizer.encode("é"),
        lambda tokenizer: tokenizer.tokenize("é"),
        lambda tokenizer: tokenizer("<|endoftext|>é"),
    ],
    ids=["batch", "pair", "batch of pairs", "words", "encode", "tokenize", "beside a special token"],
)
def test_every_way_in_warns_of_unknown_characters(warnings_of, call):
    (message,) = warnings_of(lambda: call(MiniGPTTokenizer.from_text("abc")))
    assert "lacks 'é' (U+00E9);" in message


def test_special_tokens_are_not_taken_for_unknown_characters(warnings_of):
    tokenizer = MiniGPTTokenizer.from_text("abc")
    tokenizer.add_tokens(["<tag>"])
    assert warnings_of(lambda: tokenizer("a<|endoftext|>b<|unk|><tag>")) == []
    (message,) = warnings_of(lambda: tokenizer("a<|pad|><tag>", split_special_tokens=True))
    assert "'<' (U+003C), 'd' (U+0064), 'p' (U+0070), '|' (U+007C);" not in message
    assert "'<' (U+003C), '>' (U+003E), 'd' (U+0064), 'p' (U+0070), '|' (U+007C);" in message


# What every tokenizer on the Hub does


def test_batches_are_padded_on_the_right_unless_told_otherwise(shakespeare):
    a, b, pad = shakespeare.stoi["a"], shakespeare.stoi["b"], shakespeare.pad_token_id
    batch = shakespeare(["ab", "b"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[a, b], [b, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    left = shakespeare(["ab", "b"], padding="max_length", max_length=3, padding_side="left", return_tensors="np")
    assert left["input_ids"].tolist() == [[pad, a, b], [pad, pad, b]]
    assert shakespeare.pad({"input_ids": [[a, b], [b]]})["input_ids"] == [[a, b], [b, pad]]


def test_texts_are_truncated_on_the_side_asked_for(shakespeare):
    assert shakespeare.decode(shakespeare("abcdef", truncation=True, max_length=4)["input_ids"]) == "abcd"
    shakespeare.truncation_side = "left"
    assert shakespeare.decode(shakespeare("abcdef", truncation=True, max_length=4)["input_ids"]) == "cdef"
    shakespeare.truncation_side = "right"
    windows = shakespeare("abcdef", truncation=True, max_length=4, stride=1, return_overflowing_tokens=True)
    assert shakespeare.batch_decode(windows["input_ids"]) == ["abcd", "def"]


def test_pairs_are_joined_without_anything_between(shakespeare):
    pair = shakespeare("ab", "cd", return_token_type_ids=True)
    assert shakespeare.decode(pair["input_ids"]) == "abcd"
    assert pair["token_type_ids"] == [0, 0, 1, 1]


def test_offsets_lead_from_tokens_to_characters_and_back():
    text = "a🎉e\u0301\r\n<|endoftext|>é?"
    batch = MiniGPTTokenizer.from_text(text[:-1])(text, return_offsets_mapping=True)
    pieces = [text[start:end] for start, end in batch["offset_mapping"]]
    assert pieces == ["a", "🎉", "e", "\u0301", "\r", "\n", "<|endoftext|>", "é", "?"]
    assert [batch.char_to_token(at) for at in (0, 1, 6, 18, 19, 20)] == [0, 1, 6, 6, 7, 8]


def test_empty_text_is_no_tokens(shakespeare):
    assert shakespeare("")["input_ids"] == []
    assert shakespeare(["", "a"], padding=True)["attention_mask"] == [[0], [1]]
    assert shakespeare("", return_tensors="pt")["input_ids"].dtype == torch.int64


def test_chat_template_gives_assistant_masks(shakespeare):
    shakespeare.chat_template = (
        "{% for message in messages %}{{ message.role + ': ' }}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
        "{% else %}{{ message.content + '\n' }}{% endif %}{% endfor %}"
    )
    chat = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "Romeo."}]
    batch = shakespeare.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert shakespeare.decode(batch["input_ids"]) == "user: who?\nassistant: Romeo.<|endoftext|>"
    spoken = [token for token, mask in zip(batch["input_ids"], batch["assistant_masks"], strict=True) if mask]
    assert spoken == [*shakespeare.encode("Romeo."), shakespeare.eos_token_id]


def test_chat_keeps_control_tokens_of_a_user_as_characters(warnings_of):
    tokenizer = MiniGPTTokenizer.from_text(
        "abc\n<|endoftext|>", chat_template="{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"
    )
    chat = [{"role": "user", "content": "a<|endoftext|>b"}]
    ids: list[int] = []
    sanitized = {"sanitize_control_tokens": True, "return_dict": False}
    assert warnings_of(lambda: ids.extend(tokenizer.apply_chat_template(chat, **sanitized))) == []
    assert ids == [*tokenizer.encode_array("a<|endoftext|>b").tolist(), tokenizer.eos_token_id]


def test_added_tokens_are_tokens_in_prompts_and_characters_in_arrays():
    tokenizer = MiniGPTTokenizer.from_text("<user>a")
    before = tokenizer.encode_array("<user>").tolist()
    assert tokenizer.add_tokens(["<user>"]) == 1
    assert tokenizer("<user>a")["input_ids"] == [len(tokenizer) - 1, tokenizer.stoi["a"]]
    assert tokenizer.encode_array("<user>").tolist() == before
    assert tokenizer.decode_array([len(tokenizer) - 1]) == "<user>"


def test_an_added_character_is_known_everywhere(shakespeare):
    with pytest.raises(UnknownCharacterError):
        shakespeare.encode_array("é")
    shakespeare.add_tokens(["é"])
    assert shakespeare.stoi["é"] == 68
    assert shakespeare.encode_array("é").tolist() == shakespeare.encode("é") == [68]
    assert shakespeare.decode_array([68, 0]) == "é\n"


# Saving, loading, copying


def assert_same_tokenizer(loaded, tokenizer):
    text = "a b<|endoftext|>\nc<user>é"
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.padding_side == tokenizer.padding_side
    assert loaded.model_max_length == tokenizer.model_max_length
    assert loaded.chat_template == tokenizer.chat_template


@pytest.fixture
def dressed() -> MiniGPTTokenizer:
    """A tokenizer with everything that can be lost on the way."""
    tokenizer = MiniGPTTokenizer.from_text(
        "abc \n🎉\x00", model_max_length=32, padding_side="left", chat_template="{{ messages }}"
    )
    tokenizer.add_tokens(["<user>"])
    tokenizer.add_special_tokens({"bos_token": "<|start|>"})
    return tokenizer


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_copies_are_the_same_tokenizer(dressed, duplicate):
    dressed.encode_array("abc")
    twin = duplicate(dressed)
    assert type(twin) is MiniGPTTokenizer
    assert_same_tokenizer(twin, dressed)
    assert twin.encode_array("cab").tolist() == dressed.encode_array("cab").tolist()


def test_saved_and_loaded_tokenizer_is_the_same(dressed, tmp_path):
    dressed.save_pretrained(tmp_path)
    loaded = MiniGPTTokenizer.from_pretrained(tmp_path)
    assert_same_tokenizer(loaded, dressed)
    assert loaded.stoi == dressed.stoi
    assert loaded.decode_array(loaded.encode_array("abc \n🎉\x00")) == "abc \n🎉\x00"
    loaded.save_pretrained(tmp_path / "again")
    assert_same_tokenizer(MiniGPTTokenizer.from_pretrained(tmp_path / "again"), dressed)


def test_saved_folder_needs_no_code_and_tells_nothing_of_the_machine(shakespeare, tmp_path):
    shakespeare.save_pretrained(tmp_path / "first")
    MiniGPTTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for folder in (tmp_path / "first", tmp_path / "second"):
        files = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
        assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
        assert "auto_map" not in files["tokenizer_config.json"]
        assert tmp_path.name not in "".join(files.values())


def use(tokenizer):
    """Everything after which `datasets` must still take it for the same tokenizer."""
    tokenizer("cab")
    tokenizer(["cab", "☃"], padding=True, truncation=True, max_length=2)
    tokenizer("cab" * 50)
    tokenizer.decode([0, 1])
    tokenizer.decode_array(tokenizer.encode_array("cab"))


@pytest.mark.parametrize("duplicate", [lambda tokenizer: tokenizer, copy.deepcopy])
def test_use_does_not_change_the_fingerprint_and_another_vocabulary_does(dressed, duplicate):
    before = Hasher.hash(dressed)
    use(dressed)
    assert Hasher.hash(duplicate(dressed)) == before
    dressed.add_tokens(["é"])
    assert Hasher.hash(dressed) != before


def encode_row(row, tokenizer):
    return {"input_ids": tokenizer(row["text"], padding="max_length", truncation=True)["input_ids"]}


def test_map_finds_its_cache_again_after_use(dressed, tmp_path):
    Dataset.from_dict({"text": ["cab", "a b ☃"]}).save_to_disk(tmp_path / "data")

    def encode(tokenizer):
        mapped = load_from_disk(tmp_path / "data").map(partial(encode_row, tokenizer=tokenizer))
        return [Path(file["filename"]).name for file in mapped.cache_files]

    first = encode(dressed)
    use(dressed)
    assert encode(dressed) == first
    assert len(list((tmp_path / "data").glob("cache-*.arrow"))) == 1


@pytest.mark.slow
def test_another_process_gives_the_same_fingerprint(dressed, tmp_path):
    dressed.save_pretrained(tmp_path)
    tokenizer = MiniGPTTokenizer.from_pretrained(tmp_path)
    use(tokenizer)
    print_hash = (
        "import sys, minigpt; from datasets.fingerprint import Hasher;"
        "print(Hasher.hash(minigpt.MiniGPTTokenizer.from_pretrained(sys.argv[1])))"
    )
    command = [sys.executable, "-c", print_hash, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split()[-1] == Hasher.hash(tokenizer)


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
@pytest.mark.parametrize("config_class", [None, MiniGPTConfig, BigramConfig])
def test_auto_tokenizer_finds_our_class_where_the_package_is(dressed, tmp_path, config_class, trust_remote_code):
    if config_class is not None:
        config_class().save_pretrained(tmp_path)
    dressed.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
    assert type(loaded) is MiniGPTTokenizer
    assert_same_tokenizer(loaded, dressed)


LOAD_WITHOUT_THE_PACKAGE = """
import json, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "minigpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoPackage())
from transformers import AutoTokenizer

for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batch = tokenizer([sys.argv[1], "a"], padding=True)
    print(json.dumps({
        "class": type(tokenizer).__name__,
        "ids": batch["input_ids"],
        "text": tokenizer.decode(batch["input_ids"][0]),
        "max_length": tokenizer.model_max_length,
    }))
    print("end of", folder, file=sys.stderr)
"""


def test_auto_tokenizer_loads_it_where_the_package_is_not(dressed, tmp_path):
    alone, beside_a_model = tmp_path / "alone", tmp_path / "model"
    for folder in (alone, beside_a_model):
        dressed.save_pretrained(folder)
    auto_map = {"AutoConfig": "configuration_minigpt.MiniGPTConfig"}
    config = json.dumps({"model_type": "minigpt", "auto_map": auto_map})
    (beside_a_model / "config.json").write_text(config, encoding="utf-8")

    text = "cab<user>\n🎉é<|endoftext|>"
    python = [sys.executable, "-I", "-X", "utf8", "-W", "error"]
    done = subprocess.run(
        [*python, "-c", LOAD_WITHOUT_THE_PACKAGE, text, str(alone), str(beside_a_model)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = dressed([text, "a"], padding=True)["input_ids"]
    for line in done.stdout.splitlines():
        assert json.loads(line) == {
            "class": "TokenizersBackend",
            "ids": expected,
            "text": "cab<user>\n🎉<|unk|><|endoftext|>",
            "max_length": 32,
        }
    assert len(done.stdout.splitlines()) == 2
    messages = done.stderr.splitlines()
    assert messages[0] == f"end of {alone}"
    # Beside a model that it does not know, transformers says so itself, whatever the tokenizer.
    assert all("model of type `minigpt`" in message for message in messages[1:-1])


def test_the_file_needs_nothing_else_of_the_package():
    tree = ast.parse(inspect.getsource(tokenization_minigpt))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert all(node.level == 0 for node in imports if isinstance(node, ast.ImportFrom))
    assert "minigpt" not in "".join(ast.unparse(node) for node in imports)


def test_a_tokenizer_saved_with_the_decoder_of_before_encodes_and_decodes_the_same(shakespeare, tmp_path):
    text = "What say you , sir ?\n"
    shakespeare.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"decoder": {"type": "Fuse"}}
    file.write_text(json.dumps(settings), encoding="utf-8")
    for loaded in (MiniGPTTokenizer.from_pretrained(tmp_path), TokenizersBackend.from_pretrained(tmp_path)):
        assert loaded(text)["input_ids"] == shakespeare(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


# Training on other texts


def test_training_on_other_texts_gives_their_characters_with_the_same_settings(dressed, tmp_path):
    dressed.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    texts = [["To be,", "or not"], "to be\n"]
    tokenizer = dressed.train_new_from_iterator(iter(texts), 100, length=3, new_special_tokens=["<|new|>"])
    assert type(tokenizer) is MiniGPTTokenizer
    assert list(tokenizer.stoi) == sorted(set("To be,or not\n"))
    assert tokenizer.special_tokens_map == dressed.special_tokens_map
    assert tokenizer.extra_special_tokens == ["<|turn|>", "<|new|>"]
    for setting in ("model_max_length", "chat_template", "padding_side"):
        assert getattr(tokenizer, setting) == getattr(dressed, setting)
    tokenizer.save_pretrained(tmp_path)
    text = "not<|turn|> to be<|endoftext|>\n"
    for same in (tokenizer, MiniGPTTokenizer.from_pretrained(tmp_path), TokenizersBackend.from_pretrained(tmp_path)):
        assert same.decode(same(text)["input_ids"]) == text
        assert same.get_vocab() == tokenizer.get_vocab()
        assert len(same(text)["input_ids"]) == len("not to be\n") + 2
    assert tokenizer.encode_array("not to be").tolist() == [sorted(tokenizer.stoi).index(c) for c in "not to be"]


def test_training_on_other_texts_can_rename_the_special_tokens(shakespeare):
    names = {token: f"{token}a" for token in shakespeare.all_special_tokens}
    tokenizer = shakespeare.train_new_from_iterator([["abc"]], 100, special_tokens_map=names)
    assert tokenizer.get_vocab() == {"a": 0, "b": 1, "c": 2, "<|endoftext|>a": 3, "<|unk|>a": 4, "<|pad|>a": 5}
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (3, 4, 5)
    assert tokenizer("a?")["input_ids"] == [0, 4]


def test_a_vocabulary_smaller_than_the_characters_of_the_other_texts_is_refused(shakespeare):
    with pytest.raises(ValueError, match=r"3 different characters, which make a vocabulary of 6 tokens.* 5; raise"):
        shakespeare.train_new_from_iterator([["abc"]], 5)
