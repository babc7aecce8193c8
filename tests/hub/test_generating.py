"""`generate()` by every door, on texts: what it gives is the lecture's loop's, or it is refused before it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.cache_utils import Fp8QuantizedLayer

from tests.hub.bare_python import OURS
from tests.hub.sharp_models import BLOCK, KINDS, bigram, characters, gpt, lecture_loop

TOKENIZER = characters()
# In float64 no rounding can turn one character into another.
MODELS: dict[str, Any] = {kind: gpt(TOKENIZER, **fields).double() for kind, fields in KINDS.items()}
MODELS["bigram"] = bigram(TOKENIZER).double()
PROMPT = "hear me"
FAR = 2 * BLOCK + 8
INSIDE = BLOCK - len(PROMPT)
PASSES = "would pass the block of 16; ask for fewer new tokens or use plain generate"


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> Any:
    return MODELS[kind]


@pytest.fixture(params=KINDS)
def attentive(request: pytest.FixtureRequest) -> Any:
    """A model that has attention, and so a cache."""
    return MODELS[request.param]


def write(model: Any, prompt: str | list[str] = PROMPT, **kwargs: Any) -> Any:
    """The whole text that a greedy generate() gives, or a list of texts for a list of prompts."""
    inputs = TOKENIZER(prompt, return_tensors="pt", padding=isinstance(prompt, list))
    if isinstance(prompt, str):
        inputs = {"input_ids": inputs["input_ids"].reshape(1, -1)}
    output = model.generate(**inputs, **{"do_sample": False, "max_new_tokens": FAR, **kwargs})
    ids = output if isinstance(output, torch.Tensor) else output.sequences
    texts = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
    return texts if isinstance(prompt, list) else texts[0]


def expected(model: Any, new_tokens: int = FAR, prompt: str = PROMPT, **kwargs: Any) -> str:
    return lecture_loop(model, TOKENIZER, prompt, new_tokens, **kwargs)


@contextmanager
def nothing_runs(model: PreTrainedModel) -> Iterator[None]:
    """A context in which a forward pass fails the test."""

    def refuse(*args: Any) -> None:
        raise AssertionError("a forward pass ran")

    handles = [module.register_forward_pre_hook(refuse) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Stop strings.


@pytest.mark.door("`generate`: `stop_strings=`, past the block too, one row or several", *OURS)
@pytest.mark.parametrize("where", [3, BLOCK, FAR - 3], ids=["early", "at the block's end", "past it"])
def test_a_text_ends_with_the_first_stop_string(model: Any, where: int) -> None:
    whole = expected(model)[len(PROMPT) :]
    stops = [whole[where : where + 2], "zz:z"]
    until = whole.index(stops[0]) + 2
    assert write(model, stop_strings=stops, tokenizer=TOKENIZER) == PROMPT + whole[:until]
    assert write(model, stop_strings=stops, tokenizer=TOKENIZER, return_dict_in_generate=True) == PROMPT + whole[:until]
    prompts = [PROMPT, "o", "what is it?"]
    alone = [write(model, prompt, stop_strings=stops, tokenizer=TOKENIZER) for prompt in prompts]
    assert write(model, prompts, stop_strings=stops, tokenizer=TOKENIZER) == alone


@pytest.mark.door("`generate`: `stop_strings=` in a vocabulary without the letters a to f", *OURS)
def test_stop_strings_work_in_any_vocabulary(caplog: pytest.LogCaptureFixture) -> None:
    for text in ("Привет, мир!\n", "0123", "\n\r"):
        tokenizer = characters(text)
        model = gpt(tokenizer).double()
        prompt = text[0]
        whole = lecture_loop(model, tokenizer, prompt, FAR)
        stop = whole[20:22]
        assert whole.index(stop) + 2 > len(prompt)
        inputs = tokenizer(prompt, return_tensors="pt")
        settings = {"do_sample": False, "max_new_tokens": FAR, "stop_strings": stop, "tokenizer": tokenizer}
        found = tokenizer.decode(model.generate(**inputs, **settings)[0])
        assert found == whole[: whole.index(stop) + 2]
    assert "the vocabulary lacks" not in caplog.text


# Constraints.


def vowels_and_others(text: str) -> str:
    return "aeiou" if len(text) % 2 else "bcdfg \n"


@pytest.mark.door("`generate`: `prefix_allowed_tokens_fn=`, past the block too", *OURS)
def test_a_text_keeps_to_the_characters_that_are_allowed(model: Any) -> None:
    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        return TOKENIZER.convert_tokens_to_ids(list(vowels_and_others(TOKENIZER.decode(ids))))

    constrained = expected(model, allowed=vowels_and_others)
    assert write(model, prefix_allowed_tokens_fn=allowed) == constrained
    assert write(model, prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True) == constrained
    for text in write(model, [PROMPT, "o"], prefix_allowed_tokens_fn=allowed, num_beams=3, num_return_sequences=3):
        start = len(PROMPT if text.startswith(PROMPT) else "o")
        assert all(text[at] in vowels_and_others(" " * (at + len(PROMPT) - start)) for at in range(start, len(text)))


@pytest.mark.door("`generate`: `bad_words_ids=` and `sequence_bias=`, past the block too", *OURS)
def test_words_that_are_forbidden_or_favoured(model: Any) -> None:
    free = expected(model)[len(PROMPT) :]
    # One character, and two characters in a row.
    words = [free[BLOCK], free[4:6] if free[4:6].strip(free[BLOCK]) else free[5:7]]
    text = write(model, bad_words_ids=[TOKENIZER(word)["input_ids"] for word in words])[len(PROMPT) :]
    assert len(text) == FAR
    assert not any(word in text for word in words)
    favoured = write(model, sequence_bias=[[TOKENIZER("q")["input_ids"], 1000.0]])
    assert favoured == PROMPT + "q" * FAR


# Beams.


@torch.no_grad()
def beam_search(model: Any, prompt: str, new_tokens: int, beams: int) -> list[str]:
    """The likeliest of all continuations of the likeliest, each step; special tokens left out."""
    rolls = getattr(model.config, "rolls_past_block", False)
    ids, scores = torch.tensor([TOKENIZER(prompt)["input_ids"]]), torch.zeros(1)
    for _ in range(new_tokens):
        context = ids if rolls else ids[:, -model.config.max_position_embeddings :]
        # The scores are a distribution before special tokens are taken out, as in generate().
        steps = model(context, use_cache=False).logits[:, -1].float().log_softmax(dim=-1)
        steps[:, TOKENIZER.all_special_ids] = -torch.inf
        scores, order = (scores[:, None] + steps).flatten().topk(beams)
        ids = torch.cat((ids[order // steps.shape[1]], (order % steps.shape[1])[:, None]), dim=1)
    return TOKENIZER.batch_decode(ids)


@pytest.mark.door("`generate`: beams, past the block too", *OURS)
def test_beams_are_the_likeliest_texts(attentive: Any) -> None:
    found = write(attentive, [PROMPT, "o"], num_beams=4, num_return_sequences=4)
    assert found == [*beam_search(attentive, PROMPT, FAR, 4), *beam_search(attentive, "o", FAR, 4)]


# Drafts.

SHORT_DRAFTER = gpt(TOKENIZER, seed=1, num_hidden_layers=1, max_position_embeddings=BLOCK // 2).double()
DRAFTS: dict[str, dict[str, Any]] = {
    "a model of half the block": {"assistant_model": SHORT_DRAFTER},
    "a bigram": {"assistant_model": MODELS["bigram"]},
    "the model itself": {},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
}


@pytest.mark.door("`generate`: assisted decoding (a smaller model, a bigram, early exit) and prompt lookup", *OURS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_a_drafted_text_is_the_text(attentive: Any, draft: str) -> None:
    drafted = DRAFTS[draft] or {"assistant_model": attentive}
    reach = FAR if attentive.config.rolls_past_block else INSIDE
    whole = expected(attentive, reach)
    assert write(attentive, max_new_tokens=reach, **drafted) == whole
    # A repetitive prompt, so that drafts of looking up hit.
    assert write(attentive, "to to to to", max_new_tokens=5, **drafted) == expected(attentive, 5, "to to to to")


@pytest.mark.door("`generate`: assisted by a model of another vocabulary", *OURS)
def test_a_draft_in_another_vocabulary_is_translated(attentive: Any) -> None:
    other = characters("".join(sorted(set(TOKENIZER.get_vocab()) & set("abcdefghijklmnopqrstuvwxyz \n!"))))
    both = {"assistant_model": gpt(other, seed=1).double(), "tokenizer": TOKENIZER, "assistant_tokenizer": other}
    assert write(attentive, max_new_tokens=INSIDE, **both) == expected(attentive, INSIDE)


@pytest.mark.door(
    "`generate`: drafts past the block, and drafts with `stop_strings=`, are refused before they start", *OURS
)
@pytest.mark.parametrize("draft", DRAFTS)
def test_drafts_are_refused_where_they_would_be_wrong(attentive: Any, draft: str) -> None:
    drafted = DRAFTS[draft] or {"assistant_model": attentive}
    with nothing_runs(attentive):
        if not attentive.config.rolls_past_block:
            with pytest.raises(ValueError, match=f"prompt-lookup decoding cannot crop its context, and 17.*{PASSES}"):
                write(attentive, max_new_tokens=INSIDE + 1, **drafted)
        with pytest.raises(ValueError, match=r"look for stop strings only where a draft ends.*leave out either\.$"):
            write(attentive, max_new_tokens=5, stop_strings=["a"], tokenizer=TOKENIZER, **drafted)


def test_a_bigram_takes_no_draft() -> None:
    for drafted in ({"assistant_model": MODELS["bigram"]}, {"prompt_lookup_num_tokens": 2}):
        with nothing_runs(MODELS["bigram"]), pytest.raises(ValueError, match="assisted generation is not supported"):
            write(MODELS["bigram"], **drafted)


# Caches.


@pytest.mark.door("`generate`: going on from a returned cache, dynamic or static, past the block too", *OURS)
@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_a_text_goes_on_from_the_cache_that_came_back(attentive: Any, implementation: str) -> None:
    ids = TOKENIZER(PROMPT, return_tensors="pt")["input_ids"]
    settings = {"do_sample": False, "return_dict_in_generate": True}
    first = {"cache_implementation": implementation} | ({"max_cache_len": FAR} if implementation == "static" else {})
    output = attentive.generate(ids, max_new_tokens=4, **first, **settings)
    assert isinstance(output.past_key_values, {"dynamic": DynamicCache, "static": StaticCache}[implementation])
    for new_tokens in (5, 1, FAR - 10):  # inside the block, onto its end, far past it
        kept = output.past_key_values
        output = attentive.generate(output.sequences, past_key_values=kept, max_new_tokens=new_tokens, **settings)
    assert TOKENIZER.decode(output.sequences[0]) == expected(attentive)


@pytest.mark.door("`generate`: static caches, past the block too; one too short is refused before it starts", *OURS)
def test_a_static_cache_gives_the_text_or_is_refused(attentive: Any) -> None:
    whole = expected(attentive)
    assert write(attentive, cache_implementation="static") == whole
    cache = StaticCache(config=attentive.config, max_cache_len=len(whole))
    assert write(attentive, past_key_values=cache) == whole
    cache = StaticCache(config=attentive.config, max_cache_len=4)
    with nothing_runs(attentive), pytest.raises(ValueError, match="a static cache of 4 tokens is too short for a text"):
        write(attentive, past_key_values=cache)


def check_quantized(model: Any, **config: Any) -> None:
    """Generates with a quantized cache, which is not exact inside the block, and is not needed past it."""
    ids = TOKENIZER([PROMPT, "what is"], return_tensors="pt")["input_ids"]
    settings = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": FAR}
    output = model.generate(ids, cache_implementation="quantized", cache_config=config, **settings)
    assert output.sequences.shape == (2, len(PROMPT) + FAR)
    special = TOKENIZER.all_special_ids
    for row in output.sequences:
        for at in range(len(PROMPT), len(row)):
            logits = model(row[None, max(0, at - BLOCK) : at]).logits[0, -1]
            logits[special] = -torch.inf
            if at > BLOCK:
                assert row[at] == logits.argmax()
            else:  # what was taken is likely still, if not always the likeliest
                assert logits.softmax(dim=-1)[row[at]] > 0.05
    # Not so exact that the test could have missed that nothing was quantized.
    exact = model.generate(ids, **{**settings, "max_new_tokens": 5})
    found = model.generate(
        ids, cache_implementation="quantized", cache_config=config, **{**settings, "max_new_tokens": 5}
    )
    assert torch.equal(exact.logits[0], found.logits[0])
    assert not torch.equal(exact.logits[1], found.logits[1])


@pytest.mark.door("`generate`: an fp8 cache (`cache_implementation='quantized'`), past the block too", *OURS)
@pytest.mark.parametrize("kind", ["learned", "rope"])
def test_a_cache_of_eight_bit_floats_runs(model: Any) -> None:
    check_quantized(deepcopy(model).float(), backend="fp8")
    cache = model.generate(
        torch.tensor([[1, 2]]),
        max_new_tokens=3,
        cache_implementation="quantized",
        cache_config={"backend": "fp8"},
        return_dict_in_generate=True,
    ).past_key_values
    assert all(type(layer) is Fp8QuantizedLayer for layer in cache.layers)
    assert cache.layers[0]._quantized_keys[0].dtype == torch.float8_e4m3fn


@pytest.mark.extra("hqq")
@pytest.mark.door("`generate`: an HQQ cache of 8 and 4 bits, past the block too", *OURS, "hqq")
@pytest.mark.parametrize("kind", ["learned", "rope"])
def test_a_cache_quantized_by_hqq_runs(model: Any) -> None:
    axes = {"backend": "hqq", "axis_key": 1, "axis_value": 1, "q_group_size": 16, "residual_length": 4}
    for bits in (8, 4):
        check_quantized(deepcopy(model).float(), nbits=bits, **axes)


@pytest.mark.door("`generate`: a quantized cache of a model with windows is refused before it starts", *OURS)
@pytest.mark.parametrize("kind", ["rolling", "a window in one layer"])
def test_a_quantized_cache_with_windows_is_refused(model: Any) -> None:
    with nothing_runs(model), pytest.raises(ValueError, match="only supported for models with only full attention"):
        write(model, cache_implementation="quantized", cache_config={"backend": "fp8"})


# Continuous batching.

REQUESTS = ["hear me", "o", "what is", "a", "no more", "to be", "away!", "speak", "b c", "it"]


def served(model: Any, prompts: list[str], new_tokens: int) -> list[list[int]]:
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1)
    # Fewer pages and tokens at once than the requests need: some have to wait for others.
    pages = ContinuousBatchingConfig(num_blocks=12, max_batch_tokens=24)
    outputs = model.generate_batch(
        [TOKENIZER(prompt)["input_ids"] for prompt in prompts],
        generation_config=config,
        continuous_batching_config=pages,
        warmup=False,
        progress_bar=False,
    )
    return [outputs[f"req_{index}"].generated_tokens for index in range(len(prompts))]


@pytest.mark.door("`generate_batch`: each request as it is alone; past the block refused, or rolling on", *OURS)
def test_requests_served_together_are_answered_as_each_alone(attentive: Any) -> None:
    longest = max(map(len, REQUESTS))
    reach = FAR if attentive.config.rolls_past_block else BLOCK - longest
    plain = deepcopy(attentive)
    plain.generation_config = GenerationConfig(do_sample=False)
    alone = []
    for prompt in REQUESTS:
        ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
        alone.append(plain.generate(ids, max_new_tokens=reach)[0, len(prompt) :].tolist())
    assert served(plain, REQUESTS, reach) == alone
    if not attentive.config.rolls_past_block:
        with nothing_runs(plain), pytest.raises(ValueError, match=f"continuous batching cannot crop.*17.*{PASSES}"):
            served(plain, REQUESTS, reach + 1)


def test_continuous_batching_of_a_bigram_is_refused() -> None:
    model = MODELS["bigram"]
    with nothing_runs(model), pytest.raises(ValueError, match=r"attention, which a bigram lacks; use plain generate"):
        served(model, REQUESTS, 3)
