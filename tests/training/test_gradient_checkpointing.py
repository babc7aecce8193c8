"""Gradient checkpointing learns the same, computes blocks twice, and needs a fraction of the memory."""

import gc
import os
import subprocess
import sys
import warnings

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.peak_memory import PeakMemory
from minigpt.cli import main
from minigpt.cli.train import parse_train_command
from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.training.trainer import MiniGPTTrainer

STEPS, LAYERS = 3, 2


@pytest.fixture
def train_it(arguments, tokens, tokenizer):
    """Trains a model in a few steps, and returns the trainer."""

    def train(model, **changes):
        given = {"save_strategy": "no", "logging_steps": 1, "sample_length": 20, "max_steps": STEPS, **changes}
        trainer = MiniGPTTrainer(model, arguments(**given), tokens, processing_class=tokenizer)
        trainer.train()
        return trainer

    return train


def count_passes(layers):
    """Counts how often each layer's computation is run in training and in evaluation: [[training, evaluation], ...]."""
    counts = [[0, 0] for _ in layers]

    def count(layer, index):
        def hook(module, inputs):
            counts[index][not layer.training] += 1

        return hook

    for index, layer in enumerate(layers):
        # On what lies in the layer: its own hooks stay outside of what is computed again.
        layer.mlp.register_forward_pre_hook(count(layer, index))
    return counts


def learned(trainer):
    """All that a training leaves: weights, and losses, gradients' norms and samples of every step."""
    return {name: weight.detach() for name, weight in trainer.model.named_parameters()}, trainer.state.log_history[:-1]


def assert_same(one, other):
    weights, history = one
    others, other_history = other
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
    assert history == other_history


@pytest.mark.parametrize(
    ("bf16", "how", "again"),
    [
        (False, {}, [1, 1]),
        (True, {}, [1, 1]),
        (False, {"use_reentrant": True}, [1, 1]),
        (False, {"every_n_layers": 2}, [1, 0]),
    ],
    ids=["float32", "bfloat16", "reentrant", "every other block"],
)
def test_every_digit_is_learned_as_without_it_and_every_block_is_computed_twice(
    train_it, build_model, bf16, how, again
):
    shape = {"dropout": 0.2, "embedding_dropout": 0.1}  # what is computed again must drop the same
    common = {"bf16": bf16, "max_grad_norm": 1.0, "gradient_accumulation_steps": 2}
    plain_model, model = build_model(**shape), build_model(**shape)
    plain_passes, passes = count_passes(plain_model.model.layers), count_passes(model.model.layers)
    plain = train_it(plain_model, **common)
    checkpointed = train_it(model, **common, gradient_checkpointing=True, gradient_checkpointing_kwargs=how or None)
    assert_same(learned(plain), learned(checkpointed))
    for (training, evaluation), (more_training, same_evaluation), twice in zip(
        plain_passes, passes, again, strict=True
    ):
        assert training == 2 * STEPS
        assert more_training == (1 + twice) * training
        assert same_evaluation == evaluation > 0


def peak_of_training(train_it, build_model, **changes):
    """The most bytes that tensors take in a training, weights, gradients and the optimiser's moments among them."""
    shape = {"n_layer": 24, "n_embd": 16, "block_size": 32}
    quiet = {"eval_strategy": "no", "eval_on_start": False, "max_steps": 2, "per_device_train_batch_size": 16}
    gc.collect()
    with PeakMemory() as memory:
        train_it(build_model(**shape), **quiet, **changes)
    return memory.peak


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["float32", "bfloat16"])
def test_24_layers_train_in_half_the_memory(train_it, build_model, bf16):
    plain = peak_of_training(train_it, build_model, bf16=bf16)
    checkpointed = peak_of_training(train_it, build_model, bf16=bf16, gradient_checkpointing=True)
    assert 0 < checkpointed <= plain / 2


