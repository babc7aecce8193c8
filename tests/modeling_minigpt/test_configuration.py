"""The configuration takes what people write, keeps it, and refuses by name what no model can be."""

import copy
import json
import logging
import math
import pickle
from dataclasses import fields

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

ROPE = {"position_embedding_type": "rope"}
EVERY_FIELD = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 20,
    "position_embedding_type": "rope",
    "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    "norm_type": "rmsnorm",
    "norm_eps": 1e-6,
    "norm_bias": False,
    "embedding_norm": True,
    "qk_norm": "after_rotary",
    "hidden_act": "swiglu",
    "attention_bias": True,
    "attention_output_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "tie_word_embeddings": True,
    "final_logit_softcapping": 15,
    "dropout": 0.1,
    "embedding_dropout": 0.2,
    "classifier_dropout": 0.3,
    "initializer_range": 0.1,
    "residual_init": "zero",
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 4,
}


def own_fields() -> set[str]:
    inherited = {field.name for field in fields(PreTrainedConfig)}
    return {field.name for field in fields(MiniGPTConfig)} - inherited


def test_the_default_is_the_lectures_gpt():
    config = MiniGPTConfig()
    assert (config.n_embd, config.n_layer, config.n_head, config.block_size) == (64, 4, 4, 32)
    assert (config.hidden_act, config.norm_type, config.position_embedding_type) == ("relu", "layernorm", "learned")
    assert (config.intermediate_size, config.head_dim, config.num_key_value_heads) == (256, 16, 4)
    assert (config.attention_bias, config.lm_head_bias, config.tie_word_embeddings, config.dropout) == (
        False,
        True,
        False,
        0.0,
    )


def test_building_a_config_says_nothing(caplog, capfd):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            MiniGPTConfig()
            MiniGPTConfig(**EVERY_FIELD)
            MiniGPTConfig(**ROPE)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_each_alias_sets_reads_and_changes_its_field():
    config = MiniGPTConfig(n_embd=24, n_layer=3, n_head=2, block_size=7)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 3, 2)
    assert (config.max_position_embeddings, config.head_dim, config.intermediate_size) == (7, 12, 96)
    config.block_size = 9
    assert config.max_position_embeddings == 9
    assert "block_size" not in config.to_dict()


def test_the_example_below_names_every_field():
    assert EVERY_FIELD.keys() == own_fields()


@pytest.mark.parametrize("values", [{}, EVERY_FIELD], ids=["defaults", "every field"])
def test_json_keeps_every_field(tmp_path, values):
    config = MiniGPTConfig(**values)
    for name, value in values.items():
        assert getattr(config, name) == value
    config.save_pretrained(tmp_path)
    for loaded in (
        MiniGPTConfig.from_pretrained(tmp_path),
        MiniGPTConfig.from_dict(json.loads(config.to_json_string())),
        MiniGPTConfig(**config.to_dict()),
    ):
        assert {name: getattr(loaded, name) for name in own_fields()} == {
            name: getattr(config, name) for name in own_fields()
        }
    assert MiniGPTConfig.from_pretrained(tmp_path).to_json_string() == config.to_json_string()


def test_the_diff_keeps_what_was_changed():
    diff = MiniGPTConfig(n_embd=32, dropout=0.2).to_diff_dict()
    assert (diff["model_type"], diff["hidden_size"], diff["dropout"]) == ("minigpt", 32, 0.2)
    assert "output_hidden_states" not in diff


def test_auto_config_opens_a_saved_config(tmp_path):
    MiniGPTConfig(n_embd=32).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MiniGPTConfig


def test_it_is_a_transformers_config():
    assert issubclass(MiniGPTConfig, PreTrainedConfig)
    assert {"use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"} <= own_fields()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("n_layers", "n_layer"),
        ("n_heads", "n_head"),
        ("nembd", "n_embd"),
        ("blocksize", "block_size"),
        ("vocabsize", "vocab_size"),
        ("num_attention_head", "num_attention_heads"),
        ("norm_types", "norm_type"),
        ("slidingwindow", "sliding_window"),
        ("num_layers", "n_layer"),
    ],
)
def test_the_constructor_refuses_a_near_miss_naming_the_field(written, meant):
    with pytest.raises(TypeError, match=f"no field '{written}'; did you mean {meant}\\?"):
        MiniGPTConfig(**{written: 3})


SET_BY_OTHERS = [
    ("attention_dropout", 0.1),
    ("num_layers", 12),
    ("n_layers", 12),
    ("bias", True),
    ("max_seq_len", 1024),
    ("layer_norm_eps", 1e-6),
    ("rms_norm_eps", 1e-6),
    ("use_sliding_window", False),
    ("vocabsize", 3),
    ("tie_weights", None),
]


