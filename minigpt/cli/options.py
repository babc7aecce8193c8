"""Every training argument as an option of a command, with a help that is short until all is asked for."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn, get_args, get_type_hints

from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from minigpt.cli.option_names import refuse_option, refuse_unknown
from minigpt.tokenization.text_forms import Newlines, NormalForm
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.data.corpus import SplitSettings
from minigpt.training.data.read_settings import RULES, ReadSettings

# What a learner changes first, and what is said about it where the Trainer's own words are too many; the others are
# shown by --help_all.
_SHOWN: dict[str, str] = {
    "output_dir": "folder for the checkpoints and the model",
    "max_steps": "number of training steps",
    "per_device_train_batch_size": "crops in a batch",
    "learning_rate": "the peak learning rate",
    "seed": "for weights, crops and dropout (default: 42)",
    "bf16": "mixed precision: compute in bfloat16",
    "fp16": "mixed precision: compute in float16, on a GPU",
    "gradient_checkpointing": "less memory for more time: compute activations twice",
    "load_best_model_at_end": "end with the best checkpoint by validation loss",
    "push_to_hub": "put every save and the finished run on the Hub",
    "hub_model_id": "the repository there: NAME, or OWNER/NAME (default: the folder's name)",
}


def training_parser(
    command: str, description: str, usage: str, *, show_all: bool, said: Mapping[str, str]
) -> argparse.ArgumentParser:
    """Builds a parser with every training argument. What it reads holds what was given, and no defaults.

    Args:
        command: `train` or `finetune`.
        description: What the command does.
        usage: Its first line of help.
        show_all: Whether the help shows all of them.
        said: What the help says of some, in place of what it says by default; these are shown.
    """
    parser = _TrainingParser(
        MiniGPTTrainingArguments,
        prog=f"minigpt {command}",
        description=description,
        usage=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shown = {**_SHOWN, **said}
    ours = {own.name for own in fields(MiniGPTTrainingArguments)} - {stock.name for stock in fields(TrainingArguments)}
    for action in parser._actions:
        _tidy(action, shown=show_all or action.dest in ours or action.dest in shown, said=shown)
    parser.add_argument("-o", dest="output_dir", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--help_all",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show every option, the stock training arguments too",
    )
    return parser


def add_split_options(parser: argparse.ArgumentParser, *, show_all: bool) -> None:
    """Add an option for each field of `SplitSettings`."""
    default = SplitSettings()
    options: dict[str, dict[str, Any]] = {
        "validation_file": {
            "nargs": "+",
            "metavar": "FILE",
            "help": "validate on this text and train on all of --data",
        },
        "validation_fraction": {
            "type": float,
            "metavar": "F",
            "help": f"fraction of the text to hold back (default: {default.validation_fraction}, at its end)",
        },
        "split_by": {
            "choices": get_args(get_type_hints(SplitSettings)["split_by"]),
            "help": "line: shuffle the lines before the text is split, for lists (default: position)",
        },
        "split_seed": {"type": int, "metavar": "N", "help": f"seed of that shuffle (default: {default.split_seed})"},
    }
    for name, settings in options.items():
        if not show_all and name != "validation_file":
            settings["help"] = argparse.SUPPRESS
        spellings = [f"--{name}", f"--{name.replace('_', '-')}"]
        parser.add_argument(*spellings, default=argparse.SUPPRESS, **settings).option_strings = spellings[:1]


def add_reading_options(parser: argparse.ArgumentParser, *, show_all: bool) -> None:
    """Add an option for each field of `ReadSettings`."""
    options: dict[str, dict[str, Any]] = {
        "text_column": {
            "metavar": "NAME",
            "help": "column of the text in rows (default: text, or the only column of strings)",
        },
        "documents": {
            "choices": RULES,
            "help": "end each of these with the EOS token; shuffle and split the text by them",
        },
        "encoding": {"metavar": "NAME", "help": "encoding of the files, such as cp1252 or utf-16 (default: utf-8)"},
        "newlines": {
            "choices": get_args(Newlines),
            "help": "unix: read every line end, those of Windows too, as \\n (default: keep)",
        },
        "normalize": {
            "choices": get_args(NormalForm),
            "help": "bring the text to a Unicode normal form (default: none)",
        },
    }
    for name, settings in options.items():
        if not show_all:
            settings["help"] = argparse.SUPPRESS
        spellings = [f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else [])]
        parser.add_argument(*spellings, default=argparse.SUPPRESS, **settings).option_strings = spellings[:1]


def pop_reading(values: dict[str, Any]) -> ReadSettings:
    """Take the options of `add_reading_options` out of what was given.

    Raises:
        CorpusError: A value is impossible.
    """
    return ReadSettings(
        **{field.name: values.pop(field.name) for field in fields(ReadSettings) if field.name in values}
    )


def pop_split(values: dict[str, Any]) -> SplitSettings:
    """Take the options of `add_split_options` out of what was given.

    Raises:
        CorpusError: A value is impossible, or two exclude each other.
    """
    given = {field.name: values.pop(field.name) for field in fields(SplitSettings) if field.name in values}
    if "validation_file" in given:
        given["validation_file"] = tuple(given["validation_file"])
    return SplitSettings(**given)


def parse_options(
    build: Callable[[bool], argparse.ArgumentParser], argv: Sequence[str] | None
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads a command line.

    Args:
        build: Builds the parser, given whether its help shows everything.
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: 0 after help was printed; 2 if something was asked wrongly, which stands on stderr in one sentence.
    """
    parser = build(False)
    refuse_unknown(parser, sys.argv[1:] if argv is None else argv)
    given, unknown = parser.parse_known_args(argv)
    if getattr(given, "help_all", False):
        build(True).print_help()
        raise SystemExit(0)
    if unknown:
        refuse_option(parser, unknown[0])
    return parser, given


def count_options(parser: argparse.ArgumentParser) -> int:
    """How many different options a parser has."""
    return len({action.dest for action in parser._actions})


class _TrainingParser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(2)


def _tidy(action: argparse.Action, shown: bool, said: Mapping[str, str]) -> None:
    """Turns a generated option into one of ours: no default of its own, and a short help or none."""
    if action.dest == "help":
        return
    action.default, action.required = argparse.SUPPRESS, False
    if action.dest == "resume_from_checkpoint":
        action.nargs, action.const, shown = "?", True, True
        action.help = "go on from the last whole checkpoint of the output folder, or from this one"
    if action.type is string_to_bool and action.nargs is None:
        action.nargs, action.const = "?", True  # one that may be None is a switch like any other
    switches_off = action.option_strings[0].startswith("--no_")
    is_switch = action.const is True and action.type is string_to_bool
    if not shown or (is_switch and _is_on(action.dest)):
        action.help = argparse.SUPPRESS
    elif switches_off:
        action.help = f"not: {action.help}"
    else:
        action.help = said.get(action.dest, action.help)
    if action.choices is None and action.nargs != 0:
        action.metavar = "BOOL" if is_switch else "DIR" if action.dest.endswith(("_dir", "checkpoint")) else "VALUE"
    # Both spellings are understood, with underscores and with hyphens; one is enough to read.
    action.option_strings = action.option_strings[:1]


def _is_on(name: str) -> bool:
    return MiniGPTTrainingArguments.__dataclass_fields__[name].default is True
