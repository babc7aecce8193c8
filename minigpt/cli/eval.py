"""`minigpt eval`: measure a model on a text."""

import argparse
import sys
from collections.abc import Sequence

from minigpt.cli.parser import add_model, command_parser
from minigpt.cli.quiet import quiet_libraries


def main(argv: Sequence[str]) -> None:
    """Measure a model on a text."""
    parser = command_parser("eval", "Measure a model on a text.", "minigpt eval runs/seed --data my.txt")
    add_model(parser)
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
    with quiet_libraries():
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
