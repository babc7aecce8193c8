"""What each extension costs and gives, side by side with the plain run, and writes docs/extensions.md.

    python -m benchmarks.extensions [--model runs/seed]     measure everything and write the page (minutes)
    python -m benchmarks.extensions --part 0.02 --rounds 1  print what a fiftieth of the steps shows

Every side is a whole `minigpt train` or `minigpt finetune`. Without `--model`, preset `seed` learns Tiny Shakespeare
first; the new text is the bundled plays.
"""

import argparse
import contextlib
import gc
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
import transformers.trainer
from transformers.utils import logging

from benchmarks.peak_memory import PeakMemory
from benchmarks.readme import ROOT
from benchmarks.side_by_side import alternate, markdown_table, ratio
from benchmarks.train_step import Clock, milliseconds
from benchmarks.vocabularies import training_flops
from minigpt import MiniGPTConfig, MiniGPTForCausalLM, finetune, load_text, tokenize_corpus, train
from minigpt.hub.loading import open_trained
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.data.vocabulary import Vocabulary
from minigpt.training.evaluation import validation_loss
from minigpt.training.instruction import InstructionSettings, prepare_instruction
from minigpt.training.lora import LoraSettings
from minigpt.training.presets import get_preset
from minigpt.training.quantization import quantized_loading
from minigpt.training.report import hardware
from minigpt.training.run import Run

PAGE = ROOT / "docs" / "extensions.md"
DATA = "plays"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "tokenizers", "sentencepiece")
STEPS, TALKER_STEPS, TALK_STEPS, DEEP_STEPS = 500, 500, 100, 25
TIMED_STEPS = 6
TALKER_WIDTH = 64
UNWATCHED = {"eval_strategy": "no", "eval_on_start": False}
SMALL = LoraSettings(r=2, alpha=4)
WIDTHS = (64, 384, 768)

FULL, SCRATCH = "full fine-tuning in float32", "trained from nothing, as many steps"
LORA, BITS_4, BITS_8 = "LoRA of rank 2", "LoRA on 4 bits", "LoRA on 8 bits"
BF16, DEEP, RECOMPUTED = "full fine-tuning with `--bf16`", "24 layers", "24 layers with `--gradient_checkpointing`"
CHARACTERS, BPE, PIECES = "characters", "`--tokenizer bpe --vocab_size 512`", "`sentencepiece`, 512"
TEXT, TALK = "the same model going on with the plays", "`--sft --data plays`"
TOGETHER = "LoRA, 4 bits, bf16, checkpointing and conversations"

# The part of each row, what it is, and what it is beside.
ROWS = (
    ("1", FULL, SCRATCH),
    ("2", LORA, FULL),
    ("3", BITS_4, LORA),
    ("3", BITS_8, LORA),
    ("4", BF16, FULL),
    ("4", RECOMPUTED, DEEP),
    ("5", BPE, CHARACTERS),
    ("5", PIECES, CHARACTERS),
    ("6", TALK, TEXT),
    ("7", TOGETHER, TALK),
)
HEADER = ("part", "what", "beside", "weights, MB", "trained", "peak, MB", "ms a step", "of the other's", "loss")
_INTRODUCTION = """\
# What the extensions cost and give

Each row has an extension and, beside it, the same training without it; of two figures, the first is the extension's.
This page is written by `python -m benchmarks.extensions`, which runs every side as a command would, and never by hand.

{table}

How to use them: [fine-tuning](finetune.md) (1), [LoRA and QLoRA](lora.md) (2, 3), [precision and memory](memory.md)
(4), [vocabularies](vocabularies.md) (5), [instructions](instruct.md) (6); for all of it together (7), say it together.

- **weights** are what lies in memory of the model, with the adapter; **trained** is how many of its parameters have
  gradients and moments.
- **peak** is the most that all tensors took in a training step: weights, gradients, moments, and what is kept for the
  backward pass.
- **ms a step** is processor time on one thread, a median of {rounds} rounds in which all sides take turns, and after it
  is the median of the rounds' ratios.
- **loss** is that of the whole validation split, in nats a token, after {steps:,} steps. In part 4, the 24 layers make
  {deep}. In part 5, where tokens differ, it is in bits a character, after as many floating-point operations. In parts 6
  and 7 it is that of held-back answers after {talk} steps, and the model that only knows the text has learned none.

Parts 1 to 3, and 4 but for the 24 layers, start from preset `seed`, trained on Tiny Shakespeare; 6 and 7 from preset
`chat`, {width} wide and trained on the bundled plays for {talker} steps. What is learned then is the bundled plays, or
conversations made from them. For these, TRL sets aside room for the logits of 32,768 tokens; it is in the peaks of 6
and 7, though a vocabulary of 66 touches little of it. A model so small spends its time between products, not in them,
and a processor without units for bfloat16 gains nothing from `--bf16`.

## What LoRA keeps

{kept}

## What weights weigh

Of four blocks and their vocabulary. The narrower a model, the more of it is norms and vocabulary, which stay in float32
beside weights in 4 or 8 bits.

{weights}

{machine}
"""


