"""A resumed run is trained as before, or says what was changed."""

import json
import math
import time

import pytest
import torch

from minigpt.cli.train import main as main_train
from minigpt.errors import UsageError
from minigpt.training.segments import SEGMENTS
from minigpt.training.train import train
from minigpt.training.trainer import MiniGPTTrainer


@pytest.fixture
def resume(arguments, build_model, tokens, tokenizer, tmp_path):
    """Trains 6 steps, and resumes from step 3 with other arguments."""

    def build(first, **changes):
        first = {"max_steps": 6, "save_steps": 3, "save_total_limit": None, **first}
        MiniGPTTrainer(build_model(), arguments(**first), tokens, processing_class=tokenizer).train()
        again = MiniGPTTrainer(build_model(), arguments(**{**first, **changes}), tokens, processing_class=tokenizer)
        again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
        return again

    return build


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 5e-3}, "learning_rate 0.01 -> 0.005"),
        ({"seed": 7}, "seed 42 -> 7"),
        ({"data_seed": 7}, "data_seed None -> 7"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type cosine -> linear"),
        ({"warmup_steps": 2}, "warmup_steps 0 -> 2"),
        ({"per_device_train_batch_size": 8}, "per_device_train_batch_size 4 -> 8, global_batch_size 4 -> 8"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1 -> 2, global_batch_size 4 -> 8"),
        ({"weight_decay": 0.1}, "weight_decay 0.0 -> 0.1"),
        ({"adam_beta2": 0.9}, "adam_beta2 0.999 -> 0.9"),
        ({"max_grad_norm": 1.0}, "max_grad_norm 0.0 -> 1.0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.0 -> 0.1"),
        ({"bf16": True}, "bf16 False -> True"),
        ({"max_steps": 9}, "max_steps 6 -> 9, which stretches the cosine schedule"),
    ],
)
def test_other_arguments_than_before_are_named_and_refused(resume, changes, named):
    with pytest.raises(UsageError) as refusal:
        resume({"lr_scheduler_type": "cosine"}, **changes)
    assert f"was trained with other options ({named}); resume with the old ones, or add --resume" in str(refusal.value)


def test_arguments_that_change_no_weight_are_free(resume):
    free = {"eval_interval": 2, "eval_iters": 1, "logging_steps": 1, "save_steps": 2, "gradient_checkpointing": True}
    assert resume({}, **free).state.global_step == 6


def test_run_of_a_constant_rate_is_extended_to_what_it_would_have_been(
    resume, arguments, build_model, tokens, tokenizer, tmp_path
):
    constant = {"lr_scheduler_type": "constant"}
    extended = resume(constant, max_steps=9)
    longer = arguments(**constant, max_steps=9, output_dir=str(tmp_path / "longer"))
    whole = MiniGPTTrainer(build_model(), longer, tokens, processing_class=tokenizer)
    whole.train()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, extended.model.state_dict()[name]), name


def test_changed_hyperparameters_take_the_place_of_those_in_the_checkpoint(resume):
    changed = {"learning_rate": 4e-3, "weight_decay": 0.3, "adam_beta1": 0.8, "adam_epsilon": 1e-6, "max_steps": 10}
    trainer = resume({"lr_scheduler_type": "cosine", "logging_steps": 1}, **changed, resume_with_changes=True)
    logged = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    rates = {entry["step"]: entry["learning_rate"] for entry in logged}
    for step in range(4, 11):  # each is the rate that the step was made at
        assert rates[step] == pytest.approx(4e-3 * (1 + math.cos(math.pi * (step - 1) / 10)) / 2)
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.8, 0.999)}
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-6}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.3}


