"""What a training step of a deep model takes, in memory and time, with each way to take less of it.

    python -m benchmarks.memory [--layers 24] [--width 128] [--batch 16] [--block 128] [--data TEXT]

Every way is a training of three steps in a process of its own, on the same crops from the same weights. Its peak is
what the tensors take together, and, as the system counts it, what the process takes beyond the libraries: of what is
freed, the system does not get all back. Its time is the processor's, which other programs do not lengthen.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from statistics import median
from time import process_time
from typing import Any

from benchmarks.side_by_side import markdown_table

STEPS = 3
PLAIN = "float32, nothing else"
# Each is given the number of crops in a step.
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "`--gradient_checkpointing`": {"gradient_checkpointing": True},
    "the same, freed memory given back": {"gradient_checkpointing": True},
    "every other block": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}},
    "accumulation, 4 parts": {"gradient_accumulation_steps": 4},
    "checkpointing and accumulation": {"gradient_checkpointing": True, "gradient_accumulation_steps": 4},
    "`--bf16`": {"bf16": True},
    "`--bf16 --gradient_checkpointing`": {"bf16": True, "gradient_checkpointing": True},
}
# glibc keeps small pieces that were freed for itself, unless it is told at how many bytes to give them back.
ENVIRONMENT = {"the same, freed memory given back": {"MALLOC_TRIM_THRESHOLD_": "131072"}}


@dataclass
class Shape:
    """The model and what it is trained on."""

    layers: int
    width: int
    batch: int
    block: int
    data: str


def measure(shape: Shape, way: dict[str, Any]) -> dict[str, float]:
    """Trains in this process; returns both peaks in bytes, CPU seconds a step, the last loss, and the parameters."""
    import resource

    from transformers import set_seed
    from transformers.utils import logging

    from benchmarks.peak_memory import PeakMemory
    from benchmarks.train_step import Clock
    from minigpt import (
        MiniGPTConfig,
        MiniGPTForCausalLM,
        MiniGPTTokenizer,
        MiniGPTTrainer,
        MiniGPTTrainingArguments,
        load_text,
        tokenize_corpus,
    )

    logging.set_verbosity_error()
    corpus = load_text(shape.data)
    tokenizer = MiniGPTTokenizer.from_iterator(corpus.chunks())
    tokens = tokenize_corpus(corpus, tokenizer)

    def train(layers: int, width: int, block: int) -> tuple[MiniGPTTrainer, Clock]:
        set_seed(0)
        config = MiniGPTConfig(
            vocab_size=len(tokenizer), n_layer=layers, n_embd=width, n_head=max(width // 32, 1), block_size=block
        )
        clock = Clock(process_time)
        with tempfile.TemporaryDirectory() as folder:
            args = MiniGPTTrainingArguments(
                output_dir=folder,
                use_cpu=True,
                max_steps=STEPS,
                per_device_train_batch_size=shape.batch // way.get("gradient_accumulation_steps", 1),
                eval_strategy="no",
                eval_on_start=False,
                save_strategy="no",
                logging_steps=1,
                **way,
            )
            trainer = MiniGPTTrainer(MiniGPTForCausalLM(config), args, tokens, callbacks=[clock])
            trainer.train()
        return trainer, clock

    train(1, 32, 16)  # whatever is loaded at the first step
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer, clock = train(shape.layers, shape.width, shape.block)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    times = [after - start for start, after in zip(clock.times[1:], clock.times[2:], strict=False)]
    with PeakMemory() as tensors:
        train(shape.layers, shape.width, shape.block)
    return {
        "tensors": tensors.peak,
        "process": peak * (1 if sys.platform == "darwin" else 1024),
        "seconds": median(times),
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1],
        "parameters": trainer.model.num_parameters(),
    }


def compare(shape: Shape) -> str:
    """Measures every way in a process of its own, and returns the table."""
    figures = {}
    for name in WAYS:
        command = [sys.executable, "-m", "benchmarks.memory", "--measure", json.dumps([asdict(shape), name])]
        printed = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT.get(name, {})
        ).stdout
        figures[name] = json.loads(printed.splitlines()[-1])
        print(f"{name}: {figures[name]}", file=sys.stderr)
    return tabulate(shape, figures)


def tabulate(shape: Shape, figures: dict[str, dict[str, float]]) -> str:
    """Returns the table of what was measured."""
    plain = figures[PLAIN]
    rows = [
        [
            name,
            *(f"{figure['tensors'] / 2**20:,.0f}", f"{figure['tensors'] / plain['tensors']:.2f}"),
            *(f"{figure['process'] / 2**20:,.0f}", f"{figure['process'] / plain['process']:.2f}"),
            *(f"{figure['seconds']:.1f}", f"{figure['seconds'] / plain['seconds']:.2f}", f"{figure['loss']:.4f}"),
        ]
        for name, figure in figures.items()
    ]
    peaks = ("tensors, MiB", "of plain", "process, MiB", "of plain")
    table = markdown_table(["", *peaks, "CPU s a step", "of plain", f"loss at step {STEPS}"], rows)
    return (
        f"{table}\n\n{shape.layers} layers {shape.width} wide, {plain['parameters']:,} parameters, {shape.batch} crops "
        f"of {shape.block} tokens a step; weights, gradients and the optimiser's moments are in the peak."
    )


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Memory and time of a training step of a deep model.")
    for name, default in (("layers", 24), ("width", 128), ("batch", 16), ("block", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", default="plays")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = vars(parser.parse_args(argv))
    measured = arguments.pop("measure")
    if measured:
        shape, name = json.loads(measured)
        print(json.dumps(measure(Shape(**shape), WAYS[name])))
    else:
        print(compare(Shape(**arguments)))


if __name__ == "__main__":
    main()
