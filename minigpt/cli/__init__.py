"""The command line, thin: it reads what is asked for, and calls the room that does it."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, NoReturn

# Nothing heavy is imported before a command needs it: the help is instant.

_SEPARATOR = "-" * 15  # between texts of several lines, as nanoGPT's

HELP = """\
usage: minigpt [--debug] COMMAND ...

The smallest GPT that is a complete Hugging Face citizen.

commands:
  train      train a model on a text          minigpt train --data my.txt
  finetune   go on with a trained model       minigpt finetune runs/seed --data other.txt
  generate   write text with a trained model  minigpt generate runs/seed --prompt "ROMEO:"
  chat       talk with a trained model        minigpt chat runs/seed
  eval       measure a model on a text        minigpt eval runs/seed --data my.txt
  push       put a model on the Hub           minigpt push runs/seed my-name/my-model
  import     make a MiniGPT of another model  minigpt import ckpt.pt --meta meta.pkl
  export     write a model in another format  minigpt export runs/seed --to onnx

options:
  -h, --help     this help; every command has its own: minigpt train --help
  --version      the version
  --debug        before the command: show the traceback of an error
"""


def train(argv: Sequence[str]) -> None:
    """Trains a model on a text and saves it."""
    from minigpt.cli.train import main_train

    main_train(argv)


def finetune(argv: Sequence[str]) -> None:
    """Goes on training a model on a new text, or on conversations."""
    from minigpt.cli.finetune import main_finetune

    with _calm():
        main_finetune(argv)


def generate(argv: Sequence[str]) -> None:
    """Writes text with a trained model."""
    parser = _parser(
        "generate", "Write text with a trained model.", 'minigpt generate runs/seed --prompt "ROMEO:" --stream'
    )
    parser.add_argument("model", metavar="MODEL", help="the folder of a model or of an adapter, or a Hub id")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", default="", metavar="TEXT", help="the text to continue (default: a new line, or a new document)"
    )
    prompt.add_argument(
        "--prompt_file", metavar="FILE", help="or the file that holds it, in UTF-8; - is standard input"
    )
    parser.add_argument(
        "-n", "--num_samples", type=_positive, default=1, metavar="N", help="how many texts to write (default: 1)"
    )
    parser.add_argument(
        "--stop",
        type=_stop,
        action="append",
        default=[],
        metavar="STRING",
        help="end a text before this string, which is not printed; \\n is a line end; may be given several times",
    )
    parser.add_argument("--stream", action="store_true", help="show the text while it is made")
    _add_sampling(parser)
    arguments = parser.parse_args(argv)
    if arguments.num_samples > 1:
        if arguments.stream:
            parser.error("--stream shows one text while it is made; leave out -n or --stream.")
        if arguments.temperature == 0:
            parser.error("--temperature 0 writes the same text each time; leave out -n or --temperature.")
    if arguments.prompt_file is not None:
        arguments.prompt = _read_prompt(arguments.prompt_file)
    with _calm():
        _generate(arguments)


def _generate(arguments: argparse.Namespace) -> None:
    from transformers import set_seed

    from minigpt.hub.chatting.samples import check_stops, stream_sample, write_samples
    from minigpt.hub.context import Context
    from minigpt.hub.loading import encode_prompt, open_trained

    model, tokenizer = open_trained(arguments.model, arguments.device)
    check_stops(tokenizer, arguments.stop)
    prompt = encode_prompt(tokenizer, arguments.prompt, model.generation_config).to(model.device)  # (1, seq)
    context, length = Context.of(model), prompt.shape[1]
    new_tokens = context.new_tokens(length, arguments.max_new_tokens)
    if notice := context.notice(length, new_tokens):
        print(notice, file=sys.stderr)
    if arguments.seed is not None:
        set_seed(arguments.seed)
    asked = {"stops": arguments.stop, "max_new_tokens": new_tokens, **_sampling(arguments)}
    if arguments.stream:
        stream_sample(model, tokenizer, prompt, **asked)
        return
    written = ""
    for number, (start, text) in enumerate(
        write_samples(model, tokenizer, prompt, count=arguments.num_samples, **asked)
    ):
        # Several names are a list; the new line that they may start from is none of their own.
        shown = start + text if arguments.prompt or arguments.num_samples == 1 else text
        written += shown
        if number and "\n" in written:
            print(_SEPARATOR)
        print(shown, flush=True)


def _read_prompt(name: str) -> str:
    """Read a prompt as it is, line ends included and a byte order mark apart."""
    from minigpt.errors import UsageError

    # A caller of main() may have put a text in the place of standard input, with nothing to decode.
    if name == "-" and not hasattr(sys.stdin, "buffer"):
        return sys.stdin.read()
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = "standard input" if name == "-" else name
        raise UsageError(
            f"{where} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}); save it as UTF-8."
        ) from error


def chat(argv: Sequence[str]) -> None:
    """Talks with a trained model."""
    parser = _parser("chat", "Talk with a trained model.", "minigpt chat runs/seed")
    parser.add_argument("model", metavar="MODEL", help="the folder of a model or of an adapter, or a Hub id")
    parser.add_argument("--system", default=None, metavar="TEXT", help="what the model is told before you speak")
    _add_sampling(parser)
    arguments = parser.parse_args(argv)
    with _calm():
        from transformers import set_seed

        from minigpt.hub.chatting.chat import chat as talk
        from minigpt.hub.context import Context
        from minigpt.hub.loading import open_trained

        model, tokenizer = open_trained(arguments.model, arguments.device)
        new_tokens = Context.of(model).new_tokens(1, arguments.max_new_tokens)
        if arguments.seed is not None:
            set_seed(arguments.seed)
        talk(model, tokenizer, system=arguments.system, max_new_tokens=new_tokens, **_sampling(arguments))


def evaluate(argv: Sequence[str]) -> None:
    """Measures a model on a text."""
    parser = _parser("eval", "Measure a model on a text.", "minigpt eval runs/seed --data my.txt")
    parser.add_argument("model", metavar="MODEL", help="the folder of a model or of an adapter, or a Hub id")
    parser.add_argument("--data", nargs="+", default=None, metavar="TEXT", help="as for minigpt train")
    parser.add_argument(
        "--split",
        choices=("validation", "train", "all"),
        default=None,
        help="which part of the text (default: validation of the text that the run was trained on, all of any other)",
    )
    reading = parser.add_argument_group("how the text is read (default: as the run read its own)")
    reading.add_argument("--text_column", default=None, metavar="NAME", help="column of the text in rows")
    reading.add_argument(
        "--documents",
        choices=("lines", "rows", "files", "separator"),
        default=None,
        help="what a document is, for a run that was trained on documents",
    )
    reading.add_argument("--encoding", default=None, metavar="NAME", help="encoding of the files, such as cp1252")
    reading.add_argument("--newlines", choices=("keep", "unix"), default=None, help="unix: every line end is \\n")
    reading.add_argument("--normalize", choices=("nfc", "nfd", "none"), default=None, help="Unicode normal form")
    parser.add_argument("--device", default=None, help="cuda, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(argv)
    with _calm():
        _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
    from minigpt.hub.loading import default_block_size, open_trained
    from minigpt.training.data.read_settings import ReadSettings
    from minigpt.training.data.scored_text import text_to_score
    from minigpt.training.data.token_stream import TokenStream
    from minigpt.training.data.tokens import characters_per_token, tokenize_corpus
    from minigpt.training.evaluation import validation_loss

    reading = ReadSettings(
        text_column=arguments.text_column,
        documents=arguments.documents,
        encoding=arguments.encoding,
        newlines=arguments.newlines,
        normalize=arguments.normalize,
    )
    model, tokenizer = open_trained(arguments.model, arguments.device)
    corpus, part = text_to_score(arguments.model, arguments.data, arguments.split, reading)
    if corpus.notice:
        print(corpus.notice, file=sys.stderr)
    split = tokenize_corpus(corpus, tokenizer)["train" if part == "all" else part]
    evaluation = validation_loss(
        model,
        TokenStream(split),
        default_block_size(model),
        characters_per_token=characters_per_token(corpus, split),
    )
    scored = "all of it" if part == "all" else f"{part} split"
    print(
        f"{corpus.name}, {scored}, {evaluation.targets:,} tokens: "
        f"loss {evaluation.loss:.4f} nats a token, "
        f"{evaluation.bits_per_character:.4f} bits a character, perplexity {evaluation.perplexity:.3f}"
    )


def push(argv: Sequence[str]) -> None:
    """Puts a model on the Hub."""
    parser = _parser(
        "push", "Put a trained model on the Hub, with its card.", "minigpt push runs/seed my-name/my-model"
    )
    parser.add_argument("model", metavar="RUN", help="a folder that minigpt train, finetune or save_pretrained wrote")
    parser.add_argument("repository", metavar="REPO", help="the repository: NAME, or OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="a new repository is for its owner alone")
    parser.add_argument("--revision", default=None, metavar="BRANCH", help="the branch to push to (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request with the change")
    parser.add_argument("--commit_message", default=None, metavar="TEXT", help="what the change is")
    parser.add_argument(
        "--base", default=None, metavar="REPO", help="where on the Hub the model is that this was fine-tuned from"
    )
    arguments = parser.parse_args(argv)
    with _calm():
        from minigpt.hub.publishing.push import push_folder

        done = push_folder(
            arguments.model,
            arguments.repository,
            private=arguments.private,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            commit_message=arguments.commit_message,
            base=arguments.base,
        )
    if not done.written and not done.deleted:
        print("Nothing has changed: the Hub has it all already.", file=sys.stderr)
    else:
        for said, names in (("Pushed", done.written), ("Deleted there", done.deleted), ("Not pushed", done.left)):
            if names:
                print(f"{said}: {', '.join(names)}.", file=sys.stderr)
    print(done.url)


def import_(argv: Sequence[str]) -> None:
    """Makes a MiniGPT of another model."""
    parser = _parser("import", "Make a MiniGPT of another model.", "minigpt import ckpt.pt --meta meta.pkl")
    parser.add_argument(
        "source",
        metavar="MODEL",
        help="a nanoGPT checkpoint, the lecture's state_dict, a stock model's folder or Hub id",
    )
    parser.add_argument("--meta", default=None, metavar="FILE", help="nanoGPT's meta.pkl: the characters of the ids")
    parser.add_argument("--text", default=None, metavar="FILE", help="or the text that gave the characters their ids")
    parser.add_argument("--encoding", default=None, metavar="NAME", help="encoding of the text (default: utf-8)")
    parser.add_argument(
        "--normalize", choices=("nfc", "nfd", "none"), default=None, help="Unicode normal form to bring the text to"
    )
    parser.add_argument("--tokenizer", default=None, metavar="DIR", help="or the tokenizer, a folder or Hub id")
    parser.add_argument(
        "--n_head", type=_positive, default=None, metavar="N", help="how many heads, for nanoGPT's weights alone"
    )
    parser.add_argument(
        "--hidden_act", default=None, metavar="NAME", help="the activation, if not the script's own: gelu_new, ..."
    )
    parser.add_argument(
        "--attention_scale",
        choices=("head_size", "n_embd"),
        default=None,
        help="the width by whose root the lecture's script divides attention scores (default: what suits --text)",
    )
    _add_output(parser, "runs/NAME")
    arguments = parser.parse_args(argv)
    with _calm():
        from minigpt.hub.importing.sources import import_model

        folder = import_model(
            arguments.source,
            arguments.output,
            meta=arguments.meta,
            text=arguments.text,
            encoding=arguments.encoding,
            normalize=arguments.normalize,
            tokenizer=arguments.tokenizer,
            n_head=arguments.n_head,
            hidden_act=arguments.hidden_act,
            attention_scale=arguments.attention_scale,
            overwrite=arguments.overwrite,
        )
    print(f"model    {folder}")


def export(argv: Sequence[str]) -> None:
    """Writes a model in another format."""
    formats = ("torch", "onnx", "gpt2", "llama", "qwen3", "nanochat", "gguf", "merged")
    parser = _parser("export", "Write a model in another format.", "minigpt export runs/seed --to onnx")
    parser.add_argument("model", metavar="MODEL", help="the folder of a model or of an adapter, or a Hub id")
    parser.add_argument("--to", required=True, choices=formats, metavar="FORMAT", help=", ".join(formats))
    _add_output(parser, "MODEL-FORMAT")
    arguments = parser.parse_args(argv)
    with _calm():
        from minigpt.hub.exporting.formats import export_model

        folder = export_model(arguments.model, arguments.to, arguments.output, overwrite=arguments.overwrite)
    print(f"written  {folder}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "finetune": finetune,
    "generate": generate,
    "chat": chat,
    "eval": evaluate,
    "push": push,
    "import": import_,
    "export": export,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 1 if it could not be done, 2 if it was asked wrongly, 130 if it was interrupted,
        143 if it was terminated.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # After the command it is a training argument of transformers.
    debug = arguments[:1] == ["--debug"]
    arguments = arguments[1:] if debug else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A console that lacks a character shows a stand-in for it: a run must not end with an error over that.
        sys.stdout.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # nor a chat over a byte that is no text
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
    # PEFT and TRL import bitsandbytes, which warns that it lacks a kernel that no command uses.
    getLogger("bitsandbytes").setLevel(ERROR)
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
        with warnings.catch_warnings():
            # What the libraries have yet to change in each other.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _report(error: Exception) -> int:
    from huggingface_hub.errors import StrictDataclassError

    from minigpt.errors import UsageError
    from minigpt.tokenization.tokenization_minigpt import UnknownCharacterError
    from minigpt.training.presets import one_sentence

    said = one_sentence(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        name = str(error.filename)
        shown = f"{name[:60]}... ({len(name):,} characters)" if len(name) > 200 else name
        said = f"{shown} cannot be used ({error.strerror}); name another path, or make this one usable."
    elif isinstance(error, ValueError) and said.startswith("embedded null"):
        said = "a path holds a NUL character, which no name of a file can; give another path."
    print(f"minigpt: {said}", file=sys.stderr)
    return 2 if isinstance(error, (UsageError, StrictDataclassError, UnknownCharacterError)) else 1


class _Parser(argparse.ArgumentParser):
    """Takes hyphens in an option's name for underscores, and says what is wrong in one line."""

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        from minigpt.cli.option_names import refuse_option, refuse_unknown

        arguments = [_underscored(argument) for argument in argv]
        refuse_unknown(self, arguments)
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            refuse_option(self, unknown[0])
        return given

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser(command: str, description: str, example: str) -> _Parser:
    return _Parser(prog=f"minigpt {command}", description=description, epilog=f"example: {example}", allow_abbrev=False)


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--output", default=None, metavar="DIR", help=f"where to write it (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that the output folder holds")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max_new_tokens",
        type=_positive,
        default=None,
        metavar="N",
        help="how many (default: 500, or what the model has room for)",
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=None,
        metavar="T",
        help="below 1 bolder, 0 greedy (default: the model's own; 1 if it has none)",
    )
    parser.add_argument(
        "--top_k", type=_not_negative, default=0, metavar="K", help="only from the K likeliest (default: 0, all)"
    )
    parser.add_argument("--top_p", type=_share, default=1.0, metavar="P", help="only from the likeliest that make up P")
    parser.add_argument("--seed", type=_seed, default=None, help="the same seed writes the same text")
    parser.add_argument("--device", default=None, help="cuda, mps or cpu (default: the best there is)")


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how to sample, in the words of `generate()`."""
    wishes: dict[str, Any] = {"do_sample": arguments.temperature != 0}
    if wishes["do_sample"]:
        wishes |= {"top_k": arguments.top_k, "top_p": arguments.top_p}
        wishes |= {} if arguments.temperature is None else {"temperature": arguments.temperature}
    return wishes


def _positive(text: str) -> int:
    return _whole(text, 1)


def _not_negative(text: str) -> int:
    return _whole(text, 0)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**32 - 1)  # NumPy's largest


def _whole(text: str, least: int, most: int | None = None) -> int:
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"must be a whole number {limits}, got {text}")
    return int(text)


def _stop(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text.replace("\\n", "\n")  # which not every shell can give


def _temperature(text: str) -> float:
    # Logits divided by less, or by more, are no longer finite, or all alike, in float32.
    value = _number(text)
    if value != 0 and not 1e-6 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"must be 0, or from 1e-06 to 1e+06, got {text}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
