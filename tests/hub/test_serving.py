"""`transformers serve` and `transformers chat`, run as they are, on folders that we saved."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt import BigramConfig, BigramForCausalLM, MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config

CHARACTERS = "abcdefghijklmnopqrstuvwxyz:\n"
TEMPLATE = (
    "{% for message in messages %}{{ message.role + ':\n' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
BLOCK = 48
PROMPT = "romeo:\n"
TRANSFORMERS = str(Path(sys.executable).with_name("transformers"))
# `transformers serve` with the package imported, as the how-to gives it.
WITH_PACKAGE = "import minigpt; from transformers.cli.transformers import main; main()"


@dataclass
class Served:
    """A running server: where it listens, and what it has logged."""

    port: int
    log: Path

    def client(self, **kwargs: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", **kwargs)

    def is_well(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=10) as answer:
            return bool(json.load(answer) == {"status": "ok"})
        return False

    def waits_for(self, logged: str) -> bool:
        """Whether it says something in its log, where it gives its reasons after it has answered."""
        deadline = time.monotonic() + 30
        while logged not in self.log.read_text("utf-8", "replace") and time.monotonic() < deadline:
            time.sleep(0.1)
        return logged in self.log.read_text("utf-8", "replace")


@contextmanager
def serving(log: Path, command: Sequence[str], **variables: str) -> Iterator[Served]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path(os.environ["HF_HOME"], "hub").mkdir(parents=True, exist_ok=True)  # without a cache it cannot list models
    environment = os.environ | {"HF_HUB_DISABLE_UPDATE_CHECK": "1"} | variables
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=output, env=environment)
    try:
        served, deadline = Served(port, log), time.monotonic() + 300
        while not served.is_well():
            assert process.poll() is None, log.read_text("utf-8", "replace")
            assert time.monotonic() < deadline, log.read_text("utf-8", "replace")
            time.sleep(0.2)
        yield served
        assert process.poll() is None, "the server has gone"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@dataclass
class Saved:
    """A model that was saved to a folder, to be compared with what a server makes of the folder."""

    folder: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def writes(self, prompt: str, new_tokens: int) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]  # (1, seq)
        output = self.model.generate(ids, do_sample=False, max_new_tokens=new_tokens)
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def save(folder: Path, model: PreTrainedModel, chat_template: str | None = None) -> Saved:
    """Saves a model as a run leaves it: no special token was trained on."""
    tokenizer = MiniGPTTokenizer.from_text(CHARACTERS, chat_template=chat_template)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **special)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Saved(str(folder), model, tokenizer)


def build(**config: object) -> MiniGPTForCausalLM:
    """A model that would write special tokens and nothing else, if its generation config did not suppress them."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": BLOCK}
    vocab_size = len(CHARACTERS) + 3
    model = MiniGPTForCausalLM(MiniGPTConfig(vocab_size=vocab_size, initializer_range=0.3, **(sizes | config)))
    with torch.no_grad():
        model.lm_head.bias[len(CHARACTERS) :] = 100.0
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The lecture's model: it goes on with a text."""
    return save(tmp_path_factory.mktemp("base"), build())


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A model with a chat template."""
    return save(tmp_path_factory.mktemp("instructed"), build(max_position_embeddings=256), TEMPLATE)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server where the package is not installed: it loads what it is asked for by the code beside the weights."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "minigpt.py").write_text("raise ModuleNotFoundError('it is not installed')\n", encoding="utf-8")
    command = [TRANSFORMERS, "serve", "--trust-remote-code"]
    with serving(folder / "log", command, PYTHONPATH=str(folder)) as served:
        yield served


@pytest.mark.extra("serving")
@pytest.mark.door(
    "`transformers serve`: the `openai` client streams a completion from a local folder", "transformers", "openai"
)
def test_the_openai_client_streams_what_the_model_writes_past_the_block_too(served: Served, base: Saved) -> None:
    text = base.writes(PROMPT, BLOCK + 20)
    asked = {"model": base.folder, "prompt": PROMPT, "max_tokens": BLOCK + 20, "temperature": 0}
    chunks = list(served.client().completions.create(stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert [chunk.choices[0].text for chunk in chunks if chunk.choices[0].text] == [*text]  # letter by letter
    assert chunks[-1].choices[0].finish_reason == "length"

    whole = served.client().completions.create(**asked)
    assert whole.choices[0].text == text
    assert whole.usage.completion_tokens == BLOCK + 20


@pytest.mark.extra("serving")
@pytest.mark.door("`transformers serve`: sampling, seeds and stop strings", "transformers", "openai")
def test_a_seed_repeats_a_text_and_a_stop_string_ends_it(served: Served, base: Saved) -> None:
    def write(**kwargs: object) -> str:
        asked = {"model": base.folder, "prompt": PROMPT, "max_tokens": 60, **kwargs}
        return str(served.client().completions.create(**asked).choices[0].text)

    texts = [write(seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = write(temperature=0)
    assert write(temperature=0, stop=[greedy[10:12]]) == greedy[: greedy.index(greedy[10:12]) + 2]


@pytest.mark.extra("serving")
@pytest.mark.door("`transformers serve`: a bigram", "transformers", "openai")
def test_a_bigram_is_served(served: Served, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bigram = BigramForCausalLM(BigramConfig(vocab_size=len(CHARACTERS) + 3, initializer_range=1.0))
    saved = save(tmp_path / "bigram", bigram)
    answer = served.client().completions.create(model=saved.folder, prompt=PROMPT, max_tokens=30, temperature=0)
    assert answer.choices[0].text == saved.writes(PROMPT, 30)


@pytest.mark.extra("serving")
@pytest.mark.door("`transformers serve`: chat completions and responses by the chat template", "transformers", "openai")
def test_chat_completions_and_responses_follow_the_chat_template(served: Served, instructed: Saved) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "who are you"},
    ]
    prompt = "system:\nbe brief\nuser:\nhello\nassistant:\nhi\nuser:\nwho are you\nassistant:\n"
    text = instructed.writes(prompt, 40)
    asked = {"model": instructed.folder, "temperature": 0}
    chunks = served.client().chat.completions.create(messages=messages, max_tokens=40, stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    whole = served.client().chat.completions.create(messages=messages, max_tokens=40, **asked)
    assert whole.choices[0].message.content == text
    response = served.client().responses.create(input=messages, max_output_tokens=40, stream=False, **asked)
    assert response.output_text == text


@pytest.mark.extra("serving")
def test_what_the_server_cannot_do_does_not_end_it(served: Served, base: Saved) -> None:
    import openai

    def fails() -> Any:
        return served.client(max_retries=0)

    with pytest.raises(openai.InternalServerError):
        fails().chat.completions.create(model=base.folder, messages=[{"role": "user", "content": "hello"}])
    assert served.waits_for("tokenizer.chat_template is not set")
    with pytest.raises(openai.InternalServerError):
        fails().completions.create(model=base.folder, prompt="")
    assert served.waits_for("needs 1 to start from; a new line will do")
    assert served.client().models.list().data == []  # of the Hub's cache, not of local folders
    again = served.client().completions.create(model=base.folder, prompt=PROMPT, max_tokens=9, temperature=0)
    assert again.choices[0].text == base.writes(PROMPT, 9)


@pytest.mark.extra("serving")
@pytest.mark.door("`transformers chat`: a conversation by the chat template", "transformers", "huggingface_hub")
def test_transformers_chat_converses_by_the_chat_template(served: Served, instructed: Saved) -> None:
    first = instructed.writes("user:\nhello\nassistant:\n", 20)
    second = instructed.writes(f"user:\nhello\nassistant:\n{first}\nuser:\nbye\nassistant:\n", 20)
    command = [TRANSFORMERS, "chat", instructed.folder]
    flags = [f"http://127.0.0.1:{served.port}", "max_new_tokens=20", "do_sample=False", "--user", "me"]
    # After an answer of full length it asks whether to go on with it.
    typed = "hello\nn\nbye\nn\n!exit\n"
    environment = os.environ | {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "COLUMNS": "200", "PYTHONUTF8": "1"}
    result = subprocess.run(
        [*command, *flags], input=typed, capture_output=True, encoding="utf-8", env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    for answer in (first, second):
        # It shows each line of an answer as a line of Markdown.
        assert " ".join(answer.split()) in " ".join(result.stdout.split())


@pytest.fixture(scope="module")
def batching(base: Saved, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one model that batches continuously, with the installed package in the place of remote code."""
    command = [sys.executable, "-c", WITH_PACKAGE, "serve", base.folder]
    sizes = ["--continuous-batching", "--cb-num-blocks", "32", "--cb-max-batch-tokens", "64"]
    with serving(tmp_path_factory.mktemp("batching") / "log", [*command, *sizes]) as served:
        yield served


