"""Our Trainer does what a loop written out by hand does, only watched, and so does the stock one with our model."""

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from minigpt.cli import main
from minigpt.cli.train import main as main_train
from minigpt.errors import TrainingInterrupted
from minigpt.training.checkpoints import all_checkpoints, checkpoint_fault
from minigpt.training.data.batches import RandomCrops, blocks
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.presets import get_preset
from minigpt.training.trainer import MiniGPTTrainer

BLOCK = 8


@pytest.fixture
def build_trainer(arguments, build_model, tokens, tokenizer):
    def build(model=None, **changes):
        args = arguments(**{"save_strategy": "no", **changes})
        return MiniGPTTrainer(model or build_model(), args, tokens, processing_class=tokenizer)

    return build


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def assert_close(one, other, **tolerance):
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def train_by_hand(model, stream, optimizer_class, clip, steps, batch_size):
    """The lecture's loop, on the crops that the Trainer is to take, in order."""
    # The biases and norms are not decayed, as is the habit of transformers.
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = optimizer_class(groups, lr=1e-2)
    crops = RandomCrops(stream, BLOCK, seed=42)
    model.train()
    for step in range(steps):
        batch = crops.__getitems__(range(step * batch_size, (step + 1) * batch_size))  # (batch, block + 1)
        logits = model(input_ids=batch[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("name", "optimizer_class", "clip"),
    # A wrong scale of the gradients would not be seen after clipping, nor by AdamW.
    [("adamw_torch", torch.optim.AdamW, 0.5), ("sgd", torch.optim.SGD, math.inf)],
)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (2, 4)])
def test_training_equals_the_loop_written_by_hand(
    build_trainer, build_model, tokens, name, optimizer_class, clip, batch_size, accumulation
):
    trainer = build_trainer(
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        optim=name,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=0.5 if math.isfinite(clip) else 0.0,
    )
    trainer.train()
    by_hand = build_model()
    train_by_hand(by_hand, TokenStream(tokens["train"]), optimizer_class, clip, steps=6, batch_size=8)
    assert_close(weights_of(trainer.model), weights_of(by_hand), rtol=1e-4, atol=1e-5)


def test_short_cut_through_a_step_gives_what_the_stock_step_gives(build_trainer, build_model, monkeypatch):
    shorter = build_trainer(build_model(dropout=0.1).eval(), gradient_accumulation_steps=2)
    assert shorter._is_plain
    shorter.train()
    monkeypatch.setattr(MiniGPTTrainer, "_is_plain", False)
    stock = build_trainer(build_model(dropout=0.1).eval(), gradient_accumulation_steps=2)
    stock.train()
    assert_close(weights_of(shorter.model), weights_of(stock.model), rtol=0, atol=0)
    assert shorter.state.log_history[:-1] == stock.state.log_history[:-1]


def test_short_cut_is_not_taken_where_a_loss_says_that_it_is_scaled(build_trainer, build_model, monkeypatch):
    monkeypatch.setattr(MiniGPTTrainer, "loss_is_scaled_for_ga", True)
    gradients = []
    for is_plain in (True, False):
        monkeypatch.setattr(MiniGPTTrainer, "_is_plain", is_plain)
        trainer = build_trainer(gradient_accumulation_steps=2)
        trainer.current_gradient_accumulation_steps = 2
        trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
        gradients.append({name: weight.grad for name, weight in trainer.model.named_parameters()})
    assert_close(*gradients, rtol=0, atol=0)


def test_label_smoothing_smooths_what_it_should(build_trainer, build_model, tokens):
    trainer = build_trainer(label_smoothing_factor=0.2, max_steps=1, logging_steps=1, eval_strategy="no")
    crops = RandomCrops(TokenStream(tokens["train"]), BLOCK, seed=42).__getitems__(range(4))
    logits = build_model()(input_ids=crops[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), crops[:, 1:].flatten(), label_smoothing=0.2)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(expected.item(), rel=1e-5)


def test_model_learns_more_than_which_characters_there_are(build_trainer, build_model, tokens):
    trainer = build_trainer(build_model(n_embd=16), max_steps=150, per_device_train_batch_size=16, eval_interval=150)
    trainer.train()
    stream = TokenStream(tokens["train"])
    counts = torch.from_numpy(stream.crops([0], len(stream))[0]).bincount().double()
    frequencies = counts[counts > 0] / counts.sum()
    unigram = -(frequencies * frequencies.log()).sum().item()
    first, *_, last = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert first == pytest.approx(math.log(trainer.model.config.vocab_size), abs=0.1)
    assert last < unigram - 0.5


