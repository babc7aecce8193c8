"""What every test may rely on: no network, caches of its own, no window, one thread, no setting of whoever runs it.

All of it is environment variables, so that it holds in subprocesses too, and all of it is set here, before a test file
imports huggingface_hub: that library reads its settings once, when it is imported.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

assert "huggingface_hub" not in sys.modules, "huggingface_hub was imported before its caches could be moved"

# Nothing listens on the discard port: whatever asks the network is refused at once, and local servers still answer.
NOWHERE = "http://127.0.0.1:9"
LOCAL = "127.0.0.1,localhost,::1"
CACHES = Path(tempfile.mkdtemp(prefix="minigpt-tests-"))

for name in list(os.environ):
    if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "MINIGPT_")):
        del os.environ[name]
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ[name] = os.environ[name.upper()] = NOWHERE
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = LOCAL
os.environ["HF_ENDPOINT"] = NOWHERE
os.environ["HF_HOME"] = str(CACHES / "huggingface")
os.environ["XDG_CACHE_HOME"] = str(CACHES)
os.environ["MPLBACKEND"] = "Agg"
# The models here are so small that threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("extra"):
            item.add_marker(pytest.mark.slow)


def pytest_unconfigure() -> None:
    # Windows keeps memory-mapped files: what cannot be deleted is left to the system's own cleaning.
    shutil.rmtree(CACHES, ignore_errors=True)
