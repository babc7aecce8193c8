"""A run: what it makes, what it says, and what it refuses before it starts."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt.cli import main
from minigpt.cli.train import main as main_train
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.training import output_folder
from minigpt.training import run as completion
from minigpt.training.data.corpus import load_text
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.data.tokens import tokenize_corpus
from minigpt.training.evaluation import validation_loss
from minigpt.training.train import train

SMALL = ["--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", "8", "--device", "cpu"]
SHORT = ["--max_steps", "4", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "10"]
FEW = {"max_steps": 2, "eval_iters": 1, "sample_length": 0}


@pytest.fixture
def options(text_file, tmp_path):
    return ["--data", str(text_file), "--output_dir", str(tmp_path / "run"), *SMALL, *SHORT]


def files_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*")) if folder.exists() else []


def test_folder_holds_all_that_a_run_promises(options, tmp_path, tokens):
    main_train(options)
    folder = tmp_path / "run"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    exact = validation_loss(model, TokenStream(tokens["validation"]), 8)
    assert report["losses"]["validation"]["loss"] == pytest.approx(exact.loss, abs=1e-6)
    assert report["losses"]["validation"]["targets"] == len(TokenStream(tokens["validation"])) - 1
    assert report["model"]["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert report["training"]["tokens"] == 4 * 16 * 8
    assert [point["step"] for point in report["losses"]["curves"]] == [0, 2, 4]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    sample = (folder / "sample.txt").read_text(encoding="utf-8")
    assert len(sample) == 500 + 1
    assert set(sample) <= set(tokenizer.stoi) | {"\n"}
    assert model.config.use_cache


def test_saved_model_samples_as_the_lecture_does(options, tmp_path):
    main_train(options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    settings = model.generation_config
    assert (settings.do_sample, settings.top_k) == (True, 0)
    assert settings.suppress_tokens == sorted(tokenizer.all_special_ids)
    assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_pipe_gets_plain_lines_and_no_bar(options, capfd, monkeypatch):
    losses = iter([5.0, 1.0, 2.0])  # the best checkpoint is not the last, and is opened to be measured
    monkeypatch.setattr(
        "minigpt.training.trainer.estimate_loss", lambda *a, **k: {"train": 1.0, "validation": next(losses)}
    )
    main_train(options)
    out, err = capfd.readouterr()
    assert [line.split()[1] for line in out.splitlines() if line.startswith("step")] == ["0/4", "2/4", "4/4"]
    assert "\r" not in out + err
    assert "{'" not in out  # the stock Trainer prints dictionaries
    assert "the best checkpoint, chosen" in out
    assert "Writing model shards" not in err
    assert "Loading weights" not in err
    assert "warning" not in err.lower()


def test_last_line_is_a_command_that_works(options, tmp_path, capsys):
    main_train(options)
    last = capsys.readouterr().out.splitlines()[-1]
    command = last.removeprefix("more     minigpt ").split()
    assert command == ["generate", str(tmp_path / "run"), "--stream"]
    assert main([*command, "--max_new_tokens", "5"]) == 0


def test_run_that_diverges_saves_no_model_and_says_why(options, tmp_path, capsys):
    assert main(["train", *options, "--learning_rate", "1e30", "--optim", "sgd"]) == 1
    error = capsys.readouterr().err
    assert "most likely because a learning_rate of 1e+30 is too high" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_run_that_diverges_unwatched_saves_no_model_and_says_why(options, tmp_path):
    unwatched = ["--eval_strategy", "no", "--no_eval_on_start", "--learning_rate", "1e30", "--optim", "sgd"]
    with pytest.raises(FloatingPointError, match="after step 4 the loss is nan"):
        main_train([*options, *unwatched])
    assert not (tmp_path / "run" / "config.json").exists()


def test_bigram_preset_trains(text_file, tmp_path):
    run = train("bigram", text_file, device="cpu", training={"output_dir": str(tmp_path / "run"), "max_steps": 3})
    assert type(run.model).__name__ == "BigramForCausalLM"
    assert math.isfinite(run.validation.loss)


def test_folder_that_holds_a_model_is_refused_and_left_as_it_was(options, tmp_path):
    main_train(options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ValueError, match=r"already holds a model.*--resume_from_checkpoint.*--overwrite"):
        main_train(options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_overwrite_replaces_the_run_and_nothing_else(options, tmp_path):
    main_train(options)
    notes = tmp_path / "run" / "notes.txt"
    notes.write_text("mine", encoding="utf-8")
    main_train([*options, "--max_steps", "2", "--overwrite"])
    assert notes.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["training"]["steps"] == 2


def test_overwrite_leaves_no_code_of_another_kind_of_model(options, tmp_path):
    same = options[: options.index("--n_embd")]
    main_train(["--preset", "bigram", *same, *SHORT])
    assert (tmp_path / "run" / "modeling_bigram.py").is_file()
    main_train([*options, "--overwrite"])
    names = {path.name for path in (tmp_path / "run").glob("*.py")}
    assert "modeling_minigpt.py" in names
    assert not any("bigram" in name for name in names)


@pytest.mark.parametrize("moment", ["draw_losses", "write_json", "replace 1", "replace 3", "replace 10", "replace 13"])
def test_run_killed_in_its_final_save_never_shows_results_of_other_weights(options, tmp_path, monkeypatch, moment):
    folder = tmp_path / "run"
    shutil.copy(options[1], tmp_path / "verse.txt")
    main_train(options)

    class Killed(BaseException):
        pass

    calls, replace = 0, Path.replace

    def die(*args):
        raise Killed

    def die_in_time(source, target):
        nonlocal calls
        calls += Path(target).parent == folder
        return die() if calls == int(moment.split()[1]) else replace(source, target)

    with monkeypatch.context() as fatal:
        if moment.startswith("replace"):
            fatal.setattr(Path, "replace", die_in_time)
        else:
            fatal.setattr(f"minigpt.training.run.{moment}", die)
        # Who is killed cleans nothing up.
        fatal.setattr("minigpt.training.trainer.remove_unfinished", lambda run_dir: None)
        with pytest.raises(Killed):
            main_train([*options, "--max_steps", "8", "--resume_from_checkpoint", "--resume_with_changes"])
    assert_results_are_of_the_weights(folder)
    main_train([*options, "--max_steps", "8", "--resume_from_checkpoint", "--resume_with_changes"])
    assert_results_are_of_the_weights(folder)
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["training"]["steps"] == 8
    assert not (folder / "_unfinished").exists()


def assert_results_are_of_the_weights(folder):
    """What a folder says of its model is true, or it says nothing."""
    if not (folder / "run.json").is_file():
        assert not list(folder.glob("loss.png")) or not list(folder.glob("sample.txt"))
        return
    losses = json.loads((folder / "run.json").read_text(encoding="utf-8"))["losses"]["validation"]
    corpus = load_text(folder.parent / "verse.txt")
    tokens = tokenize_corpus(corpus, AutoTokenizer.from_pretrained(folder))
    exact = validation_loss(AutoModelForCausalLM.from_pretrained(folder), TokenStream(tokens["validation"]), 8)
    assert losses["loss"] == pytest.approx(exact.loss, abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits of this kind")
def test_disk_that_takes_no_more_ends_a_run_in_one_sentence_and_the_run_can_go_on(options, tmp_path):
    # The weights fit under the limit, and the optimizer's state does not: torch's own writer meets it.
    limited = (
        "import resource, sys; from minigpt.cli import main; import pathlib\n"
        "limit = 2 * pathlib.Path(sys.argv[1]).stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "raise SystemExit(main(sys.argv[2:]))"
    )
    wide = [*options, "--n_embd", "128", "--save_steps", "2"]
    main_train([*wide, "--max_steps", "2"])
    weights, command = (
        tmp_path / "run" / "model.safetensors",
        ["train", *wide, "--resume_from_checkpoint", "--resume_with_changes"],
    )
    ended = subprocess.run(
        [sys.executable, "-c", limited, str(weights), *command], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("minigpt: ")]
    assert line.startswith(f"minigpt: {tmp_path / 'run' / 'checkpoint-4'} could not be written (the disk takes no more")
    assert f"{tmp_path / 'run' / 'checkpoint-2'} is whole" in line
    assert "inline_container" not in ended.stderr
    assert main(command) == 0


@pytest.mark.parametrize(
    ("extra", "copies"),
    [
        ([], 1 + 3 * 3),  # two checkpoints and a third while it is written, each with both states of Adam; the model
        (["--save_total_limit", "1"], 1 + 3 * 3),  # the best one stays beside the last
        (["--save_total_limit", "4"], 1 + 3 * 5),
        (["--save_only_model"], 1 + 3),
        (["--save_strategy", "no"], 1),
    ],
    ids=str,
)
def test_room_is_counted_for_all_that_is_there_at_once(options, tokenizer, monkeypatch, tmp_path, extra, copies):
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda path: usage)
    config = MiniGPTConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, block_size=8)
    parameters = sum(weight.numel() for weight in MiniGPTForCausalLM(config).parameters())
    with pytest.raises(ValueError, match=rf"needs about {parameters * 4 * copies / 1e6:.1f} MB and"):
        main_train([*options, "--n_embd", "32", *extra])


def test_room_that_a_run_has_taken_already_is_not_asked_for_again(options, tmp_path, monkeypatch, capsys):
    main_train(options)
    one = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoint-4").rglob("*"))
    usage = shutil.disk_usage(tmp_path)._replace(free=one)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda path: usage)
    main_train([*options, "--max_steps", "6", "--resume_from_checkpoint", "--resume_with_changes"])
    main_train([*options, "--overwrite"])


def test_output_dir_that_is_a_file_is_refused(options, tmp_path):
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file; name another --output_dir"):
        main_train(options)


def test_output_that_cannot_be_written_is_refused_before_work(options, tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(output_folder.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"cannot be written \(Permission denied\); name another --output_dir"):
        main_train(options)
    assert files_in(tmp_path / "run") == []


def test_disk_without_room_is_refused_before_work(options, tmp_path, tokenizer, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda path: usage)
    config = MiniGPTConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, block_size=8)
    parameters = sum(weight.numel() for weight in MiniGPTForCausalLM(config).parameters())
    # The model; two checkpoints and a third while it is written, each with the weights and both states of Adam.
    needed = parameters * 4 * (1 + 3 * 3)
    with pytest.raises(ValueError, match=rf"needs about {needed / 1e6:.1f} MB and the disk of .* has 0.0 MB free"):
        main_train([*options, "--n_embd", "32"])
    assert files_in(tmp_path / "run") == []


def test_text_shorter_than_a_block_is_refused_before_work(options, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("to be or not to be", encoding="utf-8")
    with pytest.raises(ValueError, match="choose a smaller block_size or a longer text"):
        main_train([*options, "--data", str(short)])
    assert files_in(tmp_path / "run") == []


def test_device_that_is_not_here_is_refused(options, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="there is no device 'mps' here"):
        main_train([*options, "--device", "mps"])
    assert files_in(tmp_path / "run") == []


def test_resuming_another_model_is_refused_by_field(options):
    main_train(options)
    with pytest.raises(ValueError, match=r"checkpoint-4 has hidden_size 8 and this run 16"):
        main_train([*options, "--n_embd", "16", "--resume_from_checkpoint"])


def test_resuming_another_kind_of_model_is_refused_before_its_fields_are_compared(options, text_file, capfd):
    main_train(options)
    capfd.readouterr()
    bigram = ["--preset", "bigram", "--data", str(text_file), "--output_dir", options[3], "--resume_from_checkpoint"]
    with pytest.raises(
        ValueError, match=r"checkpoint-4 holds a model of type 'minigpt' and this run .*'minigpt_bigram'"
    ):
        main_train(bigram)
    assert capfd.readouterr() == ("", "")


def test_resuming_on_another_text_of_the_same_characters_is_refused(options, text_file, tmp_path):
    main_train(options)
    lines = text_file.read_text(encoding="utf-8").splitlines(keepends=True)
    text_file_moved = tmp_path / "moved.txt"
    text_file_moved.write_text("".join(lines), encoding="utf-8", newline="\n")
    main_train([*options, "--data", str(text_file_moved), "--max_steps", "5", "--resume_from_checkpoint"])
    other = tmp_path / "other.txt"
    other.write_text("".join(reversed(lines)), encoding="utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"checkpoint-5 was trained on another text .*go on with the text that it"):
        main_train([*options, "--data", str(other), "--resume_from_checkpoint"])


def test_resuming_on_another_vocabulary_is_refused(options, text_file, tmp_path):
    main_train(options)
    for name in ("text.sha256", "SHA256SUMS"):  # as where the Trainer was not told the text
        (tmp_path / "run" / "checkpoint-4" / name).unlink()
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text(encoding="utf-8").replace("k", "z"), encoding="utf-8")
    with pytest.raises(ValueError, match="another vocabulary"):
        main_train([*options, "--data", str(other), "--resume_from_checkpoint"])


def test_resuming_where_nothing_is_says_so(options):
    with pytest.raises(ValueError, match="holds no whole checkpoint to go on from"):
        main_train([*options, "--resume_from_checkpoint"])


def test_resumed_run_goes_on_to_more_steps(options, tmp_path):
    main_train(options)
    main_train([*options, "--max_steps", "6", "--resume_from_checkpoint", "--resume_with_changes"])
    report = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert report["training"]["steps"] == 6
    assert [point["step"] for point in report["losses"]["curves"]] == [0, 2, 4, 6]


def test_last_checkpoint_that_is_damaged_is_passed_over_and_said(options, tmp_path, caplog, capsys):
    options += ["--save_steps", "2"]
    main_train(options)
    weights = tmp_path / "run" / "checkpoint-4" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    capsys.readouterr()
    main_train([*options, "--resume_from_checkpoint"])
    said = f"{weights.parent} is damaged (its model.safetensors is missing or damaged) and passed over."
    assert caplog.messages == [said]
    assert "going on from checkpoint-2" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == whole


def assert_no_bar_stays(err):
    *_, overwritten_with, after = err.split("\r")
    assert (overwritten_with.strip(), after) == ("", "")


def test_terminal_gets_a_bar_with_the_time_left_that_is_gone_at_the_end(options, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main_train(options)
    out, err = capsys.readouterr()
    assert re.search(r"training +100% \|.*\| 4/4, 00:00 left", err)
    assert_no_bar_stays(err)
    assert "training" not in out


def test_bar_is_gone_also_after_an_error(options, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(FloatingPointError) as error:  # kept, or the bar would go with what holds it
        main_train([*options, "--learning_rate", "1e30", "--optim", "sgd"])
    assert "loss is nan" in str(error.value)
    assert_no_bar_stays(capsys.readouterr().err)


@pytest.mark.parametrize("learning_rate", ["1e-3", "5.0"])
def test_a_model_kept_for_its_estimate_is_called_chosen_also_where_it_is_the_last(text_file, tmp_path, learning_rate):
    # At the higher rate the best checkpoint is an earlier one.
    few = {
        "max_steps": 8,
        "eval_interval": 4,
        "eval_iters": 1,
        "sample_length": 0,
        "learning_rate": float(learning_rate),
    }
    chosen = train(
        "seed", text_file, training={**few, "output_dir": str(tmp_path / "a"), "load_best_model_at_end": True}
    )
    last = train("seed", text_file, training={**few, "output_dir": str(tmp_path / "b")})
    assert chosen.report["model"]["chosen_on_validation"]
    assert (chosen.report["model"]["step"] == 8) == (learning_rate == "1e-3")
    assert not last.report["model"]["chosen_on_validation"]


@pytest.mark.parametrize("name", ["Ca$$h songs.txt", "中文小说.txt", "long " * 40 + ".txt"])
def test_a_run_ends_well_whatever_its_text_is_called(name, tmp_path, text_file):
    text = tmp_path / name
    text.write_bytes(Path(text_file).read_bytes())
    run = train("seed", text, training={**FEW, "output_dir": str(tmp_path / "run")})
    assert (run.folder / "loss.png").is_file()
    assert json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["data"]["name"] == name


def test_early_stopping_can_be_added_to_a_run_that_is_resumed(options, tmp_path):
    main_train(options)
    main_train([*options, "--resume_from_checkpoint", "--max_steps", "8", "--early_stopping_patience", "9"])
    state = json.loads((tmp_path / "run" / "checkpoint-8" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["stateful_callbacks"]["EarlyStoppingCallback"]["args"]["early_stopping_patience"] == 9


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_run_its_model(tmp_path, text_file, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("no such glyph")

    monkeypatch.setattr(completion, "draw_losses", fail)
    run = train("seed", text_file, training={**FEW, "output_dir": str(tmp_path / "run")})
    assert {"model.safetensors", "run.json", "sample.txt"} <= {path.name for path in run.folder.iterdir()}
    assert "loss.png could not be drawn: no such glyph." in capsys.readouterr().err


def test_what_is_changed_about_a_training_is_recorded(text_file, tmp_path):
    changed = {"adam_epsilon": 0.5, "label_smoothing_factor": 0.25, "neftune_noise_alpha": 0.1, "hub_token": "hf_x"}
    report = train("seed", text_file, training={**FEW, **changed, "output_dir": str(tmp_path / "run")}).report
    assert {name: report["training"].get(name) for name in changed} == {**changed, "hub_token": None}
    assert report["training"]["eval_iters"] == 1
    assert not {"output_dir", "report_to", "use_cpu"} & report["training"].keys()
