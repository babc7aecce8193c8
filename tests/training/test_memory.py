"""Sizes that no machine has room for are refused before anything is made; the count behind that is exact."""

import pytest

from minigpt.cli import main
from minigpt.training import memory
from minigpt.training.lora import LoraSettings, add_lora, count_lora_parameters
from minigpt.training.memory import count_parameters
from minigpt.training.presets import MODEL_CLASSES, PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_counted_as_those_of_the_model_itself(name):
    config = PRESETS[name].build_config()
    model_class = MODEL_CLASSES[config.model_type]
    if config.model_type == "minigpt":
        config.num_hidden_layers, config.layer_types = 5, ["full_attention"] * 5
    assert count_parameters(model_class, config) == model_class(config).num_parameters()


@pytest.mark.parametrize(
    "options",
    [
        ["--n_layer", "100000", "--n_embd", "4096"],
        ["--n_embd", "1000000000", "--n_head", "1"],
        ["--n_embd", "4000000000000", "--n_head", "1"],
        ["--block_size", "1000000000000"],
        ["--per_device_train_batch_size", "1000000000"],
    ],
)
def test_a_run_that_no_machine_has_room_for_is_refused_with_the_estimate(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "plays", "--device", "cpu", *options]) == 2
    assert "smaller" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_more_layers_than_a_list_can_hold_are_refused_before_the_list_is_made(capsys):
    assert main(["train", "--n_layer", "1000000000000"]) == 2
    assert "at most 100,000, got 1,000,000,000,000" in capsys.readouterr().err


def test_the_estimate_is_compared_with_the_memory_that_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "_memory_of", lambda device: 3_000_000)
    assert main(["train", "--data", "plays", "--device", "cpu"]) == 2
    assert "trained parameters" in (said := capsys.readouterr().err)
    assert "cpu has 0.0 GB" in said


@pytest.mark.extra("lora")
@pytest.mark.parametrize("targets", ["all-linear", ("qkv_proj",), ("o_proj", "down_proj")])
def test_an_adapter_is_counted_without_making_it(targets):
    config = PRESETS["seed"].build_config(n_layer=2)
    model = MODEL_CLASSES["minigpt"](config)
    settings = LoraSettings(r=3, targets=targets)
    counted = count_lora_parameters(model, settings)
    adapted = add_lora(model, settings, "base")
    assert counted == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


@pytest.mark.extra("lora")
def test_a_rank_that_no_machine_has_room_for_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--n_layer", "1", "--max_steps", "1", "--eval_iters", "1", "--sample_length", "3", "--device", "cpu"]
    assert main(["train", "--data", "plays", "--output_dir", "run", *small]) == 0
    asked = ["finetune", "run", "--data", "plays", "--lora", "--lora_r", "1000000000", "--device", "cpu"]
    assert main(asked) == 2
    assert "use a smaller model, rank, block or batch" in capsys.readouterr().err
