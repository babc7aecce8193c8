"""A model of subwords is as good a citizen as one of characters: pushed, and opened there by everybody."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import hf_hub_download
from transformers import AutoTokenizer

from minigpt.cli import main
from minigpt.hub.publishing.push import push_folder
from minigpt.hub.publishing.saved_folder import SavedVocabulary, read_saved_folder
from minigpt.tokenization.subword import train_bpe
from minigpt.training.data.corpus import PLAYS
from tests.hub.without_package import WITHOUT_PACKAGE

if TYPE_CHECKING:
    from tests.hub.double import Hub

POET = "tester/poet"
TEXT = PLAYS.read_text(encoding="utf-8")[:30_000]
VOCABULARIES = {
    "bpe": ["--tokenizer", "bpe", "--vocab_size", "300"],
    "sentencepiece-unigram": ["--tokenizer", "sentencepiece", "--vocab_size", "400"],
    "sentencepiece-bpe": ["--tokenizer", "sentencepiece", "--vocab_size", "400", "--sentencepiece_type", "bpe"],
}
ODD = ["The king, my lord.\r\n", "  two", "Ünïcode ☃ 👩‍👧 \x00", "<0x41><unk></s>", "<|endoftext|>"]
TEXTS = ["", " ", "\n\n", *ODD, TEXT[:500]]
IN_WORDS = {
    "bpe": "byte-level BPE",
    "sentencepiece-unigram": "SentencePiece, unigram",
    "sentencepiece-bpe": "SentencePiece, BPE",
}
SENTENCEPIECE = ["sentencepiece-unigram", "sentencepiece-bpe"]


def train(folder: Path, kind: str, *options: str) -> Path:
    """Trains for four steps, which is enough to have everything that a run leaves."""
    text = folder / "plays.txt"
    text.write_text(TEXT, encoding="utf-8", newline="\n")
    small = ["--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", "8", "--device", "cpu"]
    short = ["--max_steps", "4", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0"]
    run = ["train", "--data", str(text), "--output_dir", str(folder / "run"), *VOCABULARIES[kind], *small, *short]
    assert main([*run, *options]) == 0
    return folder / "run"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=pytest.mark.extra("sentencepiece") if kind in SENTENCEPIECE else ())
        for kind in VOCABULARIES
    ],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp(request.param), request.param)


def kind_of(run: Path) -> str:
    return next(kind for kind in VOCABULARIES if run.parent.name.startswith(kind))


def ids_of(tokenizer: Any) -> list[list[int]]:
    return [list(tokenizer(text)["input_ids"]) for text in TEXTS]


OPENING = """
import builtins
import json
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
questions = []
builtins.input = questions.append
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
assert not questions, questions
assert type(tokenizer).__module__.startswith("transformers."), type(tokenizer)
assert tokenizer.model_max_length == 8
texts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
ids = [tokenizer(text)["input_ids"] for text in texts]
assert [tokenizer.decode(row) for row in ids] == texts
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
prompt = tokenizer("The king", return_tensors="pt")
written = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0]
print(json.dumps({"ids": ids, "special": tokenizer.all_special_ids, "written": tokenizer.decode(written)}))
"""


@pytest.mark.slow
@pytest.mark.door(
    "Only transformers: `AutoTokenizer` opens a pushed vocabulary of subwords (BPE, SentencePiece), and loses no text",
    "transformers",
    "tokenizers",
)
def test_a_pushed_vocabulary_opens_without_the_package(run: Path, hub: "Hub", tmp_path: Path) -> None:
    push_folder(run, POET)
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(TEXTS), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE + OPENING, POET, str(texts)],
        env=hub.environment(token=None),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen, tokenizer = json.loads(done.stdout.splitlines()[-1]), AutoTokenizer.from_pretrained(run)
    assert seen["ids"] == ids_of(tokenizer)
    assert seen["special"] == tokenizer.all_special_ids
    assert seen["written"].startswith("The king")
    assert len(tokenizer(seen["written"])["input_ids"]) > len(tokenizer("The king")["input_ids"])


@pytest.mark.extra("sentencepiece")
@pytest.mark.door("`sentencepiece` opens the `tokenizer.model` of a Hub repository", "sentencepiece", "huggingface_hub")
@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_sentencepiece_opens_its_file_on_the_hub_and_cuts_alike(kind: str, hub: "Hub", tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    folder = train(tmp_path, kind, "--push_to_hub", "--hub_model_id", POET, "--save_steps", "2")
    model = (folder / "tokenizer.model").read_bytes()
    saves = [commit for commit in hub.commits(POET) if commit.title.startswith("Training in progress")]
    assert saves
    assert all(commit.files["tokenizer.model"].content == model for commit in saves)
    own = SentencePieceProcessor(model_file=hf_hub_download(POET, "tokenizer.model"))
    # A special token in a text is one to transformers, and to SentencePiece nothing but its letters.
    lines = [*TEXT.splitlines(keepends=True), *(text for text in TEXTS if "<|" not in text)]
    tokenizer = AutoTokenizer.from_pretrained(POET)
    assert [own.encode(line) for line in lines] == [tokenizer(line)["input_ids"] for line in lines]
    tokenizer.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == model


def test_every_command_takes_a_pushed_model_of_subwords(
    run: Path, hub: "Hub", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), POET]) == 0
    vocabulary = {"tokenizer.json", "tokenizer.model"} if "sentencepiece" in kind_of(run) else {"tokenizer.json"}
    files = hub.files(POET)
    assert {name for name in files if name.startswith("tokenizer.")} == vocabulary
    assert all(files[name] == (run / name).read_bytes() for name in vocabulary)
    capsys.readouterr()

    assert main(["generate", POET, "--prompt", "Ünïcode ☃", "--max_new_tokens", "20", "--stream"]) == 0
    assert capsys.readouterr().out.startswith("Ünïcode ☃")
    assert main(["eval", POET, "--data", str(run.parent / "plays.txt")]) == 0
    said = capsys.readouterr().out
    assert f"{json.loads(files['run.json'])['losses']['validation']['bits_per_character']:.4f} bits a character" in said
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello ☃\n!exit\n"))
    assert main(["chat", POET]) == 0


def test_the_card_speaks_of_subwords_and_compares_by_characters(run: Path, hub: "Hub") -> None:
    push_folder(run, POET)
    card = hub.files(POET)["README.md"].decode()
    subwords = len(AutoTokenizer.from_pretrained(run)) - 2
    assert f"{subwords} subword tokens ({IN_WORDS[kind_of(run)]}) and 2 special tokens" in card
    assert "bits a character" in card
    assert "character-level" not in card
    assert "characters" not in card.partition("## How to use it")[0]


def test_bytes_without_any_pair_are_not_called_characters(tmp_path: Path) -> None:
    train_bpe([TEXT], 258).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "minigpt"}', encoding="utf-8")
    saved = read_saved_folder(tmp_path)
    assert saved.unit == "tokens"
    assert saved.vocabulary == SavedVocabulary(characters=None, subwords=256, special=2, kind="byte-level BPE")
