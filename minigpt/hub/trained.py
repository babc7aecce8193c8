"""A trained model, opened: on the right device, with the tokenizer it was trained with."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import minigpt


def find_device(name: str | None = None) -> torch.device:
    """The device asked for, or the best there is: CUDA, else MPS, else the CPU.

    Raises:
        ValueError: If this machine does not have the device asked for.
    """
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if name is None:
        return torch.device(next(kind for kind, is_available in available.items() if is_available()))
    kind = name.partition(":")[0]
    if kind not in available or not available[kind]():
        raise ValueError(f"there is no device {name!r} here; use {find_device()} or leave it out.")
    return torch.device(name)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that gives ids beyond the model's embedding table.

    Raises:
        ValueError: If the largest id is not below the model's vocabulary size.
    """
    largest, vocab_size = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer's largest id is {largest} and the model knows {vocab_size} tokens; "
            "use the tokenizer saved with the model, or call model.resize_token_embeddings(len(tokenizer))."
        )


def open_trained(source: str | Path, device: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer for evaluation.

    Args:
        source: A folder, or a Hub repository's id.
        device: `cuda`, `mps` or `cpu`; the best there is by default.

    Raises:
        OSError: If there is no model under that name.
        ValueError: If the device is not there, or the tokenizer does not fit the model.
    """
    target = find_device(device)
    minigpt.register()
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise OSError(f"the folder {source} holds no model: it has no config.json.")
    try:
        model = AutoModelForCausalLM.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        if Path(source).is_dir():
            raise
        raise OSError(
            f"{source} is neither a folder nor a model that the Hub gives out; "
            "check the name, or train one with `minigpt train`."
        ) from error
    check_vocabulary(model, tokenizer)
    return model.to(target).eval(), tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The ids of a prompt, int64 of shape (1, seq); an empty one starts from a new line, as the lecture does.

    Raises:
        UnknownCharacterError: If a character vocabulary lacks one of the prompt's characters.
    """
    encode_array = getattr(tokenizer, "encode_array", None)
    if encode_array is not None:
        has_newline = "\n" in tokenizer.get_vocab()
        ids = encode_array(prompt or ("\n" if has_newline else ""), errors="strict").tolist()
    else:
        ids = tokenizer(prompt or "\n", add_special_tokens=False)["input_ids"]
    return torch.tensor([ids or [tokenizer.eos_token_id]], dtype=torch.long)  # (1, seq)