def test_stock_model_is_recomputed_as_well(train_it, tokenizer):
    def build():
        torch.manual_seed(0)
        config = GPT2Config(
            **{"vocab_size": len(tokenizer), "n_positions": 8, "n_embd": 8, "n_layer": LAYERS, "n_head": 2},
            **{"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id},
        )
        return GPT2LMHeadModel(config)

    plain_model, model = build(), build()
    plain_passes, passes = count_passes(plain_model.transformer.h), count_passes(model.transformer.h)
    plain, checkpointed = train_it(plain_model), train_it(model, gradient_checkpointing=True)
    assert_same(learned(plain), learned(checkpointed))
    assert (
        [training for training, _ in passes] == [2 * training for training, _ in plain_passes] == LAYERS * [2 * STEPS]
    )


def test_option_is_one_word_and_nothing_warns_of_it(arguments):
    asked = parse_train_command(["--gradient_checkpointing"]).training
    assert asked == {"gradient_checkpointing": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = arguments(**asked)
    assert args.activation_checkpointing is True
    assert arguments(activation_checkpointing=True).gradient_checkpointing is True
    assert arguments().activation_checkpointing is False


# -- With an adapter, and with other processes --


@pytest.mark.extra("lora")
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_adapter_learns_the_same_though_all_below_it_is_frozen(train_it, build_model, bf16, use_reentrant):
    from peft import LoraConfig, get_peft_model

    def adapt(model):
        torch.manual_seed(1)
        settings = LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, settings)

    plain_model, model = build_model(), build_model()
    passes = count_passes(model.model.layers)
    start = {name: weight.clone() for name, weight in adapt(build_model()).named_parameters() if weight.requires_grad}
    plain = train_it(adapt(plain_model), bf16=bf16)
    how = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    checkpointed = train_it(adapt(model), bf16=bf16, **how)
    assert_same(learned(plain), learned(checkpointed))
    assert [training for training, _ in passes] == LAYERS * [2 * STEPS]
    weights, _ = learned(checkpointed)
    assert len(start) == 2 * 4 * LAYERS
    assert all(not torch.equal(weight, weights[name]) for name, weight in start.items())


TRAIN_TWICE = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from minigpt import *

folder, text = sys.argv[1:]
corpus = load_text(text)
tokenizer = MiniGPTTokenizer.from_iterator(corpus.chunks())
tokens = tokenize_corpus(corpus, tokenizer, cache_dir=f"{folder}/tokens")

def train(checkpointing, lora, bf16):
    torch.manual_seed(0)
    config = MiniGPTConfig(vocab_size=len(tokenizer), n_embd=8, n_layer=2, n_head=2, block_size=8, dropout=0.1)
    model = MiniGPTForCausalLM(config)
    passes = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *args: passes.append(1))
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    arguments = MiniGPTTrainingArguments(
        folder, use_cpu=True, ddp_backend="gloo", max_steps=4, per_device_train_batch_size=4, bf16=bf16,
        eval_strategy="no", eval_on_start=False, save_strategy="no", gradient_checkpointing=checkpointing,
    )
    trainer = MiniGPTTrainer(model, arguments, tokens, processing_class=tokenizer)
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    return len(passes), [weight.detach().clone() for weight in model.parameters()]

for lora, bf16 in ((False, False), (True, False), (False, True), (True, True)):
    (once, plain), (twice, checkpointed) = train(False, lora, bf16), train(True, lora, bf16)
    assert (once, twice) == (4, 8), (once, twice)
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))
    for weight in checkpointed:
        others = weight.clone()
        torch.distributed.broadcast(others, src=0)
        assert torch.equal(weight, others)
    if torch.distributed.get_rank() == 0:
        print("lora" if lora else "whole", "bfloat16" if bf16 else "float32", "ok", flush=True)
"""


@pytest.mark.extra("lora")
@pytest.mark.skipif(sys.platform == "win32", reason="gloo is not part of torch on Windows")
def test_two_processes_learn_the_same_with_it_and_without(text_file, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN_TWICE, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "runs"), str(text_file)],
        **{"capture_output": True, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}},
    )
    assert done.returncode == 0, done.stderr
    kinds = ["whole float32", "lora float32", "whole bfloat16", "lora bfloat16"]
    assert [line for line in done.stdout.splitlines() if line.endswith("ok")] == [f"{kind} ok" for kind in kinds]


# -- Where it would do nothing --


def test_model_without_blocks_is_refused_before_a_folder_is_made(text_file, tmp_path, capsys):
    asked = ["train", "--preset", "bigram", "--data", str(text_file), "--output_dir", str(tmp_path / "run")]
    assert main([*asked, "--device", "cpu", "--gradient_checkpointing"]) == 2
    out, err = capsys.readouterr()
    assert "a minigpt_bigram has none that it could; leave it out." in err
    assert (len(err.splitlines()), out) == (1, "")
    assert not (tmp_path / "run").exists()


def test_model_that_says_it_cannot_is_refused(arguments, tokens, tokenizer, build_model):
    model = build_model()
    model.supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match="a minigpt has none that it could; leave it out"):
        MiniGPTTrainer(model, arguments(gradient_checkpointing=True), tokens, processing_class=tokenizer)
    bigram = BigramForCausalLM(BigramConfig(vocab_size=len(tokenizer), block_size=8))
    MiniGPTTrainer(bigram, arguments(), tokens, processing_class=tokenizer)  # nothing is wrong without it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
            r"say how, and not that it be done; add gradient_c",
        ),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 0}},
            r"every_n_layers of gradient_checkpointing_kwargs must be at least 1, got 0\.",
        ),
    ],
)
def test_settings_of_it_that_could_not_work_are_refused(arguments, options, said):
    with pytest.raises(ValueError, match=said):
        arguments(**options)
