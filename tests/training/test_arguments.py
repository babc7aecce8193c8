"""What is said on the command line is what is done, over the preset, and nonsense is refused with a hint."""

import json
import math
from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments

from minigpt.cli import main
from minigpt.cli.train import build_parser, parse_train_command
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.presets import get_preset
from minigpt.training.setup import build_arguments


def refusal(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        parse_train_command(argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minigpt train: ")
    return line


def test_nothing_said_is_the_preset_seed():
    command = parse_train_command([])
    assert (command.preset, command.data, command.device, command.overwrite) == ("seed", None, None, False)
    assert command.model == command.training == {}


def test_flags_win_over_the_preset_and_the_rest_of_it_stays(tmp_path):
    command = parse_train_command(["--preset", "nano-cpu", "--learning_rate", "0.1", "--output_dir", str(tmp_path)])
    args = build_arguments(get_preset(command.preset).training, command.training, device="cpu")
    assert args.learning_rate == 0.1
    assert (args.max_steps, args.adam_beta2, args.lr_scheduler_kwargs) == (2000, 0.99, {"min_lr": 1e-4})


@pytest.mark.parametrize(
    ("flag", "value", "field", "expected"),
    [
        ("--n_layer", "6", "num_hidden_layers", 6),
        ("--num_hidden_layers", "6", "num_hidden_layers", 6),
        ("--n-layer", "6", "num_hidden_layers", 6),
        ("--dropout", "0", "dropout", 0.0),
        ("--norm_bias", "false", "norm_bias", False),
        ("--qk_norm", "none", "qk_norm", None),
        ("--norm_type", "rmsnorm", "norm_type", "rmsnorm"),
        ("--sliding_window", "16", "sliding_window", 16),
        ("--layer_types", json.dumps(["full_attention"] * 4), "layer_types", ["full_attention"] * 4),
    ],
)
def test_every_kind_of_model_field_is_an_option(flag, value, field, expected):
    assert parse_train_command([flag, value]).model == {field: expected}


def test_every_stock_argument_is_an_option_and_makes_it_to_the_arguments():
    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert {f"--{stock.name}" for stock in fields(TrainingArguments) if stock.init} <= known
    command = parse_train_command(["--fp16", "--gradient-accumulation-steps", "3", "--optim", "sgd", "--no_keep_best"])
    assert command.training == {"fp16": True, "gradient_accumulation_steps": 3, "optim": "sgd", "keep_best": False}


@pytest.mark.parametrize(("changes", "steps"), [({}, -1), ({"max_steps": 9}, 9)])
def test_epochs_asked_for_win_over_the_number_of_steps_of_the_preset(tmp_path, changes, steps):
    asked = {"output_dir": str(tmp_path), "num_train_epochs": 3, **changes}
    assert build_arguments(get_preset("seed").training, asked, device="cpu").max_steps == steps


def test_resuming_takes_a_folder_or_none():
    assert parse_train_command(["--resume_from_checkpoint"]).training == {"resume_from_checkpoint": True}
    assert parse_train_command(["--resume_from_checkpoint", "a/b"]).training == {"resume_from_checkpoint": "a/b"}


def test_help_is_short_shows_an_example_and_leads_to_all_options(capsys):
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            parse_train_command([flag])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "minigpt train --data my.txt" in text
        assert "--n_layer" in text
        assert ("--fsdp_config" in text) == (flag == "--help_all")
        if flag == "--help":
            assert len(text.splitlines()) < 80


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n_layers", "3"], "there is no option --n_layers; did you mean --n_layer?"),
        (["--max_step=3"], "there is no option --max_step; did you mean --max_steps?"),
        (["--preset", "nanoo"], "there is no preset 'nanoo'; did you mean 'nano'?"),
        (["--preset", "large"], "there is no preset 'large'; there are bigram, seed, nano-cpu, nano, chat."),
        (["--n_head", "3"], "hidden_size (64) must be a multiple of num_attention_heads (3); change either."),
        (["--n_layer", "-1"], "num_hidden_layers must be at least 1, got -1."),
        (["--block_size", "0"], "max_position_embeddings must be at least 1, got 0."),
        (["--dropout", "x"], "argument --dropout: invalid float value: 'x'"),
        (["--n_embd", "64.5"], "argument --n_embd/--hidden_size: invalid int value: '64.5'"),
        (["--preset", "bigram", "--n_layer", "2"], "BigramConfig has no field 'num_hidden_layers'"),
        (["input.txt"], "'input.txt' belongs to no option; write --data input.txt."),
    ],
)
def test_what_is_asked_wrongly_is_refused_with_a_hint(capsys, argv, message):
    assert message in refusal(capsys, *argv)


def test_intervals_follow_the_estimates_unless_given(arguments):
    args = arguments(eval_interval=40)
    assert (args.eval_steps, args.logging_steps, args.save_steps) == (40, 40, 200)
    args = arguments(eval_interval=40, logging_steps=10, save_steps=80, eval_steps=20)
    assert (args.eval_steps, args.logging_steps, args.save_steps) == (20, 10, 80)
    args = arguments(eval_steps=0.3)
    assert (args.eval_steps, args.logging_steps, args.save_steps) == (0.3, 0.3, 0.3)


