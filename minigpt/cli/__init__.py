"""The command line: one file per command, imported when the command runs, so that the help is instant."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from logging import ERROR, getLogger

HELP = """\
usage: minigpt [--debug] COMMAND ...

The smallest GPT that is a complete Hugging Face citizen.

commands:
  train      train a model on a text          minigpt train --data my.txt
  finetune   continue training a model      minigpt finetune runs/seed --data other.txt
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

# Each command's module in this package.
COMMANDS = {
    "train": "train",
    "finetune": "finetune",
    "generate": "generate",
    "chat": "chat",
    "eval": "eval",
    "push": "push",
    "import": "import_model",
    "export": "export",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

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
    if arguments[0] not in COMMANDS:
        print(f"minigpt: unknown command {arguments[0]!r}; choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    # PEFT and TRL import bitsandbytes, which warns that it lacks a kernel that no command uses.
    getLogger("bitsandbytes").setLevel(ERROR)
    try:
        import_module(f"minigpt.cli.{COMMANDS[arguments[0]]}").main(arguments[1:])
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
