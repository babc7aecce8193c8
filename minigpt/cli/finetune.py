"""The options of `minigpt finetune`: a model, a text or conversations, an adapter, every stock training argument."""

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.hf_argparser import string_to_bool

from minigpt.cli.options import (
    add_reading_options,
    add_split_options,
    count_options,
    parse_options,
    pop_reading,
    pop_split,
    training_parser,
)
from minigpt.cli.quiet import quiet_libraries
from minigpt.training.data.corpus import SplitSettings
from minigpt.training.data.read_settings import ReadSettings
from minigpt.training.finetune import finetune
from minigpt.training.instruction import InstructionSettings
from minigpt.training.interruption import exit_if_interrupted
from minigpt.training.lora import ALL_LINEAR, LoraSettings
from minigpt.training.quantization import BITS

_EPILOG = """\
examples:
  minigpt finetune runs/seed --data my.txt
  minigpt finetune runs/seed --data my.txt --lora --lora_r 4
  minigpt finetune runs/chat --data talk.jsonl --sft

Every stock training argument is an option: --help_all shows all {count}.
"""
_LORA = {"lora_r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_targets": "targets"}
_INSTRUCTION = ("truncate", "assistant_only_loss")


@dataclass
class FinetuneCommand:
    """What was asked for: the arguments of `finetune`.

    Attributes:
        model: A folder or a Hub id.
        data: Sources of text or the source of conversations; None for the default text.
        split: Settings of a text's validation split.
        reading: Settings that decide how a text is read.
        device: `cpu`, `cuda`, `mps`, or None for the best there is.
        overwrite: Whether a run that the output folder already holds is replaced.
        extend_vocabulary: Whether characters that the vocabulary lacks are added.
        block_size: Tokens in a crop, or None for what the model takes.
        lora: The adapter's settings, or None for no adapter.
        load_in: 4 or 8 bits, or None.
        instruction: How conversations are learned from, or None for a text.
        training: Training arguments that differ from the defaults.
    """

    model: str
    data: Any = None
    split: SplitSettings = field(default_factory=SplitSettings)
    reading: ReadSettings = field(default_factory=ReadSettings)
    device: str | None = None
    overwrite: bool = False
    extend_vocabulary: bool = False
    block_size: int | None = None
    lora: LoraSettings | None = None
    load_in: int | None = None
    instruction: InstructionSettings | None = None
    training: dict[str, Any] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `minigpt finetune`.

    Raises:
        SystemExit: 2 for a usage error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    command = parse_finetune_command(argv)
    with quiet_libraries(), exit_if_interrupted():
        finetune(**vars(command))


def parse_finetune_command(argv: Sequence[str] | None = None) -> FinetuneCommand:
    """Reads the command line of `minigpt finetune`.

    Raises:
        SystemExit: 0 after help was printed; 2 if something was asked wrongly, which stands on stderr in one sentence.
    """
    parser, given = parse_options(build_parser, argv)
    values = vars(given)
    names = ("model", "data", "device", "overwrite", "extend_vocabulary", "block_size", "load_in")
    command = FinetuneCommand(**{name: values.pop(name) for name in names if name in values})
    try:
        command.split, command.reading = pop_split(values), pop_reading(values)
    except ValueError as error:
        parser.error(str(error))
    wants_lora, wants_sft = values.pop("lora", False), values.pop("sft", False)
    lora = {_LORA[name]: values.pop(name) for name in _LORA if name in values}
    instruction = {name: values.pop(name) for name in _INSTRUCTION if name in values}
    command.training = values
    if wants_lora or command.load_in:
        command.lora = LoraSettings(**lora)
    elif lora:
        parser.error("the options --lora_... describe an adapter and none was asked for; add --lora.")
    if wants_sft:
        if command.split != SplitSettings():
            parser.error("the options of the validation split are for a text; leave them out with --sft.")
        if command.reading != ReadSettings():
            parser.error("the options that decide how a text is read are for a text; leave them out with --sft.")
        if command.data is None:
            parser.error("--sft learns from conversations; name them with --data FILE, a Hub id or plays.")
        if len(command.data) > 1:
            parser.error(f"--sft takes one source of conversations, got {len(command.data)}; join them in one file.")
        command.data = command.data[0]
        command.instruction = InstructionSettings(**instruction)
    elif instruction:
        parser.error(f"--{next(iter(instruction))} is about conversations; add --sft.")
    return command


