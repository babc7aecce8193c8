"""Refusal of files that are no text, or text in another encoding."""

from pathlib import Path

from minigpt.errors import CorpusError
from minigpt.hub.file_kinds import HEAD, name_encoding, name_format


def refuse_foreign(path: Path, codec: str) -> None:
    """Refuse a file whose first bytes show that it is no text, or text in another encoding than UTF-8.

    Args:
        path: The file.
        codec: Encoding to read it in; one other than UTF-8 is taken on trust.

    Raises:
        CorpusError: It is such a file; the message names what it is. Or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}.") from error
    if named := name_format(head) or (name_encoding(head) if codec == "utf-8" else None):
        raise CorpusError(f"{path} {named}.")
