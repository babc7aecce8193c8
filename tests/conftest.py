"""What every test may rely on: no network, caches of its own, no window, one thread, no setting of whoever runs it.

All of it is environment variables, so that it holds in subprocesses too, and all of it is set here, before a test file
imports huggingface_hub: that library reads its settings once, when it is imported.
"""

import os
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.hub.double import Hub

assert "huggingface_hub" not in sys.modules, "huggingface_hub was imported before its caches could be moved"

# Nothing listens on the discard port: whatever asks the network is refused at once, and local servers still answer.
NOWHERE = "http://127.0.0.1:9"
LOCAL = "127.0.0.1,localhost,::1"
CACHES = Path(tempfile.mkdtemp(prefix="minigpt-tests-"))


# A shell that starts the tests in the background has them ignore Ctrl-C, in subprocesses too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def unused_port() -> int:
    """A port below those that systems give to outgoing connections: it stays unused."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


# Nothing listens there either, but while a test uses the fixture `hub`: libraries read the Hub's address only once.
HUB_PORT = unused_port()

for name in list(os.environ):
    if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "MINIGPT_")):
        del os.environ[name]
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ[name] = os.environ[name.upper()] = NOWHERE
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = LOCAL
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{HUB_PORT}"
os.environ["HF_HOME"] = str(CACHES / "huggingface")
os.environ["XDG_CACHE_HOME"] = str(CACHES)
# Xet's client waits minutes, all in all, before it takes a failure for one.
os.environ["HF_XET_CLIENT_RETRY_BASE_DELAY"] = "10ms"
os.environ["MPLBACKEND"] = "Agg"
# The models here are so small that threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("extra"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Hub]":
    """A local double of the Hub, with nothing in it; `tester` is logged in, and what was cached before is gone.

    It is at the address that every process here already takes for the Hub's; `hub.environment()` gives fresh processes
    caches of their own, and a token.
    """
    from huggingface_hub import HfFileSystem, close_session, constants
    from huggingface_hub.utils import _http, _xet

    from tests.hub.double import running_hub

    def forget() -> None:
        close_session()
        _xet.abort_xet_session()  # type: ignore[no-untyped-call]
        HfFileSystem.clear_instance_cache()
        for cache in (constants.HF_HUB_CACHE, constants.HF_XET_CACHE):
            shutil.rmtree(cache, ignore_errors=True)

    monkeypatch.setenv("HF_TOKEN", "hf_tester")
    # So does the other client, 23 seconds.
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    forget()
    with running_hub(HUB_PORT, tmp_path_factory.mktemp("hub")) as double:
        yield double
    forget()


def pytest_unconfigure() -> None:
    # Windows keeps memory-mapped files: what cannot be deleted is left to the system's own cleaning.
    shutil.rmtree(CACHES, ignore_errors=True)
