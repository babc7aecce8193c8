"""The doors of the ecosystem: the claims that tests make with `@pytest.mark.door`, found in their files and tried.

As a plugin of pytest, `-p benchmarks.doors --doors FILE`, it writes down what became of each claim.
"""

import ast
import json
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

_LONGEST_REASON = 160


@dataclass(frozen=True)
class Trial:
    """One test of one claim.

    Attributes:
        claim: What is claimed.
        packages: The packages that it is claimed for.
        file: The test's file, relative to the repository.
        slow: Whether the test is in the slower lane.
        outcome: `passed`, `failed` or `skipped`.
        reason: Why it failed or was skipped, in one line; empty if it passed.
    """

    claim: str
    packages: tuple[str, ...]
    file: str
    slow: bool
    outcome: str
    reason: str


def claims_in(folder: Path) -> dict[str, set[Path]]:
    """Finds the claims of the tests in a folder without running or importing them.

    Returns:
        The files that make each claim.

    Raises:
        ValueError: A claim is not written out as a string.
    """
    claims: dict[str, set[Path]] = {}
    for file in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.door"):
                claim = node.args[0] if node.args else None
                if not (isinstance(claim, ast.Constant) and isinstance(claim.value, str)):
                    raise ValueError(f"{file}:{node.lineno}: a door's claim must be written out as a string.")
                claims.setdefault(claim.value, set()).add(file)
    return claims


def read_trials(file: Path) -> list[Trial]:
    """Reads what the plugin has written down."""
    trials = json.loads(file.read_text(encoding="utf-8"))
    return [Trial(**{**trial, "packages": tuple(trial["packages"])}) for trial in trials]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--doors FILE`."""
    parser.addoption("--doors", type=Path, metavar="FILE", help="where to write what became of the doors")


def pytest_configure(config: pytest.Config) -> None:
    """Starts writing down, if there is a file to write to."""
    if config.getoption("--doors"):
        config.pluginmanager.register(_Recorder(config.getoption("--doors")))


class _Recorder:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.trials: dict[str, list[Trial]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # Of the phases, set-up, call and tear-down, the first that does not pass says what became of the test.
        if report.when == "setup" or (report.outcome != "passed" and self._passed(item)):
            self.trials[item.nodeid] = [
                Trial(
                    claim=mark.args[0],
                    packages=mark.args[1:],
                    file=item.path.relative_to(item.config.rootpath).as_posix(),
                    slow=item.get_closest_marker("slow") is not None,
                    outcome=report.outcome,
                    reason="" if report.outcome == "passed" else _reason(report, call),
                )
                for mark in item.iter_markers("door")
            ]
        return report

    def _passed(self, item: pytest.Item) -> bool:
        return all(trial.outcome == "passed" for trial in self.trials.get(item.nodeid, []))

    def pytest_sessionfinish(self) -> None:
        trials = [asdict(trial) for trials in self.trials.values() for trial in trials]
        self.file.write_text(json.dumps(trials, indent=1), encoding="utf-8")


def _reason(report: pytest.TestReport, call: pytest.CallInfo[None]) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        text = report.longrepr[2].removeprefix("Skipped: ")
    else:
        text = call.excinfo.exconly() if call.excinfo else "no reason was given"
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"
