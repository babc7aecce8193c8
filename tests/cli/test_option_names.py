"""Claims about options that a command does not have: the answer is the option that does it, or none."""

import pytest

from minigpt.cli import COMMANDS, main
from minigpt.cli.finetune import build_parser as build_finetune_parser
from minigpt.cli.option_names import _KNOWN_AS, refuse_option

FINETUNE = build_finetune_parser()


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    return printed.err.removesuffix("\n")


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["train", "--batch_size", "4"], "use --per_device_train_batch_size."),
        (["train", "--batch-size=4"], "use --per_device_train_batch_size."),
        (["train", "--lr", "1e-3"], "use --learning_rate."),
        (["train", "-lr", "1e-3"], "use --learning_rate."),
        (["finetune", "m", "--epochs", "2"], "use --num_train_epochs."),
        (["finetune", "m", "--train_file", "x"], "use --data."),
        (["train", "--max_iters", "2"], "use --max_steps."),
        (["train", "--n_ctx", "2"], "use --block_size."),
        (["train", "--dtype", "bfloat16"], "use --bf16 or --fp16."),
        (["train", "--fp32"], "float32 is the default, so leave it out."),
        (["train", "--model_name_or_path", "m"], "`minigpt finetune MODEL` trains a model further."),
        (["finetune", "--model_name_or_path", "m"], "name the model without an option: minigpt finetune MODEL ..."),
        (["generate", "--out_dir=m"], "name the model without an option: minigpt generate MODEL ..."),
        (["generate", "m", "--num_return_sequences", "2"], "use -n."),
        (["generate", "m", "--max_length", "2"], "use --max_new_tokens."),
        (["finetune", "m", "--max_length", "2"], "use --block_size."),
        (["finetune", "m", "--train_on_inputs", "true"], "use --assistant_only_loss false."),
        (["finetune", "m", "--quantization_bit", "8"], "use --load_in_4bit or --load_in_8bit."),
        (["finetune", "m", "--test_file", "x"], "see --help_all."),
        (["train", "--window_size", "8"], "use --sliding_window."),
        (["chat", "m", "--temp", "1"], "use --temperature."),
        (["eval", "m", "--dataset", "x"], "use --data."),
        (["push", "m", "r", "--message", "x"], "use --commit_message."),
        # argparse would miss --to first, and --data would take the name.
        (["export", "m", "--format", "onnx"], "use --to."),
        (["import", "m", "--output", "x"], "use --output_dir."),
        (["train", "--max_step=3"], "did you mean --max_steps?"),
        (["generate", "m", "--promt", "x"], "did you mean --prompt?"),
    ],
)
def test_a_name_that_people_know_is_answered_by_the_option_that_does_it(
    argv: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option = next(argument for argument in argv if argument.startswith("-")).partition("=")[0]
    shown = option if argv[0] in ("train", "finetune") else option.replace("-", "_").replace("__", "--")
    assert said(capsys, *argv) == f"minigpt {argv[0]}: there is no option {shown}; {answer}"


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "m", "--dtype", "float16"],
        ["eval", "m", "--batch_size", "4"],
        ["generate", "m", "--top_n", "4"],
        ["finetune", "m", "--dropout", "0.1"],
        ["finetune", "m", "--load_in_2bit"],
        ["train", "--min_steps", "4"],
        ["train", "--fp8"],
    ],
)
def test_what_no_option_does_is_answered_by_none(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    helped = "--help_all" if argv[0] in ("train", "finetune") else "--help"
    assert said(capsys, *argv).endswith(f"; see {helped}.")


def test_every_answer_is_given_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for known, names in _KNOWN_AS.items():
        name = names.split()[0]
        with pytest.raises(SystemExit):
            refuse_option(FINETUNE, f"--{name}")
        answers = [capsys.readouterr().err]
        for command in COMMANDS:
            if command != "finetune":
                main([command, f"--{name}"])
                answers.append(capsys.readouterr().err)
        assert any(answer.endswith(f"there is no option --{name}; use {known}.\n") for answer in answers), known


def test_a_value_that_looks_like_an_option_is_shown_how_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["generate", "m", "--stop", "--x"], ["train", "--output_dir", "--x"]):
        answer = f"minigpt {argv[0]}: {argv[-2]} needs a value; if it is --x, write {argv[-2]}=--x."
        assert said(capsys, *argv) == answer
