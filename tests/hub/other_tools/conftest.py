"""What other people's tools are given: a folder that `save_pretrained` wrote, and a text for it."""

from pathlib import Path

import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.data.corpus import PLAYS

BLOCK = 16
VARIANTS = {
    "lecture": {},
    "modern": {
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "qk_norm": "before_rotary",
        "hidden_act": "swiglu",
        "num_key_value_heads": 1,
        "lm_head_bias": False,
        "tie_word_embeddings": True,
    },
}


@pytest.fixture(scope="session")
def text() -> str:
    return PLAYS.read_text(encoding="utf-8")[:20_000]


@pytest.fixture(scope="session")
def tokenizer(text: str) -> MiniGPTTokenizer:
    return MiniGPTTokenizer.from_text(text)


@pytest.fixture(scope="session")
def build_model(tokenizer):
    """`build_model(**fields)`: a small model in evaluation mode, its weights large enough for sharp opinions."""

    def build(std: float = 0.2, **fields) -> MiniGPTForCausalLM:
        torch.manual_seed(0)
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        small = {"n_embd": 32, "n_layer": 2, "n_head": 2, "block_size": BLOCK, "initializer_range": std}
        model = MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), **ids, **{**small, **fields}))
        model.generation_config = lecture_generation_config(sorted(tokenizer.all_special_ids), **ids)
        return model.eval()

    return build


@pytest.fixture(scope="session", params=VARIANTS)
def saved(request, build_model, tokenizer, tmp_path_factory) -> Path:
    """A folder with a model and its tokenizer, for each of two ways to build one."""
    folder = tmp_path_factory.mktemp("saved") / request.param
    build_model(**VARIANTS[request.param]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def lecture(build_model, tokenizer, tmp_path) -> Path:
    """A folder with a model of the lecture's kind and its tokenizer."""
    build_model().save_pretrained(tmp_path / "lecture")
    tokenizer.save_pretrained(tmp_path / "lecture")
    return tmp_path / "lecture"


@pytest.fixture(scope="session")
def rows(text: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """The text's ids in rows of a block, as any trainer takes them."""
    ids = tokenizer(text)["input_ids"]
    cut = [ids[start : start + BLOCK] for start in range(0, len(ids) - BLOCK + 1, BLOCK)]
    return datasets.Dataset.from_dict({"input_ids": cut, "labels": cut})


@pytest.fixture
def few_steps(tmp_path):
    """`few_steps(**changes)`: the stock arguments of a run of a second."""

    def arguments(**changes) -> TrainingArguments:
        few = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "max_steps": 20,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "logging_steps": 5,
            "disable_tqdm": True,
        }
        return TrainingArguments(**{**few, **changes})

    return arguments
