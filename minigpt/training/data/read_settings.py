"""Settings that decide how a text is read."""

import codecs
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from minigpt.errors import CorpusError
from minigpt.tokenization.text_forms import Newlines, NormalForm, convert_pieces

DocumentRule = Literal["lines", "rows", "files", "separator"]
RULES: tuple[str, ...] = get_args(DocumentRule)


@dataclass(frozen=True)
class ReadSettings:
    r"""Settings for reading a text.

    A field that is None has its default value; `over` fills such fields from other settings.

    Attributes:
        text_column: Column of the text in rows; by default `text`, or the only column of strings.
        documents: What a document is: `"lines"`, `"rows"` of a dataset, `"files"`, or what is between
            `<|endoftext|>` (`"separator"`). The EOS token then ends each document, and the validation split consists of
            whole documents, shuffled before. By default the text has no documents.
        encoding: Encoding of text, JSON and CSV files, with a name that Python knows; by default UTF-8.
        newlines: `"unix"` reads every line end (`\r\n` and `\r` too) as `\n`; `"keep"`, the default, changes none.
        normalize: Unicode normal form to bring the text to, `"nfc"` or `"nfd"`; by default, and with `"none"`, it is
            left as it is.

    Raises:
        CorpusError: A value is impossible.
    """

    text_column: str | None = None
    documents: DocumentRule | None = None
    encoding: str | None = None
    newlines: Newlines | None = None
    normalize: NormalForm | None = None

    def __post_init__(self) -> None:
        if self.documents not in (None, *RULES):
            raise CorpusError(f"documents is {self.documents!r}; use one of {', '.join(RULES)}.")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)  # refuses what is no encoding of text
                codecs.getincrementaldecoder(self.encoding)
            except (LookupError, ValueError):
                raise CorpusError(
                    f"there is no encoding {self.encoding!r}; use a name that Python knows, such as latin-1, cp1252 or "
                    "utf-16."
                ) from None
        if self.newlines not in (None, *get_args(Newlines)):
            raise CorpusError(f"newlines is {self.newlines!r}; use one of {', '.join(get_args(Newlines))}.")
        if self.normalize not in (None, *get_args(NormalForm)):
            raise CorpusError(f"normalize is {self.normalize!r}; use one of {', '.join(get_args(NormalForm))}.")

    @classmethod
    def recorded(cls, record: Any) -> Self:
        """Return the settings that a run recorded; the defaults if it recorded none."""
        known = record if isinstance(record, Mapping) else {}
        return cls(**{field.name: known[field.name] for field in fields(cls) if field.name in known})

    def convert(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield a text that comes in pieces, with its line ends and its normal form as set."""
        newlines, form = self.newlines or "keep", self.normalize or "none"
        return iter(pieces) if (newlines, form) == ("keep", "none") else convert_pieces(pieces, newlines, form)

    @property
    def codec(self) -> str:
        """The encoding by the name that Python gives it."""
        return codecs.lookup(self.encoding or "utf-8").name

    def over(self, other: "ReadSettings") -> "ReadSettings":
        """Return these settings, with those of another where these are None."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return ReadSettings(**{name: theirs if ours is None else ours for name, (ours, theirs) in pairs.items()})

    @property
    def of_model(self) -> "ReadSettings":
        """Only the settings that decide which characters a model knows; the others belong to one text."""
        return ReadSettings(newlines=self.newlines, normalize=self.normalize)