@dataclass(frozen=True)
class Side:
    """A command of ours with all that is said to it.

    Attributes:
        command: `train` or `finetune`, which take `training`.
        steps: How many of them the loss is measured after; 0 where it is not.
        training: Training arguments, the same in whatever is measured.
    """

    command: Callable[..., Run]
    steps: int
    training: Mapping[str, Any] = field(default_factory=dict)

    def run(self, **training: Any) -> Run:
        """Runs it with more training arguments, in a folder that goes again, and without a word."""
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            quiet = {"output_dir": folder, "sample_length": 0, "save_strategy": "no"}
            return self.command(device="cpu", training={**self.training, **quiet, **training})


@dataclass(frozen=True)
class Size:
    """What a training takes.

    Attributes:
        weights: Bytes of the model's weights, with an adapter's.
        trained: How many of its parameters are trained.
        peak: The most bytes that all tensors took at any time in the training.
    """

    weights: int
    trained: int
    peak: int


class _Enough(Exception):
    pass


class _Watch(Clock):
    """Looks at a training from within, and ends the run with it: what follows is not measured."""

    weights = trained = 0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        # Of this process alone, whatever else the machine does.
        self.times.append(process_time())

    def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.weights = model.get_memory_footprint()
        self.trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        raise _Enough


def _watch(side: Side, steps: int) -> _Watch:
    watch = _Watch()
    transformers.trainer.DEFAULT_CALLBACKS.append(watch)
    try:
        with contextlib.suppress(_Enough):
            side.run(max_steps=steps, **UNWATCHED)
    finally:
        transformers.trainer.DEFAULT_CALLBACKS.remove(watch)
    return watch


def step_milliseconds(side: Side) -> float:
    """The median training step, in processor time."""
    return milliseconds(_watch(side, TIMED_STEPS + 1).times)


def size(side: Side) -> Size:
    """What two steps take; more would not take more."""
    gc.collect()
    with PeakMemory() as memory:
        watch = _watch(side, 2)
    return Size(watch.weights, watch.trained, memory.peak)


