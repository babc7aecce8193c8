"""Weights that are not a model's, or not finite, are refused by name wherever a model is opened."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from minigpt import BigramConfig, BigramForCausalLM, MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.hub.exporting.formats import export_model
from minigpt.hub.importing.sources import import_model
from minigpt.hub.loading import open_trained
from minigpt.hub.weights import load_whole
from minigpt.training.data.corpus import PLAYS
from tests.hub.bare_python import OURS

TEXT = PLAYS.read_text(encoding="utf-8")[:2000]
TOKENIZER = MiniGPTTokenizer.from_text(TEXT)
Weights = dict[str, torch.Tensor]
MLP = "model.layers.1.mlp.down_proj.bias"


def save(folder: Path, model: PreTrainedModel, **how: object) -> Path:
    model.save_pretrained(folder, **how)
    TOKENIZER.save_pretrained(folder)
    return folder


def gpt(**changes: object) -> MiniGPTForCausalLM:
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8}
    return MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(TOKENIZER), **{**small, **changes}))


def rewrite(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = change(weights)
    save_file(changed if isinstance(changed, dict) else weights, folder / "model.safetensors", {"format": "pt"})


def reconfigure(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def set_to(value: float) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda weights: weights[MLP].view(-1)[:1].fill_(value))


def without_a_shard(folder: Path) -> None:
    save(folder, gpt(), max_shard_size="3KB")
    (folder / "model.safetensors").unlink()
    next(folder.glob("model-00002-of-*")).unlink()


# What is done to a whole folder, and words of the one sentence that refuses it.
UNFIT: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "every tensor renamed": (
        lambda folder: rewrite(folder, lambda weights: {f"zz.{name}": one for name, one in weights.items()}),
        ["lm_head.bias, lm_head.weight", "more are missing", "zz.lm_head.bias", "more are left over"],
    ),
    "one tensor lost": (lambda folder: rewrite(folder, lambda weights: weights.pop(MLP)), [f"{MLP} is missing"]),
    "one tensor renamed": (
        lambda folder: rewrite(folder, lambda weights: weights.update({f"{MLP}x": weights.pop(MLP)})),
        [f"{MLP} is missing", f"{MLP}x is left over"],
    ),
    "a tensor more": (
        lambda folder: rewrite(folder, lambda weights: weights.update(soul=torch.ones(3))),
        ["soul is left over"],
    ),
    "no tensor at all": (lambda folder: rewrite(folder, lambda weights: weights.clear()), ["more are missing"]),
    "the head lost": (
        lambda folder: rewrite(folder, lambda weights: weights.pop("lm_head.weight")),
        ["lm_head.weight is missing"],
    ),
    "a layer more in the file": (
        lambda folder: reconfigure(folder, num_hidden_layers=1, layer_types=["full_attention"]),
        ["model.layers.1.", "more are left over"],
    ),
    "a layer more in the config": (
        lambda folder: reconfigure(folder, num_hidden_layers=3, layer_types=["full_attention"] * 3),
        ["model.layers.2.", "more are missing"],
    ),
    "biases that the config has not": (lambda folder: reconfigure(folder, mlp_bias=False), ["are left over"]),
    "a switch that the weights have not": (lambda folder: reconfigure(folder, norm_type="rmsnorm"), ["left over"]),
    "another size of the vocabulary": (
        lambda folder: reconfigure(folder, vocab_size=len(TOKENIZER) + 5),
        ["model.safetensors has the shape", f"[{len(TOKENIZER)}", f"[{len(TOKENIZER) + 5}"],
    ),
    "another width": (
        lambda folder: reconfigure(folder, hidden_size=16),
        [", 8] where", ", 16] belongs", "more do not fit"],
    ),
    "another block": (
        lambda folder: reconfigure(folder, max_position_embeddings=16),
        ["model.safetensors has the shape [8, 8] where [16, 8] belongs"],
    ),
    "one tensor of another shape": (
        lambda folder: rewrite(folder, lambda weights: weights.update({MLP: torch.ones(3)})),
        [f"{MLP} in ", "model.safetensors has the shape [3] where [8] belongs"],
    ),
    "a shard lost": (without_a_shard, ["model.safetensors.index.json names 'model-00002-of-"]),
    "another model's weights": (
        lambda folder: shutil.copy(
            save(folder / "other", BigramForCausalLM(BigramConfig(vocab_size=len(TOKENIZER)))) / "model.safetensors",
            folder / "model.safetensors",
        ),
        ["are missing", "left over"],
    ),
    "a classifier's head": (
        lambda folder: rewrite(
            folder,
            lambda weights: (
                {name: one for name, one in weights.items() if "lm_head" not in name}
                | {"score.weight": torch.ones(2, 8)}
            ),
        ),
        ["lm_head.bias, lm_head.weight are missing", "score.weight is left over"],
    ),
    "a weight that is not a number": (set_to(math.nan), [f"not finite ({MLP})"]),
    "an infinite weight": (set_to(-math.inf), [f"not finite ({MLP})"]),
}


def commands(model: Path, folder: Path) -> dict[str, list[str]]:
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8", newline="\n")
    return {
        "generate": ["generate", str(model), "--max_new_tokens", "3"],
        "chat": ["chat", str(model)],
        "eval": ["eval", str(model), "--data", str(text)],
        "export": ["export", str(model), "--to", "torch", "--output_dir", str(folder / "out")],
        "finetune": [
            *("finetune", str(model), "--data", str(text), "--output_dir", str(folder / "out")),
            *("--max_steps", "1", "--device", "cpu"),
        ],
        "push": ["push", str(model), "tester/model"],
    }


@pytest.mark.door(
    "Weights that are missing, left over, of another shape or not finite are named, and no command takes them", *OURS
)
@pytest.mark.parametrize("fault", UNFIT)
def test_weights_that_are_not_the_models_are_named_by_every_command(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_tester")
    change, words = UNFIT[fault]
    model = save(tmp_path / "mine", gpt())
    change(model)
    capsys.readouterr()
    sentences = set()
    for command, argv in commands(model, tmp_path).items():
        assert main(argv) == 2, command
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == 1, err
        for word in (str(model), *words):
            assert word in err, (command, err)
        sentences.add(err)
        assert "loss" not in out
    assert len(sentences) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["one tensor lost", "a tensor more", "a weight that is not a number"])
def test_python_refuses_them_too(fault: str, tmp_path: Path) -> None:
    model = save(tmp_path / "mine", gpt())
    UNFIT[fault][0](model)
    for use in (lambda: open_trained(model), lambda: export_model(model, "gpt2", tmp_path / "out")):
        with pytest.raises(UsageError, match="model"):
            use()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("transformer.h.0.mlp.c_fc.bias"), "transformer.h.0.mlp.c_fc.bias is missing"),
        (lambda weights: weights.update(soul=torch.ones(3)), "soul is left over"),
        (lambda weights: weights.update({"transformer.ln_f.bias": torch.ones(3)}), r"\[3\] where \[8\] belongs"),
        (lambda weights: weights["transformer.ln_f.bias"].fill_(math.inf), r"not finite \(transformer.ln_f.bias\)"),
    ],
)
def test_a_stock_model_is_imported_whole_or_not_at_all(
    change: Callable[[Weights], object], said: str, tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=len(TOKENIZER), n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    stock = save(tmp_path / "stock", GPT2LMHeadModel(config))
    rewrite(stock, change)
    with pytest.raises(UsageError, match=said):
        import_model(stock, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_model_computes_by_itself_is_not_left_over(tmp_path: Path) -> None:
    """GPT-2 and GPT-Neo of old saved their causal masks, and rotary models their frequencies."""
    config = GPT2Config(vocab_size=len(TOKENIZER), n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    stock = save(tmp_path, GPT2LMHeadModel(config))
    rewrite(stock, lambda weights: weights.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)}))
    assert open_trained(stock, "cpu")[0].num_parameters()
    rotary = save(tmp_path / "rotary", gpt(position_embedding_type="rope"))
    buffers = dict(load_whole(MiniGPTForCausalLM.from_pretrained, rotary).named_buffers())
    assert buffers
    rewrite(rotary, lambda weights: weights.update({name: one.clone() for name, one in buffers.items()}))
    assert open_trained(rotary, "cpu")[0].num_parameters()


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "3KB"}])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "lm_head_bias": False}])
def test_a_whole_model_opens_with_its_own_weights(
    how: dict[str, object], changes: dict[str, object], tmp_path: Path
) -> None:
    model = gpt(**changes)
    opened = open_trained(save(tmp_path, model, **how), "cpu")[0].state_dict()
    assert all(torch.equal(opened[name], one) for name, one in model.state_dict().items())


def test_the_dtype_does_not_hide_what_is_not_finite(tmp_path: Path) -> None:
    model = gpt().to(torch.bfloat16)
    model.model.layers[1].mlp.down_proj.bias.data[-1] = math.nan
    with pytest.raises(UsageError, match=r"not finite"):
        open_trained(save(tmp_path, model), "cpu")
