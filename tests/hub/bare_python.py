"""A Python that has torch and transformers, what these two require, and nothing else."""

import os
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS = ("torch", "transformers")


def required(*names: str) -> dict[str, Distribution]:
    """The distributions of these names and those that they require here, extras left out, by canonical name."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found[name] = distribution(name)
        requirements = [Requirement(line) for line in found[name].requires or ()]
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


class BarePython:
    """Fresh processes that see only a folder of links to those distributions.

    Args:
        folder: Where to make it.

    Raises:
        OSError: Where links cannot be made (Windows without the privilege).
    """

    def __init__(self, folder: Path) -> None:
        self.site, self.home = folder / "site", folder / "home"
        self.site.mkdir(parents=True)
        self.names = set(required(*OURS))
        for one in required(*OURS).values():
            for top in {Path(file).parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
                if not (self.site / top).exists():
                    (self.site / top).symlink_to(one.locate_file(top))

    def run(self, script: Path, *arguments: str | Path) -> None:
        """Runs a script in a process of its own, with caches of its own, far from the network.

        Raises:
            AssertionError: It ends with an error; the message is what it said.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"PYTHONPATH": str(self.site), "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "1"}
        # -S: without site, the packages that are installed beside this Python are out of sight.
        command = [sys.executable, "-S", str(script), *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
