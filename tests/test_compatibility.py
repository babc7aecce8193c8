"""docs/compatibility.md shows every claim that a test makes, and what came of it when it was tried."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from benchmarks import compatibility
from benchmarks.compatibility import PAGE, ROOT, WORKS, render, section_of
from benchmarks.doors import Trial, claims_in, read_trials
from tests.pins import pins

CLAIMS = claims_in(ROOT / "tests")
TESTS = """
import pytest

@pytest.fixture
def broken():
    raise OSError("no such tool")

@pytest.fixture
def dropped():
    yield
    raise RuntimeError("cannot let go")

@pytest.mark.door("several, all well", "pytest", "no-such-package")
@pytest.mark.parametrize("number", [1, 2])
def test_well(number): pass

@pytest.mark.slow
@pytest.mark.door("several, one bad", "pytest")
@pytest.mark.parametrize("number", [1, 2])
def test_one_bad(number):
    assert number == 1, "a | b"

@pytest.mark.door("two tests", "pytest")
def test_first(): pass

@pytest.mark.door("two tests", "packaging")
def test_second(): pytest.skip("not today")

@pytest.mark.door("no set-up", "pytest")
def test_no_set_up(broken): pass

@pytest.mark.door("no tear-down", "pytest")
def test_no_tear_down(dropped): pass

def test_no_door(): assert False
"""


def rows_of(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| what |", "| ---"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    return rows_of(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    """What became of the doors of `TESTS`."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "test_doors.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.doors", "--doors", str(folder / "doors.json")]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-m", "door", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    return read_trials(folder / "doors.json")


def test_every_claim_is_on_the_page_and_every_row_is_a_claim(rows: list[list[str]]) -> None:
    assert sorted(row[0] for row in rows) == sorted(claim.replace("|", "&#124;") for claim in CLAIMS)


def test_every_door_opened(rows: list[list[str]]) -> None:
    assert [row for row in rows if row[2] != WORKS] == []


def test_what_was_tried_were_the_versions_that_are_pinned(rows: list[list[str]]) -> None:
    pinned = {name: str(pin) for name, pin in pins().items()}
    tried = [package.split() for row in rows for package in row[1].split(", ")]
    ours = [(name, shown) for name, shown in tried if canonicalize_name(name) in pinned]
    assert ours
    assert dict(ours) == {name: pinned[canonicalize_name(name)] for name, _ in ours}


def test_every_test_that_a_row_names_is_there(rows: list[list[str]]) -> None:
    named = {link for row in rows for link in re.findall(r"\]\((.+?)\)", row[3])}
    assert {(PAGE.parent / link).resolve() for link in named} == set().union(*CLAIMS.values())


@pytest.mark.parametrize("file", sorted({file for files in CLAIMS.values() for file in files}), ids=lambda f: f.stem)
def test_every_file_that_makes_claims_belongs_to_a_part_of_the_page(file: Path) -> None:
    assert section_of(file.relative_to(ROOT).as_posix())


def test_a_file_of_no_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"tests/test_new.py makes claims and is in no part of the page; put it in"):
        section_of("tests/test_new.py")


def test_a_claim_works_if_all_of_its_tests_pass(
    trials: list[Trial], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compatibility, "SECTIONS", {"First": ("nothing",), "Second": ("test_doors.py",)})
    page = render(trials)
    assert re.findall(r"^## (.+)$", page, re.M) == ["Second"]
    pytest_, packaging = (f"{name} {version(name)}" for name in ("pytest", "packaging"))
    link = "[test_doors.py](../test_doors.py)"
    assert rows_of(page) == [
        ["several, all well", f"{pytest_}, no-such-package (not installed)", "works", f"{link}, `make test`"],
        [
            "several, one bad",
            pytest_,
            "fails: AssertionError: a &#124; b assert 2 == 1",
            f"{link}, `make test-all`",
        ],
        ["two tests", f"{pytest_}, {packaging}", "not tried: not today", f"{link}, `make test`"],
        ["no set-up", pytest_, "fails: OSError: no such tool", f"{link}, `make test`"],
        ["no tear-down", pytest_, "fails: RuntimeError: cannot let go", f"{link}, `make test`"],
    ]


def test_claims_are_found_without_running_anything(tmp_path: Path, trials: list[Trial]) -> None:
    file = tmp_path / "test_doors.py"
    file.write_text(TESTS + "\nraise SystemExit\n", encoding="utf-8")
    assert claims_in(tmp_path) == {trial.claim: {file} for trial in trials}
    file.write_text("@pytest.mark.door(f'{a}')\ndef test(): ...\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"test_doors.py:1: a door's claim must be written out as a string"):
        claims_in(tmp_path)


@pytest.mark.parametrize("arguments", [[], ["tests/hub"]], ids=["all", "some"])
def test_the_page_is_written_only_when_everything_was_tried(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "compatibility.md"
    trial = Trial("it opens", ("pytest",), "tests/hub/test_loading.py", False, "failed", "it is shut")
    monkeypatch.setattr(compatibility, "PAGE", page)
    monkeypatch.setattr(compatibility, "ROOT", tmp_path)
    monkeypatch.setattr(compatibility, "try_doors", lambda arguments: [trial])
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_nothing.py").touch()
    assert compatibility.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "fails: it is shut" in (printed if arguments else page.read_text(encoding="utf-8"))
    assert page.exists() == (not arguments)


def test_tests_that_cannot_run_are_no_result() -> None:
    with pytest.raises(RuntimeError, match="pytest could not run these tests: it ended with status 4"):
        compatibility.try_doors(["tests/no_such_test.py"])
