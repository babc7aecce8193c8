"""One whole run: from a text and a preset to a folder with a trained model, its losses, a picture and a sample."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed

from minigpt.hub.folders import clear_folder
from minigpt.hub.loading import check_vocabulary, limit_to_block
from minigpt.hub.run_lock import hold_folder
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.checkpoints import find_checkpoint
from minigpt.training.data.corpus import Corpus, SplitSettings, describe_documents, load_text, refuse_single_document
from minigpt.training.data.read_settings import ReadSettings
from minigpt.training.data.recorded_text import recorded_reading
from minigpt.training.data.tokens import characters_per_token, tokenize_corpus
from minigpt.training.data.vocabulary import Vocabulary, in_words, untrained_ids
from minigpt.training.memory import check_memory, count_parameters
from minigpt.training.output_folder import check_folder, check_room, check_same_model, check_same_text
from minigpt.training.presets import MODEL_CLASSES, Preset, get_preset
from minigpt.training.report import hardware
from minigpt.training.run import Run, describe_text, run_to_the_end
from minigpt.training.segments import training_segments
from minigpt.training.setup import build_arguments, check_push
from minigpt.training.trainer import MiniGPTTrainer

__all__ = ["Run", "train"]


def train(
    preset: str = "seed",
    data: Any = None,
    *,
    split: SplitSettings | None = None,
    reading: ReadSettings | None = None,
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
        split: Settings of the validation split; by default the last tenth of the text.
        reading: Settings that decide how the text is read; a resumed run remembers its own.
        device: `cpu`, `cuda` or `mps`; by default the best there is.
        overwrite: Whether a run that the output folder already holds is replaced; other files stay.
        vocabulary: What the tokens are; by default the text's characters.
        model: Fields of the model's config that differ from the preset's.
        training: Arguments of `MiniGPTTrainingArguments` that differ from the preset's, `output_dir` (by default
            `runs/<preset>`) and `resume_from_checkpoint` (a folder, or True for the last whole one) among them.

    Returns:
        What was made, all of it saved.

    Raises:
        ValueError: Before any work has started: something was asked for that cannot be done, `UsageError` where no
            other text or folder would help. One sentence says what.
        PushFailed: The Hub did not take the run; before any work if that can be known, else when all of it is saved.
        FloatingPointError: The training has diverged; its checkpoints from before are still there.
        TrainingInterrupted: Ctrl-C was pressed, or SIGTERM came; a checkpoint has been saved.
    """
    chosen = get_preset(preset)
    config = chosen.build_config(**(model or {}))  # impossible values are refused before anything is read
    vocabulary = vocabulary or Vocabulary()
    vocabulary.check()
    args = build_arguments(
        {**chosen.training, "output_dir": str(Path("runs") / chosen.name)}, training or {}, device=device
    )
    block_size = config.max_position_embeddings
    check_memory(count_parameters(MODEL_CLASSES[chosen.model_type], config), config, args, block_size)
    folder, is_main = Path(args.output_dir), args.process_index == 0
    resuming = bool(args.resume_from_checkpoint)
    if is_main:
        check_folder(folder, resuming=resuming, overwrite=overwrite)
        check_push(args, chosen.model_type)
    with hold_folder(folder) if is_main else nullcontext():
        return _train(chosen, data, split, reading, args, dict(model or {}), vocabulary, overwrite=overwrite)


def _train(
    chosen: Preset,
    data: Any,
    split: SplitSettings | None,
    reading: ReadSettings | None,
    args: MiniGPTTrainingArguments,
    model: dict[str, Any],
    vocabulary: Vocabulary,
    *,
    overwrite: bool,
) -> Run:
    """Trains, in a folder that is locked."""
    folder, is_main = Path(args.output_dir), args.process_index == 0
    resuming = bool(args.resume_from_checkpoint)
    checkpoint = find_checkpoint(folder, args.resume_from_checkpoint) if resuming else None

    reading = (reading or ReadSettings()).over(recorded_reading(checkpoint) if checkpoint else ReadSettings())
    corpus = load_text(data, split=split, reading=reading)
    refuse_single_document(corpus)
    if corpus.notice and is_main:
        print(corpus.notice, flush=True)
    if checkpoint:
        check_same_text(checkpoint, corpus.split_sha256)
    with args.main_process_first() if args.world_size > 1 else nullcontext():
        tokenizer = vocabulary.learn(corpus)
        tokens = tokenize_corpus(corpus, tokenizer)
    set_seed(args.seed)
    network = _build_model(chosen, tokenizer, model, has_documents=corpus.documents is not None)
    if checkpoint:
        check_same_model(checkpoint, network.config, tokenizer)
        training_segments(checkpoint, args)  # refuses other arguments
    if is_main:
        check_room(folder, network, args, resuming=resuming)
    trainer = MiniGPTTrainer(
        network,
        args,
        tokens,
        characters_per_token=characters_per_token(corpus, tokens["validation"]),
        has_documents=corpus.documents is not None,
        text_sha256=corpus.split_sha256,
        settings={"reading": asdict(corpus.reading)},
        processing_class=tokenizer,
    )
    if is_main:
        if overwrite and not resuming:
            clear_folder(folder)
        _print_header(chosen, corpus, tokenizer, trainer, checkpoint)
    return run_to_the_end(trainer, checkpoint, origin={"preset": chosen.name}, data=describe_text(corpus, trainer))


def _build_model(preset: Preset, tokenizer: Any, changes: dict[str, Any], *, has_documents: bool) -> PreTrainedModel:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = preset.build_config(vocab_size=len(tokenizer), **ids, **changes)
    network = MODEL_CLASSES[config.model_type](config)
    network.generation_config = lecture_generation_config(
        untrained_ids(tokenizer, has_documents=has_documents),
        # EOS is also what comes before a document: an empty prompt begins one.
        bos_token_id=tokenizer.eos_token_id if has_documents else None,
        **ids,
    )
    check_vocabulary(network, tokenizer)
    limit_to_block(tokenizer, network)
    return network


def _print_header(
    preset: Preset, corpus: Corpus, tokenizer: Any, trainer: MiniGPTTrainer, checkpoint: Path | None
) -> None:
    train, validation = (len(trainer.streams[split]) for split in ("train", "validation"))
    unit = "characters" if hasattr(tokenizer, "stoi") else "tokens"
    print(f"preset  {preset.name}: {preset.description}")
    print(f"data    {corpus.name}: {train:,} {unit} to train on, {validation:,} to validate")
    if corpus.documents:
        print(f"        {describe_documents(corpus)}")
    print(f"model   {trainer.model.num_parameters():,} parameters, block of {trainer.block_size}")
    print(f"        {in_words(tokenizer)}")
    print(f"device  {trainer.args.device.type}: {hardware(trainer.args.device)}")
    print(f"folder  {trainer.args.output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else ""))
    print(flush=True)
