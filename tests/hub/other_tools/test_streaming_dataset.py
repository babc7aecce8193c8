"""A text too big to hold: `datasets` streams it, it is tokenized on the way, and trainers take it as it comes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from transformers import Trainer

from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.trainer import MiniGPTTrainer

BLOCK = 16
SIZE = 256 * 2**20
WITHIN_LITTLE_MEMORY = """
import json, sys, threading
import psutil
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
import minigpt

model, file, output = sys.argv[1:]
BLOCK = 16
tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)

class Growth:
    "How many bytes the process is larger, at most, than when the block began."
    def __enter__(self):
        self.begin = self.most = psutil.Process().memory_info().rss
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while not self.over.wait(0.01):
            self.most = max(self.most, psutil.Process().memory_info().rss)
    def __exit__(self, *error):
        self.over.set()
        self.thread.join()
        self.bytes = self.most - self.begin

def blocks(lines):
    ids = tokenizer("\\n".join(lines["text"]) + "\\n")["input_ids"]
    rows = [ids[start : start + BLOCK] for start in range(0, len(ids) - BLOCK + 1, BLOCK)]
    return {"input_ids": rows, "labels": rows}

def train(rows, steps):
    arguments = TrainingArguments(
        output_dir=output, use_cpu=True, max_steps=steps, per_device_train_batch_size=32, learning_rate=1e-2,
        logging_steps=5, save_strategy="no", disable_tqdm=True,
    )
    trainer = Trainer(network, arguments, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

row = tokenizer("a" * BLOCK)["input_ids"]
train(Dataset.from_dict({"input_ids": [row] * 32, "labels": [row] * 32}), 2)
with Growth() as streaming:
    text = load_dataset("text", data_files=file, split="train", streaming=True)
    losses = train(text.map(blocks, batched=True, remove_columns=["text"]).shuffle(seed=0, buffer_size=1000), 30)
with Growth() as tokenizing:
    tokens = minigpt.tokenize_corpus(minigpt.load_text(file), tokenizer, cache_dir=output)
number = sum(len(minigpt.TokenStream(split)) for split in tokens.values())
print(json.dumps({"losses": losses, "growth": [streaming.bytes, tokenizing.bytes], "tokens": number}))
"""


@pytest.fixture(scope="session")
def parquet(text, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("stream") / "lines.parquet"
    Dataset.from_dict({"text": text.splitlines()}).to_parquet(file, batch_size=50)
    return file


@pytest.mark.parametrize("kind", ["stock", "ours"])
@pytest.mark.door(
    "A stream of `datasets`, tokenized on the way: the losses of the same rows in memory", "datasets", "transformers"
)
def test_a_stream_gives_the_losses_of_the_same_rows_in_memory(kind, parquet, tokenizer, build_model, few_steps):
    def blocks(lines):
        ids = tokenizer("\n".join(lines["text"]) + "\n")["input_ids"]
        rows = [ids[start : start + BLOCK] for start in range(0, len(ids) - BLOCK + 1, BLOCK)]
        return {"input_ids": rows, "labels": rows}

    stream = load_dataset("parquet", data_files=str(parquet), split="train", streaming=True)
    assert not isinstance(stream, Dataset)
    stream = stream.map(blocks, batched=True, batch_size=50, remove_columns=["text"])
    losses = []
    for rows in (stream, Dataset.from_list(list(stream))):
        arguments = few_steps(max_steps=10, logging_steps=1, train_sampling_strategy="sequential")
        if kind == "ours":
            given = {"output_dir": arguments.output_dir, "use_cpu": True, "max_steps": 10, "logging_steps": 1}
            more = {"eval_strategy": "no", "eval_on_start": False, "train_sampling_strategy": "sequential"}
            arguments = MiniGPTTrainingArguments(**given, **more, save_strategy="no", learning_rate=1e-2)
        trainer = (MiniGPTTrainer if kind == "ours" else Trainer)(build_model(), arguments, train_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 0.2


@pytest.mark.slow
@pytest.mark.door(
    "A text of 256 MiB that is never in memory: streamed to the stock `Trainer`, and tokenized by us",
    "datasets",
    "transformers",
)
def test_a_text_of_any_size_is_never_in_memory(lecture, text, tmp_path):
    copies = SIZE // len(text.encode()) + 1
    with (tmp_path / "big.txt").open("wb") as file:
        for _ in range(copies):
            file.write(text.encode())
    script = tmp_path / "little_memory.py"
    script.write_text(WITHIN_LITTLE_MEMORY, encoding="utf-8")
    command = [sys.executable, str(script), str(lecture), str(tmp_path / "big.txt"), str(tmp_path / "output")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=500)
    shutil.rmtree(tmp_path)  # the text and its tokens: pytest would keep those of three runs
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["losses"][-1] < measured["losses"][0] - 0.2
    assert measured["tokens"] == copies * len(text)
    assert max(measured["growth"]) < SIZE / 2