def prepare(model: Path, talker: Path, part: float) -> dict[str, Side]:
    """The sides.

    Args:
        model: The trained model that is fine-tuned.
        talker: The one that learns from conversations.
        part: How many of the usual steps are made.
    """

    def on_text(**settings: Any) -> Callable[..., Run]:
        return lambda **more: finetune(model, DATA, **settings, **more)

    def on_talk(**settings: Any) -> Callable[..., Run]:
        return lambda **more: finetune(talker, DATA, instruction=InstructionSettings(), **settings, **more)

    def from_nothing(**settings: Any) -> Callable[..., Run]:
        return lambda **more: train("seed", DATA, **settings, **more)

    steps, talk_steps, deep_steps = (_steps(usual, part) for usual in (STEPS, TALK_STEPS, DEEP_STEPS))
    vocabularies = {CHARACTERS: Vocabulary(), BPE: Vocabulary("bpe", 512), PIECES: Vocabulary("sentencepiece", 512)}
    flops = {
        name: training_flops(get_preset("seed").build_config(vocab_size=len(vocabulary.learn(load_text(DATA)))))
        for name, vocabulary in vocabularies.items()
    }
    deep = {"num_hidden_layers": 24}
    few = {"per_device_train_batch_size": 4}
    cheap = {"bf16": True, "gradient_checkpointing": True}
    return {
        FULL: Side(on_text(), steps),
        SCRATCH: Side(from_nothing(), steps),
        LORA: Side(on_text(lora=SMALL), steps),
        BITS_4: Side(on_text(lora=SMALL, load_in=4), steps),
        BITS_8: Side(on_text(lora=SMALL, load_in=8), steps),
        BF16: Side(on_text(), steps, {"bf16": True}),
        DEEP: Side(from_nothing(model=deep), deep_steps),
        RECOMPUTED: Side(from_nothing(model=deep), deep_steps, {"gradient_checkpointing": True}),
        **{
            name: Side(from_nothing(vocabulary=vocabulary), round(steps * flops[CHARACTERS] / flops[name]))
            for name, vocabulary in vocabularies.items()
        },
        TEXT: Side(lambda **more: finetune(talker, DATA, **more), 0, few),
        TALK: Side(on_talk(), talk_steps, few),
        TOGETHER: Side(on_talk(lora=LoraSettings(), load_in=4), talk_steps, {**few, **cheap}),
    }


def losses(sides: Mapping[str, Side]) -> dict[str, float]:
    """What each side reaches; in bits a character where vocabularies are compared."""
    reached = {}
    for name, side in sides.items():
        if side.steps:
            validation = side.run(max_steps=side.steps, **UNWATCHED).validation
            in_bits = name in (CHARACTERS, BPE, PIECES)
            reached[name] = validation.bits_per_character if in_bits else validation.loss
    return reached


def loss_of_answers(talker: Path) -> float:
    """The loss of held-back answers before any conversation was learned."""
    from minigpt.training.instruction_trainer import InstructionArguments, InstructionTrainer

    network, tokenizer = open_trained(talker, "cpu")
    data = prepare_instruction(DATA, tokenizer, network.config.max_position_embeddings)
    with tempfile.TemporaryDirectory() as folder:
        args = InstructionArguments(output_dir=folder, use_cpu=True)
        return InstructionTrainer(network, args, data, processing_class=tokenizer).score(network).loss


def loss_before(model: Path) -> float:
    """The loss of the model that is fine-tuned, on the text that it does not know yet."""
    network, tokenizer = open_trained(model, "cpu")
    validation = TokenStream(tokenize_corpus(load_text(DATA), tokenizer)["validation"])
    return validation_loss(network, validation, network.config.max_position_embeddings, 64).loss


def compare(sides: Mapping[str, Side], reached: Mapping[str, float], rounds: int) -> str:
    """Measures what every side takes, and returns the table."""
    sizes = {name: size(side) for name, side in sides.items()}
    times = alternate({name: partial(step_milliseconds, side) for name, side in sides.items()}, rounds, warm_up=False)
    lines = []
    for part, name, other in ROWS:
        ours, theirs = sizes[name], sizes[other]
        unit = " bits" if part == "5" else ""
        lines.append(
            [
                *(part, name, other),
                f"{_megabytes(ours.weights)} / {_megabytes(theirs.weights)}",
                f"{ours.trained:,} / {theirs.trained:,}",
                f"{_megabytes(ours.peak)} / {_megabytes(theirs.peak)}",
                f"{median(times[name]):.1f} / {median(times[other]):.1f}",
                f"{ratio(times, name, other):.2f}",
                f"{reached[name]:.4f} / {reached[other]:.4f}{unit}",
            ]
        )
    return markdown_table(HEADER, lines).replace("| --- | ---: | ---: |", "| --- | --- | --- |", 1)  # three of words


