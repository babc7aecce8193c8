from contextlib import suppress
from pathlib import Path

import pytest

from minigpt.errors import UsageError
from minigpt.hub.extras import require_extra
from minigpt.hub.folders import check_output, staged_folder


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
    (output / "old").write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), staged_folder(output, overwrite=True):
        raise RuntimeError
    assert (output / "old").read_text(encoding="utf-8") == "old"
    with staged_folder(output, overwrite=True) as staging:
        (staging / "new").write_text("new", encoding="utf-8")
    assert [path.name for path in output.iterdir()] == ["new"]


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