def test_early_stopping_is_one_flag(arguments):
    assert arguments(early_stopping_patience=3).load_best_model_at_end
    assert not arguments().load_best_model_at_end


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        *(("eval_interval", 0, 1), ("eval_iters", 0, 1), ("sample_length", -1, 0), ("early_stopping_patience", 0, 1)),
        *(("per_device_train_batch_size", 0, 1), ("per_device_eval_batch_size", 0, 1)),
        *(("gradient_accumulation_steps", 0, 1), ("logging_steps", -1, 0), ("save_steps", -1, 0)),
        *(("warmup_steps", -1, 0), ("learning_rate", -0.1, 0)),
        *(("adam_beta1", -0.1, 0), ("adam_beta2", -0.1, 0), ("adam_epsilon", -1e-9, 0), ("eval_delay", -1, 0)),
        *(("label_smoothing_factor", -0.1, 0), ("neftune_noise_alpha", -1, 0)),
        *(("weight_decay", -0.1, 0), ("max_grad_norm", -1, 0), ("seed", -1, 0), ("data_seed", -1, 0)),
    ],
)
def test_number_below_its_least_is_refused_by_name(arguments, name, value, least):
    with pytest.raises(ValueError, match=f"^{name} must be at least {least}, got {value}.$"):
        arguments(**{name: value})
    arguments(**{name: least})  # the limit itself is not refused


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("max_steps", 0, "at least 1, or -1 for num_train_epochs"),
        ("max_steps", -2, "at least 1, or -1 for num_train_epochs"),
        ("eval_steps", 0, "above 0"),
        ("eval_steps", -0.5, "above 0"),
        ("eval_steps", 10.5, "a whole number, or below 1 a part of the run"),
        ("num_train_epochs", 0, "above 0"),
        ("adam_beta1", 1.0, "below 1"),
        ("adam_beta2", 1.5, "below 1"),
        ("label_smoothing_factor", 1.0, "below 1"),
        ("seed", 2**32, "at most 4294967295"),
        ("data_seed", 2**32, "at most 4294967295"),
    ],
)
def test_number_out_of_its_range_is_refused_by_name(arguments, name, value, limit):
    with pytest.raises(ValueError, match=f"^{name} must be {limit}, got {value}.$"):
        arguments(**{name: value})


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--eval_iters", "0", "eval_iters must be at least 1, got 0."),
        ("--seed", "-1", "seed must be at least 0, got -1."),
        ("--max_steps", "0", "max_steps must be at least 1, or -1 for num_train_epochs, got 0."),
        ("--lr_scheduler_type", "cosin", "argument --lr_scheduler_type: invalid choice: 'cosin' (choose from"),
        ("--fp16", "--bf16", "fp16 and bf16 are two precisions for the same numbers, got both; choose one."),
        ("--device", "tpu", "there is no device 'tpu' here"),
        ("--device", "cuda:1", "got 'cuda:1'; say --device cuda and choose"),
        ("--dropout", "x", "argument --dropout: invalid float value: 'x'"),
        ("--n_head", "3", "hidden_size (64) must be a multiple of num_attention_heads (3); change either."),
    ],
)
def test_impossible_value_exits_2_before_anything_is_read_or_said(tmp_path, capsys, option, value, said):
    folder = tmp_path / "run"
    assert main(["train", "--data", "no such file", "--output_dir", str(folder), "--device", "cpu", option, value]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not folder.exists()


def test_arguments_survive_a_copy(arguments):
    args = arguments(eval_interval=40)
    copy = MiniGPTTrainingArguments(**{own.name: getattr(args, own.name) for own in fields(args) if own.init})
    assert copy.to_dict() == args.to_dict()
    assert isinstance(MiniGPTTrainingArguments().output_dir, str)


def test_one_of_several_processes_that_would_train_alone_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    # An accelerator whose processes nothing joins, such as Apple's GPU, or a GPU that no launcher has started it on.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(
        ValueError,
        match=r"^the environment variable WORLD_SIZE is 2 but this process would train alone on \w+; "
        r"start all processes with torchrun, say use_cpu, or unset WORLD_SIZE\.$",
    ):
        MiniGPTTrainingArguments(output_dir=str(tmp_path))


def test_a_machine_without_accelerator_is_said_to_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert MiniGPTTrainingArguments(output_dir=str(tmp_path)).use_cpu


FLOATS = [field.name for field in fields(MiniGPTTrainingArguments) if "float" in str(field.type)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_number_that_is_not_finite_is_refused_in_every_field_that_takes_floats(arguments, name, value):
    assert len(FLOATS) > 10
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number, got {value}\.$"):
        arguments(**{name: value})


@pytest.mark.parametrize("given", [{"min_lr": math.nan}, '{"min_lr": NaN}'])
def test_number_that_is_not_finite_is_refused_among_those_of_the_schedule(arguments, given):
    with pytest.raises(ValueError, match=r"^min_lr must be a finite number, got nan\.$"):
        arguments(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=given)
