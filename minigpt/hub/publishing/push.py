"""A folder to the Hub, in one commit: the model, its tokenizer, its code, its card."""

import hashlib
import io
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub import logging as client_logging
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from minigpt.errors import PushFailed, UsageError
from minigpt.hub.adapter_folders import AdapterBase
from minigpt.hub.file_names import CARD
from minigpt.hub.publishing.card import model_card
from minigpt.hub.publishing.hub_errors import SAME_COMMAND, find_token, plain_refusals
from minigpt.hub.publishing.release import Release, default_message, is_stale, prepare_release
from minigpt.hub.publishing.repository import Standing, look_at
from minigpt.hub.publishing.saved_folder import ADAPTER, is_hub_id

_SECONDS = 10


@dataclass(frozen=True)
class Push:
    """What a push has done.

    Attributes:
        url: Where it can be seen: the repository, its branch, or the pull request.
        written: The files that are new there or have changed; none if everything was there already.
        deleted: The files of an earlier push that would have been taken for this model's.
        left: What the folder holds besides, and is not published.
    """

    url: str
    written: tuple[str, ...]
    deleted: tuple[str, ...]
    left: tuple[str, ...]


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    base: str | None = None,
    token: str | None = None,
    again: str = SAME_COMMAND,
) -> Push:
    """Publishes a trained or saved model, or an adapter: weights, configs, tokenizer, code, picture, sample, run, card.

    The folder is opened first, as whoever downloads it will open it, and nothing in it is changed. What the repository
    holds already is not sent again. Checkpoints, optimizer states and pickles stay here. An exported model can be
    pushed to the repository of the model that it was made of, and joins it there.

    Args:
        folder: What `minigpt train`, `minigpt finetune`, a Trainer or `save_pretrained` wrote, or one of its
            checkpoints.
        repository: `OWNER/NAME`, or `NAME` for one's own. It is made if there is none.
        private: Whether a new repository is for its owner alone; otherwise it is as its owner has it by default.
        revision: The branch, made from the main one if there is none; or a pull request, `refs/pr/1`.
        create_pr: Whether to open a pull request instead of changing the main branch.
        commit_message: What the commit is called; by default how far the model has come.
        base: The repository of what the model was fine-tuned from, where the folder names one on this machine: an
            adapter is of use only to who has that too. Its weights are made sure to be the same, and what is published
            names its commit.
        token: Who pushes; by default who has logged in.
        again: What an error tells a person to do.

    Raises:
        UsageError: Nothing has been sent: a name or the folder is not as it must be, the repository holds another
            kind of model, or is public and was asked to be private.
        PushFailed: The Hub has refused it, failed or was not reached. The same command can be given again.
    """
    check_names(repository, revision, create_pr, commit_message)
    token = find_token(token)
    with tempfile.TemporaryDirectory() as staging, quiet_client():
        release = prepare_release(Path(folder), Path(staging), _find_base(base, folder, token, again) if base else None)
        if "/" not in repository:
            with plain_refusals(repository, again):
                repository = f"{whoami(token)['name']}/{repository}"
        may_propose = revision is None and not create_pr
        with plain_refusals(repository, again, may_propose=may_propose, only_reads=lambda: only_reads(token)):
            return push_release(
                HfApi(token=token),
                release,
                repository,
                private=private,
                revision=revision,
                create_pr=create_pr,
                message=commit_message or default_message(release),
            )


def _find_base(repository: str, folder: str | Path, token: str, again: str) -> AdapterBase:
    """A base as it stands on the Hub now."""
    if not is_hub_id(repository):
        raise UsageError(f"a base on the Hub is called OWNER/NAME, and not {repository!r}.")
    with plain_refusals(repository, again):
        standing = look_at(HfApi(token=token), repository)
    if standing is None:
        raise UsageError(f"there is no {repository} on the Hub; push there what {folder} was fine-tuned from.")
    return AdapterBase(repository, standing.commit)


def check_names(repository: str, revision: str | None, create_pr: bool = False, message: str | None = None) -> None:
    """Refuses what no repository, branch or commit can be called.

    Raises:
        UsageError: One of them.
    """
    try:
        hf_hub_url(repository, CARD)
    except HFValidationError as error:
        raise UsageError(
            f"a repository is called OWNER/NAME, of letters, digits, '-', '_' and '.', and not {repository!r}."
        ) from error
    if message is not None and not message.strip():
        raise UsageError("the commit message is empty; write what has changed, or leave it out.")
    if revision is None:
        return
    if create_pr:
        raise UsageError(f"a pull request is for the main branch; leave out --revision {revision} or --create-pr.")
    is_branch = re.fullmatch(r"(?!refs/)(?!.*(?:\.\.|//))\w[\w./+-]*(?<![./])", revision, re.ASCII)
    is_commit = re.fullmatch(r"[0-9a-f]{40}", revision)
    if is_commit or not (is_branch or re.fullmatch(r"refs/pr/\d+", revision)):
        raise UsageError(
            f"{revision!r} is no branch's name; use letters, digits, '-', '_', '.' and '/', or refs/pr/NUMBER."
        )


