"""With the weights of a stock model of another family, ours computes what that model computes."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
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

from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

BLOCK = 24
SIZES = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def from_gpt2(gpt2: GPT2LMHeadModel) -> MiniGPTForCausalLM:
    config = MiniGPTConfig(
        **SIZES,
        block_size=BLOCK,
        hidden_act="gelu_new",
        attention_bias=True,
        lm_head_bias=False,
        tie_word_embeddings=True,
    )
    names = {
        "ln_1": "input_layernorm",
        "attn.c_attn": "self_attn.qkv_proj",
        "attn.c_proj": "self_attn.o_proj",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    weights = {
        "model.embed_tokens.weight": gpt2.transformer.wte.weight,
        "model.embed_positions.weight": gpt2.transformer.wpe.weight,
        "model.norm.weight": gpt2.transformer.ln_f.weight,
        "model.norm.bias": gpt2.transformer.ln_f.bias,
    }
    for index, block in enumerate(gpt2.transformer.h):
        for theirs, ours in names.items():
            module = block.get_submodule(theirs)
            # GPT-2's Conv1D keeps (in, out) where nn.Linear keeps (out, in).
            weight = module.weight if isinstance(module, nn.LayerNorm) else module.weight.T
            weights[f"model.layers.{index}.{ours}.weight"] = weight
            weights[f"model.layers.{index}.{ours}.bias"] = module.bias
    return load(config, weights)


def from_llama_like(stock: PreTrainedModel, prepare=lambda weight: weight, **fields) -> MiniGPTForCausalLM:
    """Llama's names and its descendants'; `prepare` gets the query and key weights."""
    theirs = stock.state_dict()
    weights = {name: weight for name, weight in theirs.items() if "proj" not in name and "mlp" not in name}
    for index in range(stock.config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        for kind in ("weight", "bias"):
            attention = {part: theirs.get(f"{prefix}self_attn.{part}_proj.{kind}") for part in "qkvo"}
            if attention["q"] is not None:
                queries, keys = prepare(attention["q"]), prepare(attention["k"])
                weights[f"{prefix}self_attn.qkv_proj.{kind}"] = torch.cat((queries, keys, attention["v"]))
                weights[f"{prefix}self_attn.o_proj.{kind}"] = attention["o"]
        if f"{prefix}mlp.gate_proj.weight" in theirs:
            gate, up = (theirs[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up"))
            weights[f"{prefix}mlp.up_proj.weight"] = torch.cat((gate, up))
            weights[f"{prefix}mlp.down_proj.weight"] = theirs[f"{prefix}mlp.down_proj.weight"]
        else:
            weights[f"{prefix}mlp.up_proj.weight"] = theirs[f"{prefix}mlp.fc1.weight"]
            weights[f"{prefix}mlp.down_proj.weight"] = theirs[f"{prefix}mlp.fc2.weight"]
    if stock.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    config = MiniGPTConfig(
        **SIZES,
        block_size=BLOCK,
        intermediate_size=stock.config.intermediate_size,
        num_key_value_heads=stock.config.num_key_value_heads,
        position_embedding_type="rope",
        rope_parameters=stock.config.rope_parameters,
        norm_eps=stock.config.rms_norm_eps,
        attention_output_bias=stock.config.attention_bias,
        attention_bias=stock.config.attention_bias,
        tie_word_embeddings=stock.config.tie_word_embeddings,
        mlp_bias=False,
        lm_head_bias=False,
        **fields,
    )
    return load(config, weights)


def from_nanochat(stock: NanoChatForCausalLM) -> MiniGPTForCausalLM:
    head_dim = stock.config.hidden_size // stock.config.num_attention_heads

    def swap_halves(weight: torch.Tensor) -> torch.Tensor:
        # Its rotation turns the other way; with the halves of each head swapped both ways are one.
        first, second = weight.view(-1, head_dim, weight.shape[-1]).chunk(2, dim=1)  # (heads, head_dim / 2, hidden)
        return torch.cat((second, first), dim=1).reshape(weight.shape)

    return from_llama_like(
        stock,
        swap_halves,
        norm_type="unweighted_rmsnorm",
        qk_norm="after_rotary",
        embedding_norm=True,
        hidden_act="relu2",
        final_logit_softcapping=15.0,
    )


def load(config: MiniGPTConfig, weights: dict[str, torch.Tensor]) -> MiniGPTForCausalLM:
    model = MiniGPTForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(
        {name: weight.clone() for name, weight in weights.items()}, strict=False
    )
    assert unexpected == []
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return model


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


def llama_to_ours(stock: LlamaForCausalLM) -> MiniGPTForCausalLM:
    return from_llama_like(stock, norm_type="rmsnorm", hidden_act="swiglu")


def qwen3_to_ours(stock: Qwen3ForCausalLM) -> MiniGPTForCausalLM:
    windows = {"sliding_window": stock.config.sliding_window, "layer_types": stock.config.layer_types}
    return from_llama_like(
        stock, norm_type="rmsnorm", hidden_act="swiglu", qk_norm="before_rotary", head_dim=16, **windows
    )


FAMILIES = {
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=32, n_layer=2, n_head=4, n_positions=BLOCK)),
        from_gpt2,
    ),
    "llama": (llama, llama_to_ours),
    "llama-biases-tied": (lambda: llama(attention_bias=True, tie_word_embeddings=True), llama_to_ours),
    "llama-linear": (lambda: llama(**rope("linear", factor=2.0)), llama_to_ours),
    "llama-llama3": (
        lambda: llama(
            **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8)
        ),
        llama_to_ours,
    ),
    "llama-yarn": (lambda: llama(**rope("yarn", factor=3.0, original_max_position_embeddings=8)), llama_to_ours),
    "qwen3": (qwen3, qwen3_to_ours),
    "qwen3-sliding": (
        lambda: qwen3(use_sliding_window=True, sliding_window=5, layer_types=["sliding_attention", "full_attention"]),
        qwen3_to_ours,
    ),
    "nanochat": (
        lambda: NanoChatForCausalLM(
            NanoChatConfig(
                **SIZES,
                intermediate_size=40,
                num_key_value_heads=2,
                max_position_embeddings=BLOCK,
                pad_token_id=None,  # a padding token's embedding gets no gradient
            )
        ),
        from_nanochat,
    ),
}


@dataclass
class Family:
    stock: PreTrainedModel
    ours: MiniGPTForCausalLM


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, sharpen):
    build_stock, convert = FAMILIES[request.param]
    stock = sharpen(build_stock(), std=0.2)
    for model in (stock, ours := convert(stock)):
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
    print(weights[..., -1, :].amax(dim=-1).mean() * BLOCK)
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
