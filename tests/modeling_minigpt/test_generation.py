"""generate() inside the block: the loop written out, the stock loop and the fast loop give the same tokens."""

import itertools

import pytest
import torch
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from minigpt.modeling_minigpt.fast_generation_minigpt import FastGenerationMixin
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM, MiniGPTModel
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer

ROPE = {"position_embedding_type": "rope"}
VARIANTS = {
    "learned": {},
    "rope": {**ROPE, "num_key_value_heads": 2, "norm_type": "rmsnorm", "final_logit_softcapping": 9.0},
}
STOCK = {"return_dict_in_generate": True}
BLOCK, VOCAB = 12, 17


@pytest.fixture(params=VARIANTS)
def model(request, build):
    return build(**VARIANTS[request.param])


@pytest.fixture
def prompt(draw_ids):
    return draw_ids(3, 4, vocab_size=15) + 1  # 0 and 16 are left for padding


@pytest.fixture
def fast_calls(monkeypatch):
    """A list that grows by one whenever the fast loop runs."""
    calls, original = [], FastGenerationMixin._sample_fast

    def counted(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(FastGenerationMixin, "_sample_fast", counted)
    return calls


@torch.no_grad()
def plain_loop(model, ids, new_tokens, do_sample=False):
    """Whole forwards, no cache; probabilities in float32 as generate() has them."""
    for _ in range(new_tokens):
        probabilities = model(ids, use_cache=False).logits[:, -1].float().softmax(dim=-1)
        chosen = torch.multinomial(probabilities, 1) if do_sample else probabilities.argmax(dim=-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
    return ids


def generate(model, ids, seed=0, **kwargs):
    torch.manual_seed(seed)
    outputs = model.generate(ids, **{"max_new_tokens": 8, "do_sample": False, **kwargs})
    return outputs if isinstance(outputs, torch.Tensor) else outputs.sequences


@pytest.mark.parametrize("loop", [{}, STOCK], ids=["fast", "stock"])
def test_greedy_generation_equals_whole_forwards(model, prompt, loop):
    assert generate(model, prompt, **loop).tolist() == plain_loop(model, prompt, 8).tolist()


@pytest.mark.parametrize("loop", [{}, STOCK], ids=["fast", "stock"])
def test_sampling_equals_whole_forwards_with_the_same_seed(model, prompt, loop):
    torch.manual_seed(3)
    expected = plain_loop(model, prompt, 8, do_sample=True)
    assert len(set(map(tuple, expected[:, 4:].tolist()))) == 3
    sampled = generate(model, prompt, seed=3, do_sample=True, top_k=0, **loop)
    assert sampled.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("kwargs", "allowed"),
    [
        ({"top_k": 3}, lambda probabilities: probabilities >= probabilities.topk(3).values[:, -1:]),
        ({"top_k": 0, "top_p": 0.5}, lambda probabilities: nucleus(probabilities, 0.5)),
        ({"top_k": 0, "min_p": 0.3}, lambda probabilities: probabilities >= 0.3 * probabilities.amax(1, keepdim=True)),
    ],
)
def test_filtered_sampling_takes_every_token_that_is_left_and_no_other(build, draw_ids, kwargs, allowed):
    model, prompt = build(), draw_ids(1, 4).expand(400, -1)
    with torch.no_grad():
        expected = allowed(model(prompt).logits[:, -1].softmax(dim=-1))[0].nonzero().flatten().tolist()
    assert 1 < len(expected) < VOCAB
    drawn = generate(model, prompt, do_sample=True, max_new_tokens=1, **kwargs)[:, -1]
    assert sorted(set(drawn.tolist())) == expected


def nucleus(probabilities, mass):
    ordered, order = probabilities.sort(dim=-1, descending=True)
    kept = ordered.cumsum(dim=-1) - ordered < mass
    return torch.zeros_like(kept).scatter(1, order, kept)


def test_a_temperature_sharpens(build, prompt):
    model = build()
    cold = generate(model, prompt, do_sample=True, top_k=0, temperature=1e-3)
    assert cold.tolist() == generate(model, prompt).tolist()


@torch.no_grad()
def test_beams_find_the_likeliest_of_all_continuations(model, prompt):
    continuations = torch.tensor(list(itertools.product(range(VOCAB), repeat=2)))
    for row in prompt:
        ids = torch.cat((row.expand(len(continuations), -1), continuations), dim=1)
        log_probabilities = model(ids).logits.log_softmax(dim=-1)[:, 3:5].gather(2, continuations[..., None])
        best = continuations[log_probabilities.sum(dim=(1, 2)).argmax()]
        found = generate(model, row[None], num_beams=VOCAB, max_new_tokens=2)
        assert found[0, 4:].tolist() == best.tolist()


def test_several_sequences_come_in_the_prompts_order(build, prompt):
    model = build()
    several = generate(model, prompt, do_sample=True, top_k=0, num_return_sequences=4)
    assert several.shape == (12, 12)
    assert several[:, :4].tolist() == prompt.repeat_interleave(4, dim=0).tolist()
    assert len(set(map(tuple, several[:4].tolist()))) > 1
    beams = generate(model, prompt, num_beams=4, num_return_sequences=2)
    assert beams.shape == (6, 12)
    assert beams[0].tolist() != beams[1].tolist()


class CollectingStreamer(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], 0

    def put(self, value):
        self.pieces.append(value)

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("loop", [{}, STOCK], ids=["fast", "stock"])
def test_the_tokens_streamed_are_the_tokens_returned(build, prompt, loop):
    model = build()
    eos = generate(model, prompt[:1])[0, 7].item()
    for kwargs in ({}, {"eos_token_id": eos, "pad_token_id": 16}, {"do_sample": True, "top_k": 0}):
        streamer = CollectingStreamer()
        ids = generate(model, prompt[:1], streamer=streamer, **kwargs, **loop)
        assert torch.equal(streamer.pieces[0], prompt[:1])
        assert torch.cat([piece.view(1, -1) for piece in streamer.pieces], dim=1).tolist() == ids.tolist()
        assert all(piece.shape == (1,) and piece.device.type == "cpu" for piece in streamer.pieces[1:])
        assert streamer.ended == 1


# The fast loop against the stock loop.


class AlternatingTokens(LogitsProcessor):
    """Odd steps take odd tokens only; edits the scores in place, as some processors do."""

    def __call__(self, input_ids, scores):
        scores[:, input_ids.shape[1] % 2 :: 2] = -float("inf")
        return scores


class EndsAfterToken(StoppingCriteria):
    """A row is done once it holds three tokens above 9."""

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids > 9).sum(dim=1) > 3


