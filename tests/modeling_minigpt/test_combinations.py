"""Every two choices of the switches meet in some model, and each of these models trains, caches and saves."""

import itertools
import random

import pytest
import torch
from transformers import DynamicCache

from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

ROPE = {"position_embedding_type": "rope"}
YARN = {**ROPE, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 2.0}}
MIXED = {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}
SWITCHES = {
    "positions": ({}, ROPE, YARN),
    "norm": ({}, {"norm_bias": False}, {"norm_type": "rmsnorm"}, {"norm_type": "unweighted_rmsnorm"}),
    "embedding norm": ({}, {"embedding_norm": True}),
    "qk norm": ({}, {"qk_norm": "before_rotary"}, {"qk_norm": "after_rotary"}),
    "activation": ({}, {"hidden_act": "gelu_new"}, {"hidden_act": "relu2"}, {"hidden_act": "swiglu"}),
    "groups": ({}, {"num_key_value_heads": 2}, {"num_key_value_heads": 1}),
    "head width": ({}, {"head_dim": 6}),
    "query, key and value bias": ({}, {"attention_bias": True}),
    "output bias": ({}, {"attention_output_bias": False}),
    "feed-forward bias": ({}, {"mlp_bias": False}),
    "head": ({}, {"lm_head_bias": False}, {"tie_word_embeddings": True}),
    "soft cap": ({}, {"final_logit_softcapping": 4.0}),
    "start": ({}, {"residual_init": "scaled"}, {"residual_init": "zero"}),
    "window": ({}, {"sliding_window": 4}, MIXED),
    "dropout": ({}, {"dropout": 0.1}, {"embedding_dropout": 0.1}),
}
SIZES = [len(choices) for choices in SWITCHES.values()]
Row = tuple[int, ...]


def pairs_of(row: Row) -> set[tuple[int, int, int, int]]:
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(range(len(row)), 2)}


def all_pairs() -> set[tuple[int, int, int, int]]:
    return {
        (a, choice, b, other)
        for a, b in itertools.combinations(range(len(SIZES)), 2)
        for choice in range(SIZES[a])
        for other in range(SIZES[b])
    }


def pairwise_rows(seed: int = 0) -> list[Row]:
    """Few rows in which every two choices meet: of many random rows around an open pair, always the best next one."""
    rng, open_pairs, rows = random.Random(seed), all_pairs(), []
    while open_pairs:
        candidates = []
        for _ in range(60):
            row = [rng.randrange(size) for size in SIZES]
            a, row_a, b, row_b = rng.choice(sorted(open_pairs))
            row[a], row[b] = row_a, row_b
            candidates.append(tuple(row))
        rows.append(max(candidates, key=lambda row: len(pairs_of(row) & open_pairs)))
        open_pairs -= pairs_of(rows[-1])
    return rows


def fields_of(row: Row) -> dict:
    return {
        name: value
        for choices, index in zip(SWITCHES.values(), row, strict=True)
        for name, value in choices[index].items()
    }


ROWS = pairwise_rows()


@pytest.fixture(params=ROWS, ids=["-".join(map(str, row)) for row in ROWS])
def fields(request):
    return fields_of(request.param)


def test_every_two_choices_meet_in_some_row():
    assert set().union(*map(pairs_of, ROWS)) == all_pairs()


def test_it_trains(fields, build, draw_ids):
    torch.manual_seed(0)
    model = MiniGPTForCausalLM(build(**fields).config).train()
    ids = draw_ids(4, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(10):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        idle = [name for name, weight in model.named_parameters() if weight.grad is None]
        optimizer.zero_grad()
        losses.append(loss.item())
    assert idle == []
    assert losses[-1] < losses[0] - 0.2


def test_cached_logits_equal_uncached(fields, build, draw_ids):
    model, ids = build(**fields), draw_ids(2, 12)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        pieces = [model(piece, past_key_values=cache).logits for piece in ids.split([5, 1, 4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=1e-4)


def test_it_comes_back_as_it_was_saved(fields, build, draw_ids, tmp_path):
    model, ids = build(**fields), draw_ids(2, 12)
    model.save_pretrained(tmp_path)
    loaded, info = MiniGPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(ids).logits, model(ids).logits)
