"""`pipeline("text-generation")` writes what the lecture's loop writes: alone, in batches, in chats, streamed."""

import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer, pipeline

from tests.hub.bare_python import OURS
from tests.hub.sharp_models import BLOCK, KINDS, bigram, characters, gpt, lecture_loop, save

TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOKENIZER = characters(chat_template=TEMPLATE)
MODELS: dict[str, Any] = {
    **{kind: gpt(TOKENIZER, **fields) for kind, fields in KINDS.items()},
    "bigram": bigram(TOKENIZER),
}
# Of every length, from one character to more than twice the block.
PROMPTS = [
    "hear me",
    "o",
    "what light is this, that breaks so soon?",
    "b" * BLOCK,
    "away!",
    "a" * (BLOCK - 1) + "\n",
    "no more of this",
    "to be, or",
    "speak.\n\nspeak.",
    "my lord: your hand",
]
GREEDY = {"do_sample": False, "max_new_tokens": 2 * BLOCK + 5}
CHAT = [{"role": "user", "content": "who is it?"}]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]


@pytest.fixture
def write(model: Any) -> Any:
    return pipeline("text-generation", model=model, tokenizer=TOKENIZER)


def texts(results: list[Any]) -> list[Any]:
    return [result[0]["generated_text"] for result in results]


def expected(model: Any, prompt: str) -> str:
    return lecture_loop(model, TOKENIZER, prompt, GREEDY["max_new_tokens"])


@pytest.mark.door("`pipeline`: one string, past the block too", *OURS)
@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_a_string_is_continued_as_the_lecture_does(model: Any, write: Any, prompt: str) -> None:
    assert write(prompt, **GREEDY) == [{"generated_text": expected(model, prompt)}]


@pytest.mark.door("`pipeline`: a list with `batch_size=8`, each as it is alone", *OURS)
@pytest.mark.parametrize(("kind", "implementation"), [*((kind, "sdpa") for kind in MODELS), ("learned", "eager")])
def test_prompts_of_different_lengths_in_a_batch_are_continued_as_each_alone(kind: str, implementation: str) -> None:
    # In float64 no rounding can turn one character into another.
    model = deepcopy(MODELS[kind]).double()
    model.set_attn_implementation(implementation)
    write = pipeline("text-generation", model=model, tokenizer=TOKENIZER)
    together = write(PROMPTS, batch_size=8, **GREEDY)
    assert texts(together) == texts([write(prompt, **GREEDY) for prompt in PROMPTS])


def test_a_stream_of_prompts_is_continued_in_batches(write: Any) -> None:
    results = write((prompt for prompt in PROMPTS), batch_size=4, **GREEDY)
    assert texts(list(results))[:3] == texts([write(prompt, **GREEDY) for prompt in PROMPTS[:3]])


@pytest.mark.door("`pipeline`: said nothing, it samples as the lecture does", *OURS)
@pytest.mark.parametrize("model", ["learned", "bigram"], indirect=True)
def test_said_nothing_a_pipeline_samples_as_generate_does(model: Any, write: Any) -> None:
    inputs = TOKENIZER("hear me", return_tensors="pt")
    torch.manual_seed(1)
    sampled = model.generate(**inputs)
    torch.manual_seed(1)
    assert write("hear me")[0]["generated_text"] == TOKENIZER.decode(sampled[0])
    # From the whole distribution: every character can come, as the logits have it, and no special token.
    logits = model(inputs["input_ids"]).logits[0, -1].float()
    logits[TOKENIZER.all_special_ids] = -torch.inf
    torch.manual_seed(1)
    drawn = torch.multinomial(logits.softmax(dim=-1).expand(5, -1), 1)
    torch.manual_seed(1)
    first = write("hear me", max_new_tokens=1, num_return_sequences=5, return_full_text=False)
    assert [one["generated_text"] for one in first] == [TOKENIZER.decode(one) for one in drawn]