def test_stock_trainer_with_stock_arguments_trains_the_model(build_model, tokens, tokenizer, tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, max_steps=60, learning_rate=1e-2, logging_steps=20, disable_tqdm=True
    )
    dataset = blocks(TokenStream(tokens["train"]), BLOCK)
    trainer = Trainer(build_model(), args, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.3


def test_our_trainer_takes_stock_datasets_as_well(arguments, build_model, tokens, tokenizer):
    dataset = blocks(TokenStream(tokens["validation"]), BLOCK)
    trainer = MiniGPTTrainer(
        build_model(), arguments(), train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
    )
    trainer.train()
    assert trainer.state.global_step == 6
    assert "eval_loss" in trainer.evaluate()


def test_bfloat16_computes_in_bfloat16_and_keeps_the_weights_whole(build_trainer, build_model):
    seen = []
    model = build_model()
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer = build_trainer(model, bf16=True, eval_strategy="no", eval_on_start=False)
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert all(weight.dtype == torch.float32 for weight in trainer.model.parameters())


def test_estimate_says_all_that_it_promises_and_hands_no_text_to_integrations(build_trainer):
    logged = []

    class Integration(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            logged.append(dict(logs))

    trainer = build_trainer(sample_length=12)
    trainer.add_callback(Integration())
    trainer.train()
    estimates = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in estimates] == [0, 3, 6]
    for entry in estimates:
        assert entry["eval_bits_per_character"] == pytest.approx(entry["eval_loss"] / math.log(2))
        assert entry["eval_perplexity"] == pytest.approx(math.exp(entry["eval_loss"]))
        assert entry["eval_train_loss"] > 0
        assert len(entry["eval_sample"]) == 12
    assert all(isinstance(value, float | int) for logs in logged for value in logs.values())


def test_gradient_norm_is_logged_where_it_is_needed_and_not_computed_otherwise(build_trainer):
    for norm, is_logged in ((1.0, True), (0.0, False)):
        trainer = build_trainer(max_grad_norm=norm)
        trainer.train()
        losses = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 2
        assert all(("grad_norm" in entry) == is_logged for entry in losses)


def test_floating_point_operations_are_counted_as_in_transformers(build_trainer):
    trainer = build_trainer()
    batch = {"input_ids": torch.zeros(4, BLOCK, dtype=torch.long)}
    assert trainer.floating_point_ops(batch) == Trainer.floating_point_ops(trainer, batch)
    assert trainer.floating_point_ops({}) == 0


def test_early_stopping_ends_with_the_best_weights(build_trainer, monkeypatch):
    losses = iter([5.0, 4.0, 4.5, 4.6, 4.7])
    monkeypatch.setattr(
        "minigpt.training.trainer.estimate_loss", lambda *a, **k: {"train": 1.0, "validation": next(losses)}
    )
    trainer = build_trainer(max_steps=100, eval_interval=2, early_stopping_patience=2, save_strategy="steps")
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.state.best_global_step == 2
    best = load_file(f"{trainer.args.output_dir}/checkpoint-2/model.safetensors")
    assert_close(best, weights_of(trainer.model), rtol=0, atol=0)


def test_run_that_diverges_ends_in_one_sentence_and_keeps_its_checkpoint(build_trainer, tmp_path, monkeypatch, capsys):
    losses = iter([5.0, 4.0, math.nan])
    monkeypatch.setattr(
        "minigpt.training.trainer.estimate_loss", lambda *a, **k: {"train": 1.0, "validation": next(losses)}
    )
    monkeypatch.setattr("minigpt.training.trainer.write_sample", lambda *a, **k: next(losses) and "")  # draws nothing
    trainer = build_trainer(max_steps=9, save_strategy="steps")
    best = tmp_path / "run" / "checkpoint-3"
    with pytest.raises(
        FloatingPointError, match=r"after step 6 the loss is nan.*learning_rate of 0.01 is too"
    ) as error:
        trainer.train()
    assert str(error.value).endswith(f"try a lower one (the best checkpoint from before is {best}).")
    assert all_checkpoints(tmp_path / "run") == [best]
    assert "val nan" in capsys.readouterr().out


def test_arguments_of_another_kind_are_refused(build_model, tokens, tmp_path):
    with pytest.raises(TypeError, match="args must be MiniGPTTrainingArguments, got TrainingArguments"):
        MiniGPTTrainer(build_model(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), tokens)


def test_text_shorter_than_a_block_is_refused(build_model, arguments, tokens):
    with pytest.raises(ValueError, match="choose a smaller block_size or a longer text"):
        MiniGPTTrainer(build_model(block_size=5000), arguments(), tokens)


# -- Ctrl-C --


def press_ctrl_c(at_step, times=1, number=signal.SIGINT):
    class Person(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == at_step:
                for _ in range(times):
                    signal.raise_signal(number)

    return Person()


@pytest.fixture
def options(text_file, tmp_path):
    small = ["--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", "8", "--dropout", "0.2"]
    short = ["--max_steps", "10", "--eval_interval", "4", "--eval_iters", "1", "--device", "cpu"]
    return ["--data", str(text_file), "--output_dir", str(tmp_path / "run"), *small, *short]


def interrupt(monkeypatch, **when):
    original = MiniGPTTrainer.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(press_ctrl_c(**when))

    monkeypatch.setattr(MiniGPTTrainer, "__init__", init)


def test_ctrl_c_saves_a_checkpoint_says_where_and_exits_130(options, tmp_path, monkeypatch, capsys):
    def handler(*signal_and_frame):
        raise AssertionError("a program's own handler was called")

    before = signal.signal(signal.SIGINT, handler)
    with monkeypatch.context() as patched:
        interrupt(patched, at_step=6)
        with pytest.raises(SystemExit) as stop:
            main_train(options)
    assert stop.value.code == 130
    assert signal.signal(signal.SIGINT, before) is handler
    said = capsys.readouterr().err
    assert f"Stopped after step 7; the checkpoint is {tmp_path / 'run' / 'checkpoint-7'}." in said
    assert "--resume_from_checkpoint" in said
    main_train([*options, "--resume_from_checkpoint"])
    main_train([*options, "--output_dir", str(tmp_path / "whole")])
    assert_close(
        load_file(tmp_path / "run" / "model.safetensors"),
        load_file(tmp_path / "whole" / "model.safetensors"),
        rtol=0,
        atol=0,
    )


def test_sigterm_saves_a_checkpoint_and_exits_143(options, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        interrupt(patched, at_step=6, number=signal.SIGTERM)
        assert main(["train", *options]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"Stopped after step 7; the checkpoint is {tmp_path / 'run' / 'checkpoint-7'}." in capsys.readouterr().err
    assert checkpoint_fault(tmp_path / "run" / "checkpoint-7") is None
    with monkeypatch.context() as patched:
        interrupt(patched, at_step=2, number=signal.SIGTERM)
        again = ["--data", options[1], "--output_dir", str(tmp_path / "tuned"), "--max_steps", "5", "--device", "cpu"]
        assert main(["finetune", str(tmp_path / "run" / "checkpoint-7"), *again]) == 143
    assert checkpoint_fault(tmp_path / "tuned" / "checkpoint-3") is None


def test_second_ctrl_c_stops_at_once(options, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, at_step=6, times=2)
        with pytest.raises(KeyboardInterrupt) as stop:
            main_train(options)
    assert not isinstance(stop.value, TrainingInterrupted)
    assert not (tmp_path / "run" / "checkpoint-7").exists()


# -- several processes --

TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo is not part of torch on Windows")
def test_two_processes_train_as_one_with_twice_the_batch_and_resume(options, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import sys\nfrom minigpt.cli.train import main\nmain(sys.argv[1:])\n", "utf-8")
    two = [*TWO_PROCESSES, str(script), *options, "--dropout", "0", "--ddp_backend", "gloo", "--logging_steps", "3"]
    two += ["--save_steps", "4", "--save_total_limit", "9"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(two, capture_output=True, text=True, check=True, env=environment)
    assert sum(line.startswith("step") for line in first.stdout.splitlines()) == 4  # one process prints: 0, 4, 8, 10
    batch = str(2 * get_preset("seed").training["per_device_train_batch_size"])
    one = [*options, "--dropout", "0", "--per_device_train_batch_size", batch, "--output_dir", str(tmp_path / "one")]
    main_train([*one, "--eval_iters", "1"])
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert_close(weights, load_file(tmp_path / "one" / "model.safetensors"), rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "run" / "checkpoint-4").glob("rng_state_*.pth"))) == 2

    again = [*two, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-4")]
    subprocess.run(again, capture_output=True, text=True, check=True, env=environment)
    assert_close(load_file(tmp_path / "run" / "model.safetensors"), weights, rtol=0, atol=0)


def test_each_private_method_of_transformers_that_is_overridden_is_listed_and_still_exists() -> None:
    listed = set(re.findall(r"`(_\w+)`", sys.modules[MiniGPTTrainer.__module__].__doc__ or ""))
    assert {name for name in vars(MiniGPTTrainer) if re.match("_[a-z]", name) and hasattr(Trainer, name)} <= listed
    assert len(listed) <= 7
    for name in listed:
        assert hasattr(Trainer, name), (
            f"transformers {transformers.__version__} has no Trainer.{name}; find what replaced it and adapt "
            f"{MiniGPTTrainer.__module__}"
        )


def test_a_local_run_imports_nothing_that_publishes(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("To be, or not to be, that is the question.\n" * 50, encoding="utf-8")
    code = (
        "import sys; from minigpt.cli import main;"
        "main(['train', '--data', 'my.txt', '--max_steps', '1', '--eval_iters', '1', '--n_layer', '1']);"
        "print(*[name for name in sys.modules if 'publish' in name and name.startswith('minigpt')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "runs" / "seed" / "model.safetensors").is_file()
    assert done.stderr.split() == []


def test_an_evaluation_of_another_dataset_in_training_neither_saves_nor_ends_it(
    build_trainer, tokens, tmp_path
) -> None:
    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.evaluate(trainer.eval_dataset)

    changes = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "no", "keep_best": True}
    trainer = build_trainer(output_dir=str(tmp_path), **changes)
    trainer.add_callback(Evaluate())
    trainer.train()
    assert [checkpoint.name for checkpoint in all_checkpoints(tmp_path)] == ["checkpoint-3"]


def test_a_training_that_failed_is_over(build_trainer) -> None:
    class Fail(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("stop")

    trainer = build_trainer(max_steps=2)
    trainer.add_callback(Fail())
    with pytest.raises(RuntimeError, match="stop"):
        trainer.train()
    assert not trainer.is_in_train
