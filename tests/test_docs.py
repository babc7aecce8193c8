"""Every block of code in docs/ runs, in the order of its page, in a folder where a reader would be.

In a block of `sh`, a command of ours is called in this process, a training in a few steps unless it says how many;
`pip install` must name extras that there are, and anything else runs as it stands. In a block of `sh background` is a
server: it runs until its page is over. The lines of a block of `text printed` have to be in the output.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.readme import fill
from minigpt.cli import main
from minigpt.training.data.corpus import PLAYS

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
PAGES = [
    page
    for page in sorted((ROOT / "docs").glob("*.md"))
    if re.search(r"^```(sh|python)", page.read_text("utf-8"), re.M)
]
# What a reader types where a command waits for it: something, and then an end, whatever was asked in between.
TYPED = "hello\n!exit\n!exit\n"
FEW_STEPS = ["--max_steps", "60", "--eval_iters", "1", "--sample_length", "5"]
FEWER_STEPS = ["--max_steps", "5", *FEW_STEPS[2:]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, `my.txt`, and a model trained on it, `runs/seed`."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "my.txt").write_text(PLAYS.read_text(encoding="utf-8")[:50_000], encoding="utf-8", newline="\n")
    run = ["train", "--data", str(folder / "my.txt"), "--output_dir", str(folder / "runs" / "seed"), *FEW_STEPS]
    assert main(run) == 0
    return folder


def blocks(page: Path) -> list[tuple[str, str]]:
    found = re.findall(r"^```(sh background|sh|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [(kind, code) for kind, code in found]


def test_generated_parts_are_what_the_benchmarks_printed() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
    with_parts = {name for name, page in pages.items() if "<!-- generated:" in page}
    assert "vocabularies.md" in with_parts
    for name in with_parts:
        assert fill(pages[name]) == pages[name], name


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_code_runs(
    page: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    shutil.copytree(trained, here)
    monkeypatch.chdir(here)
    if "push" in page.read_text(encoding="utf-8"):
        request.getfixturevalue("hub")
        monkeypatch.setenv("HF_TOKEN", "hf_my_name")
    namespace: dict[str, object] = {"__name__": page.stem}
    with contextlib.ExitStack() as stack:
        for kind, code in blocks(page):
            if kind == "python":
                script = tmp_path / f"{page.stem}.py"  # nnsight reads the source of what it traces
                script.write_text(code, encoding="utf-8")
                exec(compile(code, str(script), "exec"), namespace)
            elif kind == "sh background":
                stack.enter_context(server(code))
            else:
                run_commands(code)
    printed = set("".join(capfd.readouterr()).splitlines())
    for output in re.findall(r"^```text printed\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        assert set(output.splitlines()) <= printed


def run_commands(code: str) -> None:
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["minigpt"]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "stdin", io.StringIO(TYPED))
                trains = words[1] in ("train", "finetune") and "--max_steps" not in words
                assert main([*words[1:], *(FEWER_STEPS if trains else [])]) == 0, line
        elif words[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[([\w,]+)\]", line):
                assert set(extra.split(",")) <= EXTRAS.keys(), line
        elif words:
            subprocess.run([program(words[0]), *words[1:]], check=True, timeout=300, input=TYPED, text=True)


def program(name: str) -> str:
    own = Path(sys.executable).with_name(name)
    return str(own) if own.exists() else name


@contextlib.contextmanager
def server(code: str) -> Iterator[None]:
    words = shlex.split(code.replace("\\\n", " "))
    port = words[words.index("--port") + 1]
    process = subprocess.Popen([program(words[0]), *words[1:]], env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            assert process.poll() is None, "the server has stopped"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        if heading:
            assert heading in headings(target), link


def headings(page: Path) -> set[str]:
    """The anchors that the Hub and GitHub make of a page's headings."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", prose, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
