"""Options that a command does not have, and those that were meant: known by another name, or mistyped."""

import argparse
import re
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from typing import NoReturn

# Of each option, the names that other tools have for it: nanoGPT, the examples of transformers, LLaMA-Factory,
# llama.cpp, and usual ones. Of several options with a name, the first that the command has is meant.
_KNOWN_AS = {
    "--per_device_train_batch_size": "batch_size train_batch_size per_device_batch_size per_gpu_train_batch_size "
    "device_batch_size micro_batch_size mini_batch_size bs",
    "--per_device_eval_batch_size": "eval_batch_size val_batch_size valid_batch_size per_gpu_eval_batch_size",
    "--learning_rate": "lr max_lr peak_lr base_lr",
    "--lr_scheduler_type": "lr_scheduler scheduler decay_lr lr_decay lr_schedule",
    "--lr_scheduler_kwargs": "min_lr",
    "--num_train_epochs": "epochs epoch num_epochs n_epochs max_epochs train_epochs",
    "--max_steps": "max_iters max_iter iters iterations steps num_steps n_steps num_iterations num_train_steps "
    "train_steps max_train_steps total_steps lr_decay_iters",
    "--warmup_steps": "warmup_iters warmup num_warmup_steps warmup_ratio lr_warmup_steps",
    "--gradient_accumulation_steps": "grad_accum grad_accum_steps accumulation_steps gradient_accumulation "
    "accumulate_grad_batches",
    "--max_grad_norm": "grad_clip clip_grad gradient_clip gradient_clip_val clip_grad_norm grad_norm_clip",
    "--weight_decay": "wd",
    "--adam_beta1": "beta1",
    "--adam_beta2": "beta2",
    "--adam_epsilon": "eps epsilon adam_eps",
    "--optim": "optimizer opt",
    "--torch_compile": "compile",
    "--bf16": "bfloat16",
    "--fp16": "float16 half",
    "--bf16 or --fp16": "dtype torch_dtype precision mixed_precision amp",
    "--dataloader_num_workers": "num_workers workers",
    "--gradient_checkpointing": "grad_checkpointing checkpoint_activations",
    "--eval_interval": "eval_every val_interval eval_freq evaluation_interval",
    "--eval_strategy": "evaluation_strategy",
    "--eval_iters": "val_iters eval_batches",
    "--logging_steps": "log_interval log_every log_steps log_freq",
    "--save_steps": "save_interval save_every checkpoint_interval save_freq checkpoint_every",
    "--resume_from_checkpoint": "resume resume_from init_from from_checkpoint load_checkpoint",
    "--report_to": "wandb wandb_log use_wandb tensorboard logger",
    "--run_name": "wandb_run_name",
    "--project": "wandb_project",
    "--hub_model_id": "repo_id hub_repo hub_repo_id push_to_hub_model_id",
    "--validation_file": "val_file val_data eval_file eval_data eval_data_file valid_file validation_data",
    "--validation_fraction": "val_size val_fraction val_split val_ratio eval_size eval_fraction validation_split "
    "validation_split_percentage test_size",
    "--data": "train_file train_data train_data_file train_files data_path data_file data_files data_dir dataset "
    "dataset_name dataset_dir dataset_path datasets corpus text text_file text_path input input_file input_path file "
    "files eval_file eval_data",
    "--output_dir": "out_dir output output_path output_folder outdir out outfile save_dir save_path model_dir",
    "--overwrite": "overwrite_output_dir force",
    "--device": "no_cuda cpu gpu gpus cuda use_gpu use_cuda mps",
    "--seed": "random_seed manual_seed rng_seed",
    # The model.
    "--n_layer": "num_layers layers depth num_blocks n_blocks",
    "--n_head": "num_heads heads n_heads num_attention_head attention_heads",
    "--n_embd": "d_model n_embed embed_dim embedding_dim embedding_size emb_dim dim hidden_dim d_embed width model_dim",
    "--num_key_value_heads": "n_kv_heads num_kv_heads n_kv_head kv_heads n_query_groups",
    "--intermediate_size": "ffn_dim d_ff n_inner ffn_hidden_size mlp_dim mlp_hidden_size",
    "--dropout": "drop dropout_rate dropout_p drop_rate p_dropout resid_dropout resid_pdrop hidden_dropout "
    "attn_dropout attn_pdrop attention_dropout",
    "--embedding_dropout": "embd_pdrop embed_dropout embd_dropout emb_dropout",
    "--hidden_act": "activation activation_function act act_fn",
    "--tie_word_embeddings": "tie_weights weight_tying tie_embeddings",
    "--position_embedding_type": "pos_emb position_embedding pos_embedding positional_embedding pos_encoding",
    "--tokenizer": "tokenizer_name tokenizer_path tokenizer_type tokenizer_name_or_path",
    "--preset": "config config_name config_file model_size",
    # The length of a text.
    "--max_new_tokens": "length max_length max_len max_tokens max_gen_len max_new num_tokens n_tokens new_tokens "
    "n_predict num_predict",
    "--block_size": "n_ctx ctx context context_length context_len context_size context_window ctx_len ctx_size "
    "n_positions max_length max_len max_seq_len max_seq_length max_sequence_length model_max_length seq_len seq_length "
    "sequence_length cutoff_len",
    "--sliding_window": "window_size window",
    # Fine-tuning.
    "--lora": "use_lora peft use_peft finetuning_type finetuning_mode",
    "--lora_r": "lora_rank rank r",
    "--lora_targets": "lora_target lora_target_modules target_modules",
    "--load_in_4bit": "use_4bit qlora load_4bit",
    "--load_in_4bit or --load_in_8bit": "quantization_bit quantization",
    "--load_in_8bit": "use_8bit load_8bit",
    "--sft": "instruct chat do_sft instruction",
    "--assistant_only_loss": "mask_prompt completion_only_loss completions_only",
    "--assistant_only_loss false": "train_on_prompt train_on_inputs",
    "--truncate": "truncation",
    # Writing text.
    "--temperature": "temp",
    "--temperature 0": "greedy no_sample",
    "--top_k": "topk",
    "--top_p": "topp nucleus",
    "-n": "num_return_sequences n_samples samples num_sample count num number num_texts n",
    "--stop": "stop_string stop_strings stop_sequence stop_sequences stop_token stop_words reverse_prompt until",
    "--prompt": "start text input p prompt_text context_text",
    "--prompt_file": "input_file prompt_path file f",
    "--system": "system_prompt system_message sys",
    # The Hub and other formats.
    "--commit_message": "message m commit_msg",
    "--revision": "branch",
    "--create_pr": "pr pull_request",
    "--base": "base_model base_model_name_or_path",
    "--to": "format type f output_format",
    "--meta": "meta_path meta_file",
}
_MODEL = {
    *(
        "model",
        "model_name",
        "model_name_or_path",
        "model_path",
        "model_id",
        "m",
        "checkpoint",
        "checkpoint_path",
        "ckpt",
    ),
    *(
        "ckpt_path",
        "pretrained",
        "pretrained_model",
        "pretrained_model_name_or_path",
        "base_model",
        "adapter",
        "init_from",
    ),
    *("adapter_name_or_path", "out_dir", "load", "run", "run_dir"),
}
# What a command does unless it is told otherwise, by an option of its own.
_DEFAULTS = {
    "fp32": ("--bf16", "float32"),
    "float32": ("--bf16", "float32"),
    "do_sample": ("--temperature", "sampling"),
}


