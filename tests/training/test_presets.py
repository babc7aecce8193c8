"""Presets are what they say they are."""

import pytest

from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.presets import PRESETS, get_preset


@pytest.mark.parametrize("name", ["bigram", "seed", "nano-cpu", "nano", "chat"])
def test_preset_builds_its_config_and_its_arguments(name, tmp_path):
    preset = get_preset(name)
    config = preset.build_config(vocab_size=68)
    assert config.vocab_size == 68
    args = MiniGPTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **preset.training)
    assert args.max_steps == preset.training["max_steps"]
    assert preset.name == name
    assert preset.description


@pytest.mark.parametrize(
    ("name", "vocab_size", "parameters"),
    [
        ("bigram", 65, 65 * 65),  # bigram.py
        ("seed", 65, 209_729),  # printed by the lecture's notebook: 0.209729 M parameters
        # nanoGPT prints 0.80 M and 10.65 M, without the positions: 64 x 128 and 256 x 384.
        ("nano-cpu", 65, 804_096),
        ("nano", 65, 10_745_088),
    ],
)
def test_preset_has_as_many_parameters_as_its_original(name, vocab_size, parameters):
    config = get_preset(name).build_config(vocab_size=vocab_size)
    model = BigramForCausalLM(config) if name == "bigram" else MiniGPTForCausalLM(config)
    assert model.num_parameters() == parameters


def test_nanogpt_presets_start_with_scaled_residual_projections():
    model = MiniGPTForCausalLM(get_preset("nano-cpu").build_config())
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            assert projection.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
        assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_chat_is_rotary_with_a_block_of_256():
    config = get_preset("chat").build_config()
    assert (config.position_embedding_type, config.max_position_embeddings) == ("rope", 256)


def test_unknown_preset_names_the_nearest_and_lists_all():
    with pytest.raises(ValueError, match=r"no preset 'nanocpu'; did you mean 'nano-cpu'\?") as error:
        get_preset("nanocpu")
    assert all(name in str(error.value) for name in PRESETS)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"num_attention_heads": 3}, ValueError, "hidden_size (64) must be a multiple of num_attention_heads (3)"),
        ({"num_hidden_layers": 0}, ValueError, "num_hidden_layers must be at least 1, got 0."),
        ({"hidden_size": -64}, ValueError, "must be at least 1, got -64."),
        ({"hidden_size": "64"}, TypeError, "Field 'hidden_size' expected int"),
        ({"n_layers": 2}, TypeError, "MiniGPTConfig has no field 'n_layers'; did you mean n_layer?"),
    ],
)
def test_impossible_config_is_refused_in_one_sentence(changes, kind, message):
    with pytest.raises(kind) as error:
        get_preset("seed").build_config(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
