"""Milliseconds a training step: MiniGPT through our Trainer and the stock one, stock GPT-2, the textbook, bare loops.

    python -m benchmarks.train_step [--rounds 7] [--presets seed nano-cpu nano] [--data TEXT] [--profile]

Each side has the preset's sizes, batch, dropout and learning rate, on the same text. A step is everything from one
step's beginning to the next one's: data, forward, backward, optimiser, and whatever the loop does besides.
"""

import argparse
import cProfile
import pstats
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from datasets import DatasetDict
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.utils import logging

from benchmarks.peers import stock_gpt2
from benchmarks.side_by_side import alternate, markdown_table, ratio
from minigpt import (
    MiniGPTConfig,
    MiniGPTForCausalLM,
    MiniGPTTokenizer,
    MiniGPTTrainer,
    MiniGPTTrainingArguments,
    TextbookGPT,
    get_batch,
    load_text,
    tokenize_corpus,
)
from minigpt.training.data.batches import RandomCrops, blocks, collate
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.presets import Preset, get_preset

OURS, STOCK, GPT2 = "MiniGPT, our Trainer", "MiniGPT, stock Trainer", "GPT-2, stock Trainer"
TEXTBOOK, BARE = "textbook, bare loop", "MiniGPT, bare loop"
STEPS = {"seed": 60, "nano-cpu": 30, "nano": 2}
WARM_UP = 1


@dataclass
class Bench:
    """What the sides of one preset have in common."""

    preset: Preset
    tokens: DatasetDict
    vocab_size: int
    steps: int

    @property
    def batch_size(self) -> int:
        """Rows in a batch."""
        return self.preset.training["per_device_train_batch_size"]

    @property
    def config(self) -> MiniGPTConfig:
        """The preset's model for this text."""
        config = self.preset.build_config(vocab_size=self.vocab_size)
        assert isinstance(config, MiniGPTConfig)
        return config

    def arguments(self, kind: type[TrainingArguments], folder: str, **more: Any) -> TrainingArguments:
        """Stock or our arguments that train `steps` steps and do nothing else."""
        keep = ("learning_rate", "weight_decay", "max_grad_norm", "adam_beta2", "per_device_train_batch_size")
        chosen = {name: value for name, value in self.preset.training.items() if name in keep}
        return kind(
            output_dir=folder,
            max_steps=self.steps + WARM_UP,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **chosen,
            **more,
        )


class Clock(TrainerCallback):
    """Remembers when each step began.

    Args:
        now: What to look at; `process_time` leaves out what other programs take of the processor.
    """

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        self.now = now
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Looks at the clock."""
        self.times.append(self.now())


def milliseconds(times: list[float]) -> float:
    """The median step, the first ones left out."""
    return 1000 * median(after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False))


def our_trainer(bench: Bench, clock: Clock | None = None, **more: Any) -> float:
    """MiniGPT through MiniGPTTrainer, with `more` of its arguments."""
    clock = clock or Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = bench.arguments(MiniGPTTrainingArguments, folder, eval_on_start=False, **more)
        trainer = MiniGPTTrainer(MiniGPTForCausalLM(bench.config), args, bench.tokens, callbacks=[clock])
        trainer.train()
    return milliseconds(clock.times)


def stock_trainer(bench: Bench, model: PreTrainedModel) -> float:
    """A model through the stock Trainer, on a plain dataset of blocks."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            bench.arguments(TrainingArguments, folder),
            train_dataset=blocks(TokenStream(bench.tokens["train"]), bench.config.max_position_embeddings),
            data_collator=default_data_collator,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return milliseconds(clock.times)


def textbook(bench: Bench) -> float:
    """The textbook model in the lecture's loop."""
    config = bench.config
    model = TextbookGPT(
        config.vocab_size,
        config.hidden_size,
        config.num_attention_heads,
        config.num_hidden_layers,
        config.max_position_embeddings,
        config.dropout,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=bench.preset.training["learning_rate"])
    stream = TokenStream(bench.tokens["train"])
    times = []
    for _ in range(bench.steps + WARM_UP):
        times.append(perf_counter())
        inputs, targets = get_batch(stream, bench.batch_size, config.max_position_embeddings)
        _, loss = model(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return milliseconds(times)


def bare_loop(bench: Bench) -> float:
    """MiniGPT in a loop of its own with our Trainer's optimiser: what no Trainer can go below."""
    model = MiniGPTForCausalLM(bench.config).train()
    model.config.use_cache = False
    training = bench.preset.training
    optimizer = torch.optim.AdamW(model.parameters(), lr=training["learning_rate"], fused=True)
    batches = crops(bench)
    times = []
    for _ in range(bench.steps + WARM_UP):
        times.append(perf_counter())
        model(**next(batches)).loss.backward()
        if training["max_grad_norm"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
    return milliseconds(times)


def crops(bench: Bench) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of our Trainer."""
    dataset = RandomCrops(TokenStream(bench.tokens["train"]), bench.config.max_position_embeddings)
    start = 0
    while True:
        yield collate(dataset.__getitems__(range(start, start + bench.batch_size)))
        start += bench.batch_size


def data_milliseconds(bench: Bench) -> float:
    """What a batch of random crops costs."""
    batches = crops(bench)
    times = []
    for _ in range(300):
        times.append(perf_counter())
        next(batches)
    return milliseconds(times)


def compare(bench: Bench, rounds: int) -> list[str]:
    """The table's row for one preset."""
    sides: dict[str, Callable[[], float]] = {
        OURS: lambda: our_trainer(bench),
        STOCK: lambda: stock_trainer(bench, MiniGPTForCausalLM(bench.config)),
        GPT2: lambda: stock_trainer(bench, stock_gpt2(bench.config)),
        TEXTBOOK: lambda: textbook(bench),
        BARE: lambda: bare_loop(bench),
    }
    # A step of `nano` takes seconds on a CPU, beside which no warm-up shows.
    is_long = bench.preset.name == "nano"
    figures = alternate(sides, min(rounds, 2) if is_long else rounds, warm_up=not is_long)
    return [
        f"`{bench.preset.name}`",
        *(f"{median(figures[side]):.2f}" for side in sides),
        *(f"{ratio(figures, OURS, peer):.2f}" for peer in (GPT2, TEXTBOOK, BARE)),
        f"{data_milliseconds(bench):.3f}",
    ]


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Milliseconds a training step.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--presets", nargs="+", default=["seed", "nano-cpu", "nano"])
    parser.add_argument("--data", default="plays")
    parser.add_argument("--profile", action="store_true", help="print where our Trainer's time goes as well")
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    corpus = load_text(arguments.data)
    tokenizer = MiniGPTTokenizer.from_iterator(corpus.chunks())
    tokens = tokenize_corpus(corpus, tokenizer)
    benches = [Bench(get_preset(name), tokens, len(tokenizer), steps=STEPS.get(name, 20)) for name in arguments.presets]
    header = ["ms a step", OURS, STOCK, GPT2, TEXTBOOK, BARE, "ours / GPT-2", "ours / textbook", "ours / bare", "data"]
    print(markdown_table(header, [compare(bench, arguments.rounds) for bench in benches]))
    if arguments.profile:
        for bench in benches:
            with cProfile.Profile() as profiler:
                our_trainer(bench)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
