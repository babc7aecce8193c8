"""Accelerate's own loop, models that lie in pieces on several devices, and a compiled Trainer."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from accelerate import Accelerator, cpu_offload, dispatch_model
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Trainer

BLOCK = 16
TOKENS = 3 * BLOCK


@pytest.fixture(autouse=True)
def nothing_is_left_for_other_tests() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process, in the environment too."""
    with mock.patch.dict(os.environ):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def ids(rows):
    return torch.tensor(rows["input_ids"][:2])[:, :10]  # (2, 10)


@pytest.fixture
def batches(rows):
    return DataLoader(rows.with_format("torch"), batch_size=4)


def loop(accelerator, model, optimizer, loader, steps):
    model.train()
    losses = []
    for _, batch in zip(range(steps), loader, strict=False):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.door("Accelerate's own loop: accumulation, `save_state`, `load_state`, `save_model`", "accelerate")
def test_a_loop_of_ones_own_saves_and_goes_on(build_model, batches, tmp_path):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = build_model(tie_word_embeddings=True)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), batches)
    losses = loop(accelerator, model, optimizer, loader, 20)
    assert losses[-1] < losses[0] - 0.2
    accelerator.save_state(tmp_path / "state")
    went_on = loop(accelerator, model, optimizer, loader, 4)
    accelerator.load_state(tmp_path / "state")
    assert loop(accelerator, model, optimizer, loader, 4) == went_on

    accelerator.save_model(model, tmp_path / "saved")
    accelerator.unwrap_model(model).config.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for name, weight in accelerator.unwrap_model(model).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.door(
    "`accelerate` offloads layers to the CPU or the disk: the same text, past the block too", "accelerate"
)
def test_an_offloaded_model_writes_the_same_text(saved, ids, offload, tmp_path):
    plain, model = (AutoModelForCausalLM.from_pretrained(saved).double() for _ in range(2))
    if offload == "cpu":
        cpu_offload(model)
    else:
        pieces = {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
        where = {**pieces, "model.layers.0": "disk", "model.layers.1": "cpu", "lm_head": "cpu"}
        dispatch_model(model, where, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert model.model.layers[0].mlp.up_proj.weight.device.type == "meta"
    expected = plain.generate(ids, max_new_tokens=TOKENS, do_sample=False)
    assert model.generate(ids, max_new_tokens=TOKENS, do_sample=False).tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.door(
    "The stock `Trainer` with `torch_compile=True`: the losses of the uncompiled model", "transformers", "torch"
)
def test_a_compiled_trainer_gives_the_same_losses(build_model, few_steps, rows):
    losses = []
    for changes in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        trainer = Trainer(build_model(), few_steps(max_steps=6, logging_steps=1, **changes), train_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
