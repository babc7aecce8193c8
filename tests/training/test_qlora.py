"""QLoRA: an adapter learns above weights of 4 or 8 bits as well as above whole ones, in a fraction of their memory."""

import json
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt.cli import main
from minigpt.hub import extras
from minigpt.hub.loading import open_trained
from minigpt.training.base_model import open_base
from minigpt.training.data.corpus import load_text
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.data.tokens import tokenize_corpus
from minigpt.training.evaluation import validation_loss
from minigpt.training.finetune import finetune
from minigpt.training.lora import LoraSettings
from minigpt.training.train import train
from tests.training.test_finetune import bytes_in

pytestmark = pytest.mark.extra("qlora")

BLOCK, STEPS = 16, 40
SHORT = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "eval_interval": 20,
    "eval_iters": 1,
    "save_steps": 20,
    "learning_rate": 1e-2,
    "sample_length": 0,
    "use_cpu": True,
}
FEW = ["--max_steps", "2", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("prose") / "prose.txt"
    file.write_text("a good king is a sweet lord.\nof thee my crown is dead.\n" * 100, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def base(text_file, tmp_path_factory):
    """A model whose weights lie in its linear layers for the most part, as those of large ones do."""
    folder = tmp_path_factory.mktemp("base") / "model"
    shape = {"n_embd": 128, "n_layer": 2, "n_head": 4, "block_size": BLOCK}
    train("seed", str(text_file), model=shape, training={**SHORT, "learning_rate": 1e-3, "output_dir": str(folder)})
    return folder


@pytest.fixture(scope="module")
def adapted(base, text, tmp_path_factory):
    """`adapted(bits)`: an adapter above weights of so many bits, or above whole ones for None; each is trained once."""
    folder, runs = tmp_path_factory.mktemp("adapted"), {}

    def run(bits):
        if bits not in runs:
            few = {**SHORT, "output_dir": str(folder / f"in-{bits}")}
            runs[bits] = finetune(base, str(text), lora=LoraSettings(r=4), load_in=bits, training=few)
        return runs[bits]

    return run


def quantized(folder, bits):
    from transformers import BitsAndBytesConfig

    double = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True} if bits == 4 else {}
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, **double)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    for layer in model.modules():  # as docs/lora.md says
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def exact_loss(model, tokenizer, text):
    tokens = tokenize_corpus(load_text(text), tokenizer)
    return validation_loss(model, TokenStream(tokens["validation"]), BLOCK).loss


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.door(
    "`minigpt finetune --load_in_4bit`, `--load_in_8bit` on a CPU", "bitsandbytes", "peft", "transformers"
)
def test_it_learns_as_well_as_above_whole_weights(bits, base, adapted, text):
    before = bytes_in(base)
    began = exact_loss(*open_trained(base, "cpu"), text)
    whole, ours = adapted(None).validation.loss, adapted(bits).validation.loss
    assert whole < began - 0.5
    assert ours == pytest.approx(whole, rel=0.03)
    assert ours != whole
    assert bytes_in(base) == before


