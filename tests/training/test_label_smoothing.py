"""Label smoothing is of the same targets as the plain loss, whoever trains which model."""

import datasets
import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.training.data.batches import RandomCrops, collate
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.lora import LoraSettings, add_lora
from minigpt.training.trainer import MiniGPTTrainer

BLOCK = 8
SMALL = {"n_embd": 8, "n_layer": 1, "n_head": 2}
GPT2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
LLAMA = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS = {
    "minigpt": lambda size: MiniGPTForCausalLM(MiniGPTConfig(vocab_size=size, block_size=BLOCK, **SMALL)),
    "bigram": lambda size: BigramForCausalLM(BigramConfig(vocab_size=size)),
    "gpt2": lambda size: GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=BLOCK, **SMALL, **GPT2)),
    "llama": lambda size: LlamaForCausalLM(LlamaConfig(vocab_size=size, max_position_embeddings=BLOCK, **LLAMA)),
}


@pytest.fixture(params=MODELS)
def model(request, tokenizer):
    torch.manual_seed(0)
    return MODELS[request.param](len(tokenizer)).eval()


@torch.no_grad()
def smoothed_loss(model, ids, targets, smoothing):
    """The loss as torch defines it: a part of each target's probability is spread over the whole vocabulary."""
    logits = model(input_ids=ids).logits.flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing).item()


@pytest.mark.parametrize("smoothing", [0.0, 1e-6, 0.1])
def test_the_stock_trainer_smooths_the_next_tokens(model, tokenizer, tmp_path, smoothing):
    rows = torch.randint(0, 9, (4, BLOCK), generator=torch.Generator().manual_seed(1))
    labels = rows.clone()
    labels[:, 0] = labels[0, :5] = -100  # the Trainer counts the first label of GPT-2, which nothing predicts
    args = TrainingArguments(str(tmp_path), use_cpu=True, label_smoothing_factor=smoothing)
    dataset = datasets.Dataset.from_dict({"input_ids": rows.tolist(), "labels": labels.tolist()})
    loss = Trainer(model, args, eval_dataset=dataset).evaluate()["eval_loss"]
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    assert loss == pytest.approx(smoothed_loss(model, rows, targets, smoothing), abs=1e-5)


def test_the_stock_trainer_shifts_the_labels_of_crops_once(model, tokens, tmp_path):
    crops = RandomCrops(TokenStream(tokens["train"]), BLOCK, length=4)
    args = TrainingArguments(str(tmp_path), use_cpu=True, label_smoothing_factor=0.1, remove_unused_columns=False)
    loss = Trainer(model, args, eval_dataset=crops, data_collator=collate).evaluate()["eval_loss"]
    rows = crops.__getitems__(range(4))
    targets = F.pad(rows[:, 1:-1], (0, 1), value=-100)
    # Divided by the number of all targets, of which it misses the last one of each crop.
    expected = smoothed_loss(model, rows[:, :-1], targets, 0.1) * (BLOCK - 1) / BLOCK
    assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_our_trainer_smooths_every_target_of_a_crop(model, arguments, tokens, smoothing, accumulation):
    check_our_trainer(model, arguments, tokens, smoothing, accumulation)


@pytest.mark.extra("lora")
def test_our_trainer_smooths_every_target_of_a_crop_under_an_adapter(model, arguments, tokens):
    if isinstance(model, BigramForCausalLM):
        pytest.skip("a bigram has no layer that LoRA adapts")
    check_our_trainer(add_lora(model, LoraSettings(dropout=0.0), "base"), arguments, tokens, 0.1, 1)


def check_our_trainer(model, arguments, tokens, smoothing, accumulation):
    args = arguments(
        label_smoothing_factor=smoothing,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4 // accumulation,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        eval_strategy="no",
    )
    trainer = MiniGPTTrainer(model, args, tokens, block_size=BLOCK)
    rows = trainer.train_dataset.__getitems__(range(4))
    expected = smoothed_loss(model, rows[:, :-1], rows[:, 1:], smoothing)
    trainer.train()
    [loss] = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert loss == pytest.approx(expected, abs=1e-4)
