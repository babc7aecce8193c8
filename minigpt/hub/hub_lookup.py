"""Questions to the Hub that are answered within ten seconds, also where the Hub is out of reach."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError

_SECONDS = 10


def hub_has(repository: str) -> bool:
    """Return True if the Hub has a model of this name and can be reached.

    transformers would ask a Hub that is out of reach for half a minute before it looks in its cache.
    """
    try:
        HfApi().model_info(repository, timeout=_SECONDS)
    except Exception:  # no such repository, no network, offline mode: what is left is the cache
        return False
    return True


def commit_of(repository: str) -> str | None:
    """Return the commit of a repository's main branch, from the Hub or else from the cache, None if neither has it."""
    try:
        return HfApi().model_info(repository, timeout=_SECONDS).sha
    except Exception:  # no such repository, no network, offline mode: what is left is the cache
        try:
            return Path(snapshot_download(repository, local_files_only=True)).name
        except (OSError, HFValidationError):
            return None