def build_parser(show_all: bool = False) -> argparse.ArgumentParser:
    """Builds the parser. What it returns holds what was given, and no defaults.

    Args:
        show_all: Whether the help shows all of the stock arguments.
    """
    parser = training_parser(
        "finetune",
        "Go on training a model on a new text, or on conversations, whole or by an adapter.",
        "minigpt finetune MODEL [--data TEXT ...] [--lora] [--load_in_4bit] [--sft] [options]",
        show_all=show_all,
        said={
            "output_dir": "folder for the checkpoints and the model, -o for short (default: runs/MODEL-finetuned, "
            "-lora, -sft or -sft-lora)",
            "seed": "for the crops and the dropout (default: 42)",
        },
    )
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    parser.add_argument(
        "model", metavar="MODEL", help="a folder that `minigpt train` wrote, or any causal LM's, or a Hub id"
    )
    add(
        "--data",
        nargs="+",
        metavar="TEXT",
        help="files of text or rows (JSONL, CSV, Parquet), a pattern such as '*.py', a folder, a Hub dataset, - for "
        "standard input, tiny_shakespeare or plays; with --sft a JSON, CSV or Parquet file, a Hub dataset or plays",
    )
    add_split_options(parser, show_all=show_all)
    add_reading_options(parser, show_all=show_all)
    add("--device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
    add("--overwrite", action="store_true", help="replace the run that the output folder holds")
    _both(
        add, "--block_size", type=int, metavar="N", help="tokens in a crop (default: what the model takes, up to 1024)"
    )
    _both(add, "--extend_vocabulary", action="store_true", help="add the characters that the vocabulary lacks")

    adapter = functools.partial(parser.add_argument_group("adapter").add_argument, default=argparse.SUPPRESS)
    default = LoraSettings()
    adapter("--lora", action="store_true", help="train a LoRA adapter and leave the model as it is")
    _both(adapter, "--lora_r", type=int, metavar="N", help=f"its rank (default: {default.r})")
    _both(
        adapter,
        "--lora_alpha",
        type=float,
        metavar="NUMBER",
        help=f"its scale, over the rank (default: {default.alpha})",
    )
    _both(
        adapter, "--lora_dropout", type=float, metavar="P", help=f"dropout of its input (default: {default.dropout:g})"
    )
    _both(
        adapter,
        "--lora_targets",
        type=_layers,
        metavar="NAMES",
        help=f"layers, with commas between (default: {ALL_LINEAR})",
    )
    one = parser.add_mutually_exclusive_group()
    for bits in BITS:
        _both(
            functools.partial(one.add_argument, default=argparse.SUPPRESS),
            f"--load_in_{bits}bit",
            dest="load_in",
            action="store_const",
            const=bits,
            help=f"QLoRA: the model's weights in {bits} bits under the adapter",
        )

    chat = functools.partial(parser.add_argument_group("conversations").add_argument, default=argparse.SUPPRESS)
    chat(
        "--sft",
        action="store_true",
        help="train on conversations: messages, prompt and completion, ShareGPT or Alpaca rows",
    )
    chat("--truncate", action="store_true", help="cut rows that are longer than the block (default: refuse them)")
    _both(
        chat,
        "--assistant_only_loss",
        type=string_to_bool,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="learn what the assistant says only (default: true)",
    )
    parser.epilog = _EPILOG.format(count=count_options(parser))
    return parser


def _both(add: Any, option: str, **settings: Any) -> None:
    """Adds an option that is understood with hyphens too, and shown once."""
    add(option, f"--{option[2:].replace('_', '-')}", **settings).option_strings = [option]


def _layers(text: str) -> str | tuple[str, ...]:
    return text if text == ALL_LINEAR else tuple(name.strip() for name in text.split(",") if name.strip())
