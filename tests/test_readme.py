import re
import shlex
from pathlib import Path

import pytest

from benchmarks.readme import NAMES, RESULTS, fill, shorten
from minigpt.cli import main
from minigpt.training.data.corpus import PLAYS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW_STEPS = ["--max_steps", "4", "--eval_iters", "1", "--sample_length", "5", "--overwrite"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("minigpt ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    text = PLAYS.read_text(encoding="utf-8")[:20_000]
    for name in ("my.txt", "input.txt"):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return folder


def test_every_command_and_every_block_of_code_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name, *arguments in commands():
        assert name == "minigpt"
        few = FEW_STEPS if arguments[0] in ("train", "finetune") else []
        assert main([*arguments, *few]) == 0, arguments
    namespace: dict[str, object] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), namespace)


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\S+)$", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert {"run", "test", "test-all"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_generated_parts_are_what_the_commands_printed() -> None:
    pages = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))]
    assert set(re.findall(r"<!-- generated: (\w+) -->", "".join(pages))) == {*NAMES, "headlines"}
    assert fill(README) == README
    assert all((RESULTS / f"{name}.md").stat().st_size > 100 for name in NAMES)


def test_the_headlines_are_the_ratios_of_the_tables() -> None:
    train_step, generation = (
        (RESULTS / f"{name}.md").read_text(encoding="utf-8") for name in ("train_step", "generate")
    )
    ratios = re.findall(r"\*\*([\d.]+) times\*\*", README)
    assert len(ratios) == 2
    assert re.search(rf"^\| `seed` \|.*\| {ratios[0]} \| \S+ \| \S+ \| \S+ \|$", train_step, re.MULTILINE)
    assert re.search(rf"^\| `seed`, inside .*\| {ratios[1]} x \| \S+ x \|$", generation, re.MULTILINE)


def test_the_presets_reach_what_they_are_for() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*$", (RESULTS / "losses.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    table = (RESULTS / "losses.md").read_text(encoding="utf-8").splitlines()
    losses = {name: float(next(row for row in table if f"`{name}`" in row).split("|")[4]) for name in rows}
    assert losses["bigram"] <= 2.51
    assert losses["seed"] <= 1.85
    assert losses["nano-cpu"] <= 1.90


def test_it_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 150


def test_every_file_that_is_linked_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert "docs/loss.png" in links
    assert all((ROOT / link).exists() for link in links)


def test_numbers_outside_the_generated_parts_are_the_splits_and_versions() -> None:
    prose = re.sub(r"<!-- generated.*?<!-- end -->|```.*?```|`[^`]*`|\(https?:[^)]*\)", "", README, flags=re.DOTALL)
    assert set(re.findall(r"(?<![\w-])\d[\d.,]*\d|(?<![\w.-])\d(?![\w.])", prose)) <= {
        "3.11",
        "2",
    }


def test_a_shortened_run_keeps_its_results_and_says_what_it_left_out() -> None:
    printed = [
        "preset  seed",
        "",
        *(f"step {i}\n    sample" for i in range(9)),
        "",
        "validation loss 1.8",
        "9 steps",
        "",
    ]
    printed += [*(f"line {i}" for i in range(30)), "", "model    runs/seed", "picture  runs/seed/loss.png"]
    short = shorten("\n".join(printed)).splitlines()
    assert "validation loss 1.8" in short
    assert "step 8" in short
    assert "step 4" not in short
    assert short.count("...") == 2
    assert short[-1] == "picture  runs/seed/loss.png"
