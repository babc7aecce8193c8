"""The classification heads learn, look at the right token whatever the padding, and start from a language model."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from minigpt.modeling_minigpt.modeling_minigpt import (
    MiniGPTForCausalLM,
    MiniGPTForSequenceClassification,
    MiniGPTForTokenClassification,
)

PAD = 16
AUTOS = {
    MiniGPTForSequenceClassification: AutoModelForSequenceClassification,
    MiniGPTForTokenClassification: AutoModelForTokenClassification,
}


@pytest.fixture
def ids(draw_ids):
    return draw_ids(16, 8, vocab_size=PAD)


def train(model, ids, labels, steps=40) -> float:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


def test_sequence_classification_learns_which_token_comes_first(build, ids):
    model = build(MiniGPTForSequenceClassification, std=0.1, pad_token_id=PAD, num_labels=2)
    labels = (ids[:, 0] < 8).long()
    assert train(model, ids, labels) < 0.1
    assert model(ids).logits.shape == (16, 2)
    assert torch.equal(model(ids).logits.argmax(dim=-1), labels)


def test_token_classification_learns_each_tokens_class(build, ids):
    model = build(MiniGPTForTokenClassification, std=0.1, num_labels=3, classifier_dropout=0.1)
    labels = ids % 3
    assert train(model, ids, labels) < 0.2
    assert model(ids).logits.shape == (16, 8, 3)
    assert torch.equal(model(ids).logits.argmax(dim=-1), labels)


def test_token_classification_leaves_out_labels_of_minus_100(build, ids):
    model = build(MiniGPTForTokenClassification, num_labels=3)
    labels = (ids % 3).masked_fill(torch.arange(8) % 2 == 0, -100)
    expected = torch.nn.functional.cross_entropy(model(ids).logits[:, 1::2].reshape(-1, 3), labels[:, 1::2].reshape(-1))
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_a_rows_class(build, ids, side):
    model = build(MiniGPTForSequenceClassification, pad_token_id=PAD, num_labels=4)
    alone = torch.cat([model(ids[:1, :5]).logits, model(ids[1:2]).logits])
    padding, mask = torch.full((3,), PAD), torch.ones(2, 8, dtype=torch.long)
    if side == "left":
        row, mask[0, :3] = torch.cat((padding, ids[0, :5])), 0
    else:
        row, mask[0, 5:] = torch.cat((ids[0, :5], padding)), 0
    logits = model(torch.stack((row, ids[1])), attention_mask=mask).logits
    torch.testing.assert_close(logits, alone, atol=2e-6, rtol=1e-5)


def test_the_class_is_read_off_the_last_real_token(build, ids):
    model = build(MiniGPTForSequenceClassification, pad_token_id=PAD, num_labels=4)
    states = model.model(ids).last_hidden_state
    torch.testing.assert_close(model(ids).logits, states[:, -1] @ model.score.weight.T)


def test_a_batch_without_a_padding_token_is_refused(build, ids):
    model = build(MiniGPTForSequenceClassification)
    with pytest.raises(ValueError, match="no padding token"):
        model(ids)
    assert model(ids[:1]).logits.shape == (1, 2)


def test_regression_and_several_labels_have_their_own_losses(build, ids):
    one = build(MiniGPTForSequenceClassification, pad_token_id=PAD, num_labels=1)
    targets = torch.linspace(-1, 1, 16)
    expected = (one(ids).logits[:, 0] - targets).square().mean()
    torch.testing.assert_close(one(ids, labels=targets).loss, expected)
    many = build(MiniGPTForSequenceClassification, pad_token_id=PAD, num_labels=3)
    targets = (torch.arange(48).view(16, 3) % 2).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(many(ids).logits, targets)
    torch.testing.assert_close(many(ids, labels=targets).loss, expected)


@pytest.mark.parametrize("model_class", AUTOS)
def test_a_head_comes_back_as_it_was_saved(build, ids, tmp_path, model_class):
    names = {"id2label": {0: "verse", 1: "prose", 2: "song"}, "label2id": {"verse": 0, "prose": 1, "song": 2}}
    model = build(model_class, pad_token_id=PAD, **names)
    model.save_pretrained(tmp_path)
    loaded, info = AUTOS[model_class].from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class
    assert not any(info.values())
    assert loaded.config.id2label == names["id2label"]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("model_class", AUTOS)
def test_a_head_starts_from_a_language_model(build, ids, tmp_path, model_class):
    language_model = build(pad_token_id=PAD)
    language_model.save_pretrained(tmp_path)
    loaded, info = AUTOS[model_class].from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert all(name.startswith("score.") for name in info["missing_keys"])
    assert set(info["unexpected_keys"]) <= {"lm_head.weight", "lm_head.bias"}
    assert loaded.score.weight.shape == (3, 16)
    assert loaded.score.weight.std() > 0
    assert torch.equal(loaded.model(ids).last_hidden_state, language_model.model(ids).last_hidden_state)


@pytest.mark.parametrize("model_class", AUTOS)
def test_a_language_model_starts_from_a_head(build, ids, tmp_path, model_class):
    model = build(model_class, pad_token_id=PAD)
    model.save_pretrained(tmp_path)
    loaded, info = MiniGPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight", "lm_head.bias"}
    assert torch.equal(loaded.model(ids).last_hidden_state, model.model(ids).last_hidden_state)


@pytest.mark.parametrize("model_class", AUTOS)
def test_embeddings_of_a_head_can_be_given_and_resized(build, ids, model_class):
    model = build(model_class, pad_token_id=PAD)
    embeds = model.get_input_embeddings()(ids[:1])
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(ids[:1]).logits)
    model.resize_token_embeddings(20)
    assert model(ids[:1] + 3).logits.isfinite().all()
