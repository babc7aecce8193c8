"""One whole fine-tuning: from a trained model and new text, or conversations, to a folder like any finished run's."""

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import set_seed

from minigpt.errors import UsageError
from minigpt.hub.extras import require_extra
from minigpt.hub.folders import clear_folder
from minigpt.hub.run_lock import hold_folder
from minigpt.training.arguments import MiniGPTTrainingArguments
from minigpt.training.base_model import PretrainedBase, check_causal, check_loss, choose_block_size, open_base
from minigpt.training.checkpoints import find_checkpoint
from minigpt.training.data.added_characters import extend_vocabulary as extend
from minigpt.training.data.added_characters import lacking_characters, refuse_lacking
from minigpt.training.data.conversations import load_conversations
from minigpt.training.data.corpus import Corpus, SplitSettings, describe_documents, load_text, refuse_single_document
from minigpt.training.data.plays_task import PLAYS_TRAINING
from minigpt.training.data.read_settings import ReadSettings
from minigpt.training.data.recorded_text import recorded_reading
from minigpt.training.data.tokens import characters_per_token, tokenize_corpus
from minigpt.training.instruction import (
    InstructionData,
    InstructionSettings,
    learn_to_stop,
    prepare_instruction,
)
from minigpt.training.lora import (
    LoraSettings,
    add_lora,
    check_same_adapter,
    count_lora_parameters,
    describe_adapter,
)
from minigpt.training.memory import check_memory
from minigpt.training.output_folder import (
    check_folder,
    check_room,
    check_same_base,
    check_same_model,
    check_same_settings,
    check_same_text,
    check_same_vocabulary,
)
from minigpt.training.quantization import check_bits
from minigpt.training.report import hardware
from minigpt.training.run import Run, describe_text, run_to_the_end
from minigpt.training.segments import training_segments
from minigpt.training.setup import build_arguments, check_push
from minigpt.training.trainer import MiniGPTTrainer

# For small models and small texts. An adapter, which begins at nothing, learns with larger steps.
TRAINING = {
    "max_steps": 1000,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "eval_iters": 20,
}
LORA_TRAINING = {"learning_rate": 2e-3, "weight_decay": 0.0}


def finetune(
    model: str | Path,
    data: Any = None,
    *,
    split: SplitSettings | None = None,
    reading: ReadSettings | None = None,
    device: str | None = None,
    overwrite: bool = False,
    extend_vocabulary: bool = False,
    block_size: int | None = None,
    lora: LoraSettings | None = None,
    load_in: int | None = None,
    instruction: InstructionSettings | None = None,
    training: Mapping[str, Any] | None = None,
) -> Run:
    """Goes on training a causal language model on a new text, or on conversations, and saves it.

    Args:
        model: A folder or a Hub id: a MiniGPT, or any other causal language model.
        data: What `load_text` takes; with `instruction`, what `load_conversations` takes.
        split: Settings of a text's validation split; by default its last tenth.
        reading: Settings that decide how a text is read; by default, line ends and characters as the model's own text.
        device: `cpu`, `cuda` or `mps`; by default the best there is.
        overwrite: Whether a run that the output folder already holds is replaced; other files stay.
        extend_vocabulary: Whether characters that the vocabulary lacks are added to it; otherwise they are refused.
        block_size: Tokens in a crop, or in a conversation; by default what the model takes, up to 1,024.
        lora: Trains an adapter of these settings, and leaves the model's weights alone. Only the adapter is saved.
        load_in: 4 or 8: the bits of the model's weights under the adapter (of `LoraSettings()` if none was given).
        instruction: Learns from conversations, in this way, instead of from a text.
        training: Arguments of `MiniGPTTrainingArguments` that differ from `TRAINING`, for adapters from
            `LORA_TRAINING`, and for conversations made from the plays from `PLAYS_TRAINING`; `output_dir` (by default
            `runs/<model>-finetuned`, or `-sft`, `-lora`, `-sft-lora`) and `resume_from_checkpoint` (a folder, or True
            for the last whole one) among them.

    Returns:
        What was made, all of it saved.

    Raises:
        ValueError: Before any work has started: something was asked for that cannot be done, `UsageError` where no
            other text or folder would help. One sentence says what.
        OSError: There is no model under that name, or it cannot be read.
        PushFailed: The Hub did not take the run; before any work if that can be known, else when all of it is saved.
        FloatingPointError: The training has diverged; its checkpoints from before are still there.
        TrainingInterrupted: Ctrl-C was pressed, or SIGTERM came; a checkpoint has been saved.
    """
    if load_in is not None:
        check_bits(load_in)
        lora = lora or LoraSettings()
    if lora:
        lora.check()
    if extend_vocabulary and lora:
        raise UsageError(
            "an adapter holds no rows for new characters, so --extend_vocabulary does not go with --lora; fine-tune "
            "without --lora once, and then put the adapter on what that made."
        )
    if extend_vocabulary and instruction:
        raise UsageError(
            "--extend_vocabulary is for a text; fine-tune on one that has the new characters, and then with --sft."
        )
    documents = reading and reading.documents
    if documents and instruction:
        raise UsageError(
            f"documents {documents!r} is for a text, and conversations end each answer with EOS anyway; leave it out "
            "with --sft."
        )
    recipe = PLAYS_TRAINING if instruction and data == "plays" else {}
    args = _arguments(model, device, lora, instruction, recipe, dict(training or {}))
    folder, is_main = Path(args.output_dir), args.process_index == 0
    resuming = bool(args.resume_from_checkpoint)
    if Path(model).is_dir() and Path(model).resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder} holds {model}, which is to be fine-tuned; name another --output_dir.")
    if is_main:
        check_folder(folder, resuming=resuming, overwrite=overwrite)
    with hold_folder(folder) if is_main else nullcontext():
        return _finetune(
            model, data, split, reading, args, lora, load_in, instruction, block_size, extend_vocabulary, overwrite
        )


