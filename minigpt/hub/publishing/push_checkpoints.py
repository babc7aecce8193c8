"""A training that goes on, on the Hub: the repository before it starts, and a checkpoint at each save."""

from pathlib import Path

from huggingface_hub import HfApi

from minigpt.hub.publishing.hub_errors import find_token, plain_refusals, read_only
from minigpt.hub.publishing.push import (
    Push,
    check_names,
    check_standing,
    is_reader,
    push_release,
    quiet_client,
    whoami,
)
from minigpt.hub.publishing.release import release_of_checkpoint
from minigpt.hub.publishing.repository import look_at

# Of a whole checkpoint, what nobody needs to go on from it: a pickle of the arguments of this machine.
_LEFT_HERE = "training_args.bin"


def open_repository(
    repository: str,
    model_type: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create: bool = True,
) -> str:
    """Makes sure, before any work, that a model can be pushed, and makes the repository if there is none.

    Args:
        repository: `OWNER/NAME`, or `NAME` for one's own.
        model_type: Of the model that will be pushed.
        token: Who pushes; by default who has logged in.
        private: Whether a new repository is for its owner alone; None for its owner's default, which is mostly False.
        revision: The branch, made from the main one if there is none.
        create: Whether to make what is not there; otherwise it is only looked at.

    Returns:
        The repository, as `OWNER/NAME`.

    Raises:
        UsageError: There is no token, a name is impossible, the repository holds another kind of model, or is public
            and was asked to be private.
        PushFailed: The token is wrong or may not write there, or the Hub cannot be reached.
    """
    check_names(repository, revision)
    token = find_token(token)
    api, again = HfApi(token=token), "start the training again"
    with quiet_client():
        with plain_refusals(repository, again):
            who = whoami(token)
        if "/" not in repository:
            repository = f"{who['name']}/{repository}"
        with plain_refusals(repository, again):
            standing = look_at(api, repository, revision)
            check_standing(standing, model_type, "what is to be trained", repository, bool(private))
            if is_reader(who):
                raise read_only(repository)
            if standing is not None:
                api.auth_check(repository, write=True)
            elif create:
                api.create_repo(repository, private=private)
            if create and revision is not None and not revision.startswith("refs/"):
                api.create_branch(repository, branch=revision, exist_ok=True)
    return repository


def push_checkpoint(
    checkpoint: Path,
    repository: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str,
    whole_as: str | None = None,
) -> Push:
    """Publishes the model of a checkpoint that has just been written, with its card, in one commit.

    Args:
        checkpoint: The folder; it must stay until this is over.
        repository: `OWNER/NAME`, from `open_repository`.
        token: Who pushes; by default who has logged in.
        revision: The branch.
        commit_message: What the commit is called.
        whole_as: A folder of the repository for the whole checkpoint, optimizer and all, so that the training can be
            resumed from it; by default only the model is published.

    Raises:
        UsageError: There is no token.
        PushFailed: The Hub has refused it, failed or was not reached.
    """
    with quiet_client(), plain_refusals(repository, "wait for the next save"):
        release = release_of_checkpoint(checkpoint)
        files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != _LEFT_HERE]
        beside = {f"{whole_as}/{path.relative_to(checkpoint).as_posix()}": path for path in files} if whole_as else {}
        return push_release(
            HfApi(token=find_token(token)),
            release,
            repository,
            private=False,
            revision=revision,
            create_pr=False,
            message=commit_message,
            beside=beside,
        )
