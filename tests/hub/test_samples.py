"""Claims about `minigpt generate`: several texts at once, stop strings, and a prompt from a file."""

import io
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, set_seed

from minigpt import MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.hub.chatting import samples
from minigpt.hub.chatting.samples import stream_sample, write_samples
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.tokenization.subword import train_bpe

CHARACTERS = "abcdefgh .\n"
LINE = "-" * 15


def build(tokenizer: PreTrainedTokenizerFast, *, ends: bool = False, block: int = 16) -> MiniGPTForCausalLM:
    """A model that has learned nothing; with `ends` it was trained on documents, and ends a text as any other token."""
    torch.manual_seed(3)
    config = MiniGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=block,
    )
    model = MiniGPTForCausalLM(config).eval()
    end = tokenizer.eos_token_id
    held_back = [token for token in tokenizer.all_special_ids if token != end or not ends]
    ids = {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = lecture_generation_config(held_back, **ids, **({"bos_token_id": end} if ends else {}))
    return model


@pytest.fixture(params=[False, True], ids=["plain text", "documents"])
def ends(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def folder(ends: bool, tmp_path: Path) -> str:
    tokenizer = MiniGPTTokenizer.from_text(CHARACTERS)
    build(tokenizer, ends=ends).save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    return str(tmp_path / "run")


def written(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["generate", *argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("ends", [True])
def test_names_are_written_one_a_line_each_up_to_its_end(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, model = MiniGPTTokenizer.from_pretrained(folder), MiniGPTForCausalLM.from_pretrained(folder)
    end = tokenizer.eos_token_id
    set_seed(1)
    rows = model.generate(
        torch.full((20, 1), end), max_new_tokens=60, suppress_tokens=[0, *tokenizer.all_special_ids[1:]]
    )
    names = [tokenizer.decode(row[1:]).partition(tokenizer.eos_token)[0] for row in rows]
    assert len({len(name) for name in names}) > 3
    model.generation_config.suppress_tokens = [0, *tokenizer.all_special_ids[1:]]
    model.save_pretrained(folder)
    asked = [folder, "-n", "20", "--max_new_tokens", "60"]
    assert written(capsys, *asked, "--seed", "1") == "".join(f"{name}\n" for name in names)
    assert written(capsys, *asked, "--seed", "1") != written(capsys, *asked, "--seed", "2")


@pytest.mark.parametrize("ends", [False])
def test_texts_of_several_lines_have_a_line_between_them(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = written(capsys, folder, "-n", "3", "--prompt", "a\nb", "--max_new_tokens", "40", "--seed", "1")
    texts = text.removesuffix("\n").split(f"\n{LINE}\n")
    assert [part[:3] for part in texts] == ["a\nb"] * 3
    assert [len(part) for part in texts] == [43] * 3
    assert len(set(texts)) == 3


@pytest.mark.parametrize("ends", [False])
def test_once_a_text_has_several_lines_every_later_one_is_set_apart(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["one", "two\nlines", "three", "four"]
    monkeypatch.setattr("minigpt.hub.chatting.samples.write_samples", lambda *_, **__: (("", text) for text in texts))
    assert written(capsys, folder, "-n", "4") == f"one\n{LINE}\ntwo\nlines\n{LINE}\nthree\n{LINE}\nfour\n"


def test_texts_are_made_in_batches_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = MiniGPTTokenizer.from_text(CHARACTERS)
    model = build(tokenizer)
    batches = []
    generate = type(model).generate

    def count(self: MiniGPTForCausalLM, inputs: torch.Tensor, **kwargs: object) -> torch.Tensor:
        batches.append(inputs.shape[0])
        return generate(self, inputs, **kwargs)

    monkeypatch.setattr(type(model), "generate", count)
    assert len(list(write_samples(model, tokenizer, torch.tensor([[1]]), count=20, max_new_tokens=50))) == 20
    monkeypatch.setattr(samples, "_TOKENS_AT_ONCE", 8 * 51)
    assert len(list(write_samples(model, tokenizer, torch.tensor([[1]]), count=20, max_new_tokens=50))) == 20
    assert batches == [20, 8, 8, 4]


# Stop strings.


def up_to(text: str, stops: list[str]) -> str:
    """The part before the first of the stop strings, none of which may begin inside another."""
    return text[: min([place for stop in stops if (place := text.find(stop)) >= 0], default=None)]


def test_each_text_ends_before_its_first_stop_string(ends: bool) -> None:
    tokenizer = MiniGPTTokenizer.from_text(CHARACTERS)
    model, prompt, stops = build(tokenizer, ends=ends), torch.tensor([[1, 2]]), ["\n", "ac", "ga"]
    how = {"count": 8, "max_new_tokens": 80}
    set_seed(1)
    whole = [text for _, text in write_samples(model, tokenizer, prompt, **how)]
    set_seed(1)
    stopped = list(write_samples(model, tokenizer, prompt, stops=stops, **how))
    assert stopped == [(tokenizer.decode([1, 2]), up_to(text, stops)) for text in whole]
    assert len(set(stopped)) > 4
    # Those of the generation config are kept, as transformers keeps them.
    model.generation_config.stop_strings = stops
    set_seed(1)
    kept = [text for _, text in write_samples(model, tokenizer, prompt, **how)]
    assert all(one in (text, *(text + stop for stop in stops)) for one, (_, text) in zip(kept, stopped, strict=True))
    assert kept != [text for _, text in stopped]


@pytest.mark.parametrize("stops", [["e"], [r"\n"], ["bad", "ab"], ["ef", "fab"], ["hhhhhh"], []])
def test_a_streamed_text_is_the_text(
    ends: bool, folder: str, stops: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [flag for stop in stops for flag in ("--stop", stop)]
    for seed in ("1", "2", "3"):
        asked = [folder, "--prompt", "ab", "--max_new_tokens", "60", "--seed", seed]
        whole = written(capsys, *asked)
        once, streamed = written(capsys, *asked, *flags), written(capsys, *asked, *flags, "--stream")
        assert once == streamed
        stops = [stop.replace(r"\n", "\n") for stop in stops]
        assert once == "ab" + up_to(whole[2:-1], stops) + "\n"


def test_stop_strings_are_found_inside_tokens_and_across_them(capsys: pytest.CaptureFixture[str]) -> None:
    text = "the cat sat on the mat, and the hat. naïve café ☃\n" * 40
    tokenizer = train_bpe([text], 280)
    model = build(tokenizer)
    prompt = torch.tensor([tokenizer("the", add_special_tokens=False)["input_ids"]])
    how = {"max_new_tokens": 60, "do_sample": True}
    set_seed(1)
    [(start, whole)] = write_samples(model, tokenizer, prompt, **how)
    assert start == "the"
    for length in (1, 2, 5):
        for place in range(0, 40, 3):
            stop = whole[place : place + length]
            if "\ufffd" in stop:  # bytes that are no character
                continue
            set_seed(1)
            [(_, text)] = write_samples(model, tokenizer, prompt, stops=[stop], **how)
            assert text == whole[: whole.index(stop)]
            set_seed(1)
            stream_sample(model, tokenizer, prompt, stops=[stop], **how)
            assert capsys.readouterr().out == f"the{text}\n"


def test_a_stop_string_works_in_a_foreign_vocabulary_of_a_few_characters() -> None:
    # The stop strings of transformers fail here: they look at tokens after the letters abcdef.
    backend = Tokenizer(BPE(vocab={"0": 0, "1": 1, "2": 2, "<e>": 3}, merges=[]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", pad_token="<e>")
    model = build(tokenizer)
    prompt = torch.tensor([[1]])
    set_seed(1)
    [(_, whole)] = write_samples(model, tokenizer, prompt, max_new_tokens=60, do_sample=True)
    assert len(whole) == 60
    for stop in ("02", "10", "abc"):
        set_seed(1)
        [(_, text)] = write_samples(model, tokenizer, prompt, stops=[stop], max_new_tokens=60, do_sample=True)
        assert text == whole.partition(stop)[0]


@pytest.mark.parametrize("ends", [False])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stop", ""], "argument --stop: must not be empty"),
        (["--stop", "a?"], "--stop 'a?' never occurs in a text of this model: the vocabulary lacks '?'"),
        (["-n", "0"], "argument -n/--num_samples: must be a whole number of at least 1, got 0"),
        (["-n", "2", "--stream"], "leave out -n or --stream."),
        (["-n", "2", "--temperature", "0"], "leave out -n or --temperature."),
        (["--prompt", "a", "--prompt_file", "-"], "not allowed with argument --prompt"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    folder: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", folder, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


# A prompt from a file.


@pytest.mark.parametrize("ends", [False])
@pytest.mark.parametrize("prompt", ["ab", " a b \n\n", "\n", "b" * 40])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "with a byte order mark"])
def test_a_prompt_file_is_read_to_the_character(
    folder: str,
    prompt: str,
    mark: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--max_new_tokens", "5", "--seed", "1"]
    expected = written(capsys, folder, "--prompt", prompt, *asked)
    (tmp_path / "prompt.txt").write_bytes(mark + prompt.encode())
    assert written(capsys, folder, "--prompt_file", str(tmp_path / "prompt.txt"), *asked) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(mark + prompt.encode()), encoding="utf-8"))
    assert written(capsys, folder, "--prompt_file", "-", *asked) == expected


@pytest.mark.parametrize("ends", [False])
def test_a_carriage_return_of_a_prompt_file_is_not_lost(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"ab\r\n")
    assert main(["generate", folder, "--prompt_file", str(tmp_path / "prompt.txt")]) == 2
    assert "the vocabulary lacks '\\r'" in capsys.readouterr().err


def test_a_prompt_file_that_cannot_be_read_is_refused_before_a_model_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert main(["generate", "no/such/model", "--prompt_file", str(tmp_path / "latin.txt")]) == 2
    said = f"minigpt: {tmp_path / 'latin.txt'} is not UTF-8 (byte 0xe9 at offset 3); save it as UTF-8.\n"
    assert capsys.readouterr().err == said
    assert main(["generate", "no/such/model", "--prompt_file", str(tmp_path)]) == 1
    assert f"{tmp_path} cannot be used" in capsys.readouterr().err