def test_first_step_after_a_change_is_made_at_the_new_rate(resume):
    """An SGD step moves a weight by rate times gradient, so twice the rate is twice as far."""
    plain = {"optim": "sgd", "lr_scheduler_type": "constant"}

    def moved(**changes):
        trainer = resume(plain, max_steps=4, **changes)
        from_there = torch.load(trainer._resumed_from / "optimizer.pt", weights_only=True)
        assert from_there["param_groups"][0]["lr"] == 1e-2
        start = type(trainer.model).from_pretrained(trainer._resumed_from).state_dict()
        return {name: weight - start[name] for name, weight in trainer.model.state_dict().items()}

    once, twice = moved(), moved(learning_rate=2e-2, resume_with_changes=True)
    for name, distance in once.items():
        torch.testing.assert_close(twice[name], 2 * distance, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("first", "changes"),
    [
        ({}, {"optim": "sgd"}),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, {"learning_rate": 1e-3}),
        ({}, {"lr_scheduler_type": "reduce_lr_on_plateau"}),
    ],
)
def test_state_of_another_optimizer_is_of_no_use_whatever_is_asked_for(resume, first, changes):
    with pytest.raises(UsageError, match="state of another optimizer or schedule"):
        resume(first, **changes, resume_with_changes=True)


def test_checkpoint_that_records_no_arguments_is_accepted(resume, monkeypatch):
    monkeypatch.setattr("minigpt.training.trainer.write_segments", lambda *_: None)
    trainer = resume({}, learning_rate=1e-3)
    assert not (trainer._resumed_from / SEGMENTS).exists()


def test_report_tells_what_was_changed_after_which_step(text_file, tmp_path, capsys):
    shape = ["--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", "8", "--device", "cpu"]
    few = ["--max_steps", "4", "--eval_interval", "2", "--eval_iters", "1", "--save_steps", "2", "--sample_length", "0"]
    options = ["--data", str(text_file), "--output_dir", str(tmp_path / "run"), *shape, *few]
    main_train([*options, "--per_device_train_batch_size", "4"])
    report = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert report["changes"] == []
    assert report["training"]["tokens"] == 4 * 4 * 8
    again = [*options, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"), "--learning_rate", "0.002"]
    with pytest.raises(UsageError, match=r"learning_rate 0\.001 -> 0\.002"):
        main_train([*again, "--per_device_train_batch_size", "6"])
    main_train([*again, "--per_device_train_batch_size", "6", "--resume-with-changes"])
    report = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert report["training"]["learning_rate"] == 0.002
    assert report["training"]["tokens"] == (2 * 4 + 2 * 6) * 8
    assert report["changes"] == [
        {
            "after_step": 2,
            "before": {"per_device_train_batch_size": 4, "learning_rate": 0.001, "global_batch_size": 4},
            "after": {"per_device_train_batch_size": 6, "learning_rate": 0.002, "global_batch_size": 6},
        }
    ]


def test_durations_do_not_follow_a_clock_that_is_set_back(resume, monkeypatch):
    real, hours = time.time, iter(range(10**9))
    back = {"hours": 0}
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * back["hours"])
    step = MiniGPTTrainer.training_step
    monkeypatch.setattr(MiniGPTTrainer, "training_step", lambda *a: (back.update(hours=next(hours)), step(*a))[1])
    trainer = resume({"include_num_input_tokens_seen": "all", "logging_steps": 1})
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    assert all(0 <= runtime < 600 for runtime in seconds)
    rates = [entry[name] for entry in trainer.state.log_history for name in entry if name == "train_tokens_per_second"]
    assert rates
    assert min(rates) > 0


@pytest.fixture
def use_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_another_number_of_threads_is_said_and_recorded(text_file, tmp_path, use_threads, caplog):
    few = {"max_steps": 4, "save_steps": 2, "eval_interval": 2, "eval_iters": 1, "sample_length": 0}
    few |= {"output_dir": str(tmp_path / "run")}
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "block_size": 8}

    def trained(threads, **more):
        use_threads(threads)
        caplog.clear()
        return train("seed", str(text_file), device="cpu", model=shape, training=few | more).report

    report = trained(2)
    assert report["hardware"]["threads"] == 2
    assert report["changes"] == []
    assert trained(2, resume_from_checkpoint=checkpoint)["losses"] == report["losses"]
    assert "threads" not in caplog.text
    resumed = trained(1, resume_from_checkpoint=checkpoint)
    assert "compute with 2 and then 1 threads" in caplog.text
    assert "set OMP_NUM_THREADS=2 to resume" in caplog.text
    assert resumed["hardware"]["threads"] == 1
    assert {"after_step": 2, "before": {"threads": 2}, "after": {"threads": 1}} in resumed["changes"]
