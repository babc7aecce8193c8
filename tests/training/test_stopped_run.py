"""Claims about the folder of a run that was stopped: every command that needs a model names the checkpoint inside."""

from pathlib import Path

import pytest

from minigpt.cli import main

SMALL = ["--n_embd", "8", "--n_layer", "1", "--n_head", "1", "--eval_iters", "1", "--sample_length", "3"]


@pytest.fixture(scope="module")
def stopped(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "seed"
    steps = ["--max_steps", "10", "--save_steps", "2"]
    assert main(["train", "--data", str(text_file), "--output_dir", str(run), *SMALL, *steps]) == 0
    for path in run.iterdir():
        if path.is_file():
            path.unlink()
    assert {path.name for path in run.iterdir()} >= {"checkpoint-8", "checkpoint-10"}
    return run


@pytest.mark.parametrize(
    "argv",
    [
        ["generate"],
        ["chat"],
        ["eval", "--data", "plays"],
        ["export", "--to", "torch"],
        ["export", "--to", "merged"],
        ["push", "me/mine"],
        ["finetune", "--data", "plays"],
        ["import"],
    ],
    ids=" ".join,
)
def test_a_command_on_a_stopped_run_names_its_last_checkpoint(
    argv: list[str], stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert main([argv[0], str(stopped), *argv[1:]]) == 2
    said = (
        f"minigpt: the run in {stopped} has not ended, so the folder holds no model; use its last checkpoint, "
        f"{stopped / 'checkpoint-10'}, or finish the run with --resume_from_checkpoint.\n"
    )
    assert capsys.readouterr().err.replace("minigpt finetune:", "minigpt:") == said


def test_the_checkpoint_that_is_named_is_a_model(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(stopped / "checkpoint-10"), "--prompt", "the", "--max_new_tokens", "9"]) == 0
    assert len(capsys.readouterr().out) == len("the") + 9 + len("\n")


def test_a_folder_without_checkpoints_of_use_is_said_to_hold_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    assert main(["generate", str(tmp_path / "run")]) == 1
    said = f"minigpt: the folder {tmp_path / 'run'} holds no model: it has no config.json.\n"
    assert capsys.readouterr().err == said
