"""Settings that decide how a text is read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadSettings:
    """Settings that decide how a text is read.

    Attributes:
        text_column: Column of the text in rows; by default `text`, or the only column of strings.
    """

    text_column: str | None = None
