"""JSON files, read so that whatever is wrong with one is said in a sentence that names it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigpt.errors import UsageError

AS_SAVED = "put it back as it was saved, or save the model again"
_KINDS = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}


def parse_json(content: bytes) -> Any:
    """Parse UTF-8 JSON.

    Raises:
        ValueError: It is none; the message continues a sentence that begins with a name for it.
    """
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start:,})") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if b"\n" in content.strip() else f"column {error.colno}"
        raise ValueError(f"is not JSON ({error.msg.removesuffix(' at')} at {place})") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"is not JSON ({error})") from error


def read_object(file: Path, remedy: str = AS_SAVED) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        file: The file.
        remedy: The end of the sentence if it cannot be read: what to do.

    Raises:
        UsageError: It cannot be read, is not JSON, or holds something other than an object.
    """
    try:
        content = parse_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror or error}); {remedy}.") from error
    except ValueError as error:
        raise UsageError(f"{file} {error}; {remedy}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds {kind_of(content)} and not an object; {remedy}.")
    return content


@contextmanager
def understanding(file: Path, remedy: str = AS_SAVED) -> Iterator[None]:
    """Turn what Python raises while a block uses the content of a JSON file into one sentence that names the file.

    Raises:
        UsageError: A field is missing, or has a value of a wrong type.
    """
    try:
        yield
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(f"{file} lacks {error}; {remedy}.") from error
    except (TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} has a field whose value is of a wrong type; {remedy}.") from error


def kind_of(value: Any) -> str:
    """Return what JSON calls a value that was read from it, with its article."""
    return _KINDS.get(type(value), "an object")
