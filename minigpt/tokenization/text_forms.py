"""Line ends and Unicode normal forms: texts that look the same are brought to the same characters."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Literal

Newlines = Literal["keep", "unix"]
NormalForm = Literal["nfc", "nfd", "none"]
# Options that read a text in another form, the simple ones first.
_OPTIONS: dict[str, tuple[Newlines, NormalForm]] = {
    "--newlines unix": ("unix", "none"),
    "--normalize nfc": ("keep", "nfc"),
    "--normalize nfd": ("keep", "nfd"),
    "--newlines unix --normalize nfc": ("unix", "nfc"),
    "--newlines unix --normalize nfd": ("unix", "nfd"),
}
_NAMED = 5


def convert(text: str, newlines: Newlines, form: NormalForm) -> str:
    r"""Return a text with every line end as `\n`, if `newlines` is `unix`, and in a normal form, if one is named."""
    if newlines == "unix":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if form == "none":
        return text
    return unicodedata.normalize("NFC" if form == "nfc" else "NFD", text)


def convert_pieces(pieces: Iterable[str], newlines: Newlines, form: NormalForm) -> Iterator[str]:
    """Yield a text that comes in pieces, converted as `convert` converts the whole."""
    rest = ""
    for piece in pieces:
        text = rest + piece
        cut = next((at for at in range(len(text) - 1, 0, -1) if _begins_anew(text, at)), 0)
        if cut:
            yield convert(text[:cut], newlines, form)
        rest = text[cut:]
    if rest:
        yield convert(rest, newlines, form)


def suggest_option(lacking_in: Callable[[Newlines, NormalForm], Set[str]]) -> tuple[str, str] | None:
    """Find out if a vocabulary lacks fewer characters of a text in another form.

    Args:
        lacking_in: Returns the characters of the text in a form that the vocabulary lacks.

    Returns:
        The option that reads a text in that form, and a clause about what it achieves; None if no form helps.
    """
    lacking = lacking_in("keep", "none")
    best = None
    for option, form in _OPTIONS.items():
        left = lacking_in(*form)
        if left < lacking:
            best, lacking = option, left
    if best is None:
        return None
    named = ", ".join(f"{character!r}" for character in sorted(lacking)[:_NAMED])
    return best, f"with which the vocabulary lacks {f'only {named}' if lacking else 'nothing'}"


def _begins_anew(text: str, at: int) -> bool:
    """Return True if what is before a character can be converted apart from what begins with it."""
    character = text[at]
    if character < "\u0300":
        return character != "\n" or text[at - 1] != "\r"
    # Marks, the later letters of a Hangul syllable and the vowels of Kirat Rai may join the character before.
    joins = "\u1160" <= character <= "\u11ff" or "\U00016d40" <= character <= "\U00016d7f"
    return not joins and unicodedata.category(character)[0] != "M"
