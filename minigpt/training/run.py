"""One whole run: from a text and a preset to a folder with a trained model, its losses, a picture and a sample."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from minigpt.hub.publishing.ongoing import open_repository
from minigpt.hub.trained import AskedWrongly, check_vocabulary, find_device
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.checkpoints import find_checkpoint
from minigpt.training.command_line import parse_train_command
from minigpt.training.corpus import Corpus, load_text
from minigpt.training.evaluation import Evaluation, validation_loss
from minigpt.training.interruption import StopOnInterrupt, TrainingInterrupted
from minigpt.training.output_folder import check_folder, check_room, check_same_model, check_same_text, clear_folder
from minigpt.training.picture import draw_losses
from minigpt.training.presets import MODEL_CLASSES, Preset, get_preset, one_sentence
from minigpt.training.progress import no_progress_bars
from minigpt.training.report import describe_run, hardware, in_units, write_json
from minigpt.training.sample import write_sample
from minigpt.training.tokens import characters_per_token, tokenize_corpus
from minigpt.training.trainer import MiniGPTTrainer
from minigpt.training.vocabulary import Vocabulary, in_words, untrained_ids

SAMPLE_TOKENS = 500


@dataclass(frozen=True)
class Run:
    """What a run has made.

    Attributes:
        folder: Where everything lies: the model, the tokenizer, `run.json`, `loss.png`, `sample.txt`, checkpoints.
        model: The trained model, in evaluation mode.
        tokenizer: Its tokenizer.
        validation: The model's loss over the whole validation split.
        report: What `run.json` holds.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    validation: Evaluation
    report: dict[str, Any]


def main_train(argv: Sequence[str] | None = None) -> None:
    """`minigpt train`.

    Raises:
        SystemExit: 2 if it was asked wrongly, 130 if it was stopped by Ctrl-C.
        AskedWrongly: An argument has an impossible value; the message is one sentence.
        ValueError: It could not be done, likewise.
        FloatingPointError: The training has diverged.
    """
    command = parse_train_command(argv)
    try:
        train(
            command.preset,
            command.data,
            device=command.device,
            overwrite=command.overwrite,
            vocabulary=Vocabulary(**command.vocabulary),
            model=command.model,
            training=command.training,
        )
    except TrainingInterrupted as interruption:
        print(interruption, file=sys.stderr)
        raise SystemExit(130) from None


