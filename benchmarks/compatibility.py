"""Tries every door of the ecosystem and writes what came of it to docs/compatibility.md.

    python -m benchmarks.compatibility                        try everything and write the page (minutes)
    python -m benchmarks.compatibility tests/hub/test_x.py    try a part, by arguments of pytest, and print its tables

A row is a claim, `@pytest.mark.door("claim", "package", ...)`, and it works if every test that makes it passes.
"""

import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from benchmarks.doors import Trial, claims_in, read_trials

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
WORKS = "works"

# The page's parts, and which tests' files belong to each.
SECTIONS = {
    "Loading": (
        "tests/hub/test_loading.py",
        "tests/hub/test_weights.py",
        "tests/hub/test_subwords.py",
        "tests/hub/test_spaces.py",
    ),
    "Generating": ("tests/hub/test_pipeline.py", "tests/*/test_generat*.py"),
    "Chatting and serving": ("tests/hub/test_chat.py", "tests/hub/test_streaming.py", "tests/hub/test_serving.py"),
    "Exporting": (
        "tests/hub/test_graphs.py",
        "tests/hub/test_exporting.py",
        "tests/hub/test_stock*.py",
        "tests/hub/test_gguf*.py",
    ),
    "Fine-tuning": (
        "tests/training/data/test_conversation*.py",
        *(f"tests/training/test_{name}*.py" for name in ("finetune", "instruction", "lora", "qlora", "together")),
        "tests/training/test_two_processes.py",
        "tests/hub/test_adapter_folders.py",
    ),
    "The Hub": (
        "tests/hub/test_push*.py",
        "tests/hub/test_card.py",
        "tests/training/test_push_callback.py",
        "tests/training/data/test_tokens_on_the_hub.py",
    ),
    "Bringing models in": (
        "tests/hub/test_importing.py",
        "tests/hub/test_nanogpt.py",
        "tests/hub/test_lecture.py",
        "tests/hub/test_pickles.py",
    ),
    "Other people's tools": ("tests/hub/other_tools/*.py",),
}
_INTRODUCTION = """\
# What works with what

Each row is a claim that tests check by running the tool itself: it works if all of them pass. This page is written by
`python -m benchmarks.compatibility`, which tries every row, and never by hand.

Tried with Python {python} on {platform}.
"""
_HEADER = "| what | with | result | tried by |\n| --- | --- | --- | --- |\n"


def section_of(file: str) -> str:
    """The part of the page that a test's file belongs to.

    Args:
        file: The file, relative to the repository.

    Raises:
        ValueError: None of the parts has it.
    """
    for section, patterns in SECTIONS.items():
        if any(fnmatch(file, pattern) for pattern in patterns):
            return section
    raise ValueError(f"{file} makes claims and is in no part of the page; put it in SECTIONS of {Path(__file__).name}.")


def render(trials: Sequence[Trial]) -> str:
    """The page: a table for each part that something was tried of."""
    claims: dict[str, list[Trial]] = {}
    for trial in trials:
        claims.setdefault(trial.claim, []).append(trial)
    rows: dict[str, list[str]] = {section: [] for section in SECTIONS}
    # pytest may run the tests of one file apart from each other, to share what is costly to set up.
    for of_claim in sorted(claims.values(), key=lambda trials: trials[0].file):
        rows[section_of(of_claim[0].file)].append(_row(of_claim))
    where = f"{platform.system()} {platform.machine()}"
    page = _INTRODUCTION.format(python=platform.python_version(), platform=where)
    return page + "".join(f"\n## {section}\n\n{_HEADER}{''.join(lines)}" for section, lines in rows.items() if lines)


def _row(trials: Sequence[Trial]) -> str:
    packages = list(dict.fromkeys(package for trial in trials for package in trial.packages))
    files = list(dict.fromkeys(trial.file for trial in trials))
    links = ", ".join(f"[{Path(file).name}](../{file})" for file in files)
    lane = "make test-all" if any(trial.slow for trial in trials) else "make test"
    cells = (trials[0].claim, ", ".join(map(_with_version, packages)), _result(trials), f"{links}, `{lane}`")
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _with_version(package: str) -> str:
    try:
        # Without the part that says for which device it was built.
        return f"{package} {version(package).partition('+')[0]}"
    except PackageNotFoundError:
        return f"{package} (not installed)"


def _result(trials: Sequence[Trial]) -> str:
    for outcome, says in (("failed", "fails"), ("skipped", "not tried")):
        reasons = [trial.reason for trial in trials if trial.outcome == outcome]
        if reasons:
            return f"{says}: {reasons[0]}"
    return WORKS


def try_doors(arguments: Sequence[str]) -> list[Trial]:
    """Runs the tests that make claims.

    Args:
        arguments: For pytest, to run only some of them.

    Raises:
        RuntimeError: pytest could not run, or found no such test.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "doors.json"
        command = [sys.executable, "-m", "pytest", "-p", "benchmarks.doors", "--doors", str(written), "-m", "door"]
        # What pytest says is for the person who waits; only the tables are printed.
        status = subprocess.run([*command, *arguments], cwd=ROOT, stdout=sys.stderr).returncode
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"pytest could not run these tests: it ended with status {status}.")
        return read_trials(written)


def main(argv: Sequence[str] | None = None) -> int:
    """Tries the doors; returns 1 if one of them does not work."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["-h"], ["--help"]):
        print(__doc__, end="")
        return 0
    for file in set().union(*claims_in(ROOT / "tests").values()):
        section_of(file.relative_to(ROOT).as_posix())  # what cannot be shown is said before it is tried
    trials = try_doors(arguments)
    page = render(trials)
    if arguments:
        print(page, end="")
    else:
        PAGE.write_text(page, encoding="utf-8")
        print(PAGE.relative_to(ROOT))
    return int(any(trial.outcome != "passed" for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
