"""lm_eval's `hf` model finds the block and the end-of-text token, and scores what one gets by hand."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import concatenate_datasets
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt.training.data.corpus import load_text
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.data.tokens import tokenize_corpus
from minigpt.training.evaluation import validation_loss

pytestmark = pytest.mark.extra("eval")

BLOCK = 16
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
target_delimiter: ""
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
GENERATE = """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="session")
def pages(text) -> list[str]:
    """One text of whole blocks, one that ends within a block, and one that is shorter than a block."""
    ascii_text = text.encode("ascii", errors="ignore").decode()
    return [ascii_text[: 5 * BLOCK], ascii_text[500 : 500 + 3 * BLOCK + 5], ascii_text[900:907]]


@pytest.fixture(scope="session")
def questions(text) -> list[dict]:
    """Contexts from a few characters to several blocks; lm_eval counts a blank at their end to the choices."""
    choices = ["my lord", "the king", "a crown"]
    return [
        {"context": text[100 * i : 100 * i + length].rstrip(), "choices": choices, "answer": i % 3}
        for i, length in enumerate((3, 10, BLOCK, 3 * BLOCK))
    ]


@pytest.fixture(scope="session")
def tasks(pages, questions, tmp_path_factory) -> Path:
    """A folder of tasks as people write them: YAML beside local files."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, what, rows in (
        ("rolling", ROLLING, [{"page": page} for page in pages]),
        ("choice", CHOICE, questions),
        ("generate", GENERATE, questions),
    ):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = TASK.format(name=f"local_{name}", file=file) + what
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def task_manager(tasks):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tasks), include_defaults=False)


@pytest.fixture(scope="session")
def evaluate(saved, task_manager):
    """`evaluate(*tasks)`: their results, and what the model answered to each document."""
    from lm_eval import simple_evaluate

    def run(*names, **model_args):
        evaluated = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(saved), "device": "cpu", "dtype": "float32", **model_args},
            tasks=list(names),
            task_manager=task_manager,
            batch_size=3,
            log_samples=True,
            bootstrap_iters=0,
        )
        answers = {
            name: [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
            for name, samples in evaluated["samples"].items()
        }
        return evaluated["results"], answers

    return run


@pytest.fixture(scope="session")
def evaluated(evaluate):
    return evaluate("local_rolling", "local_choice", "local_generate")


@pytest.fixture
def model(saved):
    return AutoModelForCausalLM.from_pretrained(saved)


@torch.no_grad()
def log_likelihood(model, context, continuation):
    """Of the continuation's ids, in nats, seen from the last block before each run of them."""
    ids = torch.tensor([[*context, *continuation]])[:, -BLOCK - 1 :]  # (1, at most block + 1)
    logits = model(ids[:, :-1]).logits[0, -len(continuation) :]
    return -F.cross_entropy(logits, ids[0, -len(continuation) :], reduction="sum").item()


def rolling_log_likelihood(model, ids, first):
    """Of all ids, a block at a time; the last block is filled up with ids that are scored already."""
    total, done = log_likelihood(model, [first], ids[:BLOCK]), BLOCK
    while done < len(ids):
        end = min(done + BLOCK, len(ids))
        total += log_likelihood(model, ids[:done], ids[done:end])
        done = end
    return total


@pytest.mark.door("`lm_eval --model hf`, perplexity: windows of the block, the number computed by hand", "lm_eval")
def test_rolling_windows_are_the_models_blocks(evaluated, model, tokenizer, pages):
    results, answers = evaluated
    expected = [rolling_log_likelihood(model, tokenizer(page)["input_ids"], tokenizer.eos_token_id) for page in pages]
    assert [answer[0][0] for answer in answers["local_rolling"]] == pytest.approx(expected, rel=1e-4)
    bits = -sum(expected) / sum(len(page) for page in pages) / math.log(2)
    assert results["local_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.door("`lm_eval` and `minigpt eval` give the same bits a character", "lm_eval")
def test_its_bits_are_those_of_our_own_evaluation(evaluate, model, tokenizer, pages, tmp_path):
    newline = tokenizer("\n")["input_ids"][0]
    _, answers = evaluate("local_rolling", prefix_token_id=newline)
    file = tmp_path / "page.txt"
    # Ours scores all but the first character; and the last tenth of a corpus is what it calls validation.
    file.write_text("\n" + pages[0], encoding="utf-8", newline="\n")
    tokens = tokenize_corpus(load_text(file), tokenizer, cache_dir=tmp_path / "tokens")
    ours = validation_loss(model, TokenStream(concatenate_datasets([tokens["train"], tokens["validation"]])), BLOCK)
    assert ours.targets == len(pages[0])
    assert -answers["local_rolling"][0][0][0] / len(pages[0]) == pytest.approx(ours.loss, rel=1e-4)


@pytest.mark.door("`lm_eval --model hf`, multiple choice: contexts longer than the block are cut", "lm_eval")
def test_choices_are_scored_from_the_last_block(evaluated, model, tokenizer, questions):
    results, answers = evaluated
    right = 0
    for question, answer in zip(questions, answers["local_choice"], strict=True):
        context = tokenizer(question["context"])["input_ids"]
        expected = [log_likelihood(model, context, tokenizer(choice)["input_ids"]) for choice in question["choices"]]
        assert [scored[0][0] for scored in answer] == pytest.approx(expected, rel=1e-4)
        right += expected.index(max(expected)) == question["answer"]
    assert results["local_choice"]["acc,none"] == right / len(questions)


@pytest.mark.door("`lm_eval --model hf`, generation: greedy, in batches of any lengths, up to a stop string", "lm_eval")
def test_generation_is_greedy_and_stops(evaluated, model, tokenizer, questions):
    _, answers = evaluated
    for question, answer in zip(questions, answers["local_generate"], strict=True):
        ids = tokenizer(question["context"], return_tensors="pt").input_ids[:, -(BLOCK - 6) :]
        generated = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert answer == [[tokenizer.decode(generated).partition("e")[0]]]


def test_the_block_and_the_tokens_are_found(saved, tokenizer):
    from lm_eval.models.huggingface import HFLM

    found = HFLM(pretrained=str(saved), device="cpu")
    assert (found.max_length, found.prefix_token_id, found.eot_token_id) == (BLOCK, *[tokenizer.eos_token_id] * 2)
    assert found.tokenizer.pad_token_id == tokenizer.pad_token_id
    assert found.tok_encode("a\n b") == tokenizer("a\n b")["input_ids"]


@pytest.mark.door("The `lm_eval` command with `trust_remote_code=True`, without `import minigpt`", "lm_eval")
def test_the_command_gives_the_same_number(lecture, tasks, pages, tmp_path):
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "hf", "--tasks", "local_rolling"]
    command += ["--model_args", f"pretrained={lecture},trust_remote_code=True", "--include_path", str(tasks)]
    command += ["--device", "cpu", "--batch_size", "3", "--output_path", str(tmp_path / "results.json")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.glob("results*.json")
    bits = json.loads(file.read_text(encoding="utf-8"))["results"]["local_rolling"]["bits_per_byte,none"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lecture), AutoTokenizer.from_pretrained(lecture)
    nats = [rolling_log_likelihood(model, tokenizer(page)["input_ids"], tokenizer.eos_token_id) for page in pages]
    assert bits == pytest.approx(-sum(nats) / sum(map(len, pages)) / math.log(2), rel=1e-4)