@pytest.mark.parametrize(
    "loader", ["from_pretrained", "Auto", "from_dict", "from_json_file", "to_dict", "copy", "pickle"]
)
@pytest.mark.parametrize("config_class", [MiniGPTConfig, BigramConfig])
def test_an_attribute_of_any_name_survives_saving_and_loading(tmp_path, config_class, loader):
    config = config_class()
    for name, value in SET_BY_OTHERS:
        setattr(config, name, value)
    config.save_pretrained(tmp_path)
    loaded = {
        "from_pretrained": lambda: config_class.from_pretrained(tmp_path, dropout=0.0),
        "Auto": lambda: AutoConfig.from_pretrained(tmp_path),
        "from_dict": lambda: config_class.from_dict(dict(SET_BY_OTHERS)),  # a file may lack its model_type
        "from_json_file": lambda: config_class.from_json_file(tmp_path / "config.json"),
        "to_dict": lambda: config_class(**config.to_dict()),
        "copy": lambda: copy.deepcopy(config),
        "pickle": lambda: pickle.loads(pickle.dumps(config)),
    }[loader]()
    assert {name: getattr(loaded, name) for name, _ in SET_BY_OTHERS} == dict(SET_BY_OTHERS)
    for name in ("vocab_size", "max_position_embeddings", "initializer_range"):
        assert getattr(loaded, name) == getattr(config_class(), name)


@pytest.mark.parametrize(
    "key",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5},
        {"partial_rotary_factor": 0.5},
        {"temperature": 0.5, "max_length": 20},  # an old config's way to keep generation parameters
    ],
    ids=str,
)
def test_a_file_with_a_key_that_means_nothing_here_gives_the_same_model(tmp_path, key):
    MiniGPTConfig().save_pretrained(tmp_path)
    expected = MiniGPTConfig.from_pretrained(tmp_path).to_json_string()
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | key), encoding="utf-8")
    assert MiniGPTConfig.from_pretrained(tmp_path).to_json_string() == expected


def test_what_could_not_be_opened_again_is_not_saved(tmp_path):
    config = MiniGPTConfig(**ROPE)
    config.partial_rotary_factor = 0.5
    with pytest.raises(StrictDataclassClassValidationError, match="partial_rotary_factor is not supported"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoConfig": "configuration_minigpt.MiniGPTConfig"}),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("num_labels", 5),
        ("id2label", {0: "verse", 1: "prose"}),
        ("label2id", {"verse": 0, "prose": 1}),
        ("problem_type", "regression"),
        ("architectures", ["MiniGPTForCausalLM"]),
        ("attn_implementation", "eager"),
        ("dtype", "bfloat16"),
        ("output_hidden_states", True),
        ("return_dict", False),
        ("name_or_path", "somebody/minigpt"),
        ("transformers_version", "5.23.0"),
        ("_from_auto", True),
        ("temperature", None),
        ("rope_scaling", None),
    ],
)
def test_the_libraries_own_keys_pass(key, value):
    MiniGPTConfig(**{key: value})


def test_a_persons_own_key_is_kept(tmp_path):
    MiniGPTConfig(favourite_play="Hamlet").save_pretrained(tmp_path)
    assert MiniGPTConfig.from_pretrained(tmp_path).favourite_play == "Hamlet"


@pytest.mark.parametrize("key", sorted({"temperature", "top_k", "max_length", "max_new_tokens", "min_p", "do_sample"}))
def test_a_generation_parameter_is_refused_not_swallowed(key):
    assert key in GenerationConfig().to_dict()
    with pytest.raises(TypeError, match=f"no field '{key}'; set it in generation_config"):
        MiniGPTConfig(**{key: 1})


