"""A row gives the same logits and the same loss in any batch, on whichever side it is padded."""

import datasets
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    DataCollatorForLanguageModeling,
    DynamicCache,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from minigpt.modeling_minigpt.configuration_bigram import BigramConfig
from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer

PAD = 16
LENGTHS = (10, 6, 1, 3)


@pytest.fixture(params=["learned", "rope", "bigram"])
def model(request, build, sharpen):
    if request.param == "bigram":
        return sharpen(BigramForCausalLM(BigramConfig(vocab_size=17)))
    return build(position_embedding_type=request.param)


def pad(rows, side, value):
    padded = torch.full((len(rows), max(map(len, rows))), value)
    for line, row in zip(padded, rows, strict=True):
        line[slice(-len(row), None) if side == "left" else slice(len(row))] = row
    return padded


def batch_of(rows, side):
    mask = pad([torch.ones_like(row) for row in rows], side, 0)
    return {"input_ids": pad(rows, side, PAD), "labels": pad(rows, side, -100), "attention_mask": mask}


def rows_of(draw_ids):
    return [draw_ids(1, length, seed=length, vocab_size=16)[0] for length in LENGTHS]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("items", [None, 16, torch.tensor(16)])
def test_the_loss_of_a_padded_batch_is_that_of_its_rows_alone(model, draw_ids, side, items):
    rows = rows_of(draw_ids)
    # Left-padded rows have a first token that a Trainer counts and nothing predicts.
    counted = items if items is None or side == "right" else items + 3
    losses = [F.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="sum") for row in rows]
    loss = model(**batch_of(rows, side), num_items_in_batch=counted).loss
    torch.testing.assert_close(loss, sum(losses) / 16)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_stock_trainers_loss_does_not_depend_on_the_side(model, draw_ids, tmp_path, side, batch_size):
    rows = rows_of(draw_ids)
    tokenizer = MiniGPTTokenizer.from_text("abcdefghijklmn", padding_side=side)
    assert tokenizer.pad_token_id == PAD
    args = TrainingArguments(str(tmp_path), use_cpu=True, per_device_eval_batch_size=batch_size)
    dataset = datasets.Dataset.from_dict({"input_ids": [row.tolist() for row in rows if len(row) > 1]})
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    loss = Trainer(model, args, eval_dataset=dataset, data_collator=collator).evaluate()["eval_loss"]
    means = []
    rows = [row for row in rows if len(row) > 1]
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        # Its mean over batches weights each by its number of rows.
        means += [model(**batch_of(part, "right")).loss.item()] * len(part)
    assert loss == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("is_static", [False, True])
def test_cached_steps_count_positions_by_the_mask(build, draw_ids, side, positions, is_static):
    model, rows = build(position_embedding_type=positions), rows_of(draw_ids)
    batch = batch_of(rows, side)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    new = draw_ids(4, 2, seed=9, vocab_size=16)
    cache = StaticCache(config=model.config, max_cache_len=12) if is_static else DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache)
        mask = torch.cat((mask, torch.ones_like(new)), dim=1)
        for column in range(2):
            # A mask may already reach beyond the tokens given so far.
            shown = mask if is_static else mask[:, : 11 + column]
            logits = model(new[:, column : column + 1], attention_mask=shown, past_key_values=cache).logits[:, 0]
            for row, added, given in zip(rows, new, logits, strict=True):
                alone = model(torch.cat((row, added[: column + 1]))[None]).logits[0, -1]
                torch.testing.assert_close(given, alone, atol=2e-6, rtol=1e-5)
