"""Checkpoints are whole or not there, and a run that was stopped anywhere ends as if it had not been."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from minigpt.cli.train import main as main_train
from minigpt.errors import CheckpointError, FolderInUse, SaveError, UsageError
from minigpt.hub.run_lock import LOCK
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.training.checkpoints import (
    UNFINISHED,
    all_checkpoints,
    checkpoint_fault,
    delete_surplus,
    find_checkpoint,
    last_whole_checkpoint,
)
from minigpt.training.checksums import CHECKSUMS, write_checksums
from minigpt.training.trainer import MiniGPTTrainer

# Everything that a resumed run has to bring back is in play: dropout, momentum, a schedule, accumulation, checkpoints
# in the middle of a logging window, samples, a best checkpoint.
EVENTFUL = {
    "max_steps": 12,
    "logging_steps": 5,
    "eval_interval": 4,
    "save_steps": 3,
    "save_total_limit": None,
    "sample_length": 8,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "max_grad_norm": 1.0,
}


@pytest.fixture
def build_trainer(arguments, build_model, tokens, tokenizer):
    def build(folder, **changes):
        args = arguments(output_dir=str(folder), **{**EVENTFUL, **changes})
        return MiniGPTTrainer(build_model(dropout=0.2), args, tokens, processing_class=tokenizer)

    return build


def trained(trainer):
    trainer.train()
    return trainer


def history(trainer):
    """All that was logged, but for how long it took."""
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{key: value for key, value in entry.items() if key not in timed} for entry in trainer.state.log_history]


def weights(trainer):
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def damage(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_same_seed_gives_the_same_losses_and_weights(build_trainer, tmp_path):
    one, other = (trained(build_trainer(tmp_path / name)) for name in ("one", "other"))
    assert history(one) == history(other)
    assert_same_weights(weights(one), weights(other))


def test_another_seed_gives_other_losses(build_trainer, tmp_path):
    one, other = (trained(build_trainer(tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    assert history(one)[-1]["train_loss"] != history(other)[-1]["train_loss"]


@pytest.mark.parametrize("step", [3, 4, 9, 12])
def test_resumed_run_ends_as_the_uninterrupted_one(build_trainer, tmp_path, step):
    whole = build_trainer(tmp_path / "run")
    whole.train()
    resumed = build_trainer(tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert history(resumed) == history(whole)
    assert_same_weights(weights(resumed), weights(whole))
    assert_same_weights(resumed.optimizer.state_dict()["state"][0], whole.optimizer.state_dict()["state"][0])


def test_run_of_epochs_resumes_in_its_second_epoch_and_sees_new_crops(build_trainer, tmp_path):
    few_crops = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 96}
    whole = build_trainer(tmp_path / "run", **few_crops)
    steps_an_epoch = len(whole.train_dataset) // (2 * 96)
    whole.train()
    assert whole.state.global_step == 2 * steps_an_epoch
    step = all_checkpoints(tmp_path / "run")[-2]
    assert int(step.name.partition("-")[2]) > steps_an_epoch
    resumed = build_trainer(tmp_path / "run", **few_crops)
    resumed.train(resume_from_checkpoint=str(step))
    assert history(resumed) == history(whole)
    sampler = whole._get_train_sampler()
    first = list(sampler)
    sampler.set_epoch(1)
    assert not set(first) & set(sampler)


def test_evaluating_and_sampling_change_nothing_about_the_training(build_trainer, tmp_path):
    watched = trained(build_trainer(tmp_path / "watched", eval_interval=1, sample_length=20))
    quiet = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
    unwatched = trained(build_trainer(tmp_path / "unwatched", **quiet))
    assert_same_weights(weights(watched), weights(unwatched))


def test_checkpoint_opens_as_a_model(build_trainer, tmp_path):
    trainer = build_trainer(tmp_path / "run")
    trainer.train()
    model = MiniGPTForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-12")
    assert_same_weights(model.state_dict(), weights(trainer))
    assert model.config.use_cache


def test_state_in_a_checkpoint_names_no_folder_that_is_gone(build_trainer, tmp_path):
    build_trainer(tmp_path / "run").train()
    for checkpoint in all_checkpoints(tmp_path / "run"):
        text = (checkpoint / "trainer_state.json").read_text(encoding="utf-8")
        assert UNFINISHED not in text
        best = json.loads(text)["best_model_checkpoint"]
        assert best is None or best == str(tmp_path / "run" / f"checkpoint-{json.loads(text)['best_global_step']}")
    assert not (tmp_path / "run" / UNFINISHED).exists()


def test_best_checkpoint_outlives_the_limit_and_comes_back_at_the_end(build_trainer, tmp_path, monkeypatch):
    trainer = build_trainer(tmp_path / "run", save_total_limit=1, load_best_model_at_end=True, save_steps=4)
    losses = iter([5.0, 4.0, 1.0, 2.0])  # before the first step, and after steps 4, 8, 12
    monkeypatch.setattr(
        "minigpt.training.trainer.estimate_loss", lambda *a, **k: {"train": 1.0, "validation": next(losses)}
    )
    at_eight = {}
    original = trainer._save_checkpoint

    def save(*args):
        if trainer.state.global_step == 8:
            at_eight.update(weights(trainer))
        original(*args)

    monkeypatch.setattr(trainer, "_save_checkpoint", save)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-8")
    assert (tmp_path / "run" / "checkpoint-8").is_dir()
    assert_same_weights(weights(trainer), at_eight)


@pytest.mark.parametrize("keep_best", [True, False])
def test_lowest_estimates_are_saved_also_between_the_regular_saves(build_trainer, tmp_path, monkeypatch, keep_best):
    losses = iter([5.0, 4.0, 3.0, 4.0])  # before the first step, and after steps 2, 4, 6
    monkeypatch.setattr(
        "minigpt.training.trainer.estimate_loss", lambda *a, **k: {"train": 1.0, "validation": next(losses)}
    )
    build_trainer(tmp_path / "run", save_steps=100, eval_interval=2, max_steps=6, keep_best=keep_best).train()
    saved = [path.name for path in all_checkpoints(tmp_path / "run")]
    assert saved == (["checkpoint-2", "checkpoint-4", "checkpoint-6"] if keep_best else ["checkpoint-6"])


def test_limit_of_one_leaves_the_last_checkpoint_beside_the_best_to_go_on_from(build_trainer, tmp_path, monkeypatch):
    losses = iter([5.0, 1.0, 2.0, 3.0])  # before the first step, and after steps 4, 8, 12
    monkeypatch.setattr(
        "minigpt.training.trainer.estimate_loss", lambda *a, **k: {"train": 1.0, "validation": next(losses)}
    )
    trainer = trained(build_trainer(tmp_path / "run", save_total_limit=1, save_steps=4))
    assert {path.name for path in all_checkpoints(tmp_path / "run")} == {"checkpoint-4", "checkpoint-12"}
    assert trainer.args.save_total_limit == 1


def test_limit_deletes_the_oldest_written_not_the_newest(tmp_path):
    for step, written in ((500, 1), (1000, 2), (600, 3)):  # a run that went back to step 500
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", ns=(written, written))
    delete_surplus(tmp_path, 2, {tmp_path / "checkpoint-600"})
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-600", "checkpoint-1000"]


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
        *("trainer_state.json", "config.json", "tokenizer.json"),
    ],
)
def test_damaged_checkpoint_is_passed_over_and_named(build_trainer, tmp_path, caplog, name):
    whole = build_trainer(tmp_path / "run")
    whole.train()
    last = tmp_path / "run" / "checkpoint-12"
    damage(last / name)
    with caplog.at_level("WARNING"):
        assert last_whole_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-9"
    assert caplog.messages == [f"{last} is damaged (its {name} is missing or damaged) and passed over."]
    with pytest.raises(CheckpointError, match=f"its {name} is missing or damaged; name another"):
        find_checkpoint(tmp_path / "run", str(last))
    resumed = build_trainer(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(whole)
    assert checkpoint_fault(last) is None  # written again, whole


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def set_back(file):
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(state | {"global_step": 2}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *[(name, flip_a_bit) for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")],
        ("running_loss.json", os.unlink),
        ("trainer_state.json", set_back),
        (CHECKSUMS, damage),
    ],
)
def test_checkpoint_with_a_changed_byte_is_refused(build_trainer, tmp_path, name, harm):
    build_trainer(tmp_path / "run", max_steps=3).train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert checkpoint_fault(checkpoint) is None
    harm(checkpoint / name)
    assert checkpoint_fault(checkpoint).endswith("is missing or damaged")
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        build_trainer(tmp_path / "run", max_steps=3).train(resume_from_checkpoint=True)


def test_recorded_checksums_are_those_of_all_files_but_the_pickle_that_nothing_reads(build_trainer, tmp_path):
    build_trainer(tmp_path / "run", max_steps=3).train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    lines = (checkpoint / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    files = sorted(path for path in checkpoint.iterdir() if path.name not in (CHECKSUMS, "training_args.bin"))
    assert lines == [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json", "tokenizer.json"],
)
def test_checkpoint_that_lacks_a_file_is_no_checkpoint(build_trainer, tmp_path, name):
    build_trainer(tmp_path / "run", max_steps=3).train()
    (tmp_path / "run" / "checkpoint-3" / CHECKSUMS).unlink()  # as a stock Trainer writes it
    (tmp_path / "run" / "checkpoint-3" / name).unlink()
    assert name.partition(".")[0] in checkpoint_fault(tmp_path / "run" / "checkpoint-3")


@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_checkpoint_of_several_files_of_weights_needs_all_of_them_and_their_index(build_trainer, tmp_path, lost):
    trainer = trained(build_trainer(tmp_path / "run", max_steps=3))
    checkpoint = tmp_path / "run" / "checkpoint-3"
    (checkpoint / CHECKSUMS).unlink()
    (checkpoint / "model.safetensors").unlink()
    half = sum(weight.nbytes for weight in weights(trainer).values()) // 2
    trainer.model.save_pretrained(checkpoint, max_shard_size=half + 1024)
    assert checkpoint_fault(checkpoint) is None
    (checkpoint / lost).unlink()
    assert lost in checkpoint_fault(checkpoint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("lm_head.bias"), r"lm_head\.bias is missing"),
        (lambda weights: weights.update(soul=torch.ones(3)), "soul is left over"),
        (lambda weights: weights.update({"lm_head.bias": torch.ones(3)}), r"shape \[3\] where \[\d+\] belongs"),
        (lambda weights: weights["lm_head.bias"].fill_(float("nan")), r"not finite \(lm_head\.bias\)"),
    ],
)
def test_a_run_goes_on_only_with_the_weights_of_its_own_model(build_trainer, tmp_path, change, said):
    build_trainer(tmp_path / "run", max_steps=3).train()
    file = tmp_path / "run" / "checkpoint-3" / "model.safetensors"
    changed = load_file(file)
    change(changed)
    save_file(changed, file, {"format": "pt"})
    write_checksums(file.parent)
    resumed = build_trainer(tmp_path / "run")
    for use in (
        lambda: resumed.train(resume_from_checkpoint=str(file.parent)),
        lambda: resumed.score_checkpoint(file.parent),
    ):
        with pytest.raises(UsageError, match=said):
            use()


def test_a_model_whose_head_is_its_embedding_table_goes_on(arguments, build_model, tokens, tokenizer):
    for how in ({"max_steps": 3, "save_steps": 3}, {"max_steps": 4, "resume_from_checkpoint": True}):
        model = build_model(tie_word_embeddings=True, lm_head_bias=False)
        args = arguments(**how, lr_scheduler_type="constant")
        trainer = MiniGPTTrainer(model, args, tokens, processing_class=tokenizer)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    assert trainer.state.global_step == 4


def test_best_checkpoint_that_is_damaged_is_not_loaded_at_the_end(build_trainer, tmp_path, caplog):
    build_trainer(tmp_path / "run", load_best_model_at_end=True, save_steps=4).train()
    state = json.loads((tmp_path / "run" / "checkpoint-12" / "trainer_state.json").read_text(encoding="utf-8"))
    damage(tmp_path / "run" / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    other = next(path for path in all_checkpoints(tmp_path / "run") if checkpoint_fault(path) is None)
    shutil.copy(tmp_path / "run" / "checkpoint-12" / "trainer_state.json", other)
    write_checksums(other)
    resumed = build_trainer(tmp_path / "run", load_best_model_at_end=True, save_steps=4)
    with caplog.at_level("WARNING"):
        resumed.train(resume_from_checkpoint=str(other))
    assert "the best checkpoint, is lost: its model.safetensors is missing or damaged." in caplog.text


def test_moved_run_finds_its_best_checkpoint(build_trainer, tmp_path):
    build_trainer(tmp_path / "run", max_steps=8, save_steps=4).train()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    moved = build_trainer(tmp_path / "moved", max_steps=8, save_steps=4)
    moved.train(resume_from_checkpoint=True)
    assert moved.state.best_model_checkpoint == str(tmp_path / "moved" / f"checkpoint-{moved.state.best_global_step}")


# What torch and safetensors say of a disk that is full.
FULL = [
    (OSError(28, "No space left on device"), "No space left on device"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "the disk takes no more"),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
]


@pytest.mark.parametrize(("error", "reason"), FULL, ids=lambda value: type(value).__name__)
def test_full_disk_is_one_sentence_that_says_what_is_whole(build_trainer, tmp_path, monkeypatch, error, reason):
    trainer = build_trainer(tmp_path / "run")
    original, run = torch.save, tmp_path / "run"

    def save(value, file, *args, **kwargs):
        if trainer.state.global_step >= 6 and str(file).endswith("optimizer.pt"):
            raise error
        original(value, file, *args, **kwargs)

    with monkeypatch.context() as full:
        full.setattr(torch, "save", save)
        with pytest.raises(SaveError) as raised:
            trainer.train()
    said = re.sub(rf"\({reason}.*?\)", "(reason)", str(raised.value))
    assert said == (
        f"{run / 'checkpoint-6'} could not be written (reason); make room on that disk, then use the same command and "
        f"--resume_from_checkpoint; {run / 'checkpoint-4'} is whole and the run goes on from there."
    )
    assert not (run / UNFINISHED).exists()
    whole = trained(build_trainer(tmp_path / "whole"))
    resumed = build_trainer(run)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(resumed), weights(whole))


def test_other_errors_of_a_save_keep_their_own_words(build_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *args, **kwargs: torch.zeros(2).view(3))
    with pytest.raises(RuntimeError, match="shape"):
        build_trainer(tmp_path / "run").train()


def test_saving_the_model_once_more_replaces_it_whole_or_not_at_all(build_trainer, tmp_path, monkeypatch):
    trainer = trained(build_trainer(tmp_path / "run"))
    trainer.save_model()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()

    def half(model, folder, **kwargs):
        (Path(folder) / "model.safetensors").write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MiniGPTForCausalLM, "save_pretrained", half)
    with pytest.raises(SaveError, match=r"run could not be written \(No space left on device\)"):
        trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "run" / UNFINISHED).exists()


def test_checkpoint_that_vanishes_while_it_is_read_is_not_taken_for_the_start(build_trainer, tmp_path, monkeypatch):
    trained(build_trainer(tmp_path / "run"))
    resumed = build_trainer(tmp_path / "run")
    loop = resumed._inner_training_loop

    def lose_and_train(*args, **kwargs):  # the weights are loaded by now
        shutil.rmtree(tmp_path / "run" / "checkpoint-6")
        return loop(*args, **kwargs)

    monkeypatch.setattr(resumed, "_inner_training_loop", lose_and_train)
    with pytest.raises(CheckpointError, match=r"checkpoint-6 is at step 6 and its state was gone"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))


def test_trainer_is_refused_a_folder_in_which_another_run_trains(build_trainer, tmp_path):
    trainer = build_trainer(tmp_path / "run")
    with FileLock(tmp_path / "run" / LOCK), pytest.raises(FolderInUse, match="another run is writing to"):
        trainer.train()
    trainer.train()
    assert not (tmp_path / "run" / LOCK).exists()


def test_failed_save_leaves_no_trace_and_the_last_whole_one(build_trainer, tmp_path, monkeypatch):
    trainer = build_trainer(tmp_path / "run")
    original = torch.save

    def save(value, file, *args, **kwargs):
        if trainer.state.global_step >= 6 and str(file).endswith("optimizer.pt"):
            raise OSError(28, "No space left on device")
        original(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert not (tmp_path / "run" / UNFINISHED).exists()
    assert last_whole_checkpoint(tmp_path / "run").name == "checkpoint-4"


def test_leftovers_of_a_dead_run_are_cleaned_up_at_the_next_start(build_trainer, tmp_path):
    leftover = tmp_path / "run" / UNFINISHED / "checkpoint-2"
    leftover.mkdir(parents=True)
    (leftover / "optimizer.pt").write_bytes(b"half")
    build_trainer(tmp_path / "run", save_strategy="no").train()
    assert not leftover.parent.exists()


def test_callbacks_see_a_saved_checkpoint_whole_and_under_its_final_name(build_trainer, tmp_path):
    saved = []

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved.append(trainer.last_checkpoint)
            assert checkpoint_fault(trainer.last_checkpoint) is None

    trainer = build_trainer(tmp_path / "run")
    trainer.add_callback(Watch())
    trainer.train()
    assert saved == [tmp_path / "run" / f"checkpoint-{step}" for step in (3, 4, 6, 8, 9, 12)]


# -- a real SIGKILL, which nothing can catch --

OPTIONS = [
    *("--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", "8", "--dropout", "0.2", "--device", "cpu"),
    *("--max_steps", "60", "--eval_interval", "10", "--eval_iters", "1", "--sample_length", "5"),
    *("--save_steps", "7", "--logging_steps", "6", "--max_grad_norm", "1"),
]

# Dies as soon as so many files of a checkpoint have been written.
DIES_WHILE_SAVING = """
import os, signal, sys
import torch
from minigpt.training.checksums import CHECKSUMS, write_checksums
from minigpt.cli.train import main as main_train
files_left = int(sys.argv.pop(1))
save = torch.save
def save_and_die(value, file, *args, **kwargs):
    global files_left
    save(value, file, *args, **kwargs)
    files_left -= 1
    if not files_left:
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save_and_die
main_train(sys.argv[1:])
"""
JUST_TRAINS = "import sys; from minigpt.cli.train import main as main_train; main_train(sys.argv[1:])"

needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")


@pytest.fixture
def options(text_file, tmp_path, request):
    more = getattr(request, "param", [])
    return ["--data", str(text_file), "--output_dir", str(tmp_path / "run"), *OPTIONS, *more]


@pytest.fixture
def uninterrupted(options, tmp_path):
    """The weights and the losses that a run without a kill ends with."""
    main_train([*options, "--output_dir", str(tmp_path / "uninterrupted")])
    return outcome(tmp_path / "uninterrupted")


def outcome(folder):
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    log = [{key: value for key, value in entry.items() if key not in timed} for entry in state["log_history"]]
    return load_file(folder / "model.safetensors"), log


def assert_same_outcome(one, other):
    assert one[1] == other[1]
    assert_same_weights(one[0], other[0])


@needs_sigkill
@pytest.mark.parametrize(
    "options",
    [pytest.param([], id="text"), pytest.param(["--documents", "lines"], id="documents", marks=pytest.mark.slow)],
    indirect=True,
)
def test_killed_while_saving_it_resumes_to_the_same_end(options, uninterrupted, tmp_path):
    killed = subprocess.run([sys.executable, "-c", DIES_WHILE_SAVING, "14", *options], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "run" / UNFINISHED).is_dir()
    main_train([*options, "--resume_from_checkpoint"])
    assert_same_outcome(outcome(tmp_path / "run"), uninterrupted)


@needs_sigkill
@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 2, 3, 4, 5, 6, 7, 8])
def test_killed_at_any_file_of_a_checkpoint_it_resumes_to_the_same_end(options, uninterrupted, tmp_path, files):
    killed = subprocess.run(
        [sys.executable, "-c", DIES_WHILE_SAVING, str(files), *options], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    resume = ["--resume_from_checkpoint"] if all_checkpoints(tmp_path / "run") else []
    main_train([*options, *resume])
    assert_same_outcome(outcome(tmp_path / "run"), uninterrupted)


@needs_sigkill
@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(options, uninterrupted, tmp_path):
    chance = random.Random(time.time_ns())
    kills = 0
    while not (tmp_path / "run" / "run.json").exists():
        resume = ["--resume_from_checkpoint"] if all_checkpoints(tmp_path / "run") else []
        process = subprocess.Popen(
            [sys.executable, "-c", JUST_TRAINS, *options, *resume], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if kills < 6:
            process.stdout.readline()  # it has begun to train
            while process.poll() is None and b"step" not in process.stdout.readline():
                pass
            time.sleep(chance.uniform(0, 0.6))
            process.kill()
            kills += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    assert_same_outcome(outcome(tmp_path / "run"), uninterrupted)
