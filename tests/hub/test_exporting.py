import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt import BigramConfig, BigramForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.hub import extras
from minigpt.hub.exporting import graphs
from minigpt.hub.exporting.formats import export_model
from minigpt.hub.stock.conversion import save_stock, to_stock
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.tokenization.subword import train_bpe, train_sentencepiece
from minigpt.training.data.corpus import PLAYS
from tests.hub.double import Hub
from tests.hub.stock_shapes import BLOCK, GPT2, PURE, draw_ids, minigpt

TEXT = "To be, or not to be — that is “it”.\n"


def save(folder: Path, architecture: str | None = "gpt2") -> Path:
    """A folder as a run leaves it: the lecture's model, or one that an architecture can express."""
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = minigpt(vocab_size=len(tokenizer), **special, **(PURE[architecture] if architecture else {}))
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return save(tmp_path / "runs" / "mine")


@pytest.mark.parametrize(
    "learn",
    [
        MiniGPTTokenizer.from_text,
        lambda text: train_bpe([text], 280),
        pytest.param(lambda text: train_sentencepiece([text], 330), marks=pytest.mark.extra("sentencepiece")),
    ],
    ids=["char", "bpe", "sentencepiece"],
)
def test_a_bos_token_that_the_export_adds_changes_no_ids(learn: Any, tmp_path: Path) -> None:
    tokenizer = learn(PLAYS.read_text(encoding="utf-8")[:20_000])
    expected = tokenizer.get_vocab()
    save_stock(to_stock(minigpt(vocab_size=len(tokenizer), **GPT2), "gpt2"), tokenizer, tmp_path)
    assert tokenizer.bos_token is None
    exported = AutoTokenizer.from_pretrained(tmp_path)
    assert exported.get_vocab() == expected
    assert exported.bos_token == exported.eos_token == "<|endoftext|>"
    for text in ("", "What say you , sir?", "  é<|endoftext|>\n\n<0x41><unk><|pad|>"):
        assert exported(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert exported.decode(exported(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])


@pytest.mark.door(
    "`minigpt export --to gpt2`, `llama`, `qwen3`, `nanochat`: a stock model, logits equal", "transformers"
)
@pytest.mark.parametrize("architecture", PURE)
def test_a_stock_repository_gives_the_same_logits(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "mine", architecture)
    assert main(["export", str(source), "--to", architecture]) == 0
    folder = tmp_path / f"mine-{architecture}"
    assert capsys.readouterr().out == f"written  {folder}\n"
    stock, ours = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, source))
    assert type(stock).__module__ == f"transformers.models.{architecture}.modeling_{architecture}"
    # All that is left is nanochat's rounding: it sums the halves of a head in another order.
    torch.testing.assert_close(stock(draw_ids()).logits, ours(draw_ids()).logits, atol=5e-6, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT)["input_ids"] == MiniGPTTokenizer.from_pretrained(source).encode_array(TEXT).tolist()
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    # The end of text, which no training text has, is the last choice.
    assert stock.generation_config.suppress_tokens == ours.generation_config.suppress_tokens[1:]
    written = stock.generate(**tokenizer("To", return_tensors="pt"))
    assert written.shape == (1, BLOCK)


BARE = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "minigpt":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import json
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

results = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = tokenizer(sys.argv[1], return_tensors="pt")["input_ids"]
    written = pipeline("text-generation", model=folder, trust_remote_code=False)("To", max_new_tokens=4)
    results[folder] = [ids.tolist(), model(ids).logits.tolist(), written[0]["generated_text"]]
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.door("A stock repository opens where this package is not installed", "transformers")
def test_a_stock_repository_opens_without_this_package(tmp_path: Path) -> None:
    sources = {export_model(save(tmp_path / name, name), name): tmp_path / name for name in PURE}
    text = TEXT[:BLOCK]
    command = [sys.executable, "-c", BARE, text, *map(str, sources)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path).stdout
    results = json.loads(printed.splitlines()[-1])
    for folder, source in sources.items():
        ids, logits, written = results[str(folder)]
        assert ids == [MiniGPTTokenizer.from_pretrained(source).encode_array(text).tolist()]
        expected = AutoModelForCausalLM.from_pretrained(source)(torch.tensor(ids)).logits
        torch.testing.assert_close(torch.tensor(logits), expected, atol=5e-6, rtol=0)
        assert written.startswith("To")
        assert len(written) == 6


