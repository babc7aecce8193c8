"""Who sees whom: causality, padding, packing and windows, the same in every attention implementation."""

import shutil

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTModel

ROPE = {"position_embedding_type": "rope"}
WINDOW = 3
# Learned or rotary, grouped heads or not, windows nowhere, in one layer, or everywhere.
VARIANTS = {
    "learned": {},
    "rope": {**ROPE, "num_key_value_heads": 2, "qk_norm": "before_rotary", "norm_type": "rmsnorm"},
    "window": {**ROPE, "sliding_window": WINDOW},
    "mixed": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
}
LENGTH = 10


@pytest.fixture(params=VARIANTS)
def model(request, build):
    return build(**VARIANTS[request.param])


@pytest.fixture
def ids(draw_ids):
    return draw_ids(3, LENGTH)


def padded(ids: torch.Tensor, lengths: list[int], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows cut to `lengths` and filled up at one side with token 0; the mask; positions from 0 for real tokens."""
    mask = torch.zeros_like(ids)
    rows = torch.zeros_like(ids)
    for index, length in enumerate(lengths):
        place = slice(LENGTH - length, None) if side == "left" else slice(0, length)
        mask[index, place] = 1
        rows[index, place] = ids[index, :length]
    return rows, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


def test_no_token_sees_a_later_one(model, ids):
    logits = model(ids).logits
    for position in range(1, LENGTH):
        changed = ids.clone()
        changed[:, position:] = (changed[:, position:] + 1) % model.config.vocab_size
        after = model(changed).logits
        torch.testing.assert_close(after[:, :position], logits[:, :position], atol=1e-6, rtol=0)
        assert not torch.allclose(after[:, position], logits[:, position], atol=1e-3)


def test_every_earlier_token_is_seen(build, ids):
    model = build()
    logits = model(ids).logits[:, -1]
    for position in range(LENGTH - 1):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 17
        assert (model(changed).logits[:, -1] - logits).abs().amax() > 1e-3


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("counts_positions", [True, False])
def test_padding_changes_no_real_token(model, ids, side, implementation, counts_positions):
    model.set_attn_implementation(implementation)
    lengths = [LENGTH, 7, 2]
    rows, mask, position_ids = padded(ids, lengths, side)
    logits = model(rows, attention_mask=mask, position_ids=None if counts_positions else position_ids).logits
    assert logits.isfinite().all()
    for index, length in enumerate(lengths):
        alone = model(ids[index : index + 1, :length]).logits[0]
        torch.testing.assert_close(logits[index][mask[index].bool()], alone, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
# The 16-bit types keep 11 and 8 bits: the same sums in another order differ by some of the last ones.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.float16, 0.01), (torch.bfloat16, 0.05)],
)
def test_sdpa_and_eager_agree_on_sharp_attention(model, ids, dtype, tolerance, side):
    rows, mask, position_ids = padded(ids, [LENGTH, 7, 2], side)
    model.to(dtype)
    outputs = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        outputs.append(model(rows, attention_mask=mask, position_ids=position_ids).logits[mask.bool()].double())
    assert (outputs[0] - outputs[1]).abs().amax() < tolerance * outputs[1].abs().amax()


def test_the_models_under_test_attend_sharply(model, ids):
    model.set_attn_implementation("eager")
    weights = torch.stack(model(ids, output_attentions=True).attentions)
    assert weights[..., -1, :].amax(dim=-1).mean() > 0.25


def test_rows_packed_by_position_ids_equal_separate_rows(model, ids):
    lengths = [4, 5, 1]
    packed = torch.cat([ids[index, :length] for index, length in enumerate(lengths)])[None]
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        for use_cache in (False, True):
            logits = model(packed, position_ids=position_ids, use_cache=use_cache).logits[0].split(lengths)
            for index, length in enumerate(lengths):
                alone = model(ids[index : index + 1, :length]).logits[0]
                torch.testing.assert_close(logits[index], alone, atol=2e-6, rtol=1e-5)


def test_positions_given_are_the_positions_used(build, ids):
    learned = build()
    shifted = torch.arange(LENGTH)[None] + 2
    expected = learned.model.embed_tokens(ids) + learned.model.embed_positions.weight[shifted]
    seen = learned(ids, position_ids=shifted, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(seen, expected)
    rotary = build(**ROPE)
    # Rotation is relative: shifting all positions together changes nothing, stretching them does.
    torch.testing.assert_close(rotary(ids, position_ids=shifted).logits, rotary(ids).logits, atol=1e-5, rtol=1e-4)
    stretched = torch.arange(LENGTH)[None] * 2
    mask = torch.ones_like(ids)
    assert not torch.allclose(
        rotary(ids, position_ids=stretched, attention_mask=mask).logits, rotary(ids).logits, atol=1e-2
    )


def naive_mask(window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, seq, seq): 0 where query i sees key j, the lowest number elsewhere, pair by pair."""
    mask = torch.full((LENGTH, LENGTH), torch.finfo(dtype).min, dtype=dtype)
    for query in range(LENGTH):
        for key in range(query + 1):
            if window is None or query - key < window:
                mask[query, key] = 0
    return mask[None, None]


def test_windows_and_causality_equal_masks_written_by_hand(model, ids):
    by_hand = {
        "full_attention": naive_mask(None, torch.float32),
        "sliding_attention": naive_mask(WINDOW, torch.float32),
    }
    model.set_attn_implementation("eager")
    logits = model(ids, attention_mask=by_hand).logits
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(model(ids).logits, logits, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_four_dimensional_mask_is_obeyed_as_it_is(build, ids, implementation):
    model = build()
    model.set_attn_implementation(implementation)
    # A tree: tokens 4 to 6 and 7 to 9 are two continuations of the same first four.
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    allowed[7:, 4:7] = False
    mask = torch.zeros(LENGTH, LENGTH).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6]])
    logits = model(ids, attention_mask=mask.expand(3, -1, -1, -1), position_ids=position_ids).logits
    first, second = model(ids[:, :7]).logits, model(ids[:, [0, 1, 2, 3, 7, 8, 9]]).logits
    torch.testing.assert_close(logits[:, :7], first, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(logits[:, 7:], second[:, 4:], atol=2e-6, rtol=1e-5)


def test_recorded_attentions_are_the_weights_by_hand(build, ids):
    model = build(num_key_value_heads=2)
    model.set_attn_implementation("eager")
    outputs = model(ids, output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == 2
    assert len(outputs.hidden_states) == 3
    assert all(weights.shape == (3, 4, LENGTH, LENGTH) for weights in outputs.attentions)
    assert all(states.shape == (3, LENGTH, 16) for states in outputs.hidden_states)
    attention, block = model.model.layers[0].self_attn, model.model.layers[0]
    projected = attention.qkv_proj(block.input_layernorm(outputs.hidden_states[0]))
    for head in range(4):
        query = projected[..., head * 4 : head * 4 + 4]
        group = head // 2  # two query heads share a key head
        key = projected[..., 16 + group * 4 : 16 + group * 4 + 4]
        scores = query @ key.transpose(1, 2) / 4**0.5
        scores = scores.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), float("-inf"))
        torch.testing.assert_close(outputs.attentions[0][:, head], scores.softmax(dim=-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(outputs.hidden_states[-1], model.model(ids).last_hidden_state)
    torch.testing.assert_close(outputs.logits, model.lm_head(outputs.hidden_states[-1]))


def test_hidden_states_and_attentions_are_recorded_only_on_request(build, ids):
    model = build()
    assert model(ids).hidden_states is None
    assert model(ids).attentions is None
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == 3


def test_weights_of_a_window_are_zero_outside_it(build, ids):
    model = build(**VARIANTS["window"])
    model.set_attn_implementation("eager")
    for weights in model(ids, output_attentions=True).attentions:
        outside = torch.ones(LENGTH, LENGTH).tril(-WINDOW).bool()
        assert weights[..., outside].count_nonzero() == 0
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, LENGTH))


