import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.training.data.corpus import PLAYS, load_text
from minigpt.training.data.vocabulary import Vocabulary
from minigpt.training.sample import write_sample

SMALL = ["--n_embd", "16", "--n_layer", "1", "--n_head", "2", "--block_size", "16"]
FEW = [*SMALL, "--max_steps", "20", "--eval_interval", "10", "--eval_iters", "1", "--sample_length", "5"]
SUBWORDS = [
    pytest.param(["--tokenizer", "bpe", "--vocab_size", "300"], id="bpe"),
    *(
        pytest.param(
            ["--tokenizer", "sentencepiece", "--vocab_size", "400", "--sentencepiece_type", kind],
            id=f"sentencepiece-{kind}",
            marks=pytest.mark.extra("sentencepiece"),
        )
        for kind in ("unigram", "bpe")
    ),
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "plays.txt"
    file.write_text(PLAYS.read_text(encoding="utf-8")[:30_000], encoding="utf-8", newline="\n")
    return file


@pytest.mark.parametrize("options", SUBWORDS)
def test_a_model_of_subwords_is_trained_saved_opened_and_measured_by_characters(
    options: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", "--data", str(text), "--output_dir", str(folder), *options, *FEW]) == 0
    capsys.readouterr()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == int(options[3])
    assert (folder / "tokenizer.model").exists() == ("sentencepiece" in options)
    assert tokenizer.decode(tokenizer("Ünïcode \u2581 ☃\n")["input_ids"]) == "Ünïcode \u2581 ☃\n"
    validation = json.loads((folder / "run.json").read_text(encoding="utf-8"))["losses"]["validation"]
    held_back = text.read_text(encoding="utf-8")[27_000:]
    tokens = len(tokenizer(held_back)["input_ids"])
    assert validation["targets"] == tokens - 1
    assert validation["characters"] == pytest.approx((tokens - 1) * len(held_back) / tokens)
    assert main(["eval", str(folder), "--data", str(text)]) == 0
    assert f"{validation['bits_per_character']:.4f} bits a character" in capsys.readouterr().out
    assert main(["generate", str(folder), "--prompt", "To", "--max_new_tokens", "20"]) == 0
    written = capsys.readouterr().out
    assert written.startswith("To")
    assert "<unk>" not in written
    assert set(tokenizer.all_special_ids) <= set(model.generation_config.suppress_tokens)


@pytest.mark.parametrize("options", SUBWORDS)
def test_a_run_of_subwords_goes_on_with_the_vocabulary_that_it_began_with(
    options: list[str], text: Path, tmp_path: Path
) -> None:
    run = ["train", "--data", str(text), *options, *FEW, "--save_steps", "10"]
    assert main([*run, "--output_dir", str(tmp_path / "whole")]) == 0
    assert main([*run, "--output_dir", str(tmp_path / "parts")]) == 0
    for name in ("model.safetensors", "config.json", "run.json", "sample.txt", "checkpoint-20"):
        path = tmp_path / "parts" / name
        path.rename(tmp_path / f"gone-{name}")
    again = [*run, "--output_dir", str(tmp_path / "parts"), "--resume_from_checkpoint"]
    assert main(again) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "vocabulary",
    [Vocabulary("bpe", 300), pytest.param(Vocabulary("sentencepiece", 400), marks=pytest.mark.extra("sentencepiece"))],
    ids=lambda vocabulary: vocabulary.kind,
)
def test_what_is_held_back_has_no_say_in_the_vocabulary(vocabulary: Vocabulary, text: Path, tmp_path: Path) -> None:
    read = text.read_text(encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text(read[:27_000] + "Zyxwv ☃\n" * 375, encoding="utf-8", newline="\n")
    learned = vocabulary.learn(load_text(other))
    assert learned.backend_tokenizer.to_str() == vocabulary.learn(load_text(text)).backend_tokenizer.to_str()
    assert learned.decode(learned("Zyxwv ☃\n")["input_ids"]) == "Zyxwv ☃\n"


@pytest.mark.extra("sentencepiece")
def test_a_run_does_not_go_on_with_another_vocabulary_of_the_same_size(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "--data", str(text), "--vocab_size", "400", *FEW, "--output_dir", str(tmp_path / "run")]
    assert main([*run, "--tokenizer", "bpe"]) == 0
    capsys.readouterr()
    assert main([*run, "--tokenizer", "sentencepiece", "--resume_from_checkpoint"]) == 1
    error = capsys.readouterr().err
    assert "has another vocabulary than this run; go on with the text and the kind of tokenizer that it" in error
    assert error.count("\n") == 1


@pytest.mark.extra("sentencepiece")
def test_a_sample_never_shows_what_no_text_is_made_of(text: Path) -> None:
    tokenizer = Vocabulary("sentencepiece", 400).learn(load_text(text))
    unknown = tokenizer.get_vocab()["<unk>"]
    model = MiniGPTForCausalLM(MiniGPTConfig(vocab_size=400, n_embd=8, n_layer=1, n_head=2, block_size=8))
    with torch.no_grad():
        model.lm_head.bias[[unknown, *tokenizer.all_special_ids]] = 100.0
    sample = write_sample(model, tokenizer, 50)
    assert len(sample) > 20
    assert not any(token in sample for token in ("<unk>", *tokenizer.all_special_tokens))


def test_the_same_text_gives_fewer_tokens_in_a_larger_vocabulary(text: Path) -> None:
    corpus = load_text(text)
    counts = [len(Vocabulary("bpe", size).learn(corpus)(corpus.text)["input_ids"]) for size in (258, 300, 400)]
    assert counts[0] == len(corpus.text.encode())
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--vocab_size", "20"], "so its character vocabulary has"),
        (["--tokenizer", "bpe", "--vocab_size", "200"], "must be at least 258, got 200"),
        (["--tokenizer", "bpe", "--vocab_size", "100000"], "lower it or give it more text"),
        pytest.param(
            ["--tokenizer", "sentencepiece", "--vocab_size", "300"],
            "tokens, so vocab_size must be at least 3",
            marks=pytest.mark.extra("sentencepiece"),
        ),
        pytest.param(
            ["--tokenizer", "sentencepiece", "--vocab_size", "100000"],
            "lower it or give it more text",
            marks=pytest.mark.extra("sentencepiece"),
        ),
        (["--tokenizer", "words"], "invalid choice: 'words'"),
        (["--tokenizer", "bpe", "--vocab_size", "0"], "vocab_size must be at least 1, got 0"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused_before_anything_is_written(
    options: list[str], reason: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(text), "--output_dir", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_sentencepiece_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.hub.extras.find_spec", lambda module: None)
    with pytest.raises(UsageError, match=r"pip install 'minigpt-hf\[sentencepiece\]'"):
        Vocabulary("sentencepiece").check()
    with pytest.raises(UsageError, match="there is no tokenizer 'words'"):
        Vocabulary("words").check()
    with pytest.raises(UsageError, match="there is no SentencePiece model of type 'word'"):
        Vocabulary("sentencepiece", sentencepiece_type="word").check()