SETTINGS = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 0},
    "top-k, top-p, temperature": {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 1.3},
    "repetition penalty": {"repetition_penalty": 1.8},
    "no repeated pairs": {"no_repeat_ngram_size": 2, "do_sample": True, "top_k": 0},
    "suppressed tokens": {"suppress_tokens": [5, 3, 11], "do_sample": True, "top_k": 0},
    "bad words": {"bad_words_ids": [[5], [3, 11]]},
    "at least six": {"eos_token_id": [5, 13], "min_new_tokens": 6, "pad_token_id": 0},
    "ends of text": {"eos_token_id": [5, 13, 11], "pad_token_id": 0},
    "ends of text, sampled": {"eos_token_id": [5, 13, 11], "pad_token_id": 16, "do_sample": True, "top_k": 0},
    "a processor": {"logits_processor": LogitsProcessorList([AlternatingTokens()])},
    "a criterion": {"stopping_criteria": StoppingCriteriaList([EndsAfterToken()])},
    "both ends": {
        "stopping_criteria": StoppingCriteriaList([EndsAfterToken()]),
        "eos_token_id": 5,
        "pad_token_id": 0,
        "do_sample": True,
        "top_k": 0,
    },
    "out of time": {"max_time": 0.0},
    "a total length": {"max_length": 11, "max_new_tokens": None},
    "one token": {"max_new_tokens": 1},
    "several sequences": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "constrained": {"prefix_allowed_tokens_fn": lambda row, ids: [1, 2, 3] if len(ids) % 2 else [4, 5]},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_fast_loop_gives_the_stock_loops_tokens(build, prompt, fast_calls, setting):
    # Past the block too: generation goes on to twice its length.
    kwargs = {"max_new_tokens": 20, **SETTINGS[setting]}
    for dtype, variant, rows in ((torch.float32, "learned", 3), (torch.float64, "rope", 3), (torch.float32, "rope", 1)):
        model = build(**VARIANTS[variant]).to(dtype)
        for seed in range(2):
            before = len(fast_calls)
            fast = generate(model, prompt[:rows], seed, **kwargs)
            after_fast = torch.get_rng_state()
            assert len(fast_calls) == before + 1
            stock = generate(model, prompt[:rows], seed, **kwargs, **STOCK)
            assert len(fast_calls) == before + 1
            assert fast.tolist() == stock.tolist()
            assert torch.equal(after_fast, torch.get_rng_state())


