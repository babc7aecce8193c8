"""The parser of the short commands, and the types of their options."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from minigpt.cli.option_names import refuse_option, refuse_unknown


class CommandParser(argparse.ArgumentParser):
    """A parser that reads hyphens in an option's name as underscores and reports an error in one line."""

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """Parse the arguments of a command, or refuse an unknown option with a suggestion."""
        arguments = [_underscored(argument) for argument in argv]
        refuse_unknown(self, arguments)
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            refuse_option(self, unknown[0])
        return given

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def command_parser(command: str, description: str, example: str) -> CommandParser:
    """Build the parser of a command."""
    return CommandParser(
        prog=f"minigpt {command}", description=description, epilog=f"example: {example}", allow_abbrev=False
    )


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model that a command opens."""
    parser.add_argument("model", metavar="MODEL", help="the folder of a model or of an adapter, or a Hub id")


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the output folder and `--overwrite`."""
    parser.add_argument("-o", "--output_dir", metavar="DIR", help=f"where to write it (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that the output folder holds")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling."""
    parser.add_argument(
        "--max_new_tokens",
        type=positive,
        default=None,
        metavar="N",
        help="how many (default: 500, or what the model has room for)",
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=None,
        metavar="T",
        help="below 1 bolder, 0 greedy (default: the model's own; 1 if it has none)",
    )
    parser.add_argument(
        "--top_k", type=not_negative, default=0, metavar="K", help="only from the K likeliest (default: 0, all)"
    )
    parser.add_argument("--top_p", type=share, default=1.0, metavar="P", help="only from the likeliest that make up P")
    parser.add_argument("--seed", type=seed, default=None, help="the same seed writes the same text")
    parser.add_argument("--device", default=None, help="cuda, mps or cpu (default: the best there is)")


def sampling_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_sampling` as arguments of `generate()`."""
    wishes: dict[str, Any] = {"do_sample": arguments.temperature != 0}
    if wishes["do_sample"]:
        wishes |= {"top_k": arguments.top_k, "top_p": arguments.top_p}
        wishes |= {} if arguments.temperature is None else {"temperature": arguments.temperature}
    return wishes


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1)


def not_negative(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0)


def seed(text: str) -> int:
    """Read a seed."""
    return _whole(text, 0, 2**32 - 1)  # NumPy's largest


def _whole(text: str, least: int, most: int | None = None) -> int:
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"must be a whole number {limits}, got {text}")
    return int(text)


def stop_string(text: str) -> str:
    """Read a stop string, with a backslash and n for a line end."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text.replace("\\n", "\n")  # which not every shell can give


def temperature(text: str) -> float:
    """Read a temperature."""
    # Logits divided by less, or by more, are no longer finite, or all alike, in float32.
    value = _number(text)
    if value != 0 and not 1e-6 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"must be 0, or from 1e-06 to 1e+06, got {text}")
    return value


def share(text: str) -> float:
    """Read a number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
