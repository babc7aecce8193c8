import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from minigpt.errors import UsageError
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.tokenization.subword import train_bpe
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.data.batches import IGNORED
from minigpt.training.data.text_files import CorpusError
from minigpt.training.instruction import (
    InstructionSettings,
    learn_to_stop,
    prefer_the_likely,
    prepare_instruction,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;'!?\n"
ANSWERS = [f"I am the {'grand ' * number}king." for number in range(12)]


@pytest.fixture(params=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "char":
        return MiniGPTTokenizer.from_text(LETTERS)
    return train_bpe([f"user: Who is there?\nassistant: {answer}\n" for answer in ANSWERS * 5], 280)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return write(tmp_path, ANSWERS)


def write(folder: Path, answers: list[str]) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Who is there{'!' * number}"},
                {"role": "assistant", "content": answer},
            ]
        }
        for number, answer in enumerate(answers)
    ]
    file = folder / "talk.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def test_the_last_tenth_is_held_back_and_one_row_at_least(tokenizer: Any, tmp_path: Path) -> None:
    for number, held_back in ((2, 1), (12, 1), (20, 2)):
        data = prepare_instruction(write(tmp_path, (ANSWERS * 2)[:number]), tokenizer, 300)
        assert (len(data.train), len(data.validation)) == (number - held_back, held_back)
    last = tokenizer.decode(data.validation[-1]["input_ids"])
    assert last == f"user: Who is there{'!' * 19}\nassistant: {ANSWERS[7]}<|endoftext|>\n"
    with pytest.raises(CorpusError, match=r"^talk\.jsonl has 1 conversation to learn from, .* give at least 2\.$"):
        prepare_instruction(write(tmp_path, ANSWERS[:1]), tokenizer, 300)


def test_prompts_are_what_held_back_answers_go_on_from(tokenizer: Any, tmp_path: Path) -> None:
    data = prepare_instruction(write(tmp_path, (ANSWERS * 2)[:20]), tokenizer, 300)
    assert [tokenizer.decode(prompt) for prompt in data.prompts] == [
        f"user: Who is there{'!' * number}\nassistant:" for number in (18, 19)
    ]
    for prompt, row in zip(data.prompts, data.validation, strict=True):
        assert row["input_ids"][: len(prompt)] == prompt
        assert set(row["labels"][: len(prompt)]) == {IGNORED}


def test_rows_that_are_cut_or_left_out_are_said(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(LETTERS)
    file = write(tmp_path, [*ANSWERS[:3], "I am the king" + " and the king" * 9])
    with pytest.raises(CorpusError, match="1 of 4 rows are longer than the block of 80 tokens"):
        prepare_instruction(file, tokenizer, 80)
    whole = prepare_instruction(file, tokenizer, 300)
    assert whole.in_words() == "3 conversations to train on, 1 to validate"
    cut = prepare_instruction(file, tokenizer, 80, InstructionSettings(truncate=True))
    assert cut.in_words() == whole.in_words() + "; 1 longer than the block were cut to its 80 tokens"
    assert cut.describe()["rows_cut"] == 1
    hopeless = write(tmp_path, [*ANSWERS[:3], *["I am the king"] * 20])
    left = prepare_instruction(hopeless, tokenizer, 40, InstructionSettings(truncate=True))
    assert left.in_words().endswith("were cut to its 40 tokens, 12 of them left out, for nothing to learn was left"), (
        left.in_words()
    )


def test_the_characters_of_answers_are_counted_so_that_vocabularies_compare(tokenizer: Any, talk: Path) -> None:
    data = prepare_instruction(talk, tokenizer, 300)
    assert data.validation_characters == len(f" {ANSWERS[-1]}")
    assert data.num_targets == len(tokenizer(f" {ANSWERS[-1]}", add_special_tokens=False)["input_ids"]) + 1
    everything = prepare_instruction(talk, tokenizer, 300, InstructionSettings(assistant_only_loss=False))
    written = f"user: Who is there{'!' * 11}\nassistant: {ANSWERS[-1]}\n"
    first = tokenizer.decode(everything.validation[0]["input_ids"][:1])
    assert everything.validation_characters == len(written) - len(first)


def test_the_hash_is_of_what_is_learned(talk: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(LETTERS)
    whole = prepare_instruction(talk, tokenizer, 300)
    assert prepare_instruction(talk, tokenizer, 200).sha256 == whole.sha256  # no row is as long as either
    everything = prepare_instruction(talk, tokenizer, 300, InstructionSettings(assistant_only_loss=False))
    cut = prepare_instruction(talk, tokenizer, 80, InstructionSettings(truncate=True))
    assert len({whole.sha256, everything.sha256, cut.sha256}) == 3


def test_a_tokenizer_without_an_end_of_text_is_refused(talk: Path) -> None:
    tokenizer = train_bpe(["user: assistant: king\n"] * 5, 262)
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UsageError, match=r"has no end of text, by which .* give it an eos_token"):
        prepare_instruction(talk, endless, 300)


def test_a_model_is_let_end_and_still_kept_from_writing_what_no_text_has() -> None:
    tokenizer = MiniGPTTokenizer.from_text(LETTERS)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, **ids))
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **ids)
    learn_to_stop(model, tokenizer)
    assert set(model.generation_config.suppress_tokens) == {tokenizer.unk_token_id, tokenizer.pad_token_id}
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_the_bias_by_which_an_export_never_ends_is_taken_off(as_dictionary: bool) -> None:
    tokenizer = MiniGPTTokenizer.from_text(LETTERS)
    end = tokenizer.eos_token_id
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1))
    others = [[[3], -1.0], [[end, 3], 2.0]]
    biases = [[[end], -1e6], *others]
    given = {tuple(tokens): bias for tokens, bias in biases} if as_dictionary else biases
    model.generation_config.sequence_bias = given
    learn_to_stop(model, tokenizer)
    assert model.generation_config.sequence_bias == others
    model.generation_config.sequence_bias = [[[end], -1e6]]
    learn_to_stop(model, tokenizer)
    assert model.generation_config.sequence_bias is None


@pytest.mark.parametrize(
    ("settings", "answers_at"),
    [
        ({"do_sample": True}, 0.6),
        ({"do_sample": True, "temperature": 1.0}, 0.6),
        ({"do_sample": True, "temperature": 0.9}, 0.9),
        ({"do_sample": False}, None),
    ],
)
def test_a_model_that_samples_answers_at_a_lower_temperature_unless_it_has_its_own(
    settings: dict[str, object], answers_at: float | None
) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    model.generation_config = GenerationConfig(**settings)
    prefer_the_likely(model)
    assert model.generation_config.temperature == answers_at


def test_the_ends_that_a_model_knows_stay_ends() -> None:
    tokenizer = MiniGPTTokenizer.from_text(LETTERS)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, eos_token_id=None))
    model.generation_config.eos_token_id = 3
    learn_to_stop(model, tokenizer)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 3]
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    learn_to_stop(model, tokenizer)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 3]
    assert model.generation_config.suppress_tokens is None
