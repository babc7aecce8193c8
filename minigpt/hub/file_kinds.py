"""Names for files that are not UTF-8 text, by their first bytes."""

import codecs

# Bytes to look at.
HEAD = 1024
_MARKS = {  # UTF-32 first: its little-endian mark begins with the one of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_FEWEST = 8
_LETTERS = bytes([*b"\t\n\r", *range(0x20, 0x7F), *range(0xA0, 0x100)])
_EXTRACT = "extract its text, for example with pdftotext"
_UNPACK, _AS_TEXT, _A_TEXT = "unpack it", "save it as plain text", "give a text file"
_KINDS = (
    (b"%PDF-1", "a PDF document", _EXTRACT),
    (b"%PDF-2", "a PDF document", _EXTRACT),
    (b"PK\x03\x04", "a ZIP archive, as Word, EPUB and OpenDocument files are", f"{_AS_TEXT}, or {_UNPACK}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Word or Excel document", _AS_TEXT),
    (b"{\\rtf1", "an RTF document", _AS_TEXT),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (b"BZh91AY&SY", "compressed with bzip2", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"PAR1\x15", "a Parquet file", "let its name end in .parquet"),
    (b"ARROW1\0\0", "an Arrow file", "give the folder that save_to_disk of datasets wrote, or a Parquet file"),
    (b"SQLite format 3\0", "an SQLite database", "export its text, for example as CSV"),
    (b"\x89PNG\r\n", "an image", _A_TEXT),
    (b"\xff\xd8\xff", "an image", _A_TEXT),
)


def name_encoding(head: bytes) -> str | None:
    """Return a clause that names the Unicode encoding, other than UTF-8, in which a file begins, and what to do."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return f"is not UTF-8 but {name} (its byte order mark says so); {_remedy(name.lower())}"
    # Every other byte of Latin letters is zero in UTF-16.
    for name, letters, zeros in (("utf-16-le", head[::2], head[1::2]), ("utf-16-be", head[1::2], head[::2])):
        if len(head) >= _FEWEST and zeros.count(0) > len(zeros) / 2 and not letters.translate(None, _LETTERS):
            return f"looks like UTF-16 without a byte order mark; {_remedy(name)}"
    return None


def name_format(head: bytes) -> str | None:
    """Return a clause that names the format of a file that is no text, and what to do."""
    return next((f"is not text but {name}; {remedy}" for magic, name, remedy in _KINDS if head.startswith(magic)), None)


def _remedy(encoding: str) -> str:
    return f"add --encoding {encoding}, or save it as UTF-8"