@pytest.mark.parametrize("bits", [4, 8])
def test_the_linear_layers_are_quantized_and_the_head_is_not(bits, adapted):
    import bitsandbytes as bnb

    network = adapted(bits).model.get_base_model()
    kind = {4: bnb.nn.Linear4bit, 8: bnb.nn.Linear8bitLt}[bits]
    layers = [module.base_layer for module in network.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 8
    assert all(isinstance(layer, kind) for layer in layers)
    assert type(network.lm_head) is torch.nn.Linear
    assert network.lm_head.weight.dtype == torch.float32
    if bits == 4:
        assert {layer.weight.quant_type for layer in layers} == {"nf4"}
        assert all(layer.quant_state.nested for layer in layers), "the scales are quantized too"
    adapters = {weight.dtype for name, weight in network.named_parameters() if "lora_" in name}
    assert adapters == {torch.float32}


@pytest.mark.parametrize("bits", [4, 8])
def test_the_weights_take_a_fraction_of_the_memory(bits, base):
    whole = AutoModelForCausalLM.from_pretrained(base)
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    small = quantized(base, bits)
    linear = sum(
        layer.weight.numel()
        for name, layer in whole.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    )
    rest = whole.get_memory_footprint() - 4 * linear
    assert half.get_memory_footprint() == pytest.approx(whole.get_memory_footprint() / 2, rel=0.01)
    # What is not quantized, the embeddings, norms and head, is a small model's larger part in the end.
    assert small.get_memory_footprint() == pytest.approx(linear * bits / 8 + rest, rel=0.01)
    assert small.get_memory_footprint() < {4: 0.25, 8: 0.4}[bits] * whole.get_memory_footprint()
    assert small.get_memory_footprint() < {4: 0.5, 8: 0.75}[bits] * half.get_memory_footprint()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_adapter_opens_above_whole_weights(bits, base, adapted, text):
    run = adapted(bits)
    report = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert report["base"]["load_in_bits"] == bits
    assert "quantization_config" not in report["model"]["config"]
    model, tokenizer = open_trained(run.folder, "cpu")
    assert not getattr(model, "is_quantized", False)
    assert not list(run.folder.glob("model*"))
    assert exact_loss(model, tokenizer, text) == pytest.approx(run.validation.loss, rel=0.03)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_adapter_opens_above_the_weights_that_it_was_trained_on(bits, base, adapted, text):
    from peft import PeftModel

    run = adapted(bits)
    model = PeftModel.from_pretrained(quantized(base, bits), run.folder)
    loss = exact_loss(model, AutoTokenizer.from_pretrained(run.folder), text)
    assert loss == pytest.approx(run.validation.loss, abs=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.door(
    "`AutoModelForCausalLM.from_pretrained(..., quantization_config=BitsAndBytesConfig(...))` in 4 and 8 bits: "
    "inference on a CPU",
    "bitsandbytes",
    "transformers",
)
def test_a_trained_model_predicts_and_writes_in_few_bits(bits, base, text_file):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = quantized(base, bits).eval()
    whole = exact_loss(AutoModelForCausalLM.from_pretrained(base), tokenizer, text_file)
    assert exact_loss(model, tokenizer, text_file) == pytest.approx(whole, rel=0.03)
    ids = tokenizer("the king", return_tensors="pt")
    # Past the block too.
    written = model.generate(**ids, max_new_tokens=3 * BLOCK, do_sample=False)
    assert written.shape == (1, len("the king") + 3 * BLOCK)
    context = written[:, :BLOCK]
    with torch.no_grad():
        logits = model(context[:, :-1]).logits[:, -1]
    logits[:, model.generation_config.suppress_tokens] = -torch.inf
    assert written[0, BLOCK - 1] == logits.argmax()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_resumed_run_ends_as_the_uninterrupted_one(bits, base, adapted, text, tmp_path):
    whole = adapted(bits)
    again = {**SHORT, "output_dir": str(tmp_path), "resume_from_checkpoint": str(whole.folder / "checkpoint-20")}
    resumed = finetune(base, str(text), lora=LoraSettings(r=4), load_in=bits, training=again)
    ours, theirs = (load_file(run.folder / "adapter_model.safetensors") for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.report["losses"] == whole.report["losses"]


# CPUs with AVX512-BF16, where bitsandbytes repacks a layer for good when it first runs in evaluation mode.


def dense(model):
    """The same model with whole linear layers, whose weights are those of the 4 bits."""
    import bitsandbytes as bnb

    copy = deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            whole = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            whole.weight.data = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            if layer.bias is not None:
                whole.bias.data = layer.bias.data.float()
            copy.set_submodule(name, whole)
    return copy


@pytest.mark.parametrize("has_unit", [True, False])
def test_gradients_and_saved_scales_are_those_of_the_weights_also_after_an_evaluation(has_unit, base, monkeypatch):
    # Whatever CPU this is: what a layer asks it.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: has_unit)
    model = open_base(base, torch.device("cpu"), trains_adapter=True, bits=4).model
    exact, saved = dense(model), {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(BLOCK)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, exact(ids).logits, rtol=1e-4, atol=1e-5)
    gradients = []
    for network in (model, exact):
        embedded = network.get_input_embeddings()(ids).detach().requires_grad_()
        network.train()(inputs_embeds=embedded, labels=ids).loss.backward()
        gradients.append(embedded.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-8)
    assert gradients[0].abs().max() > 1e-4
    now = model.state_dict()
    assert now.keys() == saved.keys()
    assert all(torch.equal(now[name], saved[name]) for name in saved)


@pytest.fixture
def on_a_cpu_with_the_unit(monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


def four_bit_layers(model):
    import bitsandbytes as bnb

    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]


def test_every_model_that_we_open_in_4_bits_keeps_its_weights_unpacked(
    saved_in_4_bits, text, tmp_path, on_a_cpu_with_the_unit
):
    few = {**SHORT, "max_steps": 1, "eval_interval": 1, "output_dir": str(tmp_path / "run")}
    trained = finetune(saved_in_4_bits, str(text), lora=LoraSettings(r=2), training=few).model
    models = [trained, open_trained(saved_in_4_bits, "cpu")[0], open_trained(tmp_path / "run", "cpu")[0]]
    for layers in map(four_bit_layers, models):
        assert len(layers) == 8
        assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.slow
def test_a_width_that_no_packing_takes_is_tuned_and_used_in_4_bits(
    text_file, text, tmp_path, capsys, on_a_cpu_with_the_unit
):
    shape = {"n_embd": 40, "n_layer": 1, "n_head": 4, "block_size": BLOCK}
    train("seed", str(text_file), model=shape, training={**SHORT, "max_steps": 2, "output_dir": str(tmp_path / "base")})
    command = ["finetune", str(tmp_path / "base"), "--data", str(text), "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--load_in_4bit", *FEW]) == 0
    quantized(tmp_path / "base", 4).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "small")
    assert main(["generate", str(tmp_path / "small"), "--max_new_tokens", "5", "--device", "cpu"]) == 0


# What bitsandbytes logs on such a CPU when a library imports it, whatever CPU this is.
NOISY = """
import logging, sys
from importlib.abc import MetaPathFinder
from minigpt.cli import main

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bitsandbytes":
            print("imported")
            logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")

sys.meta_path.insert(0, Finder())
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_command_with_an_adapter_is_silent_about_kernels_that_it_does_not_use(adapted):
    command = ["generate", str(adapted(None).folder), "--max_new_tokens", "5", "--device", "cpu"]
    ran = subprocess.run([sys.executable, "-c", NOISY, *command], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "imported" in ran.stdout
    assert ran.stderr == ""


# Refusals.


@pytest.fixture(scope="module")
def saved_in_4_bits(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    quantized(base, 4).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def refused(capsys, *command):
    capsys.readouterr()
    assert main(["finetune", *command, *FEW]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("minigpt: ")


@pytest.mark.parametrize("option", ["--load_in_4bit", "--load_in_8bit"])
def test_a_base_that_is_quantized_already_is_refused(option, saved_in_4_bits, text, tmp_path, capsys):
    command = [str(saved_in_4_bits), "--data", str(text), "--output_dir", str(tmp_path / "run"), option]
    assert refused(capsys, *command) == (
        f"the weights of {saved_in_4_bits} are already quantized (by bitsandbytes); leave --load_in_4bit and "
        "--load_in_8bit out, or take the model in full precision."
    )
    assert not (tmp_path / "run").exists()


def test_quantized_weights_are_not_trained_themselves(saved_in_4_bits, text, tmp_path, capsys):
    command = [str(saved_in_4_bits), "--data", str(text), "--output_dir", str(tmp_path / "run")]
    assert refused(capsys, *command) == (
        f"the weights of {saved_in_4_bits} are quantized and cannot be trained; put an adapter above them with --lora."
    )


def test_an_adapter_learns_above_a_base_that_was_saved_quantized(saved_in_4_bits, text, tmp_path, capsys):
    command = [str(saved_in_4_bits), "--data", str(text), "--output_dir", str(tmp_path / "run"), "--lora"]
    assert main(["finetune", *command, *FEW]) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "run"), "--max_new_tokens", "5", "--device", "cpu"]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", "merged"]) == 2
    assert "cannot be merged into weights" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [4, 8])
def test_without_bitsandbytes_it_is_refused_with_what_to_install(bits, base, text, capsys, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    assert refused(capsys, str(base), "--data", str(text), f"--load_in_{bits}bit") == (
        f"--load_in_{bits}bit needs bitsandbytes: pip install 'minigpt-hf[qlora]'."
    )


def test_other_numbers_of_bits_are_refused(base, text):
    with pytest.raises(ValueError, match="weights are loaded in 4 or 8 bits, got 3"):
        finetune(base, str(text), load_in=3)


def test_going_on_in_other_bits_is_refused(base, text, tmp_path):
    few = {**SHORT, "max_steps": 2, "save_steps": 1, "eval_interval": 2, "output_dir": str(tmp_path / "run")}
    finetune(base, str(text), load_in=4, training=few)
    with pytest.raises(ValueError, match="has load_in_bits 4 and this run 8"):
        finetune(base, str(text), load_in=8, training={**few, "resume_from_checkpoint": True})
