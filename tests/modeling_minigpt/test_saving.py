"""What is saved comes back: weights, ties, frequencies and code, and what does not fit is reported."""

import copy
import importlib
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import minigpt
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import (
    MiniGPTForCausalLM,
    MiniGPTForSequenceClassification,
    MiniGPTForTokenClassification,
    MiniGPTModel,
)
from tests.hub.copied_code import CODE

ROPE = {"position_embedding_type": "rope"}
YARN = {**ROPE, "rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 2.0}}
SHAPES = {
    "lecture": {},
    "tied": {"tie_word_embeddings": True, "lm_head_bias": False},
    "tied with bias": {"tie_word_embeddings": True},
    "rope": {**YARN, "norm_type": "rmsnorm", "hidden_act": "swiglu"},
}
HEADS = {
    AutoModel: MiniGPTModel,
    AutoModelForCausalLM: MiniGPTForCausalLM,
    AutoModelForSequenceClassification: MiniGPTForSequenceClassification,
    AutoModelForTokenClassification: MiniGPTForTokenClassification,
}


@pytest.fixture
def ids(draw_ids):
    return draw_ids(2, 8)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_survive_saving_and_loading(build, ids, tmp_path, shape):
    model = build(**SHAPES[shape])
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is MiniGPTForCausalLM
    assert not any(info.values())
    assert not loaded.training
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("shape", ["lecture", "tied with bias"])
def test_logits_survive_being_saved_in_shards(build, ids, tmp_path, shape):
    model = build(**SHAPES[shape])
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(MiniGPTForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_a_tied_weight_is_stored_once_and_comes_back_as_one(build, tmp_path):
    build(**SHAPES["tied with bias"]).save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    loaded = MiniGPTForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_an_untied_head_is_a_weight_of_its_own(build, tmp_path):
    build().save_pretrained(tmp_path)
    loaded = MiniGPTForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_asked_for_is_the_dtype_given(build, ids, tmp_path, dtype):
    model = build(**SHAPES["rope"])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    logits = loaded(ids).logits
    assert logits.dtype == dtype
    assert (logits.float() - model(ids).logits).abs().amax() < 0.1 * model(ids).logits.abs().amax()


def test_a_model_saved_in_bfloat16_comes_back_in_bfloat16(build, tmp_path):
    build().to(torch.bfloat16).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_a_copy_and_a_pickled_model_are_whole_and_independent(build, ids):
    model = build(**ROPE, qk_norm="before_rotary")
    expected = model(ids).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(ids).logits, expected)
        torch.nn.init.zeros_(twin.model.layers[0].self_attn.q_norm.weight)
        assert not torch.equal(twin(ids).logits, expected)
        assert torch.equal(model(ids).logits, expected)


# Building and initialising.


def test_a_model_is_built_on_the_meta_device_without_memory(build):
    for fields in SHAPES.values():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(MiniGPTConfig(**fields))
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("rope_type", ["default", "linear", "llama3", "yarn"])
def test_rotary_frequencies_survive_from_pretrained_and_are_llamas(tmp_path, rope_type):
    parameters = {
        "default": {},
        "linear": {"factor": 2.0},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
        "yarn": {"factor": 2.0},
    }[rope_type]
    parameters = {"rope_type": rope_type, "rope_theta": 777.0, **parameters}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 16, "num_hidden_layers": 1}
    expected = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=8, rope_parameters=dict(parameters))).model.rotary_emb
    model = MiniGPTForCausalLM(MiniGPTConfig(**sizes, **ROPE, rope_parameters=dict(parameters)))
    model.save_pretrained(tmp_path)
    loaded = MiniGPTForCausalLM.from_pretrained(tmp_path)
    assert "model.rotary_emb.inv_freq" not in load_file(tmp_path / "model.safetensors")
    for rotary in (model.model.rotary_emb, loaded.model.rotary_emb):
        torch.testing.assert_close(rotary.inv_freq, expected.inv_freq)
        assert rotary.attention_scaling == expected.attention_scaling