@pytest.mark.door("`pipeline`: `return_full_text` and `return_tensors`", *OURS)
def test_what_comes_back_is_with_or_without_the_prompt(model: Any, write: Any) -> None:
    whole = expected(model, "hear me")
    assert write("hear me", return_full_text=True, **GREEDY)[0]["generated_text"] == whole
    assert write("hear me", return_full_text=False, **GREEDY)[0]["generated_text"] == whole.removeprefix("hear me")
    several = write(["hear me", "o"], batch_size=2, return_full_text=False, **GREEDY)
    assert texts(several) == [whole.removeprefix("hear me"), expected(model, "o").removeprefix("o")]
    ids = write("hear me", return_tensors=True, **GREEDY)[0]["generated_token_ids"]
    assert ids == TOKENIZER(whole)["input_ids"]


@pytest.mark.door("`pipeline`: chat messages, one chat and several, and an answer begun", *OURS, "jinja2")
def test_a_chat_is_answered_as_its_prompt_is_continued(model: Any, write: Any) -> None:
    def answer(prompt: str) -> str:
        return expected(model, prompt).removeprefix(prompt)

    answered = [*CHAT, {"role": "assistant", "content": answer("user: who is it?\nassistant: ")}]
    assert write(CHAT, **GREEDY) == [{"generated_text": answered}]
    told = [{"role": "system", "content": "be kind."}, *answered[:1]]
    both = texts(write([CHAT, told], batch_size=2, **GREEDY))
    assert both[0] == answered
    assert both[1][-1]["content"] == answer("system: be kind.\nuser: who is it?\nassistant: ")
    assert write(CHAT, return_full_text=False, **GREEDY)[0]["generated_text"] == answered[-1]["content"]
    begun = [*CHAT, {"role": "assistant", "content": "it is"}]
    went_on = write(begun, **GREEDY)[0]["generated_text"][-1]["content"]
    assert went_on == "it is" + answer("user: who is it?\nassistant: it is")


@pytest.mark.door("`pipeline`: `TextStreamer` and `TextIteratorStreamer`", *OURS)
def test_a_streamer_gets_the_text_as_it_is_written(model: Any, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    whole = expected(model, "hear me")
    write("hear me", streamer=TextStreamer(TOKENIZER), **GREEDY)
    assert capsys.readouterr().out == whole + "\n"
    write("hear me", streamer=TextStreamer(TOKENIZER, skip_prompt=True), **GREEDY)
    assert capsys.readouterr().out == whole.removeprefix("hear me") + "\n"

    pieces = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=write, args=("hear me",), kwargs={"streamer": pieces, **GREEDY})
    thread.start()
    assert "".join(pieces) == whole.removeprefix("hear me")
    thread.join()


@pytest.mark.door("`pipeline`: `stop_sequence`", *OURS)
def test_a_stop_sequence_ends_the_text(model: Any, write: Any) -> None:
    whole = expected(model, "hear me")
    stop = whole[20:22]
    until = whole.index(stop, 7) + 2
    assert write("hear me", stop_sequence=stop, **GREEDY)[0]["generated_text"] == whole[:until]


def test_an_empty_prompt_is_refused_in_one_sentence(write: Any) -> None:
    with pytest.raises(ValueError, match=r"a prompt of 0 tokens and needs 1 to start from; a new line will do\.$"):
        write("", **GREEDY)


@pytest.mark.door("`pipeline`: made of a folder, with `dtype` and `device`", *OURS)
def test_a_pipeline_is_made_of_a_folder(model: Any, tmp_path: Path) -> None:
    save(tmp_path, model, TOKENIZER)
    write = pipeline("text-generation", model=str(tmp_path), dtype=torch.float64, device="cpu")
    assert write.model.dtype == torch.float64
    assert write("hear me", **GREEDY)[0]["generated_text"] == expected(write.model, "hear me")
    assert pipeline(model=str(tmp_path), task="text-generation")(CHAT, max_new_tokens=2)