def test_the_implementation_is_read_at_call_time_and_gets_every_argument(build, ids):
    calls = []

    def recording_attention(module, *args, **kwargs):
        calls.append((module.layer_idx, module.is_causal, kwargs))
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("recording", recording_attention)
    AttentionMaskInterface.register("recording", sdpa_mask)
    model = build(**VARIANTS["mixed"])
    before = model(ids).logits
    model.set_attn_implementation("recording")
    torch.testing.assert_close(model(ids, colour="blue").logits, before)
    assert [layer for layer, _, _ in calls] == [0, 1]
    assert [kwargs["sliding_window"] for _, _, kwargs in calls] == [WINDOW, None]
    for _, is_causal, kwargs in calls:
        assert is_causal
        assert kwargs["colour"] == "blue"
        assert kwargs["scaling"] == 0.5
        assert kwargs["dropout"] == 0.0
        assert kwargs["position_ids"].tolist() == [list(range(LENGTH))]


def test_attention_dropout_reaches_the_implementation_only_in_training(build, ids):
    probabilities = []

    def recording_attention(module, *args, dropout, **kwargs):
        probabilities.append(dropout)
        return sdpa_attention_forward(module, *args, dropout=dropout, **kwargs)

    AttentionInterface.register("recording_dropout", recording_attention)
    AttentionMaskInterface.register("recording_dropout", sdpa_mask)
    model = build(dropout=0.3)
    model.set_attn_implementation("recording_dropout")
    model(ids)
    model.train()(ids)
    assert probabilities == [0.0, 0.0, 0.3, 0.3]


def test_autocast_to_bfloat16_stays_near_float32(build, ids):
    for fields in (VARIANTS["learned"], VARIANTS["rope"]):
        model = build(MiniGPTModel, **fields)
        expected = model(ids).last_hidden_state
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                states = model(ids).last_hidden_state
            assert (states - expected).abs().amax() < 0.1 * expected.abs().amax()


def test_angles_are_exact_in_bfloat16_far_from_the_start(build):
    rotary = build(MiniGPTModel, **ROPE, block_size=400).to(torch.bfloat16).rotary_emb
    states = torch.zeros(1, 2, 16, dtype=torch.bfloat16)
    cos, _ = rotary(states, torch.tensor([[257, 258]]))
    expected = torch.tensor([257.0, 258.0]).cos()
    torch.testing.assert_close(cos[0, 0, :, 0].float(), expected, atol=4e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="its compilation needs a C++ compiler")
@pytest.mark.parametrize("variant", ["rope", "mixed"])
def test_flex_attention_gives_the_same_logits(build, ids, variant):
    """Its forward is compiled for the processor; its backward needs a GPU."""
    model = build(**VARIANTS[variant])
    rows, mask, position_ids = padded(ids, [LENGTH, 7, 2], "left")
    outputs = []
    for implementation in ("sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            outputs.append(model(rows, attention_mask=mask, position_ids=position_ids).logits[mask.bool()])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-4)