@pytest.mark.extra("serving")
@pytest.mark.door("`transformers serve --continuous-batching`, inside the block", "transformers", "openai")
def test_continuous_batching_serves_several_at_once_and_refuses_what_would_pass_the_block(
    batching: Served, base: Saved
) -> None:
    import openai

    prompts = ["romeo:\n", "o", "juliet:\nwherefore", "a\nb\nc\n"]

    def stream(prompt: str, client: Any) -> str:
        asked = {"model": base.folder, "prompt": prompt, "max_tokens": 25, "temperature": 0}
        return "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **asked))

    with ThreadPoolExecutor(len(prompts)) as clients:
        texts = list(clients.map(stream, prompts, [batching.client() for _ in prompts]))
    assert texts == [base.writes(prompt, 25) for prompt in prompts]

    with pytest.raises(openai.InternalServerError):
        batching.client(max_retries=0).completions.create(model=base.folder, prompt=PROMPT, max_tokens=BLOCK)
    assert batching.waits_for(f"{BLOCK + len(PROMPT)} tokens would pass the block of {BLOCK}")
    assert batching.is_well()
    assert stream(prompts[0], batching.client()) == texts[0]


@pytest.mark.extra("serving")
@pytest.mark.door("`transformers serve --continuous-batching`: an empty prompt is refused", "transformers", "openai")
@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_prompt_does_not_end_continuous_batching_for_the_others(
    batching: Served, base: Saved, stream: bool
) -> None:
    import openai

    def write(prompt: str) -> str:
        asked = {"model": base.folder, "prompt": prompt, "max_tokens": 9, "temperature": 0}
        chunks = batching.client(max_retries=0).completions.create(stream=True, **asked)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(2) as clients:
        answer = clients.submit(write, PROMPT)
        with pytest.raises(openai.InternalServerError):
            batching.client(max_retries=0).completions.create(
                model=base.folder, prompt="", max_tokens=9, temperature=0, stream=stream
            )
        assert answer.result() == base.writes(PROMPT, 9)
    assert batching.waits_for("a request of 0 tokens and needs 1 to start from; a new line will do")
    assert batching.is_well()
    assert write(PROMPT) == base.writes(PROMPT, 9)


@pytest.mark.skipif(not hasattr(transformers, "AutoModelForDecision"), reason="experimental in transformers")
def test_the_class_that_the_server_asks_for_is_the_language_model(base: Saved) -> None:
    loaded = transformers.AutoModelForDecision.from_pretrained(base.folder)
    assert type(loaded) is MiniGPTForCausalLM
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids).logits, base.model(ids).logits)
