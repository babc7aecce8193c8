"""Fills the generated parts of README.md and docs/ from `benchmarks/results/`, and measures those results anew.

    python -m benchmarks.readme                            fill in what was measured
    python -m benchmarks.readme --measure train_step run   measure these first (all: every one of them)

Each result is what a command printed: `python -m benchmarks.NAME`, and for `run`, `minigpt train`.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PICTURE = DOCS / "loss.png"
NAMES = ("run", "losses", "baselines", "train_step", "generate", "tokenizer", "data")
OF_PAGES = ("precision", "memory", "vocabularies", "chat")
OPTIONS = {"baselines": ("--data", "tiny_shakespeare"), "precision": ("--batch", "4")}
_SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
_ESTIMATES_SHOWN, _SAMPLE_LINES = 2, 16


def measure(name: str) -> None:
    """Runs the command of a result and keeps what it prints."""
    text = _first_run() if name == "run" else _output("-m", f"benchmarks.{name}", *OPTIONS.get(name, ()))
    if "\n| " not in f"\n{text}":
        text = f"```text\n{text.strip()}\n```\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def fill(page: str) -> str:
    """The README, or a page, with every generated part as it was last measured."""
    return _SECTION.sub(lambda part: part[1] + (RESULTS / f"{part[2]}.md").read_text(encoding="utf-8") + part[3], page)


def _first_run() -> str:
    """What `minigpt train` prints on a pipe, shortened, and its picture, copied to `docs/`."""
    with tempfile.TemporaryDirectory() as folder:
        printed = _output("-m", "minigpt", "train", cwd=folder)
        PICTURE.parent.mkdir(exist_ok=True)
        shutil.copyfile(Path(folder) / "runs" / "seed" / "loss.png", PICTURE)
    return shorten(printed)


def shorten(printed: str) -> str:
    """Leaves the first estimates and the last, the result, and the beginning of the sample."""
    lines = printed.splitlines()
    steps = [i for i, line in enumerate(lines) if line.startswith("step ")]
    result = next(i for i, line in enumerate(lines) if line.startswith("validation loss"))
    model = next(i for i, line in enumerate(lines) if line.startswith("model    "))
    sample = next(i for i in range(result, model) if not lines[i]) + 1
    kept = [*lines[: steps[_ESTIMATES_SHOWN]], "...", *lines[steps[-1] : sample + _SAMPLE_LINES]]
    return "\n".join([*kept, "...", "", *lines[model:]])


def _output(*arguments: str, cwd: str | Path = ROOT) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, check=True, text=True, encoding="utf-8"
    ).stdout


def main(argv: list[str] | None = None) -> None:
    """Measures what was asked for and fills the README and the pages."""
    parser = argparse.ArgumentParser(description="Fills the generated parts of README.md and docs/.")
    parser.add_argument("--measure", nargs="+", choices=(*NAMES, *OF_PAGES, "all"), default=[], metavar="NAME")
    arguments = parser.parse_args(argv)
    for name in (*NAMES, *OF_PAGES) if "all" in arguments.measure else arguments.measure:
        measure(name)
    for page in (README, *DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if fill(text) != text:
            page.write_text(fill(text), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
