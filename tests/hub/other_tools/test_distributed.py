"""Two processes with half a batch each learn what one process learns from the whole batch."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt.cli import main

TORCHRUN = ["torchrun", "--standalone", "--nproc_per_node", "2"]
# `--multi_gpu` asks for several processes of one machine; without a GPU there they talk through gloo.
ACCELERATE = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
BOTH_TRAININGS = """
import json, sys
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from minigpt.cli import main

model, rows, output, batch_size, *ours = sys.argv[1:]
arguments = TrainingArguments(
    output_dir=output, use_cpu=True, max_steps=6, per_device_train_batch_size=int(batch_size), logging_steps=1,
    learning_rate=1e-2, optim="sgd", max_grad_norm=0.0, save_strategy="no", disable_tqdm=True,
)
trainer = Trainer(AutoModelForCausalLM.from_pretrained(model), arguments, train_dataset=load_from_disk(rows))
trainer.train()
trainer.save_model()
trainer.save_state()
print("processes:", arguments.world_size)
assert main(ours) == 0
"""


def launch(launcher: list[str], *arguments: str) -> str:
    program, *options = launcher
    command = [str(Path(sys.executable).with_name(program)), *options, *arguments]
    # Without a GPU, whatever machine this is: nothing tells them that they train on the CPU.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def our_training(folder: Path, batch_size: int, output: str) -> list[str]:
    options = ["train", "--data", str(folder / "my.txt"), "--max_steps", "6"]
    options += ["--n_embd", "16", "--n_layer", "2", "--n_head", "2", "--block_size", "16", "--logging_steps", "1"]
    # AdamW would hide a wrong scale of the gradients, and make much of the rounding of a gradient that is almost 0.
    options += ["--optim", "sgd", "--learning_rate", "0.1"]
    options += ["--eval_interval", "3", "--eval_iters", "2", "--sample_length", "0"]
    return [*options, "--per_device_train_batch_size", str(batch_size), "--output_dir", str(folder / output)]


@pytest.fixture(scope="module")
def one(text, tmp_path_factory) -> Path:
    """A folder with a text, `my.txt`, and what one process has learned of it, `ours`."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "my.txt").write_text(text, encoding="utf-8", newline="\n")
    assert main([*our_training(folder, 8, "ours"), "--device", "cpu"]) == 0
    return folder


def losses_of(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def check_equal(two: Path, one: Path) -> None:
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5)
    expected = load_file(one / "model.safetensors")
    weights = load_file(two / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


def check_ours(two: Path, one: Path, printed: str) -> None:
    check_equal(two, one)
    expected, report = (json.loads((run / "run.json").read_text(encoding="utf-8")) for run in (one, two))
    assert report["training"]["processes"] == 2
    assert report["training"]["tokens"] == expected["training"]["tokens"]
    assert report["losses"]["validation"] == pytest.approx(expected["losses"]["validation"], rel=1e-5)
    assert printed.count("validation loss") == 1  # one of them speaks


@pytest.mark.slow
@pytest.mark.door("`torchrun -m minigpt train`, two processes: what one learns from the same batches", "torch")
def test_torchrun_gives_the_training_of_one_process(one):
    printed = launch(TORCHRUN, "-m", "minigpt", *our_training(one, 4, "torchrun"))
    check_ours(one / "torchrun", one / "ours", printed)


@pytest.mark.slow
@pytest.mark.door(
    "`accelerate launch` of the stock `Trainer` and of `minigpt train`, two processes: what one learns",
    "accelerate",
    "torch",
    "transformers",
)
def test_accelerate_gives_the_trainings_of_one_process(one, lecture, rows, tmp_path, monkeypatch):
    # Rows with different numbers of targets: a mean of the two processes' means would be another loss.
    uneven = rows.map(
        lambda row, index: {"labels": [-100] * (index % 13) + row["labels"][index % 13 :]}, with_indices=True
    )
    uneven.save_to_disk(tmp_path / "rows")
    script = tmp_path / "training.py"
    script.write_text(BOTH_TRAININGS, encoding="utf-8")
    given = [str(script), str(lecture), str(tmp_path / "rows")]
    monkeypatch.setattr(sys, "argv", [*given, str(tmp_path / "one"), "8", "--version"])
    runpy.run_path(str(script))
    printed = launch(ACCELERATE, *given, str(tmp_path / "two"), "4", *our_training(one, 4, "accelerate"))

    assert "processes: 2" in printed
    check_equal(tmp_path / "two", tmp_path / "one")
    check_ours(one / "accelerate", one / "ours", printed)