IMPOSSIBLE = [
    ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
    ({"hidden_size": -4}, "hidden_size must be at least 1, got -4"),
    ({"n_embd": 0}, "hidden_size must be at least 1, got 0"),
    ({"intermediate_size": 0}, "intermediate_size must be at least 1"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
    ({"n_layer": -1}, "num_hidden_layers must be at least 1, got -1"),
    ({"n_head": 0}, "num_attention_heads must be at least 1"),
    ({"n_head": -2}, "num_attention_heads must be at least 1"),
    ({"n_head": 3}, r"hidden_size \(64\) must be a multiple of num_attention_heads \(3\)"),
    ({"num_key_value_heads": 0}, "num_key_value_heads must be at least 1"),
    ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)"),
    ({"head_dim": 0}, "head_dim must be at least 1"),
    ({"head_dim": 5, **ROPE}, "rotary positions need an even head_dim, got 5"),
    ({"block_size": 0}, "max_position_embeddings must be at least 1"),
    ({"dropout": 1}, "dropout must be at least 0 and below 1, got 1"),
    ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
    ({"embedding_dropout": 1.5}, "embedding_dropout must be at least 0 and below 1"),
    ({"classifier_dropout": 2}, "classifier_dropout must be at least 0 and below 1"),
    ({"norm_eps": 0.0}, "norm_eps must be above 0"),
    ({"initializer_range": 0}, "initializer_range must be above 0"),
    ({"final_logit_softcapping": 0}, "final_logit_softcapping must be above 0"),
    ({"final_logit_softcapping": -3.0}, "final_logit_softcapping must be above 0"),
    ({"hidden_act": "rleu"}, "hidden_act 'rleu' is unknown; did you mean relu"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "need position_embedding_type='rope'"),
    ({"rope_theta": 1e4}, "need position_embedding_type='rope'"),
    (
        {**ROPE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type must be one of",
    ),
    (
        {**ROPE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor is not supported",
    ),
    ({"sliding_window": 0}, "sliding_window must be at least 2, got 0"),
    ({"sliding_window": 1}, "sliding_window must be at least 2, got 1"),
    ({"sliding_window": 33}, r"sliding_window \(33\) must not exceed max_position_embeddings \(32\)"),
    ({"n_layer": 1, "layer_types": ["sliding_attention"]}, "layer_types name sliding_attention; set sliding_window"),
    ({"n_layer": 1, "layer_types": ["chunked_attention"]}, "layer_types must be of .*chunked_attention"),
    ({"n_layer": 2, "layer_types": ["full_attention"]}, r"`num_hidden_layers` \(2\) must be equal to .*`layer_types`"),
]


@pytest.mark.parametrize(("values", "message"), IMPOSSIBLE, ids=[str(values) for values, _ in IMPOSSIBLE])
def test_an_impossible_value_is_refused_by_name(values, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        MiniGPTConfig(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", "65"),
        ("n_embd", 64.0),
        ("norm_type", "batchnorm"),
        ("qk_norm", True),
        ("position_embedding_type", "sinusoidal"),
        ("residual_init", "small"),
        ("dropout", "0.1"),
        ("layer_types", "full_attention"),
        ("norm_bias", 1),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name, value):
    field = MiniGPTConfig.attribute_map.get(name, name)
    with pytest.raises((StrictDataclassFieldValidationError, TypeError), match=field):
        MiniGPTConfig(**{name: value})
    with pytest.raises((StrictDataclassFieldValidationError, TypeError), match=field):
        setattr(MiniGPTConfig(), field, value)


@pytest.mark.parametrize("name", ["dropout", "embedding_dropout", "classifier_dropout"])
def test_a_whole_zero_is_a_probability(name):
    assert getattr(MiniGPTConfig(**{name: 0}), name) == 0


def test_whole_numbers_pass_where_people_write_them():
    config = MiniGPTConfig(initializer_range=1, final_logit_softcapping=15)
    assert (config.initializer_range, config.final_logit_softcapping) == (1, 15)


def test_a_field_changed_into_the_impossible_is_refused_when_a_model_is_built():
    config = MiniGPTConfig()
    config.num_hidden_layers = 2
    with pytest.raises(StrictDataclassClassValidationError, match="num_hidden_layers"):
        MiniGPTForCausalLM(config)


def test_an_impossible_config_is_not_saved(tmp_path):
    config = MiniGPTConfig()
    config.num_key_value_heads = 3
    with pytest.raises(StrictDataclassClassValidationError, match="num_key_value_heads"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_the_dtype_is_read_as_transformers_writes_it():
    assert MiniGPTConfig(dtype="bfloat16").dtype is torch.bfloat16


def test_a_window_makes_every_layer_slide_unless_said_otherwise():
    assert set(MiniGPTConfig(sliding_window=8).layer_types) == {"sliding_attention"}
    mixed = MiniGPTConfig(n_layer=2, sliding_window=8, layer_types=["full_attention", "sliding_attention"], **ROPE)
    assert not mixed.rolls_past_block
    assert MiniGPTConfig(sliding_window=8, **ROPE).rolls_past_block
    assert not MiniGPTConfig(sliding_window=8).rolls_past_block


def test_rotary_parameters_default_to_the_papers_theta():
    assert MiniGPTConfig(**ROPE).rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert MiniGPTConfig(rope_theta=500.0, **ROPE).rope_parameters["rope_theta"] == 500.0
    assert MiniGPTConfig().rope_parameters is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("config_class", "name"),
    [
        (config_class, field.name)
        for config_class in (MiniGPTConfig, BigramConfig)
        for field in fields(config_class)
        if "float" in str(field.type) and not hasattr(PreTrainedConfig, field.name) and field.name != "rope_parameters"
    ],
)
def test_number_that_is_not_finite_is_refused_in_every_field(config_class, name, value):
    with pytest.raises(StrictDataclassClassValidationError, match=f"{name} must be .*, got {value}"):
        config_class(**{name: value})


@pytest.mark.parametrize("name", ["rope_theta", "factor"])
def test_number_that_is_not_finite_is_refused_among_the_rotary_parameters(name):
    rotary = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, name: math.inf}
    with pytest.raises(StrictDataclassClassValidationError, match=f"{name} must be a finite number, got inf"):
        MiniGPTConfig(position_embedding_type="rope", rope_parameters=rotary)