def refuse_unknown(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Refuse the first option that a command does not have, before argparse misses a value that it would have had.

    Args:
        parser: The command's parser.
        argv: Its arguments.

    Raises:
        SystemExit: 2, after one sentence on stderr.
    """
    options = parser._option_string_actions
    if {"-h", "--help"} & set(argv):
        return
    before: argparse.Action | None = None
    for argument in argv:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        is_known = argument in options or name in options or (argument[1:2] != "-" and argument[:2] in options)
        # What argparse takes for a value although it begins with a hyphen.
        is_value = argument == "-" or " " in argument or re.fullmatch(r"-\d*\.?\d+", argument)
        if argument.startswith("-") and not is_known and not is_value:
            if before is not None and before.nargs is None:
                option = before.option_strings[-1]
                parser.error(f"{option} needs a value; if it is {argument}, write {option}={argument}.")
            refuse_option(parser, name)
        before = options.get(argument)


def refuse_option(parser: argparse.ArgumentParser, unknown: str) -> NoReturn:
    """Refuse an option that a command does not have, with the option that was meant, if there is one.

    Raises:
        SystemExit: 2, after one sentence on stderr.
    """
    option = unknown.partition("=")[0]
    if not option.startswith("-"):
        remedy = f"write --data {unknown}" if "--data" in parser._option_string_actions else "see --help"
        parser.error(f"{unknown!r} belongs to no option; {remedy}.")
    parser.error(f"there is no option {option}; {_advice(parser, option)}")


def _advice(parser: argparse.ArgumentParser, option: str) -> str:
    options = parser._option_string_actions
    name = option.lstrip("-").replace("-", "_").lower()
    for known, others in _KNOWN_AS.items():
        if known.split()[0] in options and name in others.split():
            return f"use {known}."
    if name in _MODEL and any(action.metavar == "MODEL" for action in parser._actions):
        return f"name the model without an option: {parser.prog} MODEL ..."
    if name in _MODEL and "--preset" in options:
        return "`minigpt finetune MODEL` trains a model further."
    other, default = _DEFAULTS.get(name, ("", ""))
    if other in options:
        return f"{default} is the default, so leave it out."
    nearest = _nearest(name, [known[2:] for known in options if known.startswith("--")])
    help_option = "--help_all" if "--help_all" in options else "--help"
    return f"did you mean --{nearest}?" if nearest else f"see {help_option}."


def _nearest(name: str, known: Collection[str]) -> str | None:
    """Return the name that was mistyped, or None: no other name is near enough to be sure."""
    ratios = {other: SequenceMatcher(None, name, other).ratio() for other in known if "-" not in other}
    # Another digit is another thing: --load_in_2bit is not --load_in_4bit.
    near = [other for other, ratio in ratios.items() if ratio > 0.84 and _digits(other) == _digits(name)]
    return max(near, key=ratios.__getitem__, default=None)


def _digits(name: str) -> list[str]:
    return re.findall(r"\d", name)
