"""`minigpt push`: put a trained model on the Hub."""

import sys
from collections.abc import Sequence

from minigpt.cli.parser import command_parser
from minigpt.cli.quiet import quiet_libraries


def main(argv: Sequence[str]) -> None:
    """Put a model on the Hub."""
    parser = command_parser(
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
    with quiet_libraries():
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
