import errno
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli import main
from minigpt.errors import SaveError, UsageError
from minigpt.hub.exporting.graph_card import graph_card, is_graph_card
from minigpt.hub.extras import require_extra
from minigpt.hub.folders import check_output, check_path, clear_folder, staged_folder
from minigpt.modeling_minigpt.configuration_bigram import BigramConfig

# A folder with models of every kind, a run, and files of a person, which stay when it is overwritten.
OURS = (
    *("config.json", "model.safetensors", "model-00001-of-00002.safetensors", "adapter_config.json", "tokenizer.json"),
    *("run.json", "sample.txt", "loss.png", "trainer_state.json", "training_args.bin", "base.sha256"),
    *(
        "model.gguf",
        "model.pt2",
        "onnx/model.onnx",
        "onnx/model.onnx.data",
        "modeling_minigpt.py",
        "modeling_bigram.py",
    ),
    *("checkpoint-5/optimizer.pt", "_unfinished/checkpoint-7/optimizer.pt"),
)
FOREIGN = (
    *("notes.txt", "README.md", "LICENSE", "thesis.gguf", "model-old.safetensors", "onnx/other.onnx", "my_code.py"),
    *("checkpoint-best/model.safetensors", "data/input.txt"),
)


def files_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def used(tmp_path: Path) -> Path:
    folder = tmp_path / "used"
    for name in (*OURS, *FOREIGN):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"old {name}", encoding="utf-8")
    return folder


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "model"
    with staged_folder(output) as staging:
        (staging / "config.json").write_text("{}", encoding="utf-8")
        assert not output.exists()
    assert [path.name for path in output.iterdir()] == ["config.json"]
    assert [path.name for path in output.parent.iterdir()] == ["model"]


def test_nothing_is_left_of_a_folder_that_failed(tmp_path: Path) -> None:
    with suppress(RuntimeError), staged_folder(tmp_path / "model") as staging:
        (staging / "half").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_failed_replacement_was_to_replace_is_still_there(tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "model.safetensors").write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), staged_folder(output, overwrite=True):
        raise RuntimeError
    assert (output / "model.safetensors").read_text(encoding="utf-8") == "old"
    with staged_folder(output, overwrite=True) as staging:
        (staging / "model.gguf").write_text("new", encoding="utf-8")
    assert files_in(tmp_path) == {"model/model.gguf": "new"}


def test_what_holds_something_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("", encoding="utf-8")
    for name, reason in (
        ("file", "is a file"),
        ("full", "already holds something"),
        ("file/below", "cannot be written"),
    ):
        with pytest.raises(UsageError, match=reason), staged_folder(tmp_path / name):
            pytest.fail("the work has started")


def test_a_folder_that_would_be_refused_is_refused_early_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="already holds something"):
        check_output(tmp_path / "full")
    check_output(tmp_path / "full", overwrite=True)
    check_output(tmp_path / "deep" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_missing_extra_is_one_sentence_that_says_what_to_install() -> None:
    require_extra("onnx", "it", "json")
    with pytest.raises(UsageError, match=r"^the export needs no_such_module: pip install 'minigpt-hf\[onnx\]'\.$"):
        require_extra("onnx", "the export", "json", "no_such_module")


@pytest.mark.parametrize("output", [".", "", "..", "sub/..", "../here"])
@pytest.mark.parametrize(
    "command",
    [
        ["import", "weights.pt", "--output_dir"],
        ["export", "model", "--to", "gpt2", "--output_dir"],
        ["train", "--data", "input.txt", "--max_steps", "1", "--device", "cpu", "--output_dir"],
        ["finetune", "model", "--data", "input.txt", "--max_steps", "1", "--device", "cpu", "--output_dir"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_takes_the_current_folder_or_one_above_it(
    command: list[str],
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "above" / "here"
    (here / "sub").mkdir(parents=True)
    (here / "thesis.txt").write_text("years of work", encoding="utf-8")
    monkeypatch.chdir(here / "sub" / "..")
    (tmp_path / "weights.pt").touch()
    command = [str(tmp_path / "weights.pt") if word == "weights.pt" else word for word in command]
    before = files_in(tmp_path)
    assert main([*command, output, "--overwrite"]) == 2
    assert re.fullmatch(
        r"minigpt: --output_dir \S+ is or holds the current folder; name a folder of the model's own\.\n",
        capsys.readouterr().err,
    )
    assert files_in(tmp_path) == before


def test_links_and_mount_points_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    try:
        (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(UsageError, match=r"link is a link; name the folder that it leads to: .*real\.$"):
        check_path(tmp_path / "link")
    assert check_path(tmp_path / "link" / "below") == (tmp_path / "real" / "below").resolve()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "real")
    with pytest.raises(UsageError, match=r"real is a mount point; name a folder in it\.$"):
        check_path(tmp_path / "real")


def test_overwriting_replaces_the_model_and_leaves_what_no_command_has_written(used: Path) -> None:
    with staged_folder(used, overwrite=True) as staging:
        (staging / "config.json").write_text("new", encoding="utf-8")
    assert files_in(used) == {"config.json": "new"} | {name: f"old {name}" for name in FOREIGN}
    assert [path.name for path in used.parent.iterdir()] == ["used"]


def test_a_run_that_overwrites_deletes_the_same_files(used: Path) -> None:
    clear_folder(used)
    assert files_in(used).keys() == set(FOREIGN)


def test_a_replaced_folder_keeps_a_persons_card_and_loses_ours(tmp_path: Path) -> None:
    output = tmp_path / "model"
    ours = graph_card(BigramConfig(vocab_size=5), Path("model.pt2"))
    assert is_graph_card(ours)
    for old, kept in ((ours, "new"), ("# Mine\n", "# Mine\n"), (ours.replace("bigram", "poet"), None)):
        output.mkdir()
        (output / "README.md").write_text(old, encoding="utf-8")
        with staged_folder(output, overwrite=True) as staging:
            (staging / "README.md").write_text("new", encoding="utf-8")
        assert (output / "README.md").read_text(encoding="utf-8") == (kept or old)
        shutil.rmtree(output)


@pytest.mark.parametrize(("method", "count"), [("rename", 1), ("rename", 2), ("replace", 1), ("replace", 3)])
def test_a_replacement_that_is_killed_loses_no_file(
    used: Path, method: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    calls = 0
    original = getattr(Path, method)

    def dying(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Killed
        return original(*args)

    with monkeypatch.context() as patched, suppress(Killed), staged_folder(used, overwrite=True) as staging:
        (staging / "config.json").write_text("new", encoding="utf-8")
        patched.setattr(Path, method, dying)
        patched.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # who is killed cleans nothing up
    assert calls == count
    assert set(files_in(used.parent).values()) == {"new", *(f"old {name}" for name in (*OURS, *FOREIGN))}


def test_a_full_disk_leaves_the_old_output(used: Path) -> None:
    before = files_in(used.parent)
    said = r"used could not be written \(No space left on device\); make room on that disk, and run the same command"
    with pytest.raises(SaveError, match=said), staged_folder(used, overwrite=True):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert files_in(used.parent) == before
