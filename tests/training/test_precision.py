"""Half precision is how a model trains; what is scored, saved and handed back is the whole one."""

import copy
import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.readme import RESULTS
from minigpt.cli import main
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.autocast import without_autocast
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.evaluation import validation_loss
from minigpt.training.train import train
from minigpt.training.trainer import MiniGPTTrainer

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8}
SHORT = {"max_steps": 6, "eval_interval": 3, "eval_iters": 1, "sample_length": 5}


def run_on(text_file, folder, device="cpu", **training):
    arguments = {"output_dir": str(folder), **SHORT, **training}
    return train("seed", text_file, device=device, model=SMALL, training=arguments)


@pytest.fixture(scope="module")
def trained(text_file, tmp_path_factory):
    """A whole run in half precision."""
    return run_on(text_file, tmp_path_factory.mktemp("half") / "run", bf16=True)


@pytest.fixture
def build_trainer(arguments, build_model, tokens, tokenizer):
    def build(model=None, **changes):
        return MiniGPTTrainer(model or build_model(), arguments(**changes), tokens, processing_class=tokenizer)

    return build


def precision_of(model):
    """In which precision the head computes when the model is called as it is."""
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    model(torch.zeros(1, 4, dtype=torch.long, device=model.device))
    hook.remove()
    return seen[0]


def test_saved_weights_are_whole_and_the_loss_is_the_one_that_the_saved_model_has(trained, tokens, text_file, capsys):
    folder = trained.folder
    assert trained.report["training"]["bf16"] is True
    assert trained.report["training"]["gradient_checkpointing"] is False
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.float32}
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert saved.dtype == torch.float32
    written = json.loads((folder / "run.json").read_text(encoding="utf-8"))["losses"]["validation"]["loss"]
    assert written == trained.validation.loss == validation_loss(saved, TokenStream(tokens["validation"]), 8).loss
    assert main(["eval", str(folder), "--data", str(text_file), "--device", "cpu"]) == 0
    assert f"loss {written:.4f} nats" in capsys.readouterr().out


def test_model_that_is_handed_back_computes_in_full_precision_and_writes(trained):
    model, ids = trained.model, torch.ones(1, 4, dtype=torch.long)
    assert precision_of(model) == torch.float32
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12).shape == (1, 16)
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_half_precision_goes_on_from_a_checkpoint_to_the_last_digit(build_trainer, build_model):
    whole = build_trainer(build_model(dropout=0.2), bf16=True, save_steps=3, logging_steps=1)
    whole.train()
    parts = build_trainer(build_model(dropout=0.2), bf16=True, save_steps=3, logging_steps=1)
    parts.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    for weight, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(weight, other)
    assert whole.state.log_history[:-1] == parts.state.log_history[:-1]


def test_half_precision_learns_what_full_precision_learns(build_trainer):
    losses = {}
    for bf16 in (False, True):
        trainer = build_trainer(bf16=bf16, max_steps=80, eval_interval=80, save_strategy="no")
        trainer.train()
        first = trainer.state.log_history[0]["eval_loss"]
        losses[bf16] = trainer.score(without_autocast(trainer.model)).loss
        assert losses[bf16] < first - 0.8
    assert losses[True] == pytest.approx(losses[False], abs=0.02)
    assert losses[True] != losses[False]


def test_preset_was_measured_to_learn_in_half_precision_what_it_learns_in_full():
    rows = [line.split("|") for line in (RESULTS / "precision.md").read_text(encoding="utf-8").splitlines()]
    losses = {cells[1].strip(): float(cells[3]) for cells in rows if len(cells) == 6 and cells[2].strip() == "2,000"}
    assert losses.keys() == {"float32", "bfloat16"}
    assert losses["float32"] < 1.9
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.02)


def test_estimates_and_samples_are_computed_as_the_training_is(build_trainer, build_model):
    seen = set()
    model = build_model()
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.add((module.training, output.dtype)))
    build_trainer(model, bf16=True, save_strategy="no", sample_length=3).train()
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}


def test_wrapper_comes_off_whole_and_no_more_than_it(build_model):
    model, ids = build_model().eval(), torch.zeros(1, 4, dtype=torch.long)
    full = model(ids).logits
    Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    half = model(ids).logits
    assert not torch.equal(half, full)

    assert without_autocast(model) is model
    assert precision_of(model) == torch.float32
    assert torch.equal(model(ids).logits, full)
    assert torch.equal(model(ids, return_dict=False)[0], full)  # the forward's decorators are still there
    assert "forward" not in vars(model)
    assert without_autocast(model) is model

    Accelerator().prepare(model)  # for another training
    assert torch.equal(model(ids).logits, half)


def test_accelerate_itself_takes_off_too_much(build_model):
    # If this fails, it has learned to do it, and `without_autocast` has had its time.
    model = build_model()
    Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    with pytest.raises(AttributeError):
        extract_model_from_parallel(model, keep_fp32_wrapper=False)(torch.zeros(1, 4).long(), return_dict=False)


def test_forward_that_a_model_was_given_is_given_back(build_model):
    model = build_model()

    def forward(input_ids):
        return model.lm_head(model.model.embed_tokens(input_ids))

    model.forward = forward
    Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    assert precision_of(model) == torch.bfloat16
    assert without_autocast(model).forward is forward


# -- What a device cannot, and what contradicts itself --


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fp16"], "fp16 is for GPUs, and this trains on the CPU, where nothing would come of it; say bf16 instead."),
        (["--bf16", "--fp16"], "fp16 and bf16 are two precisions for the same numbers, got both; choose one."),
        (["--bf16_full_eval"], "bf16_full_eval would round the weights themselves, for good; say bf16 instead"),
        (["--fp16_full_eval"], "fp16_full_eval would round the weights themselves, for good; say fp16 instead"),
        (["--tf32"], "tf32 is a precision of NVIDIA's GPUs since Ampere, and there is none here; leave it out."),
    ],
)
def test_precision_that_cannot_be_is_refused_before_anything_is_read_or_said(tmp_path, capsys, options, said):
    folder = tmp_path / "run"
    asked = ["train", "--data", "no such file", "--output_dir", str(folder), "--device", "cpu", *options]
    assert main(asked) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert (len(err.splitlines()), out) == (1, "")
    assert not folder.exists()


def test_bfloat16_needs_no_gpu_and_no_word_about_the_device(tmp_path):
    args = MiniGPTTrainingArguments(output_dir=str(tmp_path), bf16=True)
    assert args.device.type == ("cpu" if not torch.accelerator.is_available() else args.device.type)
    assert args.mixed_precision == "bf16"


def test_gpu_without_bfloat16_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr("minigpt.training.arguments.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"^bf16 is not among the precisions of this GPU; say fp16 instead, or use_cpu"
    ):
        MiniGPTTrainingArguments(output_dir=str(tmp_path), bf16=True)


def test_precision_said_to_accelerate_is_as_good_as_said_to_us(arguments, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert arguments().bf16  # so that run.json has it
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match=r"^fp16 is for GPUs"):
        arguments()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA's kind")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gpu_trains_in_half_precision(text_file, tmp_path, precision):
    full = run_on(text_file, tmp_path / "full", "cuda")
    half = run_on(text_file, tmp_path / "half", "cuda", **{precision: True})
    assert half.validation.loss == pytest.approx(full.validation.loss, abs=0.02)
    assert {weight.dtype for weight in load_file(half.folder / "model.safetensors").values()} == {torch.float32}
    assert precision_of(half.model) == torch.float32
