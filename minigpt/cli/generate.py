"""`minigpt generate`: write text with a trained model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minigpt.cli.parser import add_model, add_sampling, command_parser, positive, sampling_arguments, stop_string
from minigpt.cli.quiet import quiet_libraries

_SEPARATOR = "-" * 15  # between texts of several lines, as nanoGPT's


def main(argv: Sequence[str]) -> None:
    """Write text with a trained model."""
    parser = command_parser(
        "generate", "Write text with a trained model.", 'minigpt generate runs/seed --prompt "ROMEO:" --stream'
    )
    add_model(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", default="", metavar="TEXT", help="the text to continue (default: a new line, or a new document)"
    )
    prompt.add_argument(
        "--prompt_file", metavar="FILE", help="or the file that holds it, in UTF-8; - is standard input"
    )
    parser.add_argument(
        "-n", "--num_samples", type=positive, default=1, metavar="N", help="how many texts to write (default: 1)"
    )
    parser.add_argument(
        "--stop",
        type=stop_string,
        action="append",
        default=[],
        metavar="STRING",
        help="end a text before this string, which is not printed; \\n is a line end; may be given several times",
    )
    parser.add_argument("--stream", action="store_true", help="show the text while it is made")
    add_sampling(parser)
    arguments = parser.parse_args(argv)
    if arguments.num_samples > 1:
        if arguments.stream:
            parser.error("--stream shows one text while it is made; leave out -n or --stream.")
        if arguments.temperature == 0:
            parser.error("--temperature 0 writes the same text each time; leave out -n or --temperature.")
    if arguments.prompt_file is not None:
        arguments.prompt = _read_prompt(arguments.prompt_file)
    with quiet_libraries():
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
    asked = {"stops": arguments.stop, "max_new_tokens": new_tokens, **sampling_arguments(arguments)}
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