def test_rows_that_ended_are_padded_and_the_rest_goes_on(build, prompt, fast_calls):
    model = build()
    free = generate(model, prompt)
    eos = free[0, 6].item()
    ended = generate(model, prompt, eos_token_id=eos, pad_token_id=16)
    assert len(fast_calls) == 2
    assert ended[0, -1] == 16
    for row, free_row in zip(ended.tolist(), free.tolist(), strict=True):
        stop = free_row.index(eos, 4) + 1 if eos in free_row[4:] else len(row)
        assert row[:stop] == free_row[: len(row)][:stop]
        assert set(row[stop:]) <= {16}


def test_processors_cannot_reach_into_the_models_logits(build, prompt):
    model, seen = build(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append((output, output.clone())))
    generate(model, prompt, logits_processor=LogitsProcessorList([AlternatingTokens()]))
    assert all(torch.equal(now, then) for now, then in seen)


def test_the_fast_loop_is_taken_where_nothing_speaks_against_it(build, prompt, fast_calls):
    model = build()
    mask = torch.ones_like(prompt)
    for count, kwargs in enumerate(
        (
            {},
            {"attention_mask": mask},
            {"do_sample": True},
            {"use_cache": True},
            {"position_ids": torch.arange(4)[None]},
            {"num_return_sequences": 2, "do_sample": True},
            {"cache_implementation": "dynamic"},
            {"tokenizer": MiniGPTTokenizer.from_text("abcdefghijklmn")},
            {"tokenizer": MiniGPTTokenizer.from_text("abcdefghijklmn"), "stop_strings": ["na"]},
        ),
        start=1,
    ):
        generate(model, prompt, **kwargs)
        assert len(fast_calls) == count, kwargs


def padded_mask():
    mask = torch.ones(3, 4, dtype=torch.long)
    mask[0, :2] = 0
    return mask


