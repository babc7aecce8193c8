"""Schedule-free optimizers: estimates, checkpoints and results have the averaged weights, not the training point."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import minigpt
from minigpt.hub.loading import open_trained
from minigpt.training.trainer import MiniGPTTrainer

pytestmark = pytest.mark.extra("schedulefree")

SHAPE = {"n_embd": 16, "n_layer": 1, "n_head": 2, "block_size": 16}
STEPS = 6
TRAINING = {
    "optim": "schedule_free_adamw",
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "learning_rate": 0.05,
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "eval_interval": 2,
    "eval_iters": 2,
    "save_steps": 1,
    "save_total_limit": STEPS,
    "sample_length": 0,
}


@pytest.fixture(scope="module")
def run(text_file, tmp_path_factory):
    pytest.importorskip("schedulefree")
    training = {**TRAINING, "output_dir": str(tmp_path_factory.mktemp("free") / "run")}
    return minigpt.train("seed", str(text_file), device="cpu", model=SHAPE, training=training)


def test_saved_weights_are_the_mean_of_the_iterates(run):
    iterates = []
    for step in range(1, STEPS + 1):
        checkpoint = run.folder / f"checkpoint-{step}"
        state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
        iterates.append(sorted((entry["z"].flatten() for entry in state.values()), key=len))
        saved = sorted((weight.flatten() for weight in load_file(checkpoint / "model.safetensors").values()), key=len)
        # At a constant learning rate all iterates weigh the same.
        means = [torch.stack(same).mean(0) for same in zip(*iterates, strict=True)]
        assert torch.cat(saved).sort().values == pytest.approx(torch.cat(means).sort().values, abs=1e-5)
    last, first = (load_file(run.folder / name / "model.safetensors") for name in (f"checkpoint-{STEPS}", "."))
    assert all(torch.equal(last[name], first[name]) for name in last)


def test_estimates_and_the_final_loss_are_those_of_the_saved_weights(run, arguments, tokens):
    opened, _ = open_trained(run.folder, "cpu")
    few = {"eval_iters": 2, "per_device_train_batch_size": 4, "seed": run.report["training"]["seed"]}
    judge = MiniGPTTrainer(opened, arguments(**few), tokens)
    assert run.validation.loss == pytest.approx(judge.score(opened).loss, rel=1e-6)
    for point in run.report["losses"]["curves"][1:]:
        saved = AutoModelForCausalLM.from_pretrained(run.folder / f"checkpoint-{point['step']}")
        estimate = MiniGPTTrainer(saved, arguments(**few), tokens).estimate()
        assert point["validation"] == pytest.approx(estimate["validation"], rel=1e-6)
        assert point["train"] == pytest.approx(estimate["train"], rel=1e-6)


@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_run_ends_as_the_uninterrupted_one(step, run, text_file, tmp_path):
    training = {
        **TRAINING,
        "output_dir": str(tmp_path),
        "resume_from_checkpoint": str(run.folder / f"checkpoint-{step}"),
    }
    resumed = minigpt.train("seed", str(text_file), device="cpu", model=SHAPE, training=training)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, run.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.report["losses"]["curves"] == run.report["losses"]["curves"]


def test_the_best_weights_that_are_brought_back_are_those_of_their_checkpoint(text_file, tmp_path):
    pytest.importorskip("schedulefree")
    # At a step without estimate the run ends in training mode.
    training = {
        **TRAINING,
        "max_steps": 5,
        "load_best_model_at_end": True,
        "save_steps": 2,
        "output_dir": str(tmp_path),
    }
    best = minigpt.train("seed", str(text_file), device="cpu", model=SHAPE, training=training)
    final = load_file(tmp_path / "model.safetensors")
    expected = load_file(tmp_path / f"checkpoint-{best.report['model']['step']}" / "model.safetensors")
    assert all(torch.equal(final[name], expected[name]) for name in expected)
