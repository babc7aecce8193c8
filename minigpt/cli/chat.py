"""`minigpt chat`: talk with a trained model."""

from collections.abc import Sequence

from minigpt.cli.parser import add_model, add_sampling, command_parser, sampling_arguments
from minigpt.cli.quiet import quiet_libraries


def main(argv: Sequence[str]) -> None:
    """Talk with a trained model."""
    parser = command_parser("chat", "Talk with a trained model.", "minigpt chat runs/seed")
    add_model(parser)
    parser.add_argument("--system", default=None, metavar="TEXT", help="what the model is told before you speak")
    add_sampling(parser)
    arguments = parser.parse_args(argv)
    with quiet_libraries():
        from transformers import set_seed

        from minigpt.hub.chatting.chat import chat
        from minigpt.hub.context import Context
        from minigpt.hub.loading import open_trained

        model, tokenizer = open_trained(arguments.model, arguments.device)
        new_tokens = Context.of(model).new_tokens(1, arguments.max_new_tokens)
        if arguments.seed is not None:
            set_seed(arguments.seed)
        chat(model, tokenizer, system=arguments.system, max_new_tokens=new_tokens, **sampling_arguments(arguments))
