"""Settings that decide how a text is read."""

from dataclasses import dataclass
from typing import Literal, get_args

from minigpt.errors import CorpusError

DocumentRule = Literal["lines", "rows", "files", "separator"]
RULES: tuple[str, ...] = get_args(DocumentRule)


@dataclass(frozen=True)
class ReadSettings:
    """Settings that decide how a text is read.

    Attributes:
        text_column: Column of the text in rows; by default `text`, or the only column of strings.
        documents: What a document is: `"lines"`, `"rows"` of a dataset, `"files"`, or what is between
            `<|endoftext|>` (`"separator"`). The EOS token then ends each document, and the validation split consists of
            whole documents, shuffled before. By default the text has no documents.

    Raises:
        CorpusError: A value is impossible.
    """

    text_column: str | None = None
    documents: DocumentRule | None = None

    def __post_init__(self) -> None:
        if self.documents not in (None, *RULES):
            raise CorpusError(f"documents is {self.documents!r}; use one of {', '.join(RULES)}.")
