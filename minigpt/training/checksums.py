"""The SHA-256 of every file of a folder, kept beside them: a changed byte is found before anything is read."""

import hashlib
from collections.abc import Collection
from pathlib import Path

# In the format of `sha256sum`, which can check it too.
CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path, but: Collection[str] = ()) -> None:
    """Records the files that are in a folder now, but those of some names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (CHECKSUMS, *but))
    lines = [f"{_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def changed_file(folder: Path) -> str | None:
    """Returns the name of a recorded file that is missing or was changed, or None if there is none.

    Raises:
        OSError: Nothing is recorded, or it cannot be read.
    """
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    for digest, _, name in (line.partition("  ") for line in lines):
        if not name or not (folder / name).is_file() or _sha256(folder / name) != digest:
            return name or CHECKSUMS
    return None if lines else CHECKSUMS


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