def test_nothing_derived_is_lost_by_loading(build, tmp_path):
    for fields in (YARN, {"sliding_window": 3, "residual_init": "scaled", "final_logit_softcapping": 5.0}):
        model = build(**fields)
        model.save_pretrained(tmp_path)
        loaded = MiniGPTForCausalLM.from_pretrained(tmp_path)
        for (name, before), (_, after) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
            assert torch.equal(before, after), name
        for before, after in zip(model.modules(), loaded.modules(), strict=True):
            plain = (int, float, str, tuple, type(None))
            simple = {
                name: value
                for name, value in vars(before).items()
                if isinstance(value, plain) and name not in ("training", "name_or_path", "_is_hf_initialized")
            }
            assert {name: getattr(after, name, "lost") for name in simple} == simple
    assert not any(isinstance(value, torch.Tensor) for module in model.modules() for value in vars(module).values())


@pytest.mark.parametrize(("residual_init", "factor"), [("normal", 1.0), ("scaled", 1 / math.sqrt(12)), ("zero", 0.0)])
def test_each_kind_of_weight_starts_with_its_own_spread(residual_init, factor):
    torch.manual_seed(0)
    config = MiniGPTConfig(
        n_embd=128,
        n_layer=6,
        vocab_size=300,
        block_size=300,
        attention_bias=True,
        initializer_range=0.05,
        residual_init=residual_init,
        **{"qk_norm": "before_rotary"},
    )
    model = MiniGPTForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert weight.count_nonzero() == 0, name
        elif "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            assert weight.std().item() == pytest.approx(0.05 * factor, rel=0.03), name
        else:
            assert weight.std().item() == pytest.approx(0.05, rel=0.03), name
            assert abs(weight.mean().item()) < 0.002, name


def test_every_head_starts_as_its_backbone_does():
    for model_class in HEADS.values():
        torch.manual_seed(0)
        model = model_class(MiniGPTConfig(n_embd=128, residual_init="scaled", initializer_range=0.05))
        backbone = model.base_model
        assert backbone.layers[0].self_attn.qkv_proj.weight.std().item() == pytest.approx(0.05, rel=0.05)
        assert backbone.layers[0].mlp.down_proj.weight.std().item() == pytest.approx(0.05 / math.sqrt(8), rel=0.05)


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(MiniGPTForCausalLM(MiniGPTConfig()).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("residual_init", ["scaled", "zero"])
def test_initialising_does_not_touch_loaded_weights(build, ids, tmp_path, residual_init):
    model = build(residual_init=residual_init)
    model.save_pretrained(tmp_path)
    loaded = MiniGPTForCausalLM.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


@pytest.mark.parametrize("residual_init", ["scaled", "zero"])
def test_missing_weights_are_reported_and_start_as_in_a_new_model(tmp_path, residual_init, build):
    model = build(n_embd=64, n_layer=4, residual_init=residual_init)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    projections = ("o_proj.weight", "qkv_proj.weight", "input_layernorm.weight")
    missing = {f"model.layers.1.{'self_attn.' if 'proj' in name else ''}{name}" for name in projections}
    missing.add("model.layers.0.self_attn.o_proj.bias")  # its weight is there and must stay
    save_file({k: v for k, v in weights.items() if k not in missing}, tmp_path / "model.safetensors", {"format": "pt"})
    torch.manual_seed(0)
    loaded, info = MiniGPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == missing
    layer = loaded.model.layers[1]
    assert layer.self_attn.qkv_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    expected = 0.02 / math.sqrt(8) if residual_init == "scaled" else 0.0
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert torch.equal(layer.input_layernorm.weight, torch.ones(64))
    assert torch.equal(loaded.model.layers[0].self_attn.o_proj.weight, model.model.layers[0].self_attn.o_proj.weight)


def test_weights_that_belong_nowhere_are_reported(build, tmp_path):
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "model.soul.weight": torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    _, info = MiniGPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"model.soul.weight"}


def test_weights_that_do_not_fit_are_refused_unless_allowed(build, tmp_path):
    build().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MiniGPTForCausalLM.from_pretrained(tmp_path, vocab_size=30)
    loaded, info = MiniGPTForCausalLM.from_pretrained(
        tmp_path, vocab_size=30, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "lm_head.bias",
    }
    assert loaded.model.embed_tokens.weight.shape == (30, 16)


