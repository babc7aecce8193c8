"""`minigpt export`: write a model in another format."""

from collections.abc import Sequence

from minigpt.cli.parser import add_model, add_output, command_parser
from minigpt.cli.quiet import quiet_libraries


def main(argv: Sequence[str]) -> None:
    """Write a model in another format."""
    formats = ("torch", "onnx", "gpt2", "llama", "qwen3", "nanochat", "gguf", "merged")
    parser = command_parser("export", "Write a model in another format.", "minigpt export runs/seed --to onnx")
    add_model(parser)
    parser.add_argument("--to", required=True, choices=formats, metavar="FORMAT", help=", ".join(formats))
    add_output(parser, "MODEL-FORMAT")
    arguments = parser.parse_args(argv)
    with quiet_libraries():
        from minigpt.hub.exporting.formats import export_model

        folder = export_model(arguments.model, arguments.to, arguments.output_dir, overwrite=arguments.overwrite)
    print(f"written  {folder}")