def train(
    preset: str = "seed",
    data: Any = None,
    *,
    device: str | None = None,
    overwrite: bool = False,
    vocabulary: Vocabulary | None = None,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Run:
    """Trains a model on a text and saves it.

    Args:
        preset: Name of a preset.
        data: What `load_text` takes; by default what it finds.
        device: `cpu`, `cuda` or `mps`; by default the best there is.
        overwrite: Whether a run that the output folder already holds is replaced.
        vocabulary: What the tokens are; by default the text's characters.
        model: Fields of the model's config that differ from the preset's.
        training: Arguments of `MiniGPTTrainingArguments` that differ from the preset's, `output_dir` (by default
            `runs/<preset>`) and `resume_from_checkpoint` (a folder, or True for the last whole one) among them.

    Returns:
        What was made, all of it saved.

    Raises:
        ValueError: Before any work has started: something was asked for that cannot be done, `AskedWrongly` where no
            other text or folder would help. One sentence says what.
        PushFailed: The Hub did not take the run; before any work if that can be known, else when all of it is saved.
        FloatingPointError: The training has diverged; its checkpoints from before are still there.
        TrainingInterrupted: Ctrl-C was pressed; a checkpoint has been saved.
    """
    chosen = get_preset(preset)
    chosen.build_config(**(model or {}))  # impossible values are refused before anything is read
    vocabulary = vocabulary or Vocabulary()
    vocabulary.check()
    args = _arguments(chosen, device, dict(training or {}))
    folder, is_main = Path(args.output_dir), args.process_index == 0
    resuming = bool(args.resume_from_checkpoint)
    if is_main:
        check_folder(folder, resuming=resuming, overwrite=overwrite)
        _check_push(args, chosen)
    checkpoint = find_checkpoint(folder, args.resume_from_checkpoint) if resuming else None

    corpus = load_text(data)
    if checkpoint:
        check_same_text(checkpoint, corpus.sha256)
    with args.main_process_first() if args.world_size > 1 else nullcontext():
        tokenizer = vocabulary.learn(corpus)
        tokens = tokenize_corpus(corpus, tokenizer)
    set_seed(args.seed)
    network = _build_model(chosen, tokenizer, dict(model or {}))
    if checkpoint:
        check_same_model(checkpoint, network.config, tokenizer)
    if is_main:
        check_room(folder, network.num_parameters(), args.save_total_limit)
    trainer = MiniGPTTrainer(
        network,
        args,
        tokens,
        characters_per_token=characters_per_token(corpus, tokens["validation"]),
        text_sha256=corpus.sha256,
        processing_class=tokenizer,
    )
    if is_main:
        if overwrite and not resuming:
            clear_folder(folder)
        _print_header(chosen, corpus, tokenizer, trainer, checkpoint)
    _train_until_interrupted(trainer, checkpoint)
    return _finish(chosen, corpus, trainer)


def _arguments(preset: Preset, device: str | None, changes: dict[str, Any]) -> MiniGPTTrainingArguments:
    if device is not None:
        kind, _, index = device.partition(":")
        if index:
            raise AskedWrongly(
                f"training takes no index of a device, got {device!r}; say --device {kind} and choose among several "
                f"GPUs with the environment variable CUDA_VISIBLE_DEVICES={index}."
            )
        if find_device(device).type == "cpu":
            changes["use_cpu"] = True
    changes.setdefault("output_dir", str(Path("runs") / preset.name))
    if "num_train_epochs" in changes:
        changes.setdefault("max_steps", -1)  # the preset's number of steps would win over the epochs asked for
    try:
        args = MiniGPTTrainingArguments(**{**preset.training, **changes})
    except (ValueError, TypeError) as error:
        raise AskedWrongly(one_sentence(error)) from error
    if device is not None and args.device.type != find_device(device).type:
        raise AskedWrongly(
            f"training runs on {args.device.type} here; leave --device {device} out or say --device cpu."
        )
    return args


def _check_push(args: MiniGPTTrainingArguments, preset: Preset) -> None:
    """Finds out now what the Hub would refuse when the training is over; nothing is made there yet."""
    if args.push_to_hub:
        open_repository(
            args.hub_model_id or Path(args.output_dir).absolute().name,
            preset.model_type,
            token=args.hub_token,
            private=bool(args.hub_private_repo),
            revision=args.hub_revision,
            create=False,
        )
    elif args.hub_model_id:
        raise AskedWrongly(
            f"hub_model_id names {args.hub_model_id} and nothing is pushed there without push_to_hub; add "
            "--push_to_hub, or push the run with `minigpt push` when it is over."
        )


def _build_model(preset: Preset, tokenizer: Any, changes: dict[str, Any]) -> PreTrainedModel:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = preset.build_config(vocab_size=len(tokenizer), **ids, **changes)
    network = MODEL_CLASSES[config.model_type](config)
    network.generation_config = lecture_generation_config(untrained_ids(tokenizer), **ids)
    check_vocabulary(network, tokenizer)
    return network


def _train_until_interrupted(trainer: MiniGPTTrainer, checkpoint: Path | None) -> None:
    interrupt = StopOnInterrupt()
    trainer.add_callback(interrupt)
    # Processes of one run would stop at different steps and wait for each other for ever.
    with interrupt if trainer.args.world_size == 1 else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step = trainer.state.global_step
    if interrupt.requested and step < trainer.state.max_steps:
        saved = Path(trainer.args.output_dir) / f"checkpoint-{step}"
        raise TrainingInterrupted(
            f"Stopped after step {step}; the checkpoint is {saved}. Go on with the same command and "
            "--resume_from_checkpoint."
        )


def _finish(preset: Preset, corpus: Corpus, trainer: MiniGPTTrainer) -> Run:
    args, state, network, tokenizer = trainer.args, trainer.state, trainer.model.eval(), trainer.processing_class
    network.config.use_cache = True  # the Trainer has turned it off
    folder = Path(args.output_dir)
    validation = _score(network, trainer)
    trainer.refuse_divergence(validation.loss)
    best_checkpoint = state.best_model_checkpoint and Path(state.best_model_checkpoint)
    is_chosen = bool(args.load_best_model_at_end and best_checkpoint)
    model_step = state.best_global_step if is_chosen else state.global_step
    best = None
    if best_checkpoint and best_checkpoint.is_dir() and state.best_global_step != model_step:
        with no_progress_bars():
            best_network = type(network).from_pretrained(best_checkpoint).to(network.device)
        best = {
            "step": state.best_global_step,
            "estimate": state.best_metric,
            "checkpoint": best_checkpoint.name,
            "validation": in_units(_score(best_network, trainer)),
        }
    curves = [
        {"step": entry["step"], "train": entry["eval_train_loss"], "validation": entry["eval_loss"]}
        for entry in state.log_history
        if "eval_train_loss" in entry
    ]
    report = describe_run(
        preset,
        network,
        corpus,
        {split: len(stream) for split, stream in trainer.streams.items()},
        args,
        steps=state.global_step,
        seconds=next(entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry),
        validation=validation,
        model_step=model_step,
        chosen_on_validation=is_chosen,
        best=best,
        curves=curves,
    )
    trainer.save_model(_internal_call=True)  # pushes nothing yet
    trainer.save_state()
    if args.should_save:
        sample = write_sample(network, tokenizer, SAMPLE_TOKENS, seed=args.seed)
        (folder / "sample.txt").write_text(sample + "\n", encoding="utf-8")
        draw_losses(report, folder / "loss.png")
        write_json(folder / "run.json", report)
        if args.process_index == 0:
            _print_results(folder, report, sample)
    if args.push_to_hub and (pushed := trainer.push_to_hub(commit_message=None)) is not None:
        print(f"hub      {pushed.url}", flush=True)
    return Run(folder, network, tokenizer, validation, report)


def _score(network: PreTrainedModel, trainer: MiniGPTTrainer) -> Evaluation:
    return validation_loss(
        network,
        trainer.streams["validation"],
        trainer.block_size,
        trainer.args.per_device_eval_batch_size,
        characters_per_token=trainer.characters_per_token,
    )


def _print_header(
    preset: Preset, corpus: Corpus, tokenizer: Any, trainer: MiniGPTTrainer, checkpoint: Path | None
) -> None:
    train, validation = (len(trainer.streams[split]) for split in ("train", "validation"))
    unit = "characters" if hasattr(tokenizer, "stoi") else "tokens"
    if corpus.notice:
        print(corpus.notice)
    print(f"preset  {preset.name}: {preset.description}")
    print(f"data    {corpus.name}: {train:,} {unit} to train on, {validation:,} to validate")
    print(f"model   {trainer.model.num_parameters():,} parameters, block of {trainer.block_size}")
    print(f"        {in_words(tokenizer)}")
    print(f"device  {trainer.args.device.type}: {hardware(trainer.args.device)}")
    print(f"folder  {trainer.args.output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else ""))
    print(flush=True)


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
    print(f"more     minigpt generate {folder} --stream", flush=True)
