"""Packages that only some doors need."""

from importlib.util import find_spec

from minigpt.errors import UsageError


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Refuses, before any work starts, what the packages of an extra are needed for and are not there for.

    Args:
        extra: The extra's name.
        purpose: What it is needed for, as the subject of a sentence.
        *modules: The modules that have to be there.

    Raises:
        UsageError: One of them is missing; the message says what to install.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UsageError(f"{purpose} needs {', '.join(missing)}: pip install 'minigpt-hf[{extra}]'.")
