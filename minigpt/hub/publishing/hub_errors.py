"""What goes wrong between here and the Hub, each in one sentence that says what to do."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from minigpt.errors import PushFailed, UsageError

SAME_COMMAND = "run the same command again"
_AGAIN = f"{SAME_COMMAND}, and what has arrived is not sent twice"
_CREATES = "/api/repos/create"
_COMMITS = re.compile(r"POST .*/commit/")
# What is asked before any file is sent.
_ASKS = re.compile(r"/api/repos/create|/auth-check|/preupload/|/branch/|/api/validate-yaml|/xet-write-token/")
_LOG_IN = "log in with `hf auth login`, or put a token that may write into HF_TOKEN"


@contextmanager
def plain_refusals(
    repository: str,
    again: str = SAME_COMMAND,
    *,
    may_propose: bool = False,
    only_reads: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Turns whatever the Hub or the way to it raises in the block into one sentence.

    Args:
        repository: What was to be written to, for the sentence.
        again: How to try it again, for the sentence.
        may_propose: Whether a pull request could be opened instead.
        only_reads: Finds out, where writing was forbidden, whether the token may read and not write.

    Raises:
        PushFailed: The Hub said no, failed, or could not be reached.
        UsageError: There is no token or one that may only read, or the Hub is switched off here.
    """
    try:
        yield
    except (UsageError, PushFailed):
        raise
    except Exception as error:
        if _is_forbidden(error) and only_reads():
            raise read_only(repository) from error
        refusal = _in_plain_words(error, repository, may_propose)
        raise type(refusal)(str(refusal).replace(SAME_COMMAND, again)) from error


def read_only(repository: str) -> UsageError:
    """The refusal of a token that may not write."""
    return UsageError(
        f"the token may read and not write, so that nothing could be pushed to {repository}; make one that may write, "
        "then log in with `hf auth login` or put it into HF_TOKEN."
    )


def find_token(token: str | None) -> str:
    """The token of who pushes: this one, or that of who has logged in.

    Raises:
        UsageError: There is none, or none that can be sent; the HTTP library would show such a one in its error.
    """
    token = (token or "").strip() or get_token()
    if token is None:
        raise _no_token()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UsageError(
            "the token holds a character that no token has; copy it again, or log in with `hf auth login`."
        )
    return token


def _no_token() -> UsageError:
    return UsageError(f"the Hub has to know who pushes: {_LOG_IN}.")


def _is_forbidden(error: Exception) -> bool:
    return any(isinstance(cause, HfHubHTTPError) and cause.response.status_code == 403 for cause in _causes(error))


def _in_plain_words(error: Exception, repository: str, may_propose: bool) -> Exception:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return PushFailed(_answer_in_plain_words(cause, repository, may_propose))
        if isinstance(cause, OfflineModeIsEnabled):
            return UsageError("the Hub is switched off here by HF_HUB_OFFLINE; unset it to push.")
        if isinstance(cause, LocalTokenNotFoundError):
            return _no_token()
        # Which HTTP library it is, huggingface_hub decides; Xet's client has errors of Python alone.
        if isinstance(cause, ConnectionError) or type(cause).__module__.partition(".")[0] in ("httpx", "httpx2"):
            return PushFailed(_way_in_plain_words(cause, repository))
    return PushFailed(f"the push to {repository} did not go through ({_reason(error)}); {_AGAIN}.")


def _answer_in_plain_words(error: HfHubHTTPError, repository: str, may_propose: bool) -> str:
    status = error.response.status_code
    said = _without_secrets(" ".join((error.server_message or f"status {status}").split())).rstrip(".")
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no such revision ({said}); a push makes branches, and no pull requests but new ones."
    if isinstance(error, RepositoryNotFoundError) and "RepoNotFound" in error.response.headers.get("X-Error-Code", ""):
        return f"{repository} is not there for this token ({said}); push to a name of your own."
    request = _request(error.response)
    if status == 409 and _CREATES in request:
        return (
            f"{repository} is there already and this token may not see it ({said}); use a token that may, or push to "
            "another name."
        )
    if status == 403 and ("storage" in said.lower() or not _ASKS.search(request)):
        return _unstored(said, repository)
    if status == 403:
        propose = may_propose and _CREATES not in request
        return (
            f"the token may not write to {repository} ({said}); push to a name of your own, with a token that may "
            f"write (`hf auth login`, or HF_TOKEN){', or propose the change with --create-pr' if propose else ''}."
        )
    return _status_in_plain_words(status, said, repository, request)


def _unstored(said: str, repository: str) -> str:
    return (
        f"the Hub does not take the files of {repository} ({said}): either its owner's storage is used up, or the "
        "token may not write there; free some space, or use a token that may write (`hf auth login`, or HF_TOKEN)."
    )


def _status_in_plain_words(status: int, said: str, repository: str, request: str = "") -> str:
    if status == 401:
        return f"the Hub does not accept the token ({said}); {_LOG_IN}."
    if status == 403:
        return _unstored(said, repository)
    if status in (409, 412):
        return f"somebody else has changed {repository} just now ({said}); {SAME_COMMAND}."
    if status == 429:
        return f"the Hub has had too many requests ({said}); wait a while, then {SAME_COMMAND}."
    if status < 500:
        return f"the Hub refuses what was pushed to {repository} ({said})."
    return f"the Hub could not store it ({status}: {said}), and {_whether_it_arrived(repository, request)}."


def _way_in_plain_words(error: BaseException, repository: str) -> str:
    if answer := re.search(r"\((\d{3}) ([\w -]+)\)", str(error)):  # Xet's client keeps the answer in words
        return _status_in_plain_words(int(answer[1]), answer[2], repository)
    if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"):
        return (
            f"the Hub at {constants.ENDPOINT} cannot be reached ({_reason(error)}); check the connection, then "
            f"{SAME_COMMAND}."
        )
    return (
        f"the connection to the Hub broke ({_reason(error)}), and {_whether_it_arrived(repository, _request(error))}."
    )


def _whether_it_arrived(repository: str, request: str) -> str:
    if not _COMMITS.search(request):
        return f"nothing was published in {repository}; {_AGAIN}"
    if request.endswith("create_pr=1"):  # a second one would be opened beside it
        return f"whether the pull request was opened is not known; look for it in {repository}, then {SAME_COMMAND}"
    return f"whether it arrived in {repository} is not known; {SAME_COMMAND} to find out"


def _request(source: Any) -> str:
    """What was asked of the Hub, as `METHOD /path?query`, where a response or an error knows it."""
    try:
        request = source.request
        return f"{request.method} {request.url.raw_path.decode('ascii')}"
    except (AttributeError, RuntimeError):
        return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it, the outermost first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(error: BaseException) -> str:
    # An address among it may be signed: whoever reads it may write there.
    said = re.sub(r"\s*(,? (domain:|for url) )?\(?https?://\S+", "", " ".join(str(error).split()))
    return _without_secrets(said).rstrip(".") or type(error).__name__


def _without_secrets(said: str) -> str:
    return re.sub(r"\bBearer \S+|\bhf_\w+", "[token]", said)
