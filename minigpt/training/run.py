"""Train a model, then score it, save it, plot its losses and write its report."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt.errors import TrainingInterrupted
from minigpt.training.autocast import without_autocast
from minigpt.training.data.corpus import Corpus
from minigpt.training.evaluation import Evaluation
from minigpt.training.interruption import StopOnInterrupt
from minigpt.training.plot import draw_losses
from minigpt.training.report import describe_run, in_units, write_json
from minigpt.training.trainer import MiniGPTTrainer

SAMPLE_TOKENS = 500


@dataclass(frozen=True)
class Run:
    """The results of a finished run.

    Attributes:
        folder: Output folder with the model, the tokenizer, `run.json`, `loss.png`, `sample.txt` and the checkpoints.
        model: The trained model, in evaluation mode.
        tokenizer: Tokenizer of the model.
        validation: Loss over the whole validation split.
        report: Content of `run.json`.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    validation: Evaluation
    report: dict[str, Any]


def describe_text(corpus: Corpus, trainer: MiniGPTTrainer) -> dict[str, Any]:
    """Return the entry of `run.json` about the training text."""
    return {
        "name": corpus.name,
        "bytes": corpus.num_bytes,
        "characters": corpus.count_characters(),
        "sha256": corpus.sha256,
        "train_characters": corpus.count_characters("train"),
        **_describe_documents(corpus),
        "split": asdict(corpus.split),
        "reading": asdict(corpus.reading),
        "split_tokens": {split: len(stream) for split, stream in trainer.streams.items()},
    }


def _describe_documents(corpus: Corpus) -> dict[str, Any]:
    if corpus.documents is None:
        return {}
    held_back = corpus.num_documents - corpus.train_documents
    return {
        "split_documents": {"train": corpus.train_documents, "validation": held_back},
        "is_shuffled": corpus.is_shuffled,
    }


def run_to_the_end(
    trainer: MiniGPTTrainer,
    checkpoint: Path | None,
    *,
    origin: dict[str, Any],
    data: dict[str, Any],
    libraries: Sequence[str] = (),
) -> Run:
    """Train, and write the finished run into the output folder.

    Args:
        trainer: The Trainer of the run.
        checkpoint: Checkpoint to resume from, or None.
        origin: Preset or base model of the run, for `run.json`.
        data: Entry of `run.json` about the training data.
        libraries: Packages to report the versions of, besides those of every run.

    Raises:
        FloatingPointError: The training diverged; its earlier checkpoints are kept.
        PushFailed: The Hub did not accept the push; the run is saved in the output folder.
        TrainingInterrupted: Ctrl-C or SIGTERM stopped the training; a checkpoint is saved.
    """
    _train_until_interrupted(trainer, checkpoint)
    args, state, network = trainer.args, trainer.state, without_autocast(trainer.model).eval()
    network.config.use_cache = True  # the Trainer has turned it off
    folder = Path(args.output_dir)
    validation = trainer.score(network)
    trainer.refuse_divergence(validation.loss)
    best_checkpoint = state.best_model_checkpoint and Path(state.best_model_checkpoint)
    is_chosen = bool(args.load_best_model_at_end and best_checkpoint)
    model_step = state.best_global_step if is_chosen else state.global_step
    best = None
    if best_checkpoint and best_checkpoint.is_dir() and state.best_global_step != model_step:
        best = {
            "step": state.best_global_step,
            "estimate": state.best_metric,
            "checkpoint": best_checkpoint.name,
            "validation": in_units(trainer.score_checkpoint(best_checkpoint)),
        }
    curves = [
        {"step": entry["step"], "train": entry["eval_train_loss"], "validation": entry["eval_loss"]}
        for entry in state.log_history
        if "eval_train_loss" in entry
    ]
    report = describe_run(
        origin,
        network,
        data,
        args,
        trainer.segments,
        steps=state.global_step,
        tokens=trainer.tokens_seen(),
        block_size=trainer.block_size,
        seconds=next(entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry),
        validation=validation,
        model_step=model_step,
        chosen_on_validation=is_chosen,
        best=best,
        curves=curves,
        libraries=libraries,
    )
    sample = trainer.sample(SAMPLE_TOKENS) if args.should_save else ""
    with trainer.staged_files() as staged:
        trainer.save_model(str(staged), _internal_call=True)  # pushes nothing yet
        if args.should_save:
            state.save_to_json(str(staged / "trainer_state.json"))
            (staged / "sample.txt").write_text(sample + "\n", encoding="utf-8")
            write_json(staged / "run.json", report)
            _draw(report, staged / "loss.png")
    if args.process_index == 0:
        _print_results(folder, report, sample)
    if args.push_to_hub and (pushed := trainer.push_to_hub(commit_message=None)) is not None:
        print(f"hub      {pushed.url}", flush=True)
    return Run(folder, network, trainer.processing_class, validation, report)


def _draw(report: dict[str, Any], path: Path) -> None:
    """Plot the losses. A failure here must not lose the trained model."""
    try:
        draw_losses(report, path)
    except OSError:
        raise  # a full disk
    except Exception as error:
        print(f"{path.name} could not be drawn: {error}.", file=sys.stderr)


def _train_until_interrupted(trainer: MiniGPTTrainer, checkpoint: Path | None) -> None:
    interrupt = StopOnInterrupt()
    trainer.add_callback(interrupt)
    # Processes of one run would stop at different steps and wait for each other for ever.
    with interrupt if trainer.args.world_size == 1 else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step = trainer.state.global_step
    if interrupt.received is not None and step < trainer.state.max_steps:
        saved = Path(trainer.args.output_dir) / f"checkpoint-{step}"
        raise TrainingInterrupted(
            f"Stopped after step {step}; the checkpoint is {saved}. Go on with the same command and "
            "--resume_from_checkpoint.",
            interrupt.received,
        )


def _print_results(folder: Path, report: dict[str, Any], sample: str) -> None:
    validation, training, best = report["losses"]["validation"], report["training"], report["losses"]["best"]
    print()
    print(
        f"validation loss {validation['loss']:.4f} nats a token over all {validation['targets']:,} "
        f"({validation['bits_per_character']:.3f} bits a character, perplexity {validation['perplexity']:.2f})"
    )
    if report["model"]["chosen_on_validation"]:
        print(f"of the model after step {report['model']['step']}, chosen for its loss on this same validation split")
    if best:
        print(
            f"the best checkpoint, chosen on this same validation split: {folder / best['checkpoint']}, "
            f"{best['validation']['loss']:.4f}"
        )
    speed = f"{training['tokens_per_second']:,.0f} tokens a second"
    print(f"{training['steps']} steps in {training['seconds']:.0f} s, {speed}\n")
    print(sample.strip("\n"))
    print()
    print(f"model    {folder}")
    print(f"picture  {folder / 'loss.png'}")
    has_conversations = "split_rows" in report["data"]
    print(f"more     minigpt {f'chat {folder}' if has_conversations else f'generate {folder} --stream'}", flush=True)
