"""Tiny Shakespeare: fetched once from the Hub, or failing that from its public raw file; checked; kept.

The Hub's copy cuts the text in three splits. They are joined again, because this package makes its own split: on the
Hub's validation split alone, half of the last tenth, a loss looks better than it is.
"""

import hashlib
import io
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.errors import OutOfReachError
from minigpt.training.data.text_files import CorpusError

NUM_BYTES = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
VARIABLE = "MINIGPT_TINY_SHAKESPEARE"
HUB_DATASET = "karpathy/tiny_shakespeare"
# The dataset's own branch holds a loading script, which `datasets` no longer runs; this one holds what it produced.
HUB_FILES = [
    f"/datasets/{HUB_DATASET}/resolve/refs%2Fconvert%2Fparquet/default/{split}/0000.parquet"
    for split in ("train", "validation", "test")
]
RAW_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

# Two routes, each of which must answer within this time: out of reach is known in less than 10 seconds.
ANSWER_SECONDS = 4.0
DOWNLOAD_SECONDS = 60.0


def tiny_shakespeare() -> str:
    """Returns the text: from the file that `MINIGPT_TINY_SHAKESPEARE` names, from the cache, or from the network.

    Raises:
        OutOfReachError: No copy is here and none can be fetched.
        CorpusError: The file that the variable names is missing or another text.
    """
    if named := os.environ.get(VARIABLE):
        try:
            data = Path(named).read_bytes()
        except OSError as error:
            raise CorpusError(f"{VARIABLE} names {named!r}, which cannot be read: {error.strerror}.") from error
        if fault := _fault(data):
            raise CorpusError(f"{VARIABLE} names {named!r}, which is not Tiny Shakespeare: {fault}.")
        return data.decode()
    cached = _cache_file()
    if not cached.is_file() or _fault(cached.read_bytes()):
        data = _download()
        try:
            _keep(data, cached)
        except OSError:
            return data.decode()  # a cache that cannot be written costs a download the next time, no more
    return cached.read_bytes().decode()


def _fault(data: bytes) -> str | None:
    """Returns what tells `data` from the genuine file, or None."""
    if len(data) != NUM_BYTES:
        return f"{len(data):,} bytes instead of {NUM_BYTES:,}"
    digest = hashlib.sha256(data).hexdigest()
    return None if digest == SHA256 else f"SHA-256 {digest} instead of {SHA256}"


def _cache_file() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "minigpt" / "tiny_shakespeare.txt"


def _keep(data: bytes, path: Path) -> None:
    """Writes the file under another name and renames it: nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(staged).replace(path)
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise


def _download() -> bytes:
    import datasets
    from huggingface_hub import constants

    if constants.is_offline_mode() or datasets.config.HF_HUB_OFFLINE:
        raise OutOfReachError("offline mode is set")
    reasons = []
    routes: dict[str, Callable[[], bytes]] = {"the Hub": _from_hub, "its raw file": lambda: _fetch(RAW_URL)}
    for name, route in routes.items():
        try:
            data = route()
        except Exception as error:  # whatever a network, a proxy or a half-broken server can do
            reasons.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if fault := _fault(data):
            reasons.append(f"{name}: {fault}")
            continue
        return data
    raise OutOfReachError("; ".join(reasons))


def _from_hub() -> bytes:
    import pyarrow.parquet
    from huggingface_hub import constants

    tables = [pyarrow.parquet.read_table(io.BytesIO(_fetch(constants.ENDPOINT + file))) for file in HUB_FILES]
    return "".join(text for table in tables for text in table["text"].to_pylist()).encode()


def _fetch(url: str) -> bytes:
    """Returns what is at `url`, asked once: the Hub's own client would try a dead network again for half a minute."""
    from huggingface_hub import get_session

    client = get_session()
    request = client.build_request("GET", url, timeout=ANSWER_SECONDS)
    response = _within(ANSWER_SECONDS, lambda: client.send(request, stream=True, follow_redirects=True))
    give_up = time.monotonic() + DOWNLOAD_SECONDS
    try:
        response.raise_for_status()
        parts = []
        for part in response.iter_bytes():
            parts.append(part)
            if time.monotonic() > give_up:
                raise TimeoutError(f"not finished after {DOWNLOAD_SECONDS:.0f} s")
    finally:
        response.close()
    return b"".join(parts)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Returns what `call` returns, or raise TimeoutError: a look-up of a host's name knows no time limit of its own."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = call()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return outcome["value"]
