"""Claims about data that goes to the Hub and comes back: the same tokens, the same batches, the same text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from minigpt.cli import main
from minigpt.hub.publishing.card import model_card
from minigpt.training.data.batches import RandomCrops, Windows, collate, get_batch
from minigpt.training.data.corpus import load_text
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.data.tokens import tokenize_corpus
from minigpt.training.trainer import MiniGPTTrainer

if TYPE_CHECKING:
    from tests.hub.double import Hub

SMALL = ["--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", "8", "--device", "cpu"]
SHORT = ["--max_steps", "2", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0"]


def there_and_back(tokens: datasets.DatasetDict, cache: Path, **how: Any) -> datasets.DatasetDict:
    tokens.push_to_hub("tester/verse-tokens", **how)
    return datasets.load_dataset("tester/verse-tokens", cache_dir=str(cache))


@pytest.fixture
def rows(text_file: Path, tokenizer: Any, tmp_path: Path) -> datasets.DatasetDict:
    """Tokens in rows so short that there are several."""
    return tokenize_corpus(load_text(text_file), tokenizer, cache_dir=tmp_path / "tokens", row_tokens=1000)


@pytest.fixture
def loaded(hub: "Hub", tokens: datasets.DatasetDict, tmp_path: Path) -> datasets.DatasetDict:
    return there_and_back(tokens, tmp_path / "datasets")


@pytest.mark.door("`datasets`: the prepared tokens, `push_to_hub` and `load_dataset` back, equal", "datasets")
@pytest.mark.parametrize("shards", [1, 3], ids=["one file", "several files"])
def test_the_tokens_come_back_as_they_were(hub: "Hub", rows: datasets.DatasetDict, tmp_path: Path, shards: int) -> None:
    loaded = there_and_back(rows, tmp_path / "datasets", num_shards={"train": shards, "validation": 1})
    assert sum(name.endswith(".parquet") for name in hub.files("tester/verse-tokens", kind="datasets")) == shards + 1
    assert list(loaded) == ["train", "validation"]
    for split in rows:
        assert loaded[split].features == rows[split].features
        ours, theirs = TokenStream(rows[split]), TokenStream(loaded[split])
        assert len(ours.segments) > 1
        assert theirs.dtype == ours.dtype == np.uint16
        np.testing.assert_array_equal(np.concatenate(theirs.segments), np.concatenate(ours.segments))


def test_tokens_of_a_large_vocabulary_come_back_as_they_were(hub: "Hub", tmp_path: Path) -> None:
    features = datasets.Features({"tokens": datasets.List(datasets.Value("uint32"))})
    ids = [[2**16, 2**32 - 1, 0], [70_000]]
    tokens = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"tokens": ids}, features=features)})
    stream = TokenStream(there_and_back(tokens, tmp_path)["train"])
    assert stream.dtype == np.uint32
    assert np.concatenate(stream.segments).tolist() == [*ids[0], *ids[1]]


def test_batches_of_tokens_from_the_hub_are_the_same(
    tokens: datasets.DatasetDict, loaded: datasets.DatasetDict
) -> None:
    ours, theirs = TokenStream(tokens["train"]), TokenStream(loaded["train"])
    for make in (lambda stream: RandomCrops(stream, 8, seed=3, length=24), lambda stream: Windows(stream, 8)):
        loaders = [DataLoader(make(stream), batch_size=6, collate_fn=collate) for stream in (ours, theirs)]
        compared = 0
        for one, other in zip(*loaders, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
            compared += 1
        assert compared >= 4
    drawn = [get_batch(stream, 4, 8, generator=torch.Generator().manual_seed(5)) for stream in (ours, theirs)]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_training_on_tokens_from_the_hub_is_the_same_training(
    tokens: datasets.DatasetDict, loaded: datasets.DatasetDict, arguments: Any, build_model: Any
) -> None:
    weights, losses = [], []
    for data in (tokens, loaded):
        trainer = MiniGPTTrainer(build_model(), arguments(save_strategy="no"), data)
        trainer.train()
        weights.append(trainer.model.state_dict())
        losses.append([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.door("`datasets`: a text on the Hub, pushed and trained on", "datasets")
def test_a_text_comes_back_as_it_was_and_is_trained_on(hub: "Hub", text_file: Path, tmp_path: Path) -> None:
    datasets.load_dataset("text", data_files=str(text_file), split="train").push_to_hub("tester/verse")
    corpus = load_text("tester/verse")
    assert corpus.text == text_file.read_text(encoding="utf-8")
    assert corpus.sha256 == load_text(text_file).sha256
    folder = tmp_path / "run"
    assert main(["train", "--data", "tester/verse", "--output_dir", str(folder), *SMALL, *SHORT]) == 0
    report = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (report["data"]["name"], report["data"]["sha256"]) == ("tester/verse", corpus.sha256)
    assert model_card(folder).data.datasets == ["tester/verse"]


@pytest.mark.slow
@pytest.mark.door("`datasets`: pushed tokens load in a fresh process with empty caches", "datasets")
def test_a_fresh_process_reads_the_same_tokens(hub: "Hub", tokens: datasets.DatasetDict, tmp_path: Path) -> None:
    tokens.push_to_hub("tester/verse-tokens")
    np.save(tmp_path / "train.npy", np.concatenate(TokenStream(tokens["train"]).segments))
    code = """
import sys
import numpy as np
from datasets import load_dataset
from minigpt import TokenStream
stream = TokenStream(load_dataset("tester/verse-tokens", split="train"))
np.testing.assert_array_equal(np.concatenate(stream.segments), np.load(sys.argv[1]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "train.npy")],
        env=hub.environment(token=None),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
