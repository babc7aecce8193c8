"""A cache is only a saving: whatever its kind, the logits are those of the whole sequence at once."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTModel

ROPE = {"position_embedding_type": "rope"}
WINDOW = 3
VARIANTS = {
    "learned": {},
    "rope": {**ROPE, "num_key_value_heads": 2, "qk_norm": "after_rotary", "norm_type": "unweighted_rmsnorm"},
    "window": {**ROPE, "sliding_window": WINDOW},
    "mixed": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
}
CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "dynamic without a config": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=12),
}
LENGTH = 10
# One long piece, single tokens, pieces that cross the window's edge.
PIECES = ([LENGTH - 1, 1], [1, 1, 1, 1, 3, 3], [2, 5, 1, 2])


@pytest.fixture(params=VARIANTS)
def model(request, build):
    return build(**VARIANTS[request.param])


@pytest.fixture
def ids(draw_ids):
    return draw_ids(2, LENGTH)


@torch.no_grad()
def in_pieces(model, ids, cache, lengths, **kwargs) -> torch.Tensor:
    pieces, start = [], 0
    for piece in ids.split(lengths, dim=1):
        end = start + piece.shape[1]
        inputs = {name: values[:, :end] for name, values in kwargs.items() if name == "attention_mask"}
        inputs |= {name: values[:, start:end] for name, values in kwargs.items() if name == "position_ids"}
        pieces.append(model(piece, past_key_values=cache, **inputs).logits)
        start = end
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_cached_logits_equal_uncached(model, ids, kind, implementation):
    model.set_attn_implementation(implementation)
    expected = model(ids, use_cache=False).logits
    for lengths in PIECES:
        logits = in_pieces(model, ids, CACHES[kind](model.config), lengths)
        torch.testing.assert_close(logits, expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cached_logits_equal_uncached_for_left_padded_rows(model, ids, kind):
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    expected = model(ids, attention_mask=mask, position_ids=position_ids, use_cache=False).logits
    for lengths in PIECES:
        cache = CACHES[kind](model.config)
        logits = in_pieces(model, ids, cache, lengths, attention_mask=mask, position_ids=position_ids)
        torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=3e-6, rtol=1e-5)


def test_positions_count_on_from_the_cache_when_forward_is_called_by_hand(build, ids):
    model = build()
    outputs = model(ids[:, :6])
    next_states = model(ids[:, 6:], past_key_values=outputs.past_key_values, output_hidden_states=True).hidden_states[0]
    expected = model.model.embed_tokens(ids[:, 6:]) + model.model.embed_positions.weight[6:LENGTH]
    torch.testing.assert_close(next_states, expected)


def test_positions_given_win_over_the_cache(build, ids):
    model = build()
    cache = model(ids[:, :6]).past_key_values
    position_ids = torch.tensor([[9, 10, 11, 8]])
    states = model(
        ids[:, 6:], past_key_values=cache, position_ids=position_ids, output_hidden_states=True
    ).hidden_states
    expected = model.model.embed_tokens(ids[:, 6:]) + model.model.embed_positions.weight[position_ids]
    torch.testing.assert_close(states[0], expected)


def test_the_default_cache_keeps_what_the_configuration_needs(build, ids):
    full = build()(ids).past_key_values
    assert type(full) is DynamicCache
    assert [layer.keys.shape for layer in full.layers] == [(2, 4, LENGTH, 4)] * 2
    mixed = build(**VARIANTS["mixed"], num_key_value_heads=2)(ids).past_key_values
    # A window's layer keeps one token less than it sees: the token to come is the last of them.
    assert [layer.keys.shape for layer in mixed.layers] == [(2, 2, WINDOW - 1, 4), (2, 2, LENGTH, 4)]
    assert mixed.get_seq_length() == LENGTH


@torch.no_grad()
def test_a_rolling_cache_does_not_grow_past_the_block_and_stays_exact(build, draw_ids):
    model = build(**VARIANTS["window"])
    ids = draw_ids(2, 30)  # the block is 12
    expected = model(ids, use_cache=False).logits
    cache, logits = DynamicCache(config=model.config), []
    for position in range(30):
        logits.append(model(ids[:, position : position + 1], past_key_values=cache).logits)
        assert cache.layers[0].keys.shape[2] == min(position + 1, WINDOW - 1)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=1e-5, rtol=1e-4)


def test_no_cache_is_made_when_none_is_wanted(build, ids, monkeypatch):
    built = []
    original = DynamicCache.__init__

    def counting_init(self, *args, **kwargs):
        built.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(DynamicCache, "__init__", counting_init)
    model = build()
    assert model(ids, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(ids).past_key_values is None
    assert model.train()(ids, labels=ids).past_key_values is None
    assert built == []
    model.config.use_cache = True
    assert model.eval()(ids).past_key_values is built[0]


def test_a_given_cache_is_the_one_that_comes_back(build, ids):
    for model in (build(), build(MiniGPTModel)):
        cache = DynamicCache(config=model.config)
        assert model(ids, past_key_values=cache).past_key_values is cache
        assert cache.get_seq_length() == LENGTH


def test_a_reset_cache_starts_anew(model, ids):
    for kind in ("dynamic", "static"):
        cache = CACHES[kind](model.config)
        before = model(ids, past_key_values=cache).logits
        cache.reset()
        torch.testing.assert_close(model(ids, past_key_values=cache).logits, before, atol=1e-6, rtol=1e-6)


def test_a_cropped_cache_continues_from_where_it_was_cut(build, ids):
    model = build()
    expected = model(ids).logits[:, 6:]
    cache = DynamicCache(config=model.config)
    model(torch.cat((ids[:, :6], ids[:, :3]), dim=1), past_key_values=cache)
    cache.crop(-3)
    torch.testing.assert_close(model(ids[:, 6:], past_key_values=cache).logits, expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("past", [((torch.zeros(1, 4, 2, 4), torch.zeros(1, 4, 2, 4)),) * 2, [], "dynamic"])
def test_a_past_that_is_no_cache_is_refused_by_name(build, ids, past):
    with pytest.raises(TypeError, match=f"past_key_values must be a Cache.*not a {type(past).__name__}"):
        build()(ids, past_key_values=past)


def test_a_cache_of_another_depth_is_refused(build, ids):
    deeper = build(n_layer=3)
    with pytest.raises((IndexError, ValueError, KeyError)):
        deeper(ids, past_key_values=DynamicCache(config=build().config))


def test_a_static_cache_that_is_too_short_is_refused(build, ids):
    model = build()
    with pytest.raises((IndexError, RuntimeError)):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=LENGTH - 2))


@pytest.mark.parametrize("start", [0, 9])
def test_learned_positions_refuse_to_leave_the_block(build, draw_ids, start):
    model = build()
    cache = DynamicCache(config=model.config)
    if start:
        model(draw_ids(1, start), past_key_values=cache)
    with pytest.raises(ValueError, match="outside the block of 12 learned positions; crop the input"):
        model(draw_ids(1, 13 - start), past_key_values=cache)