def test_a_transformers_tokenizer_comes_along_as_it_is(tmp_path: Path) -> None:
    tokenizer = train_bpe([TEXT * 9], 262, chat_template="{{ messages[0].content }}")
    model = minigpt(**GPT2, vocab_size=262)
    model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    folder = export_model(tmp_path / "mine", "gpt2")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()
    assert AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


def test_the_folder_is_called_after_the_model_and_the_format(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export_model(trained, "gpt2") == tmp_path / "runs" / "mine-gpt2"
    monkeypatch.chdir(tmp_path)
    assert export_model("runs/mine/", "gpt2", overwrite=True) == Path("runs/mine-gpt2")
    monkeypatch.chdir(trained)
    assert export_model(".", "gpt2", overwrite=True) == tmp_path / "runs" / "mine-gpt2"
    assert export_model(trained, "gpt2", "elsewhere/deep") == Path("elsewhere/deep")
    assert (trained / "elsewhere" / "deep" / "model.safetensors").is_file()


def test_a_model_of_the_hub_is_exported_into_the_current_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    HfApi().create_repo("tester/mine")
    HfApi().upload_folder(repo_id="tester/mine", folder_path=trained)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export_model("tester/mine", "gpt2") == Path("mine-gpt2")
    stock = AutoModelForCausalLM.from_pretrained("mine-gpt2")
    assert torch.equal(stock(draw_ids()).logits, AutoModelForCausalLM.from_pretrained(trained)(draw_ids()).logits)


def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "lecture", None)
    to_stock(minigpt(**GPT2), "gpt2").save_pretrained(tmp_path / "stock")
    BigramForCausalLM(BigramConfig(vocab_size=31)).save_pretrained(tmp_path / "bigram")
    for folder in ("stock", "bigram"):
        MiniGPTTokenizer.from_text("abc").save_pretrained(tmp_path / folder)
    before = sorted(path.name for path in tmp_path.iterdir())
    capsys.readouterr()
    for name, to, reason, status in (
        ("lecture", "gpt2", "train --preset nano-cpu or nano", 2),
        ("lecture", "llama", "position_embedding_type='learned'", 2),
        ("bigram", "gpt2", "a bigram is one table", 2),
        ("stock", "gpt2", "make it one with `minigpt import`", 2),
        ("stock", "torch", "GPT2LMHeadModel", 2),
        ("nothing", "gpt2", "is neither a folder nor a model", 1),
    ):
        assert main(["export", str(tmp_path / name), "--to", to]) == status
        error = capsys.readouterr().err
        assert error.startswith("minigpt: ")
        assert reason in error
        assert len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_there_is_replaced_only_when_asked(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = trained.with_name("mine-gpt2")
    output.mkdir()
    (output / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(["export", str(trained), "--to", "gpt2"]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    assert main(["export", str(trained), "--to", "gpt2", "--overwrite"]) == 0
    assert (output / "config.json").is_file()
    assert (output / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_the_model_itself_is_never_replaced(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output in (trained, trained.parent, trained / "..", trained / ".." / "mine"):
        assert main(["export", str(trained), "--to", "gpt2", "--output_dir", str(output), "--overwrite"]) == 2
        assert "holds the model itself" in capsys.readouterr().err
    assert (trained / "model.safetensors").is_file()


def test_a_missing_extra_is_said_before_the_model_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    for to in ("onnx", "gguf"):
        assert main(["export", "nobody/nothing", "--to", to]) == 2
        assert f"pip install 'minigpt-hf[{to}]'" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_graphs_are_written_by_their_own_room(to: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(model: object, tokenizer: object, folder: Path) -> None:
        (folder / to).write_text(f"{type(model).__name__} {type(tokenizer).__name__}", encoding="utf-8")

    monkeypatch.setattr(graphs, f"export_{to}", write)
    monkeypatch.setattr(extras, "find_spec", lambda module: True)
    written = export_model(trained, to) / to
    assert written.read_text(encoding="utf-8") == "MiniGPTForCausalLM MiniGPTTokenizer"