def compare_gains(model: Path, reached: Mapping[str, float], trained: int) -> str:
    """How much of what full fine-tuning gains LoRA gains."""
    before = loss_before(model)
    share = (before - reached[LORA]) / (before - reached[FULL])
    header = ["", "before", "full fine-tuning", LORA, "parameters trained", "share of the gain kept"]
    figures = [before, reached[FULL], reached[LORA]]
    row = ["validation loss", *(f"{loss:.4f}" for loss in figures), f"{trained:.2%}", f"{share:.0%}"]
    return markdown_table(header, [row])


def compare_weights() -> str:
    """What the weights of a model of some widths take in each precision."""
    lines = []
    for width in WIDTHS:
        config = MiniGPTConfig(vocab_size=65, n_embd=width, n_layer=4, n_head=width // 16, block_size=256)
        with tempfile.TemporaryDirectory() as folder:
            MiniGPTForCausalLM(config).save_pretrained(folder)
            ways: list[dict[str, Any]] = [{"dtype": torch.float32}, {"dtype": torch.bfloat16}]
            ways += [quantized_loading(bits, torch.device("cpu"), bf16=False) for bits in (8, 4)]
            sizes = [MiniGPTForCausalLM.from_pretrained(folder, **way).get_memory_footprint() for way in ways]
        lines.append([f"{width}", *map(_megabytes, sizes), *(f"{sizes[3] / other:.0%}" for other in sizes[:2])])
    header = ["width", "float32, MB", "bfloat16", "8 bits", "4 bits", "4 bits of float32", "4 bits of bfloat16"]
    return markdown_table(header, lines)


def write_page(model: Path, folder: Path, part: float, rounds: int) -> str:
    """Measures everything, and returns the page."""
    talker_steps = _steps(TALKER_STEPS, part)
    with contextlib.redirect_stdout(sys.stderr):
        talker = train(
            "chat",
            DATA,
            device="cpu",
            model={"hidden_size": TALKER_WIDTH},
            training={
                "output_dir": str(folder / "talker"),
                "max_steps": talker_steps,
                "save_strategy": "no",
                **UNWATCHED,
            },
        )
    sides = prepare(model, talker.folder, part)
    reached = losses(sides) | {TEXT: loss_of_answers(talker.folder)}
    whole = open_trained(model, "cpu")[0].num_parameters()
    adapter = size(sides[LORA]).trained
    packages = ", ".join(f"{package} {version(package).partition('+')[0]}" for package in PACKAGES)
    threads = torch.get_num_threads()
    where = f"{hardware(torch.device('cpu'))}, {threads} thread{'s' if threads > 1 else ''}"
    return _INTRODUCTION.format(
        table=compare(sides, reached, rounds),
        rounds=rounds,
        steps=_steps(STEPS, part),
        deep=_steps(DEEP_STEPS, part),
        talk=_steps(TALK_STEPS, part),
        width=TALKER_WIDTH,
        talker=talker_steps,
        kept=compare_gains(model, reached, adapter / (whole + adapter)),
        weights=compare_weights(),
        machine=f"Measured with Python {platform.python_version()}, {packages}, on {where}.",
    )


def _steps(usual: int, part: float) -> int:
    return max(round(part * usual), 2)


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the page; of the whole measurement it is also written."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.extensions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="preset seed trained on Tiny Shakespeare (default: train it)")
    parser.add_argument("--part", type=float, default=1.0, metavar="X", help="of the usual steps (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="of the timed steps (default: 3)")
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # libraries speak to each other
    torch.set_num_threads(1)  # the models are so small that threads only wait for each other
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = arguments.model
        if model is None:
            with contextlib.redirect_stdout(sys.stderr):
                training = {"output_dir": str(folder / "seed"), "save_strategy": "no"}
                model = train("seed", "tiny_shakespeare", device="cpu", training=training).folder
        page = write_page(model, folder, arguments.part, arguments.rounds)
    print(page, end="")
    if arguments.part == 1:
        PAGE.write_text(page, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
