"""What bfloat16 costs and gives: the loss that is reached with it, and the time of a step, beside float32.

    python -m benchmarks.precision [--steps 2000] [--rounds 3] [--batch 64] [--data TEXT]

The loss: preset `nano-cpu` trained twice from the same weights on the same crops, scored in float32 on the whole
validation split. The time: the processor's, which other programs do not lengthen, for a training step of preset `nano`,
the sides by turns.
"""

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

import torch
from transformers.utils import logging

from benchmarks.side_by_side import alternate, markdown_table, ratio
from benchmarks.train_step import STEPS, Bench, Clock, our_trainer
from minigpt import MiniGPTTokenizer, load_text, tokenize_corpus
from minigpt.training.presets import get_preset
from minigpt.training.report import hardware
from minigpt.training.train import train

FLOAT32, BFLOAT16 = "float32", "bfloat16"
PRECISIONS = {FLOAT32: {}, BFLOAT16: {"bf16": True}}
# The instructions that multiply bfloat16, as Linux names them.
UNITS = {"avx512_bf16", "amx_bf16", "svebf16", "bf16"}


def units() -> list[str]:
    """The processor's own instructions for bfloat16, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return sorted(UNITS & set(lines[0].split())) if lines else []


def losses(data: str, steps: int) -> str:
    """Trains preset `nano-cpu` in each precision, and returns a table of what was reached."""
    rows, reached = [], {}
    for name, arguments in PRECISIONS.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            run = train(
                "nano-cpu",
                data,
                device="cpu",
                training={
                    **{"output_dir": folder, "max_steps": steps, "eval_interval": min(steps, 500)},
                    **{"eval_iters": 20, "sample_length": 0, "save_strategy": "no"},
                    **arguments,
                },
            )
        reached[name] = run.validation.loss
        difference = f"{reached[name] - reached[FLOAT32]:+.4f}" if name != FLOAT32 else ""
        rows.append([name, f"{steps:,}", f"{reached[name]:.4f}", difference])
    return markdown_table(["preset `nano-cpu`", "steps", "validation loss", "difference"], rows)


def step_times(data: str, rounds: int, batch: int | None) -> str:
    """Measures a step of preset `nano` in each precision, and returns a table of seconds."""
    corpus = load_text(data)
    tokenizer = MiniGPTTokenizer.from_iterator(corpus.chunks())
    preset = get_preset("nano")
    size = batch or preset.training["per_device_train_batch_size"]
    preset = dataclasses.replace(preset, training={**preset.training, "per_device_train_batch_size": size})
    bench = Bench(preset, tokenize_corpus(corpus, tokenizer), len(tokenizer), STEPS["nano"])
    sides = {
        name: lambda arguments=arguments: our_trainer(bench, Clock(process_time), **arguments)
        for name, arguments in PRECISIONS.items()
    }
    figures = alternate(sides, rounds, warm_up=False)  # a first step of each round is left out already
    rows = [
        [
            name,
            *(f"{median(figures[name]) / 1000:.2f}", f"{ratio(figures, name, FLOAT32):.2f}"),
            ", ".join(f"{milliseconds / 1000:.2f}" for milliseconds in figures[name]),
        ]
        for name in sides
    ]
    return markdown_table([f"preset `nano`, batch of {size}", "CPU seconds a step", "of float32's", "each round"], rows)


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="What bfloat16 costs and gives.")
    parser.add_argument("--steps", type=int, default=2000, help="of the trainings; 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help="of the timed steps; 0 for none")
    parser.add_argument("--batch", type=int, help="crops in a timed step (default: the preset's)")
    parser.add_argument("--data", default="tiny_shakespeare")
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    tables = []
    if arguments.steps:
        tables.append(losses(arguments.data, arguments.steps))
    if arguments.rounds:
        tables.append(step_times(arguments.data, arguments.rounds, arguments.batch))
    found = units()
    told = f"It multiplies bfloat16 by itself ({', '.join(found)})." if found else "It has no units for bfloat16."
    threads = torch.get_num_threads()
    tables.append(f"On {hardware(torch.device('cpu'))}, {threads} thread{'s' if threads > 1 else ''}. {told}")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
