"""A text small enough to train on in a second, and a run on it."""

import random

import pytest

from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.corpus import load_text
from minigpt.training.tokens import tokenize_corpus


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
