"""The versions in constraints.txt."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def lines() -> list[str]:
    """Return the lines of constraints.txt that constrain a package, with their comments."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def package_of(line: str) -> str:
    """Return the canonical name of the package that a line constrains."""
    return canonicalize_name(Requirement(line.partition("#")[0]).name)


def pins() -> dict[str, Version]:
    """Return the pinned version of each package, by its canonical name."""
    found = {}
    for line in lines():
        (specifier,) = Requirement(line.partition("#")[0]).specifier
        assert specifier.operator == "==", f"{line} is not a pin"
        found[package_of(line)] = Version(specifier.version)
    return found
