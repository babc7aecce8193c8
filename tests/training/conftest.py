"""A text small enough to train on in a second, and a run on it."""

import random

import pytest
import torch

from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.data.corpus import load_text
from minigpt.training.data.tokens import tokenize_corpus


def verse(num_lines: int = 400) -> str:
    """Lines that are easy to learn something from and impossible to learn by heart."""
    chance = random.Random(0)
    words = ["the king", "my lord", "and so", "good night", "sweet", "a crown", "of thee", "is dead"]
    return "".join(f"{' '.join(chance.choices(words, k=4))}.\n" for _ in range(num_lines))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "verse.txt"
    file.write_bytes(verse().encode())
    return file


@pytest.fixture(scope="session")
def tokenizer(text_file):
    return MiniGPTTokenizer.from_text(text_file.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tokens(text_file, tokenizer, tmp_path_factory):
    return tokenize_corpus(load_text(text_file), tokenizer, cache_dir=tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def arguments(tmp_path):
    """Builds the arguments of a run of a few steps."""

    def build(**changes):
        few = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "max_grad_norm": 0.0,
            "eval_interval": 3,
            "eval_iters": 2,
            "sample_length": 0,
        }
        return MiniGPTTrainingArguments(**{**few, **changes})

    return build


@pytest.fixture
def build_model(tokenizer):
    """Builds a model of a few thousand weights, always the same ones."""

    def build(**changes):
        torch.manual_seed(0)
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        small = {"n_embd": 8, "n_layer": 2, "n_head": 2, "block_size": 8}
        return MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), **ids, **{**small, **changes}))

    return build
