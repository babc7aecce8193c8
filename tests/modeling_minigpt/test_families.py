"""With the weights of a stock model of another family, ours computes what that model computes."""

from dataclasses import dataclass

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from minigpt.hub.stock.conversion import from_stock
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

BLOCK = 24
SIZES = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def llama(**fields) -> LlamaForCausalLM:
    config = LlamaConfig(
        **SIZES, intermediate_size=40, num_key_value_heads=2, max_position_embeddings=BLOCK, pad_token_id=None, **fields
    )
    return LlamaForCausalLM(config)


def qwen3(**fields) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        **SIZES, intermediate_size=40, num_key_value_heads=2, head_dim=16, max_position_embeddings=BLOCK, **fields
    )
    return Qwen3ForCausalLM(config)


def rope(rope_type: str, **parameters) -> dict:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}}


FAMILIES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=32, n_layer=2, n_head=4, n_positions=BLOCK)),
    "llama": llama,
    "llama-biases-tied": lambda: llama(attention_bias=True, tie_word_embeddings=True),
    "llama-linear": lambda: llama(**rope("linear", factor=2.0)),
    "llama-llama3": lambda: llama(
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8)
    ),
    "llama-yarn": lambda: llama(**rope("yarn", factor=3.0, original_max_position_embeddings=8)),
    "qwen3": qwen3,
    "qwen3-sliding": lambda: qwen3(
        use_sliding_window=True, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
    "nanochat": lambda: NanoChatForCausalLM(
        NanoChatConfig(
            **SIZES,
            intermediate_size=40,
            num_key_value_heads=2,
            max_position_embeddings=BLOCK,
            pad_token_id=None,  # a padding token's embedding gets no gradient
        )
    ),
}


@dataclass
class Family:
    stock: PreTrainedModel
    ours: MiniGPTForCausalLM


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, sharpen):
    stock = sharpen(FAMILIES[request.param](), std=0.2)
    for model in (stock, ours := from_stock(stock)):
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return Family(stock, ours)


@pytest.fixture(scope="module")
def ids(draw_ids):
    return draw_ids(3, BLOCK, vocab_size=SIZES["vocab_size"])


def test_logits_equal_the_stock_models(family, ids):
    torch.testing.assert_close(family.ours(ids).logits, family.stock(ids).logits, **TOLERANCE)


def test_attention_is_sharp_enough_to_show_an_error(family, ids):
    family.ours.set_attn_implementation("eager")
    weights = torch.stack(family.ours(ids, output_attentions=True).attentions)
    family.ours.set_attn_implementation("sdpa")
    # The last token's largest weight, on average; seeing all tokens alike it would be 1 / BLOCK.
    assert weights[..., -1, :].amax(dim=-1).mean() > 3 / BLOCK


def test_every_hidden_state_and_attention_weight_equals_the_stock_models(family, ids):
    for model in (family.stock, family.ours):
        model.set_attn_implementation("eager")
    theirs = family.stock(ids, output_hidden_states=True, output_attentions=True)
    ours = family.ours(ids, output_hidden_states=True, output_attentions=True)
    for model in (family.stock, family.ours):
        model.set_attn_implementation("sdpa")
    assert len(ours.hidden_states) == len(theirs.hidden_states) == SIZES["num_hidden_layers"] + 1
    torch.testing.assert_close(ours.attentions, theirs.attentions, **TOLERANCE)
    torch.testing.assert_close(ours.hidden_states, theirs.hidden_states, **TOLERANCE)


def test_loss_and_its_gradient_equal_the_stock_models(family, ids):
    losses, gradients = [], []
    for model in (family.stock, family.ours):
        loss = model(ids, labels=ids).loss
        (gradient,) = torch.autograd.grad(loss, model.get_input_embeddings().weight)
        losses.append(loss)
        gradients.append(gradient)
    torch.testing.assert_close(losses[1], losses[0], **TOLERANCE)
    torch.testing.assert_close(gradients[1], gradients[0], **TOLERANCE)


def test_cached_decoding_equals_the_stock_models_whole_forward(family, ids):
    cache, pieces = DynamicCache(config=family.ours.config), []
    for piece in ids.split([7, 1, 1, 5, 1, 9], dim=1):
        pieces.append(family.ours(piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), family.stock(ids, use_cache=False).logits, **TOLERANCE)


def test_left_padded_rows_equal_the_stock_models(family, ids):
    mask = torch.ones_like(ids)
    mask[1, :4], mask[2, :9] = 0, 0
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    ours, theirs = (
        model(ids, attention_mask=mask, position_ids=position_ids).logits[mask.bool()]
        for model in (family.ours, family.stock)
    )
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_greedy_generation_equals_the_stock_models_inside_the_block(family, ids):
    mask = torch.ones_like(ids[:, :6])
    for padding in (0, 3):
        mask[0, :padding] = 0
        ours, theirs = (
            model.generate(ids[:, :6], attention_mask=mask, max_length=BLOCK, do_sample=False, pad_token_id=30)
            for model in (family.ours, family.stock)
        )
        assert ours.tolist() == theirs.tolist()
