"""A repository as it stands before a push: what must not be lost, and what need not be sent again."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from minigpt.errors import UsageError
from minigpt.hub.adapter_folders import CONFIG
from minigpt.hub.publishing.saved_folder import ADAPTER

_SECONDS = 10
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".onnx", ".pt", ".pth", ".h5", ".msgpack", ".ckpt", ".keras", ".tflite")


@dataclass(frozen=True)
class Standing:
    """A revision of a repository.

    Attributes:
        private: Whether it is for its owner alone.
        commit: The hash of the revision's last commit.
        hashes: Of each file: SHA-256 if it is in the large file storage, git's own hash otherwise.
        model_type: That of its `config.json`, or `adapter`; `unknown` if a model lies there without either, None if
            none does.
        card: What its `README.md` holds, or None without one.
    """

    private: bool
    commit: str
    hashes: Mapping[str, str]
    model_type: str | None
    card: str | None

    @property
    def has_weights(self) -> bool:
        """Whether transformers finds a model there."""
        return any(name.endswith(".safetensors") for name in self.hashes)


def look_at(api: HfApi, repository: str, revision: str | None = None) -> Standing | None:
    """Reads how a repository stands; one without that revision yet stands as its main branch does.

    Returns:
        None if there is no such repository, or none that may be seen.

    Raises:
        UsageError: Its card is not UTF-8.
    """
    try:
        try:
            info = api.model_info(repository, revision=revision, files_metadata=True, timeout=_SECONDS)
        except RevisionNotFoundError:
            info = api.model_info(repository, files_metadata=True, timeout=_SECONDS)
    except RepositoryNotFoundError:
        return None
    hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or "" for file in info.siblings or []}
    assert info.sha is not None
    with tempfile.TemporaryDirectory() as cache:

        def read(name: str) -> bytes | None:
            if name not in hashes:
                return None
            return Path(api.hf_hub_download(repository, name, revision=info.sha, cache_dir=cache)).read_bytes()

        config, card = read("config.json"), read("README.md")
    return Standing(
        private=bool(info.private),
        commit=info.sha,
        hashes=hashes,
        model_type=_model_type(config, hashes),
        card=None if card is None else _text(card, repository),
    )


def _text(card: bytes, repository: str) -> str:
    try:
        return card.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the card of {repository} is not UTF-8 ({error}); save it as UTF-8 there.") from error


def _model_type(config: bytes | None, hashes: Mapping[str, str]) -> str | None:
    if config is None:
        if CONFIG in hashes:
            return ADAPTER
        return "unknown" if any(name.endswith(_WEIGHTS) for name in hashes) else None
    try:
        return str(json.loads(config)["model_type"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
