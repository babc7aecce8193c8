"""The options of `minigpt train`: a preset, every field of the model, every stock training argument."""

import argparse
import functools
import inspect
import json
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin

from transformers import PreTrainedConfig
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
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.training.data.corpus import SplitSettings
from minigpt.training.data.read_settings import ReadSettings
from minigpt.training.data.vocabulary import KINDS, SENTENCEPIECE_TYPES, SUBWORDS, Vocabulary
from minigpt.training.interruption import exit_if_interrupted
from minigpt.training.presets import PRESETS, get_preset
from minigpt.training.train import train

# The tokenizer decides about these; the last one concerns a classifier.
_NOT_OPTIONS = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "classifier_dropout"}
# What a learner changes first; the other fields are shown by --help_all.
_SHOWN = {"num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings", "dropout"}
_EPILOG = """\
example:
  minigpt train --data my.txt --preset seed --n_layer 6 --dropout 0.1 --max_steps 2000

presets:
{presets}

Every field of the model's config and every stock training argument is an option: --help_all shows all {count}.
"""


@dataclass
class TrainCommand:
    """What was asked for.

    Attributes:
        preset: The preset's name.
        data: Sources of text, or None for the default.
        split: Settings of the validation split.
        reading: Settings that decide how the text is read.
        device: `cpu`, `cuda`, `mps`, or None for the best there is.
        overwrite: Whether a run that the output folder already holds is replaced.
        vocabulary: What of `Vocabulary` is not its default.
        model: Fields of the config that differ from the preset's.
        training: Training arguments that differ from the preset's.
    """

    preset: str = "seed"
    data: list[str] | None = None
    split: SplitSettings = field(default_factory=SplitSettings)
    reading: ReadSettings = field(default_factory=ReadSettings)
    device: str | None = None
    overwrite: bool = False
    vocabulary: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> None:
    """Run `minigpt train`.

    Raises:
        SystemExit: 2 for a usage error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    command = parse_train_command(argv)
    with exit_if_interrupted():
        train(**vars(command) | {"vocabulary": Vocabulary(**command.vocabulary)})


def parse_train_command(argv: Sequence[str] | None = None) -> TrainCommand:
    """Reads the command line of `minigpt train`.

    Raises:
        SystemExit: 0 after help was printed; 2 if something was asked wrongly, which stands on stderr in one sentence.
    """
    parser, given = parse_options(build_parser, argv)
    values = vars(given)
    command = TrainCommand(
        **{name: values.pop(name) for name in ("preset", "data", "device", "overwrite") if name in values}
    )
    options = {"tokenizer": "kind", "vocab_size": "size", "sentencepiece_type": "sentencepiece_type"}
    command.vocabulary = {options[name]: values.pop(name) for name in list(values) if name in options}
    try:
        command.split, command.reading = pop_split(values), pop_reading(values)
        preset = get_preset(command.preset)
        command.model = {name: values.pop(name) for name in list(values) if name in _model_types()}
        command.training = values
        preset.build_config(**command.model)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    return command


def build_parser(show_all: bool = False) -> argparse.ArgumentParser:
    """Builds the parser. What it returns holds what was given, and no defaults: those are the preset's.

    Args:
        show_all: Whether the help shows all of the stock arguments.
    """
    parser = training_parser(
        "train",
        "Train a model on a text and save it, ready for AutoModelForCausalLM.",
        "minigpt train [--preset NAME] [--data TEXT ...] [options]",
        show_all=show_all,
        said={"output_dir": "folder for the checkpoints and the model, -o for short (default: runs/PRESET)"},
    )
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} (default: seed)")
    add(
        "--data",
        nargs="+",
        metavar="TEXT",
        help="files of text or rows (JSONL, CSV, Parquet), a pattern such as '*.py', a folder, a Hub dataset, - for "
        "standard input, tiny_shakespeare or plays "
        "(default: input.txt of this folder, else Tiny Shakespeare)",
    )
    add_split_options(parser, show_all=show_all)
    add_reading_options(parser, show_all=show_all)
    add("--device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
    add("--overwrite", action="store_true", help="replace the run that the output folder holds")

    add("--tokenizer", choices=KINDS, metavar="KIND", help=f"{', '.join(KINDS)}: what the tokens are (default: char)")
    add(
        "--vocab_size", type=int, metavar="N", help=f"tokens of a bpe or sentencepiece vocabulary (default: {SUBWORDS})"
    )
    add(
        "--sentencepiece_type",
        choices=SENTENCEPIECE_TYPES,
        metavar="TYPE",
        help=f"{' or '.join(SENTENCEPIECE_TYPES)} (default: unigram)" if show_all else argparse.SUPPRESS,
    )

    model = parser.add_argument_group("model")
    aliases = {name: alias for alias, name in MiniGPTConfig.attribute_map.items()}
    explanations = _explanations(MiniGPTConfig)
    for name, annotation in _model_types().items():
        spellings = [f"--{spelling}" for spelling in (aliases.get(name), name) if spelling]
        action = model.add_argument(
            *spellings,
            *[spelling.replace("_", "-") for spelling in spellings if "_" in spelling.strip("-")],
            dest=name,
            default=argparse.SUPPRESS,
            help=explanations.get(name) if show_all or name in _SHOWN else argparse.SUPPRESS,
            **_conversion(annotation),
        )
        action.option_strings = spellings

    presets = "\n".join(f"  {preset.name:9} {preset.description}" for preset in PRESETS.values())
    parser.epilog = _EPILOG.format(presets=presets, count=count_options(parser))
    return parser


def _model_types() -> dict[str, Any]:
    """The fields of a GPT's config that can be given as options, and their types."""
    own = [field for field in fields(MiniGPTConfig) if not hasattr(PreTrainedConfig, field.name)]
    return {field.name: field.type for field in own if field.name not in _NOT_OPTIONS}


def _conversion(annotation: Any) -> dict[str, Any]:
    """How argparse reads a value of that type: `none` where it may be None, JSON where it is a list or a dictionary."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    literals = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if literals:
        shown = ", ".join([*literals, "none"] if types.NoneType in kinds else literals)
        return {"type": _or_none(str, kinds), "metavar": f"{{{shown}}}"}
    if bool in kinds:
        return {"type": string_to_bool, "nargs": "?", "const": True, "metavar": "BOOL"}
    for kind, metavar in ((float, "NUMBER"), (int, "N"), (str, "NAME")):
        if kind in kinds:
            return {"type": _or_none(kind, kinds), "metavar": metavar}
    return {"type": _or_none(json.loads, kinds), "metavar": "JSON"}


def _or_none(convert: Callable[[str], Any], kinds: Sequence[Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text.lower() == "none" and types.NoneType in kinds else convert(text)

    read.__name__ = getattr(convert, "__name__", "value")  # argparse says "invalid int value"
    return read


def _explanations(config_class: type) -> dict[str, str]:
    """What the config's docstring says about each field, in one line."""
    arguments = inspect.cleandoc(config_class.__doc__ or "").partition("Args:")[2].partition("Raises:")[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n     +.+)*)", arguments, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "").replace("%", "%%") for name, text in entries}