@pytest.mark.parametrize(
    "kwargs",
    [
        {"return_dict_in_generate": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"attention_mask": padded_mask()},
        {"position_ids": torch.arange(4)[None] + 1},
        {"prefill_chunk_size": 2},
        {"guidance_scale": 1.5},
        {"past_key_values": DynamicCache()},
        {"num_beams": 2},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_the_stock_loop_is_taken_for_what_only_it_gives(build, prompt, fast_calls, kwargs):
    generate(build(), prompt, **kwargs)
    assert fast_calls == []


def test_a_models_own_ways_take_the_stock_loop(build, prompt, fast_calls):
    expected = generate(build(), prompt)
    assert fast_calls.pop()
    for change in ("eager", "window", "hook on the model", "hook on a block", "pre-hook", "forward replaced"):
        model, hooked = build(**({"sliding_window": 12} if change == "window" else {})), []
        if change == "eager":
            model.set_attn_implementation("eager")
        elif change == "hook on the model":
            model.register_forward_hook(lambda *args, hooked=hooked: hooked.append(1))
        elif change == "hook on a block":
            model.model.layers[1].register_forward_hook(lambda *args, hooked=hooked: hooked.append(1))
        elif change == "pre-hook":
            model.model.register_forward_pre_hook(lambda *args, hooked=hooked: hooked.append(1))
        elif change == "forward replaced":
            original = model.forward
            model.forward = lambda *args, original=original, hooked=hooked, **kwargs: (
                hooked.append(1),
                original(*args, **kwargs),
            )[1]
        assert generate(model, prompt).tolist() == expected.tolist(), change
        assert fast_calls == [], change
        if "hook" in change or "replaced" in change:
            assert len(hooked) == 8, change


class LovesTokenSeven(MiniGPTForCausalLM):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits[..., 7] += 100
        return outputs


class StartsAfresh(MiniGPTForCausalLM):
    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        return {**inputs, "input_ids": torch.full_like(inputs["input_ids"], 7)}


class DoublesItsStates(MiniGPTModel):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state.flip(-1)
        return outputs


def test_what_a_subclass_changes_is_not_passed_over(build, prompt, fast_calls):
    plain = generate(build(), prompt)
    for model_class in (LovesTokenSeven, StartsAfresh):
        model = build(model_class)
        changed = generate(model, prompt)
        assert changed.tolist() == generate(model, prompt, **STOCK).tolist() != plain.tolist()
    model = build()
    model.model.__class__ = DoublesItsStates
    assert generate(model, prompt).tolist() == generate(model, prompt, **STOCK).tolist() != plain.tolist()
    model = build()
    # As PEFT's prompt tuning does it.
    model.prepare_inputs_for_generation = StartsAfresh.prepare_inputs_for_generation.__get__(build(StartsAfresh))
    assert generate(model, prompt).tolist() == generate(model, prompt, **STOCK).tolist() != plain.tolist()
    assert len(fast_calls) == 1


def test_hooks_on_the_leaves_are_called_in_the_fast_loop(build, prompt, fast_calls):
    model, calls = build(), []
    leaves = [module for module in model.modules() if not list(module.children())]
    for leaf in leaves:
        leaf.register_forward_hook(lambda module, *args: calls.append(module))
    generate(model, prompt)
    assert len(fast_calls) == 1
    used = {module for module in leaves if module is not model.model.rotary_emb}
    assert used <= set(calls)


def test_a_model_in_training_drops_out_while_it_generates(build, prompt, fast_calls):
    model = build(dropout=0.5).train()
    first, second = (generate(model, prompt, seed) for seed in range(2))
    assert fast_calls == []
    assert first.tolist() != second.tolist()
    assert generate(model, prompt, seed=1).tolist() == second.tolist()


def test_generation_leaves_no_trace_on_the_model(build, prompt, fast_calls):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config, generation_config = model.config.to_dict(), model.generation_config.to_dict()
    first = generate(model, prompt, max_new_tokens=20)
    assert generate(model, prompt, max_new_tokens=20).tolist() == first.tolist()
    assert len(fast_calls) == 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (config, generation_config) == (model.config.to_dict(), model.generation_config.to_dict())
    assert not first.requires_grad
    assert prompt.shape == (3, 4)


def test_autocast_generates_the_same_in_both_loops(build, prompt, fast_calls):
    for fields in VARIANTS.values():
        model = build(**fields)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fast, stock = generate(model, prompt), generate(model, prompt, **STOCK)
        assert fast.tolist() == stock.tolist()
    assert len(fast_calls) == 2


# Padded batches and caches.


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["dynamic", "static", None])
def test_padded_rows_generate_as_they_do_alone(model, draw_ids, implementation, side):
    ids, lengths = draw_ids(3, 5), [5, 3, 1]
    rows, mask = torch.full_like(ids, 16), torch.zeros_like(ids)
    for index, length in enumerate(lengths):
        place = slice(5 - length, 5) if side == "left" else slice(0, length)
        rows[index, place], mask[index, place] = ids[index, :length], 1
    kwargs = {"use_cache": False} if implementation is None else {"cache_implementation": implementation}
    together = generate(model, rows, attention_mask=mask, max_new_tokens=7, **kwargs)
    for index, length in enumerate(lengths):
        alone = generate(model, ids[index : index + 1, :length], max_new_tokens=7)
        assert together[index, 5:].tolist() == alone[0, length:].tolist()


def test_padding_ids_without_a_mask_are_taken_for_padding(build, draw_ids):
    model, ids = build(pad_token_id=16), draw_ids(2, 4, vocab_size=16)
    padded = ids.clone()
    padded[0, :2] = 16
    together = generate(model, padded)
    assert together[0, 4:].tolist() == generate(model, ids[:1, 2:])[0, 2:].tolist()
    assert together[1, 4:].tolist() == generate(model, ids[1:])[0, 4:].tolist()


@pytest.mark.parametrize(
    "kwargs", [{"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}]
)
def test_every_cache_gives_the_same_tokens(model, prompt, kwargs):
    assert generate(model, prompt, **kwargs).tolist() == generate(model, prompt).tolist()


def test_a_cache_is_continued_by_all_ids_or_by_the_new_ones_alone(model, draw_ids):
    ids = draw_ids(2, 4)
    expected = generate(model, ids)
    first = model.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    continued = generate(model, first.sequences, past_key_values=first.past_key_values, max_new_tokens=5)
    assert continued.tolist() == expected.tolist()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :3], past_key_values=cache)
    mask = torch.ones(2, 4, dtype=torch.long)
    only_new = generate(model, ids[:, 3:], past_key_values=cache, attention_mask=mask)
    assert only_new[:, 1:].tolist() == expected[:, 4:].tolist()


def test_inputs_embeds_generate_as_their_ids_do(model, prompt):
    embeds = model.get_input_embeddings()(prompt)
    torch.manual_seed(0)
    new = model.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False)
    assert new.tolist() == generate(model, prompt)[:, 4:].tolist()
