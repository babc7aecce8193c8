"""A run's folder belongs to one run at a time, and to nobody when that has died."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from minigpt.cli import main
from minigpt.errors import FolderInUse
from minigpt.hub.folders import check_output
from minigpt.hub.run_lock import LOCK, hold_folder, refuse_running

HOLD = """
import sys, time
from pathlib import Path
from minigpt.hub.run_lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A folder that somebody else has locked, by the library that any other process locks it with."""
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / LOCK):
        yield folder


def test_a_folder_is_held_once_and_nothing_is_left_of_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    refused: list[str] = []

    def second_run() -> None:
        try:
            with hold_folder(folder):
                pass
        except FolderInUse as error:
            refused.append(str(error))

    with hold_folder(folder), hold_folder(tmp_path / "deep" / ".." / "deep" / "run"):
        thread = threading.Thread(target=second_run)
        thread.start()
        thread.join()
        refuse_running(folder, "it is this process that holds it")
    assert refused == [f"another run is writing to {folder}; wait until it ends, or name another --output_dir."]
    assert list(tmp_path.iterdir()) == []
    with hold_folder(folder):
        (folder / "config.json").touch()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--output_dir"],
        ["train", "--resume_from_checkpoint", "--output_dir"],
        ["finetune", "no-model", "--output_dir"],
    ],
    ids=" ".join,
)
def test_a_second_run_is_refused_before_it_reads_anything(
    command: list[str], held: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(held), "--device", "cpu", "--data", "no-text"]) == 1
    assert capsys.readouterr().err == (
        f"minigpt: another run is writing to {held}; wait until it ends, or name another --output_dir.\n"
    )
    assert [path.name for path in held.iterdir()] == [LOCK]


def test_the_folder_of_a_living_run_is_not_replaced(held: Path) -> None:
    with pytest.raises(FolderInUse, match=r"a run is writing to .*; name another --output_dir"):
        check_output(held, overwrite=True)


@pytest.mark.slow
def test_a_process_that_is_killed_is_not_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse), hold_folder(folder):
            pytest.fail("both hold it")
        process.kill()
    assert (folder / LOCK).is_file()
    check_output(folder)  # the file that is left is nobody's
    refuse_running(folder, "nobody does")
    with hold_folder(folder):
        pass
