"""Pieces of Markdown around text that somebody else wrote, and that must not be read as Markdown."""

import re
from collections.abc import Iterable


def code(text: str) -> str:
    """A code span, on one line and safe in a table too."""
    text = " ".join(text.split())
    ticks = "`" * (_longest_run("`", text) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{ticks}{padding}{text}{padding}{ticks}".replace("|", "\\|")


def plain(text: str) -> str:
    """Words on one line, with whatever Markdown, HTML or a formula could be made of taken literally."""
    text = " ".join(text.split())
    if re.fullmatch(r"[A-Za-z0-9](?:[\w. -]*[A-Za-z0-9])?", text):
        return text
    return re.sub(r"([\\`*_\[\]<>&|~$#:])", r"\\\1", text)


def block(text: str, language: str) -> str:
    """A fenced block that no line of its text can end."""
    # A carriage return ends a line of Markdown too, and many of them would change those of the whole card.
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\N{REPLACEMENT CHARACTER}").rstrip("\n")
    fence = "`" * max(3, _longest_run("`", text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], numbers: bool = False) -> str:
    """A table of cells that are Markdown already; all columns but the first to the right if they are numbers."""
    line = ["---", *(["---:" if numbers else "---"] * (len(head) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, tuple(line), *rows))


def _longest_run(character: str, text: str) -> int:
    return max(map(len, re.findall(f"{re.escape(character)}+", text)), default=0)