def whoami(token: str) -> dict[str, Any]:
    """Whose token this is and what it may; asked with a limit of time, which the client's own `whoami` lacks."""
    response = get_session().get(
        f"{constants.ENDPOINT}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"}, timeout=_SECONDS
    )
    hf_raise_for_status(response)
    return dict(response.json())


def only_reads(token: str) -> bool:
    """Whether a token is known to be one that may read and not write."""
    try:
        return is_reader(whoami(token))
    except Exception:  # it is asked because of another error, which is then the one to tell
        return False


def is_reader(who: Mapping[str, Any]) -> bool:
    """Whether a token may read and not write, by the answer of `whoami`."""
    return bool(who.get("auth", {}).get("accessToken", {}).get("role") == "read")


def push_release(
    api: HfApi,
    release: Release,
    repository: str,
    *,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str,
    beside: Mapping[str, Path] | None = None,
) -> Push:
    """Makes the repository what it is to be, in one commit.

    Args:
        api: The Hub, with a token.
        release: The model.
        repository: `OWNER/NAME`.
        private: Whether a new repository is for its owner alone.
        revision: The branch or pull request, None for the main branch.
        create_pr: Whether to open a pull request.
        message: What the commit is called.
        beside: Other files, by their names in one folder of the repository, which then holds nothing else.
    """
    standing = look_at(api, repository, revision)
    if standing is None and create_pr:
        raise UsageError(f"there is no {repository} to propose a change to; leave out --create-pr.")
    saved = release.saved
    check_standing(standing, saved.published_type, str(saved.path), repository, private)
    card = model_card(saved.path, repository, standing.card if standing else None, base=saved.base)
    try:
        card.validate()
    except ValueError as error:
        raise PushFailed(f"the Hub does not accept the model card's metadata ({_errors(error)}).") from error
    if standing is None:
        # Without a wish, an organisation's own default holds.
        api.create_repo(repository, private=private or None)
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repository, branch=revision, exist_ok=True)
    if standing is None:
        standing = look_at(api, repository, revision)
        assert standing is not None
    beside = beside or {}
    contents: dict[str, Path | bytes] = {**release.files, **beside, CARD: str(card).encode()}
    joins = standing.has_weights and not release.has_weights  # an exported model, the one that it was made of
    if joins:
        contents = {**release.other_formats}
    written = [name for name, content in contents.items() if _differs(content, standing.hashes.get(name))]
    folders = {name.partition("/")[0] for name in beside}
    deleted = [
        name
        for name in standing.hashes
        if name not in contents and not joins and (is_stale(name, release) or name.partition("/")[0] in folders)
    ]
    url = f"{constants.ENDPOINT}/{repository}"
    if revision is not None and revision != constants.DEFAULT_REVISION:
        url = f"{url}/tree/{quote(revision, safe='')}"
    if written or deleted:
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, contents[name]) for name in written),
                *(CommitOperationDelete(name) for name in deleted),
            ],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=standing.commit,
        )
        url = commit.pr_url or url
    return Push(url, tuple(written), tuple(deleted), release.left)


def check_standing(standing: Standing | None, model_type: str, source: str, repository: str, private: bool) -> None:
    """Refuses to show what was meant to be private, and to write one model over another.

    Raises:
        UsageError: One of them; the message calls the model `source`.
    """
    if standing is None:
        return
    if private and not standing.private:
        raise UsageError(
            f"{repository} is there already and everybody can read it; make it private in its settings, or push to a "
            "new name."
        )
    if standing.model_type not in (None, model_type):
        raise UsageError(
            f"{repository} holds {_kind(standing.model_type)} already and {source} is "
            f"{_kind(model_type).replace('a model', 'one', 1)}; push to another name."
        )


def _kind(model_type: str) -> str:
    return "an adapter" if model_type == ADAPTER else f"a model of type {model_type!r}"


def _differs(content: Path | bytes, known: str | None) -> bool:
    """Whether a file is another than the one with this hash, git's own or a SHA-256."""
    if known is None:
        return True
    if len(known) == hashlib.sha256().digest_size * 2:
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != known
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data), usedforsecurity=False).hexdigest() != known


def _errors(error: ValueError) -> str:
    return "; ".join(re.findall(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error))) or " ".join(str(error).split())


@contextmanager
def quiet_client() -> Iterator[None]:
    """Lets the client say nothing of its own, and show its bars only to a person who is watching."""
    verbosity, had_bars = client_logging.get_verbosity(), not are_progress_bars_disabled()
    client_logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        client_logging.set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()