# Resizing.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [11, 23])
def test_resizing_keeps_every_old_token_and_the_tie(build, ids, tmp_path, tied, bias, size):
    model = build(tie_word_embeddings=tied, lm_head_bias=bias)
    few = ids.clamp(max=10)
    before, kept = model(few).logits, min(size, 17)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size
    assert model.get_input_embeddings().num_embeddings == size
    assert (model.lm_head.bias is not None) == bias
    logits = model(few, labels=few).logits
    assert logits.shape == (2, 8, size)
    torch.testing.assert_close(logits[..., :kept], before[..., :kept])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    loaded = MiniGPTForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(few).logits, logits)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_a_resized_model_learns_and_generates_its_new_tokens(build):
    model = build()
    model.resize_token_embeddings(20)
    ids = torch.tensor([[17, 18, 19, 17, 18, 19]])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(30):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.generate(ids[:, :3], max_new_tokens=3, do_sample=False).tolist() == ids.tolist()


# Auto classes and code.


def test_registering_again_is_harmless(build, tmp_path):
    minigpt.register()
    importlib.reload(minigpt).register()
    build().save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is MiniGPTForCausalLM


@pytest.mark.parametrize("model_class", HEADS.values())
def test_a_saved_folder_names_a_class_for_every_auto_class_and_carries_its_code(build, tmp_path, model_class):
    build(model_class).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_minigpt.MiniGPTConfig",
        "AutoModelForDecision": "modeling_minigpt.MiniGPTForCausalLM",
        **{auto.__name__: f"modeling_minigpt.{ours.__name__}" for auto, ours in HEADS.items()},
    }
    names = {Path(file).stem for file in CODE}
    assert {path.stem for path in tmp_path.glob("*.py")} == names
    here = Path(minigpt.modeling_minigpt.__file__).parent
    for name in names:
        assert (tmp_path / f"{name}.py").read_bytes() == (here / f"{name}.py").read_bytes()


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_with_the_package_its_own_classes_open_a_saved_folder(build, ids, tmp_path, trust_remote_code):
    model = build()
    model.save_pretrained(tmp_path)
    for auto_class, ours in HEADS.items():
        loaded = auto_class.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
        assert type(loaded) is ours
        assert type(loaded.config) is MiniGPTConfig
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


WITHOUT_THE_PACKAGE = """
import sys

sys.modules["minigpt"] = None  # importing it fails, as where it was never installed

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

root = Path(sys.argv[1])
expected = load_file(root / "expected.safetensors")
ids = expected.pop("ids")
autos = (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification)
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError:
        pass
    else:
        raise AssertionError("loaded without the package and without trust")
    for auto in autos:
        model = auto.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        if auto.__name__ == folder.name:
            output = model(ids)[0]
            assert torch.equal(output, expected[folder.name]), folder
            again = root.parent / "again" / folder.name
            model.save_pretrained(again)
            assert {path.name for path in again.glob("*.py")} == {path.name for path in folder.glob("*.py")}
            reloaded = auto.from_pretrained(again, trust_remote_code=True)
            assert torch.equal(reloaded(ids)[0], output)
    if folder.name == "AutoModelForCausalLM":
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        fast_loop, calls = type(model)._sample_fast, []
        type(model)._sample_fast = lambda *args: calls.append(1) or fast_loop(*args)
        assert torch.equal(model.generate(ids, max_new_tokens=15, do_sample=False), expected["generated"])
        assert calls == [1]
assert not any(name == "minigpt" or name.startswith("minigpt.") for name, module in sys.modules.items() if module)
print("all loaded")
"""


def test_saved_folders_open_where_the_package_is_not_installed(build, draw_ids, tmp_path):
    ids = draw_ids(2, 8, vocab_size=16)
    root, expected = tmp_path / "saved", {"ids": ids}
    for auto_class, ours in HEADS.items():
        model = build(ours, pad_token_id=16, **YARN)
        model.save_pretrained(root / auto_class.__name__)
        expected[auto_class.__name__] = model(ids)[0].detach().clone()
        if ours is MiniGPTForCausalLM:
            expected["generated"] = model.generate(ids, max_new_tokens=15, do_sample=False)
    save_file(expected, root / "expected.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(root)],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "all loaded" in run.stdout
