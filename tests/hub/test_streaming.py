"""Text appears as it is made, and adds up to what is decoded at once: for characters, bytes and words."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from minigpt import MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.hub.chatting.streaming import TokenStreamer
from minigpt.tokenization.subword import train_bpe

TEXT = "Grüße, 世界! 👩‍🚀 a\u0301\n\n two  spaces — “quotes”.\n"


class Collector(TokenStreamer):
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)


def streamed(tokenizer: PreTrainedTokenizerBase, ids: list[int], **kwargs: object) -> list[str]:
    """What is printed after each token; the last piece is what the end brings."""
    collector, pieces = Collector(tokenizer, **kwargs), []
    for index in ids:
        collector.put(torch.tensor([index]))
        pieces.append("".join(collector.pieces))
        collector.pieces.clear()
    collector.end()
    return [*pieces, "".join(collector.pieces)]


def bytes_only() -> TokenizersBackend:
    """Byte-level BPE that merges nothing: every character beyond ASCII is several tokens."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return TokenizersBackend(tokenizer_object=backend)


def words_and_bytes() -> TokenizersBackend:
    """As SentencePiece has it: a word's piece carries the space before it, and what is no piece becomes bytes."""
    pieces = ["<unk>", "▁two", "▁spaces", "▁a", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TokenizersBackend(tokenizer_object=backend)


TOKENIZERS = {
    "characters": lambda: MiniGPTTokenizer.from_text(TEXT),
    "bytes": bytes_only,
    "byte pairs": lambda: train_bpe([TEXT * 3], 290),
    "words and bytes": words_and_bytes,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_streamed_adds_up_to_what_is_decoded_at_once(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer(TEXT)["input_ids"]
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert TEXT.strip() in "".join(pieces)
    # The stock streamer would have held each word back.
    assert sum(map(bool, pieces[:-1])) > 2 * len(TEXT.split())


def test_characters_appear_one_by_one() -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    assert streamed(tokenizer, tokenizer(TEXT)["input_ids"]) == [*TEXT, ""]


@pytest.mark.parametrize("make", [bytes_only, words_and_bytes])
def test_a_character_of_several_bytes_appears_whole_with_its_last_byte(make) -> None:
    tokenizer = make()
    ids = tokenizer("世👩")["input_ids"][-7:]  # a word's piece may stand before the bytes
    assert streamed(tokenizer, ids) == ["", "", "世", "", "", "", "👩", ""]


def test_bytes_that_never_become_a_character_are_shown_as_decoding_shows_them() -> None:
    tokenizer = bytes_only()
    ids = tokenizer("a世b世")["input_ids"]
    broken = [*ids[:3], *ids[4:-1]]  # each 世 lacks its last byte
    assert "".join(streamed(tokenizer, broken)) == tokenizer.decode(broken) == "a\ufffdb\ufffd"


def test_a_replacement_character_of_the_text_itself_is_not_lost() -> None:
    text = "a\ufffdb\ufffd"
    tokenizer = MiniGPTTokenizer.from_text(text)
    assert streamed(tokenizer, tokenizer(text)["input_ids"]) == ["a", "", "\ufffdb", "", "\ufffd"]


def test_special_tokens_are_skipped_and_the_spaces_around_them_are_not() -> None:
    tokenizer = words_and_bytes()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    two, spaces = tokenizer.convert_tokens_to_ids(["▁two", "▁spaces"])
    ids = [tokenizer.eos_token_id, two, tokenizer.eos_token_id, spaces, tokenizer.eos_token_id]
    pieces = streamed(tokenizer, ids, skip_special_tokens=True)
    assert pieces == ["", "two", "", " spaces", "", ""]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_prompt_is_printed_or_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = MiniGPTTokenizer.from_text("abc\n")
    config = MiniGPTConfig(vocab_size=len(tokenizer), hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    model = MiniGPTForCausalLM(config).eval()
    prompt = torch.tensor([tokenizer.encode("abc")])
    kwargs = {"max_new_tokens": 9, "do_sample": False, "suppress_tokens": tokenizer.all_special_ids}
    text = tokenizer.decode(model.generate(prompt, **kwargs)[0])
    for skip_prompt, expected in ((False, text), (True, text.removeprefix("abc"))):
        streamer = TokenStreamer(tokenizer, skip_prompt=skip_prompt)
        for _ in range(2):  # a streamer serves again
            model.generate(prompt, streamer=streamer, **kwargs)
        assert capsys.readouterr().out == f"{expected}\n" * 2


def test_two_texts_at_once_are_refused() -> None:
    streamer = TokenStreamer(MiniGPTTokenizer.from_text("abc"))
    with pytest.raises(ValueError, match="prints one text and got 2"):
        streamer.put(torch.tensor([[0, 1], [1, 2]]))


@pytest.mark.door("`minigpt generate --stream`: letters appear as they are made", "transformers")
@pytest.mark.slow
def test_the_first_letters_are_there_before_the_last_are_made(tmp_path: Path) -> None:
    """The text has no end and no space in it: whatever is read was printed while it was made."""
    tokenizer = MiniGPTTokenizer.from_text("ab")
    model = MiniGPTForCausalLM(
        MiniGPTConfig(vocab_size=len(tokenizer), hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    )
    model.generation_config.suppress_tokens = tokenizer.all_special_ids
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "minigpt", "generate", str(tmp_path), "--prompt", "ab", "--stream"]
    with subprocess.Popen([*command, "--max_new_tokens", "1000000000"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        impatience = threading.Timer(300, process.kill)
        impatience.start()
        text = process.stdout.read(200)
        impatience.cancel()
        assert process.poll() is None
        process.kill()
    assert text.startswith(b"ab")
    assert set(text) == set(b"ab")
