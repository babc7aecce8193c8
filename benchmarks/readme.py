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
NAMES = (
    *("run", "losses", "baselines", "train_step", "generate", "tokenizer", "data"),
    *("precision", "memory", "vocabularies", "chat"),
)
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
    """Return a page with every generated part as it was last measured."""
    return _SECTION.sub(
        lambda part: part[1] + (headlines() if part[2] == "headlines" else _result(part[2])) + part[3], page
    )


def headlines() -> str:
    """Write the sentence of two ratios that the README quotes from the tables of `train_step` and `generate`."""
    step, generation = _row("train_step", "`seed`"), _row("generate", "`seed`, inside the block of 32")
    return (
        f"A training step of `seed` takes **{step['ours / GPT-2']} times** as long as one of a GPT-2 of the same size "
        "in the stock\n`Trainer`, and `generate()` writes "
        f"**{generation['MiniGPT / GPT-2'].removesuffix(' x')} times** as many tokens per second as that GPT-2.\n"
    )


def _row(name: str, first: str) -> dict[str, str]:
    """Return the row of a result's table that begins with `first`, as values by column."""
    table = [[cell.strip() for cell in line.split("|")] for line in _result(name).splitlines() if line.startswith("|")]
    return dict(zip(table[0], next(row for row in table if row[1] == first), strict=True))


def _result(name: str) -> str:
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


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
    parser.add_argument("--measure", nargs="+", choices=(*NAMES, "all"), default=[], metavar="NAME")
    arguments = parser.parse_args(argv)
    for name in NAMES if "all" in arguments.measure else arguments.measure:
        measure(name)
    for page in (README, *DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if fill(text) != text:
            page.write_text(fill(text), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