def _finetune(
    model: str | Path,
    data: Any,
    split: SplitSettings | None,
    reading: ReadSettings | None,
    args: MiniGPTTrainingArguments,
    lora: LoraSettings | None,
    load_in: int | None,
    instruction: InstructionSettings | None,
    block_size: int | None,
    extend_vocabulary: bool,
    overwrite: bool,
) -> Run:
    """Fine-tunes, in a folder that is locked."""
    folder, is_main = Path(args.output_dir), args.process_index == 0
    resuming = bool(args.resume_from_checkpoint)
    checkpoint = find_checkpoint(folder, args.resume_from_checkpoint) if resuming else None
    corpus = None if instruction else load_text(data, split=split, reading=_reading(reading, model, checkpoint))
    if corpus:
        refuse_single_document(corpus)
    if corpus and corpus.notice and is_main:
        print(corpus.notice, flush=True)
    if corpus and not corpus.documents and is_main and (rule := recorded_reading(model).documents):
        print(
            f"{model} was trained on documents; add --documents {rule} if this text consists of them too.", flush=True
        )
    conversations = load_conversations(data) if instruction else None
    if conversations and conversations.notice and is_main:
        print(conversations.notice, file=sys.stderr, flush=True)
    if checkpoint and corpus:
        check_same_text(checkpoint, corpus.split_sha256)

    set_seed(args.seed)
    base = open_base(
        model,
        args.device,
        trains_adapter=lora is not None,
        bits=load_in,
        bf16=args.bf16,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    network: Any = base.model
    if is_main:
        check_push(args, None if lora else network.config.model_type, base.name)
    block_size = choose_block_size(network, block_size)
    check_memory(
        count_lora_parameters(network, lora) if lora else network.num_parameters(), network.config, args, block_size
    )
    check_causal(network, str(model))
    check_loss(network, str(model))
    settings = {"block_size": block_size, "load_in_bits": load_in}
    added = _fit_vocabulary(base, corpus, extend_vocabulary, lora is None) if corpus else 0
    has_documents = corpus is not None and corpus.documents is not None
    if instruction or has_documents:
        learn_to_stop(network, base.tokenizer)
    if has_documents:
        network.generation_config.bos_token_id = base.tokenizer.eos_token_id  # an empty prompt begins a document
    if lora:
        network = add_lora(network, lora, base.name, base.revision)
    if checkpoint:
        check_same_settings(checkpoint, settings)
        _check_same(checkpoint, base, network, is_adapter=lora is not None)
        training_segments(checkpoint, args)  # refuses other arguments
    if is_main:
        check_room(folder, network, args, resuming=resuming)

    shared: dict[str, Any] = {"processing_class": base.tokenizer, "base_sha256": base.sha256, "settings": settings}
    learned: Corpus | InstructionData
    trainer: MiniGPTTrainer
    # One process reads and writes what the others then find.
    alone = args.main_process_first() if args.world_size > 1 else nullcontext()
    if corpus:
        learned = corpus
        with alone:
            tokens = tokenize_corpus(corpus, base.tokenizer)
        trainer = MiniGPTTrainer(
            network,
            args,
            tokens,
            characters_per_token=characters_per_token(corpus, tokens["validation"]),
            block_size=block_size,
            has_documents=has_documents,
            text_sha256=corpus.split_sha256,
            **shared | {"settings": settings | {"reading": asdict(corpus.reading)}},
        )
        described = describe_text(corpus, trainer)
    else:
        from minigpt.training.instruction_trainer import InstructionTrainer

        with alone:
            learned = prepare_instruction(conversations, base.tokenizer, block_size, instruction)
        if checkpoint:
            check_same_text(checkpoint, learned.sha256)
        trainer = InstructionTrainer(network, args, learned, **shared)
        described = learned.describe()
    adapter = describe_adapter(network, lora) if lora else None
    if is_main:
        if overwrite and not resuming:
            clear_folder(folder)
        _print_header(model, base, added, learned, adapter, trainer, checkpoint)
    origin = {"base": base.describe(added), "adapter": adapter}
    parts = {"peft": lora, "bitsandbytes": load_in, "trl": instruction}
    libraries = [library for library, part in parts.items() if part]
    return run_to_the_end(trainer, checkpoint, origin=origin, data=described, libraries=libraries)


def _reading(reading: ReadSettings | None, model: str | Path, checkpoint: Path | None) -> ReadSettings:
    """Return how the text is read: as asked, else as before, else as the base model needs it."""
    return (reading or ReadSettings()).over(
        recorded_reading(checkpoint) if checkpoint else recorded_reading(model).of_model
    )


def _arguments(
    model: str | Path,
    device: str | None,
    lora: LoraSettings | None,
    instruction: InstructionSettings | None,
    recipe: Mapping[str, Any],
    changes: dict[str, Any],
) -> MiniGPTTrainingArguments:
    arguments_class = MiniGPTTrainingArguments
    if instruction:
        require_extra("sft", "--sft", "trl")
        from minigpt.training.instruction_trainer import InstructionArguments as arguments_class
    kinds = [kind for kind, is_asked in (("sft", instruction), ("lora", lora)) if is_asked] or ["finetuned"]
    defaults = TRAINING | dict(recipe) | (LORA_TRAINING if lora else {})
    path = Path(model).resolve()
    name = f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name
    defaults["output_dir"] = str(Path("runs") / "-".join([name, *kinds]))
    return build_arguments(defaults, changes, device=device, arguments_class=arguments_class)


def _fit_vocabulary(base: PretrainedBase, corpus: Corpus, extends: bool, may_extend: bool) -> int:
    """Makes sure that the text can be written in the base's vocabulary; returns how many characters were added."""
    lacking = lacking_characters(corpus.characters(), base.tokenizer)
    if not extends:
        refuse_lacking(lacking, corpus, base.tokenizer, base.name, may_extend=may_extend)
    elif lacking:
        extend(base.model, base.tokenizer, lacking)
    return len(lacking)


def _check_same(checkpoint: Path, base: PretrainedBase, network: Any, *, is_adapter: bool) -> None:
    check_same_base(checkpoint, base.sha256)
    if is_adapter:
        check_same_adapter(checkpoint, network)
        check_same_vocabulary(checkpoint, base.tokenizer)
    else:
        check_same_model(checkpoint, network.config, base.tokenizer)


def _print_header(
    source: str | Path,
    base: PretrainedBase,
    added: int,
    learned: Corpus | InstructionData,
    adapter: dict[str, Any] | None,
    trainer: MiniGPTTrainer,
    checkpoint: Path | None,
) -> None:
    bits = f", in {base.bits} bits" if base.bits else ""
    print(f"base    {source}: {base.num_parameters:,} parameters{bits}, block of {trainer.block_size}")
    if added:
        print(f"        {added:,} characters added to its vocabulary")
    if isinstance(learned, Corpus):
        train, validation = (len(trainer.streams[split]) for split in ("train", "validation"))
        unit = "characters" if hasattr(base.tokenizer, "stoi") else "tokens"
        print(f"data    {learned.name}: {train:,} {unit} to train on, {validation:,} to validate")
        if learned.documents:
            print(f"        {describe_documents(learned)}")
    else:
        print(f"data    {learned.name}: {learned.in_words()}")
    if adapter:
        size = f"{adapter['trainable']:,} parameters, {adapter['share']:.1%} of all"
        print(f"adapter LoRA of rank {adapter['r']}: {size}")
    print(f"device  {trainer.args.device.type}: {hardware(trainer.args.device)}")
    print(f"folder  {trainer.args.output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else ""))
    print(flush=True)
