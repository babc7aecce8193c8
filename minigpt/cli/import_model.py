"""`minigpt import`: make a MiniGPT of another model."""

from collections.abc import Sequence

from minigpt.cli.parser import add_output, command_parser, positive
from minigpt.cli.quiet import quiet_libraries


def main(argv: Sequence[str]) -> None:
    """Make a MiniGPT of another model."""
    parser = command_parser("import", "Make a MiniGPT of another model.", "minigpt import ckpt.pt --meta meta.pkl")
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
        "--n_head", type=positive, default=None, metavar="N", help="how many heads, for nanoGPT's weights alone"
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
    add_output(parser, "runs/NAME")
    arguments = parser.parse_args(argv)
    with quiet_libraries():
        from minigpt.hub.importing.sources import import_model

        folder = import_model(
            arguments.source,
            arguments.output_dir,
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
