"""Two processes with half a batch each train the adapter that one process trains from the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt.cli import main
from minigpt.training.train import train

pytestmark = pytest.mark.extra("lora")

ASKED = ["--lora", "--lora_r", "2", "--bf16", "--gradient_checkpointing", "--max_steps", "6"]
# AdamW would hide a wrong scale of the gradients.
ASKED += ["--optim", "sgd", "--learning_rate", "0.3", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
ASKED += ["--logging_steps", "1", "--eval_interval", "3", "--eval_iters", "2", "--sample_length", "0"]


@pytest.fixture
def base(text_file, tmp_path):
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "block_size": 16}
    short = {"max_steps": 2, "eval_iters": 1, "save_strategy": "no", "output_dir": str(tmp_path / "base")}
    return train("seed", str(text_file), device="cpu", model=shape, training=short).folder


@pytest.mark.door(
    "`torchrun -m minigpt finetune --lora --bf16 --gradient_checkpointing`, two processes: what one learns",
    "torch",
    "peft",
)
def test_two_processes_train_the_adapter_of_one(base, text_file, tmp_path):
    def given(batch, output):
        options = [*ASKED, "--per_device_train_batch_size", str(batch), "--output_dir", str(tmp_path / output)]
        return ["finetune", str(base), "--data", str(text_file), *options]

    def outcome(output):
        state, report = (
            json.loads((tmp_path / output / name).read_text(encoding="utf-8"))
            for name in ("trainer_state.json", "run.json")
        )
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        return losses, report, load_file(tmp_path / output / "adapter_model.safetensors")

    assert main([*given(8, "one"), "--device", "cpu"]) == 0
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "minigpt", *given(4, "two")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    expected_losses, expected_report, expected = outcome("one")
    losses, report, weights = outcome("two")
    assert done.stdout.count("validation loss") == 1  # one of them speaks
    assert report["training"]["processes"] == 2
    assert report["training"]["tokens"] == expected_report["training"]["tokens"]
    assert report["base"] == expected_report["base"]
    # To the digits of bfloat16, in which each process rounds sums of its own.
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    assert report["losses"]["validation"]["loss"] == pytest.approx(
        expected_report["losses"]["validation"]["loss"], rel=1e-3
    )
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        if "lora_B" in name:  # it began at 0
            assert (weight - expected[name]).norm() < 0.15 * expected[name].norm(), name
        else:
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-3)
