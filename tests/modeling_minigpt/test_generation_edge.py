"""generate() at the block's edge and past it, what it refuses there, and what it does when nothing is said."""

import logging
import re
import sys

import pytest
import torch
import transformers
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
)
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.utils import logging as transformers_logging

from minigpt.modeling_minigpt.fast_generation_minigpt import FastGenerationMixin
from minigpt.modeling_minigpt.generation_minigpt import (
    BlockGenerationMixin,
    UnboundedGenerationMixin,
    lecture_generation_config,
)
from minigpt.modeling_minigpt.modeling_bigram import BigramForCausalLM
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.modeling_minigpt.textbook import TextbookGPT

ROPE = {"position_embedding_type": "rope"}
WINDOW = {**ROPE, "sliding_window": 5, "num_key_value_heads": 2}
BLOCK = 12
# Whatever has to be computed anew past the block: each token's place in it changes with every step.
CROPPED = {
    "learned": {},
    "rope": {**ROPE, "norm_type": "rmsnorm", "num_key_value_heads": 2},
    "learned with windows": {"sliding_window": 5},
    "rope with a window in one layer": {
        **ROPE,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
# The fast loop (where it can), the stock loop, and every cache.
WAYS = {
    "fast": {},
    "stock": {"return_dict_in_generate": True},
    "static": {"cache_implementation": "static"},
    "none": {"use_cache": False},
}


@pytest.fixture(params=CROPPED)
def model(request, build):
    return build(**CROPPED[request.param]).double()


@pytest.fixture
def prompt(draw_ids):
    return draw_ids(2, 5, vocab_size=15) + 1  # 0 and 16 are left for padding


@torch.no_grad()
def crop_loop(model, ids, new_tokens, do_sample=False, seed=0, block=BLOCK):
    """The lecture's loop: each token from a whole forward of the last block, probabilities in float32."""
    torch.manual_seed(seed)
    for _ in range(new_tokens):
        probabilities = model(ids[:, -block:], use_cache=False).logits[:, -1].float().softmax(dim=-1)
        chosen = torch.multinomial(probabilities, 1) if do_sample else probabilities.argmax(dim=-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
    return ids


def generate(model, ids, seed=0, **kwargs):
    torch.manual_seed(seed)
    outputs = model.generate(ids, **{"max_new_tokens": 25, "do_sample": False, "top_k": 0, **kwargs})
    return outputs if isinstance(outputs, torch.Tensor) else outputs.sequences


# Past the block.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("do_sample", [False, True])
def test_past_the_block_the_context_is_the_last_block(model, prompt, way, do_sample):
    expected = crop_loop(model, prompt, 25, do_sample=do_sample)
    assert generate(model, prompt, do_sample=do_sample, **WAYS[way]).tolist() == expected.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_longer_than_the_block_is_cropped(model, draw_ids, way):
    ids = draw_ids(2, 30)
    assert generate(model, ids, max_new_tokens=5, **WAYS[way]).tolist() == crop_loop(model, ids, 5).tolist()


@pytest.mark.parametrize("way", WAYS)
def test_a_text_grows_from_a_single_start_token(model, way):
    start = torch.zeros(1, 1, dtype=torch.long)
    expected = crop_loop(model, start, 30, do_sample=True)
    assert generate(model, start, do_sample=True, max_new_tokens=30, **WAYS[way]).tolist() == expected.tolist()


@pytest.mark.parametrize("way", ["fast", "stock"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_the_lectures_model_in_the_lectures_loop_writes_the_same_text(build, do_sample, way):
    model = build().double()
    textbook = TextbookGPT.from_minigpt(model).double().eval()
    start = torch.zeros(3, 1, dtype=torch.long)
    torch.manual_seed(11)
    expected = textbook.generate(start, 40, do_sample=do_sample)
    assert generate(model, start, 11, do_sample=do_sample, max_new_tokens=40, **WAYS[way]).tolist() == expected.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_left_padded_rows_go_past_the_block_as_they_do_alone(model, draw_ids, way):
    lengths, ids = [5, 3, 1], draw_ids(3, 5)
    rows, mask = torch.full_like(ids, 16), torch.zeros_like(ids)
    for index, length in enumerate(lengths):
        rows[index, 5 - length :], mask[index, 5 - length :] = ids[index, :length], 1
    together = generate(model, rows, attention_mask=mask, **WAYS[way])
    for index, length in enumerate(lengths):
        alone = crop_loop(model, ids[index : index + 1, :length], 25)
        assert together[index, 5:].tolist() == alone[0, length:].tolist()


def test_a_left_padded_prompt_longer_than_the_block_is_cropped_row_by_row(model, draw_ids):
    ids = draw_ids(2, 20, vocab_size=16)
    mask = torch.ones_like(ids)
    mask[0, :11] = 0  # nine real tokens: fewer than the block
    together = generate(model, ids.masked_fill(mask == 0, 16), attention_mask=mask, max_new_tokens=8)
    assert together[0, 20:].tolist() == crop_loop(model, ids[:1, 11:], 8)[0, 9:].tolist()
    assert together[1, 20:].tolist() == crop_loop(model, ids[1:], 8)[0, 20:].tolist()


@torch.no_grad()
def beam_loop(model, ids, new_tokens, beams):
    """Beam search of one row without an end: the `beams` likeliest of all continuations of the last ones, each step."""
    ids, scores = ids.expand(1, -1), torch.zeros(1)
    for _ in range(new_tokens):
        steps = model(ids[:, -BLOCK:], use_cache=False).logits[:, -1].float().log_softmax(dim=-1)
        scores, order = (scores[:, None] + steps).flatten().topk(beams)
        ids = torch.cat((ids[order // steps.shape[1]], (order % steps.shape[1])[:, None]), dim=1)
    return ids


@pytest.mark.parametrize("way", ["stock", "static", "none"])
def test_beams_go_past_the_block(model, prompt, way):
    found = generate(model, prompt, num_beams=3, num_return_sequences=3, max_new_tokens=15, **WAYS[way])
    for index, row in enumerate(prompt):
        expected = beam_loop(model, row[None], 15, beams=3)
        assert found[3 * index : 3 * index + 3].tolist() == expected.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_several_sequences_go_past_the_block(model, prompt, way):
    expected = crop_loop(model, prompt.repeat_interleave(3, dim=0), 25, do_sample=True)
    several = generate(model, prompt, do_sample=True, num_return_sequences=3, **WAYS[way])
    assert several.tolist() == expected.tolist()


@pytest.mark.parametrize("stop", [3, 7, 8, 12])  # before the edge, at it, past it
def test_a_cache_continued_with_all_ids_goes_past_the_block(model, prompt, stop):
    first = model.generate(
        prompt, max_new_tokens=stop, do_sample=False, return_dict_in_generate=True, cache_implementation="dynamic"
    )
    whole = generate(model, first.sequences, past_key_values=first.past_key_values, max_new_tokens=25 - stop)
    assert whole.tolist() == crop_loop(model, prompt, 25).tolist()


def test_a_cache_continued_with_the_new_ids_alone_is_refused_past_the_block(model, prompt, no_forward):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt[:, :4], past_key_values=cache)
    mask, new_ids = torch.ones_like(prompt), prompt[:, 4:]
    with (
        no_forward(model),
        pytest.raises(ValueError, match=r"continuing a cache from the new tokens alone cannot crop.*plain generate"),
    ):
        generate(model, new_ids, past_key_values=cache, attention_mask=mask, max_new_tokens=BLOCK - 5 + 1)
    inside = generate(model, new_ids, past_key_values=cache, attention_mask=mask, max_new_tokens=BLOCK - 5)
    assert inside[:, 1:].tolist() == crop_loop(model, prompt, BLOCK - 5)[:, 5:].tolist()


def test_a_prompt_longer_than_the_block_needs_no_chunks(model, draw_ids):
    ids = draw_ids(1, 30)
    assert generate(model, ids, prefill_chunk_size=4).tolist() == crop_loop(model, ids, 25).tolist()
    assert generate(model, ids[:, :9], prefill_chunk_size=4).tolist() == crop_loop(model, ids[:, :9], 25).tolist()


# Rotary models with a window in every layer.


@torch.no_grad()
def uncropped_loop(model, ids, new_tokens):
    for _ in range(new_tokens):
        chosen = model(ids, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
    return ids


@pytest.mark.parametrize("way", WAYS)
def test_a_rolling_model_sees_its_window_for_ever(build, prompt, way):
    model = build(**WINDOW).double()
    expected = uncropped_loop(model, prompt, 40)
    assert generate(model, prompt, max_new_tokens=40, **WAYS[way]).tolist() == expected.tolist()


def test_a_rolling_cache_keeps_its_size_and_every_step_is_one_token(build, prompt):
    model, lengths = build(**WINDOW), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    outputs = model.generate(prompt, max_new_tokens=40, do_sample=False, return_dict_in_generate=True)
    assert lengths == [5] + [1] * 39
    assert all(layer.keys.shape == (2, 2, 4, 4) for layer in outputs.past_key_values.layers)


def test_a_rolling_models_left_padded_rows_equal_each_alone(build, draw_ids):
    model, ids = build(**WINDOW).double(), draw_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    together = generate(model, ids, attention_mask=mask)
    assert together[0, 6:].tolist() == uncropped_loop(model, ids[:1, 4:], 25)[0, 2:].tolist()
    assert together[1].tolist() == uncropped_loop(model, ids[1:], 25)[0].tolist()


def test_a_rolling_model_goes_on_where_others_are_refused(build, prompt):
    model = build(**WINDOW).double()
    expected = uncropped_loop(model, prompt, 25).tolist()
    embeds = model.get_input_embeddings()(prompt)
    assert model.generate(inputs_embeds=embeds, max_new_tokens=25, do_sample=False).tolist() == [
        row[5:] for row in expected
    ]
    assert generate(model, prompt[:1], assistant_model=model).tolist() == expected[:1]
    assert generate(model, prompt[:1], prompt_lookup_num_tokens=3).tolist() == expected[:1]
    assert batched(model, prompt.tolist(), 25) == [row[5:] for row in expected]


# What cannot crop its context.


def batched(model, prompts, new_tokens):
    """Continuous batching, greedy."""
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1)
    pages = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32)
    outputs = model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=pages, warmup=False, progress_bar=False
    )
    return [output.generated_tokens for output in outputs.values()]


def embeds_of(model, prompt):
    return {"inputs_embeds": model.get_input_embeddings()(prompt[:1])}


REFUSED = {
    "assisted and prompt-lookup decoding": [
        lambda model, prompt: {"inputs": prompt[:1], "assistant_model": model},
        lambda model, prompt: {"inputs": prompt[:1], "prompt_lookup_num_tokens": 3},
    ],
    "generation from inputs_embeds": [embeds_of],
    "guided generation": [
        lambda model, prompt: {"inputs": prompt[:1], "guidance_scale": 1.5, "negative_prompt_ids": prompt[1:]}
    ],
    "continuous batching": [lambda model, prompt: {"inputs": prompt[:1], "cache_implementation": "paged"}],
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("variant", ["learned", "rope"])
def test_what_cannot_crop_is_refused_before_anything_runs(build, prompt, no_forward, kind, variant):
    model = build(**CROPPED[variant])
    for ask in REFUSED[kind]:
        kwargs = ask(model, prompt)
        for new_tokens in (BLOCK - 5 + 1, 500):
            message = f"{kind} cannot crop its context, and {5 + new_tokens} tokens would pass the block of 12; ask for"
            with no_forward(model), pytest.raises(ValueError, match=message):
                model.generate(**kwargs, do_sample=False, max_new_tokens=new_tokens)


@pytest.mark.parametrize("variant", ["learned", "rope"])
def test_requests_of_continuous_batching_past_the_block_are_refused(build, prompt, no_forward, variant):
    model = build(**CROPPED[variant])
    with no_forward(model):
        with pytest.raises(ValueError, match="continuous batching cannot crop its context, and 13 tokens"):
            batched(model, [[1], prompt[0].tolist()], BLOCK - 5 + 1)
        with pytest.raises(ValueError, match="and any length would pass"):
            model.generate_batch([[1, 2]], generation_config=GenerationConfig(do_sample=False))
        pages = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32)
        manager = model.init_continuous_batching(GenerationConfig(max_new_tokens=3), pages)
        with pytest.raises(ValueError, match="and 14 tokens would pass"):
            manager.add_request(list(range(11)))
        with pytest.raises(ValueError, match="and 13 tokens would pass"):
            manager.add_request([1, 2, 3], max_new_tokens=10)


@pytest.mark.parametrize(
    ("request_ids", "message"),
    [
        ([], "a request of 0 tokens and needs 1"),
        ([1, 99], "the id 99, and the model has the ids 0 to"),
        ([-1], "id -1"),
    ],
)
@pytest.mark.parametrize(
    "variant", [{}, {"position_embedding_type": "rope", "sliding_window": 6}], ids=["learned", "rolling"]
)
def test_a_refused_request_of_continuous_batching_does_not_end_the_worker(build, request_ids, message, variant):
    model = build(**variant)
    with pytest.raises(ValueError, match=message):
        batched(model, [[1, 2], request_ids], 3)
    pages = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32)
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1)
    with model.continuous_batching_context_manager(config, continuous_batching_config=pages, warmup=False) as manager:
        with pytest.raises(ValueError, match=message):
            manager.add_request(request_ids)
        manager.add_request([1, 2])
        answer = manager.get_result(timeout=60)
    assert answer.generated_tokens == generate(model, torch.tensor([[1, 2]]), max_new_tokens=3)[0, 2:].tolist()


@pytest.mark.parametrize("variant", ["learned", "rope"])
def test_inside_the_block_each_of_them_gives_the_greedy_tokens(build, prompt, variant):
    model, helper = build(**CROPPED[variant]).double(), build(seed=1).double()
    expected = crop_loop(model, prompt, BLOCK - 5)
    inside = {"max_new_tokens": BLOCK - 5}
    for assistant in (model, helper):
        assert generate(model, prompt[:1], assistant_model=assistant, **inside).tolist() == expected[:1].tolist()
    assert generate(model, prompt[:1], prompt_lookup_num_tokens=3, **inside).tolist() == expected[:1].tolist()
    embeds = model.get_input_embeddings()(prompt)
    assert model.generate(inputs_embeds=embeds, do_sample=False, **inside).tolist() == expected[:, 5:].tolist()
    prompts = [prompt[0].tolist(), prompt[1, :3].tolist(), [7], prompt[1].tolist()]
    alone = [generate(model, torch.tensor([ids]), **inside)[0, len(ids) :].tolist() for ids in prompts]
    assert batched(model, prompts, BLOCK - 5) == alone


@pytest.mark.parametrize("variant", ["learned", "rope"])
def test_a_draft_that_is_longer_than_asked_for_is_cut_at_the_texts_end(build, prompt, monkeypatch, variant):
    model = build(**CROPPED[variant]).double()
    expected = crop_loop(model, prompt[:1], BLOCK - 5)

    def get_candidates(self, input_ids):
        # Right as far as the text goes, and on and on.
        start = input_ids.shape[1]
        return torch.cat((input_ids, expected[:, start : start + 2], torch.full((1, 20), 7)), dim=1), None

    monkeypatch.setattr(PromptLookupCandidateGenerator, "get_candidates", get_candidates)
    inside = {"max_new_tokens": BLOCK - 5, "prompt_lookup_num_tokens": 3}
    assert generate(model, prompt[:1], **inside).tolist() == expected.tolist()


@torch.no_grad()
def test_guided_generation_inside_the_block_is_the_formula(build, prompt):
    model, scale = build().double(), 1.5
    ids, unguided = prompt[:1], prompt[1:]
    guided = generate(model, ids, guidance_scale=scale, negative_prompt_ids=unguided, max_new_tokens=6)
    for _ in range(6):
        logits, other = (model(text).logits[:, -1].float().log_softmax(dim=-1) for text in (ids, unguided))
        chosen = (scale * (logits - other) + other).argmax(dim=-1, keepdim=True)
        ids, unguided = torch.cat((ids, chosen), dim=1), torch.cat((unguided, chosen), dim=1)
    assert guided.tolist() == ids.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_prompt_is_refused(model, no_forward, way):
    for ids in (torch.zeros(2, 0, dtype=torch.long), None):
        with no_forward(model), pytest.raises(ValueError, match="a prompt of 0 tokens and needs 1 to start from"):
            generate(model, ids, **WAYS[way])


@pytest.mark.parametrize("kwargs", [*WAYS.values(), {"num_beams": 2}], ids=[*WAYS, "beams"])
def test_a_row_of_padding_alone_is_refused(model, prompt, no_forward, kwargs):
    mask = torch.ones_like(prompt)
    mask[1] = 0
    with no_forward(model), pytest.raises(ValueError, match="row 1 of the prompts is padding alone and needs 1 token"):
        generate(model, prompt, attention_mask=mask, **kwargs)


# What a static cache has to hold: everything but the last token, at most a block, at most a window where there is one.
ENOUGH = {"learned": (11, 12), "learned with windows": (5, 5), "rope with a window in one layer": (11, 12)}


@pytest.mark.parametrize("variant", ENOUGH)
@pytest.mark.parametrize("new_tokens", [BLOCK - 5, BLOCK - 4, 25])
def test_a_static_cache_is_long_enough_or_refused_before_anything_runs(build, prompt, no_forward, variant, new_tokens):
    model = build(**CROPPED[variant]).double()
    enough = ENOUGH[variant][new_tokens > BLOCK - 5]
    expected = crop_loop(model, prompt, new_tokens).tolist()
    cache = StaticCache(config=model.config, max_cache_len=enough)
    assert generate(model, prompt, past_key_values=cache, max_new_tokens=new_tokens).tolist() == expected
    cache = StaticCache(config=model.config, max_cache_len=enough - 1)
    message = f"a static cache of {enough - 1} tokens is too short for a text of {5 + new_tokens}; make it with max_c"
    with no_forward(model), pytest.raises(ValueError, match=message):
        generate(model, prompt, past_key_values=cache, max_new_tokens=new_tokens)


def test_a_rolling_models_static_cache_holds_its_window(build, prompt, no_forward):
    model = build(**WINDOW).double()
    for kwargs in ({}, {"inputs_embeds": model.get_input_embeddings()(prompt)}):
        cache = StaticCache(config=model.config, max_cache_len=5)
        text = generate(model, None if kwargs else prompt, past_key_values=cache, max_new_tokens=40, **kwargs)
        assert text[:, -40:].tolist() == uncropped_loop(model, prompt, 40)[:, -40:].tolist()
        cache = StaticCache(config=model.config, max_cache_len=4)
        with (
            no_forward(model),
            pytest.raises(ValueError, match="a static cache of 4 tokens is too short for a text of"),
        ):
            generate(model, None if kwargs else prompt, past_key_values=cache, max_new_tokens=40, **kwargs)


# When little is said.


@pytest.fixture
def warnings_of_transformers(caplog, monkeypatch):
    """The messages of transformers' loggers at WARNING and above; those said once are said again."""
    transformers_logging.warning_once.cache_clear()
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def saved(build, tmp_path):
    """A model saved with the lecture's defaults, its last two tokens never trained on."""
    model = build(std=0.1)
    model.generation_config = lecture_generation_config([15, 16], pad_token_id=16)
    model.save_pretrained(tmp_path)
    return MiniGPTForCausalLM.from_pretrained(tmp_path)


def test_the_saved_defaults_sample_five_hundred_tokens_as_the_lecture_does(saved, prompt, warnings_of_transformers):
    config = saved.generation_config
    assert (config.do_sample, config.top_k, config.max_new_tokens) == (True, 0, 500)
    assert config.suppress_tokens == [15, 16]
    torch.manual_seed(0)
    text = saved.generate(prompt)
    assert text.shape == (2, 505)
    assert set(text[:, 5:].flatten().tolist()) == set(range(15))
    assert warnings_of_transformers() == []


class Grammar(LogitsProcessor):
    """Allows three letters, and then the end of the text only: the shape of every structured generation."""

    def __init__(self, end):
        self.end = end

    def __call__(self, input_ids, scores):
        allowed = [1, 2, 3] if input_ids.shape[1] < 8 else [self.end]
        mask = torch.full_like(scores, -torch.inf)
        mask[:, allowed] = 0
        return scores + mask


@pytest.mark.parametrize(
    "how", [{"do_sample": True}, {"do_sample": False}, {"num_beams": 2, "do_sample": False}], ids=str
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # the fast loop and the stock one
def test_a_grammar_that_is_complete_ends_the_text_of_a_model_without_a_trained_end(
    build, prompt, tmp_path, attention, how
):
    model = build(std=0.1)
    model.generation_config = lecture_generation_config([14, 15, 16], eos_token_id=14, pad_token_id=16)
    model.save_pretrained(tmp_path)
    saved = MiniGPTForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
    text = saved.generate(prompt, logits_processor=LogitsProcessorList([Grammar(14)]), **how)
    assert text.shape == (2, 9)
    assert set(text[:, 5:8].flatten().tolist()) <= {1, 2, 3}
    assert text[:, 8].tolist() == [14, 14]


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "top_k": 0, "temperature": 100.0},
        {"do_sample": True, "top_k": 16, "top_p": 0.99, "typical_p": 0.9},
        {"repetition_penalty": 1.8},
        {"num_beams": 4},
        {"num_beams": 4, "do_sample": True, "top_k": 0},
        {"sequence_bias": {(3,): 2.0}},
        {"sequence_bias": [[[3], 2.0]]},
    ],
    ids=str,
)
def test_an_untrained_end_that_is_the_last_choice_changes_no_token(build, prompt, how):
    model = build()
    held_back = generate(model, prompt, suppress_tokens=[15, 16], eos_token_id=None, pad_token_id=16, **how)
    assert generate(model, prompt, suppress_tokens=[15, 16], eos_token_id=15, pad_token_id=16, **how).tolist() == (
        held_back.tolist()
    )


def test_a_prompt_longer_than_the_block_needs_no_argument(build, saved, draw_ids, warnings_of_transformers):
    assert saved.generate(draw_ids(1, 40, vocab_size=15)).shape == (1, 540)
    assert build().generate(draw_ids(1, 40)).shape == (1, 60)
    assert warnings_of_transformers() == []


def test_an_unsaved_models_default_length_is_not_cut_at_the_block(build, prompt, warnings_of_transformers):
    assert build().generate(prompt).shape == (2, 25)
    assert warnings_of_transformers() == []


@pytest.mark.parametrize("length", [3, 9, 15])
def test_a_callers_max_length_wins_over_the_saved_number_of_new_tokens(
    saved, draw_ids, length, warnings_of_transformers
):
    ids = draw_ids(1, 2, vocab_size=15)
    assert saved.generate(ids, max_length=length).shape == (1, length)
    assert saved.generate(ids, generation_config=GenerationConfig(max_length=length)).shape == (1, length)
    assert saved.generate(ids, max_new_tokens=length).shape == (1, 2 + length)
    assert saved.generation_config.max_new_tokens == 500
    assert warnings_of_transformers() == []


def test_a_callers_other_wishes_leave_the_saved_ones_alone(saved, prompt):
    text = saved.generate(prompt, generation_config=GenerationConfig(temperature=2.0, max_new_tokens=200))
    assert text.shape == (2, 205)
    assert not {15, 16} & set(text[:, 5:].flatten().tolist())
    torch.manual_seed(0)
    first = saved.generate(prompt, max_new_tokens=20)
    assert saved.generate(prompt, max_new_tokens=20).tolist() != first.tolist()


def test_a_model_trained_on_its_end_of_text_stops_there(build, prompt):
    model = build()
    model.generation_config = lecture_generation_config([], eos_token_id=15, pad_token_id=16)
    assert model.generation_config.suppress_tokens is None
    torch.manual_seed(0)
    text = model.generate(prompt)
    assert text.shape[1] < 505
    assert all(15 in row for row in text[:, 5:].tolist())


def test_the_way_past_the_block_is_walked_without_a_warning(build, prompt, warnings_of_transformers):
    for way in WAYS.values():
        generate(build(), prompt, **way)
    generate(build(**WINDOW), prompt)
    assert not [message for message in warnings_of_transformers() if "maximum length" in message or "exceed" in message]


@pytest.mark.parametrize("way", ["fast", "stock"])
def test_past_the_block_each_step_costs_one_block_and_nothing_grows(build, prompt, way):
    model, lengths = build(), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    model.generate(prompt, max_new_tokens=60, do_sample=False, **WAYS[way])
    assert lengths == [5] + [1] * 7 + [BLOCK] * 52


@pytest.mark.slow
def test_ten_thousand_tokens_from_one_start_token_hold_no_special_token(saved, warnings_of_transformers):
    text = saved.generate(torch.zeros(1, 1, dtype=torch.long), max_new_tokens=10_000)
    assert text.shape == (1, 10_001)
    assert set(text.flatten().tolist()) == set(range(15))
    assert warnings_of_transformers() == []


@pytest.mark.parametrize(
    "cls", [UnboundedGenerationMixin, BlockGenerationMixin, FastGenerationMixin, BigramForCausalLM]
)
def test_each_private_method_of_transformers_that_is_overridden_is_listed_and_still_exists(cls):
    documented = sys.modules[cls.__module__].__doc__
    listed = set(re.findall(r"`(_\w+)`", documented))
    overridden = {name for name in vars(cls) if re.match(r"_[a-z]", name) and hasattr(GenerationMixin, name)}
    assert overridden <= listed
    for name in listed:
        assert hasattr(GenerationMixin, name), (
            f"transformers {transformers.__version__} has no GenerationMixin.{name}; find what replaced it and adapt "
            f"{cls.__module__}"
        )
