"""The command line: `minigpt train`, `minigpt generate`, `minigpt eval`."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

# Nothing heavy is imported before a command needs it: the help is instant.

HELP = """\
usage: minigpt [--debug] COMMAND ...

The smallest GPT that is a complete Hugging Face citizen.

commands:
  train      train a model on a text          minigpt train --data my.txt
  generate   write text with a trained model  minigpt generate runs/seed --prompt "ROMEO:"
  eval       measure a model on a text        minigpt eval runs/seed --data my.txt

options:
  -h, --help     this help; every command has its own: minigpt train --help
  --version      the version
  --debug        before the command: show the traceback of an error
"""


def train(argv: Sequence[str]) -> None:
    """Trains a model on a text and saves it."""
    from minigpt.training.run import main_train

    main_train(argv)


def generate(argv: Sequence[str]) -> None:
    """Writes text with a trained model."""
    parser = _parser(
        "generate", "Write text with a trained model.", 'minigpt generate runs/seed --prompt "ROMEO:" --stream'
    )
    parser.add_argument("model", metavar="MODEL", help="a folder that `minigpt train` wrote, or a Hub id")
    parser.add_argument("--prompt", default="", help="the text to go on from (default: a new line)")
    parser.add_argument("--max_new_tokens", type=_positive, default=500, metavar="N", help="how many (default: 500)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="below 1 bolder, 0 greedy (default: 1)"
    )
    parser.add_argument("--top_k", type=int, default=0, metavar="K", help="only from the K likeliest (default: 0, all)")
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="only from the likeliest that make up P")
    parser.add_argument("--seed", type=int, default=None, help="the same seed writes the same text")
    parser.add_argument("--stream", action="store_true", help="show the text while it is made")
    parser.add_argument("--device", default=None, help="cuda, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(argv)
    if arguments.temperature < 0 or not 0 < arguments.top_p <= 1 or arguments.top_k < 0:
        parser.error("--temperature and --top_k must be at least 0, and --top_p above 0 and at most 1")
    with _calm():
        _generate(arguments)


def _generate(arguments: argparse.Namespace) -> None:
    import torch
    from transformers import TextStreamer, set_seed

    from minigpt.hub.trained import encode_prompt, open_trained

    model, tokenizer = open_trained(arguments.model, arguments.device)
    input_ids = encode_prompt(tokenizer, arguments.prompt).to(model.device)  # (1, seq)
    block_size = model.config.max_position_embeddings
    crops = not getattr(model.config, "rolls_past_block", True)
    if crops and (length := input_ids.shape[1]) > block_size:
        print(f"The prompt has {length} tokens: the model goes on from the last {block_size}.", file=sys.stderr)
    if arguments.seed is not None:
        set_seed(arguments.seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if arguments.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": arguments.temperature,
            "top_k": arguments.top_k,
            "top_p": arguments.top_p,
        }
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if arguments.stream else None
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=arguments.max_new_tokens,
        streamer=streamer,
        **sampling,
    )
    if streamer is None:
        print(tokenizer.decode(output[0], skip_special_tokens=True))


def evaluate(argv: Sequence[str]) -> None:
    """Measures a model on a text."""
    parser = _parser("eval", "Measure a model on a text.", "minigpt eval runs/seed --data my.txt")
    parser.add_argument("model", metavar="MODEL", help="a folder that `minigpt train` wrote, or a Hub id")
    parser.add_argument("--data", nargs="+", default=None, metavar="TEXT", help="as for minigpt train")
    parser.add_argument(
        "--split",
        choices=("validation", "train"),
        default="validation",
        help="the last 10%% of the text, or the first 90%% (default: validation)",
    )
    parser.add_argument("--device", default=None, help="cuda, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(argv)
    with _calm():
        _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    from minigpt.hub.trained import open_trained
    from minigpt.training.corpus import load_text
    from minigpt.training.evaluation import validation_loss
    from minigpt.training.stream import TokenStream
    from minigpt.training.tokens import TRAIN_FRACTION, tokenize_corpus

    model, tokenizer = open_trained(arguments.model, arguments.device)
    corpus = load_text(arguments.data)
    if corpus.notice:
        print(corpus.notice, file=sys.stderr)
    stream = TokenStream(tokenize_corpus(corpus, tokenizer)[arguments.split])
    cut = int(TRAIN_FRACTION * corpus.num_characters)
    characters = cut if arguments.split == "train" else corpus.num_characters - cut
    evaluation = validation_loss(
        model, stream, model.config.max_position_embeddings, characters_per_token=characters / len(stream)
    )
    print(
        f"{corpus.name}, {arguments.split} split, {evaluation.targets:,} tokens: "
        f"loss {evaluation.loss:.4f} nats a token, "
        f"{evaluation.bits_per_character:.4f} bits a character, perplexity {evaluation.perplexity:.3f}"
    )


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"train": train, "generate": generate, "eval": evaluate}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 1 if it could not be done, 2 if it was asked wrongly, 130 if it was interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # After the command it is a training argument of transformers.
    debug = arguments[:1] == ["--debug"]
    arguments = arguments[1:] if debug else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A console that lacks a character shows a stand-in for it: a run must not end with an error over that.
        sys.stdout.reconfigure(errors="replace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"minigpt {version('minigpt-hf')}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"minigpt: unknown command {arguments[0]!r}; choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        command(arguments[1:])
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("minigpt: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`minigpt generate ... | head`): keep the interpreter's own last flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return _report(error)
    return 0


@contextmanager
def _calm() -> Iterator[None]:
    """Leaves standard error to what a command has to say."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _report(error: Exception) -> int:
    from huggingface_hub.errors import StrictDataclassError

    from minigpt.hub.trained import AskedWrongly
    from minigpt.tokenization.tokenization_minigpt import UnknownCharacterError
    from minigpt.training.presets import one_sentence

    print(f"minigpt: {one_sentence(error)}", file=sys.stderr)
    return 2 if isinstance(error, (AskedWrongly, StrictDataclassError, UnknownCharacterError)) else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser(command: str, description: str, example: str) -> _Parser:
    return _Parser(prog=f"minigpt {command}", description=description, epilog=f"example: {example}", allow_abbrev=False)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)
