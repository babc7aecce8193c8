"""A trained model, opened: on the right device, with the tokenizer it was trained with."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minigpt.errors import UsageError
from minigpt.hub.adapter_folders import is_adapter, open_adapter
from minigpt.hub.auto_classes import register
from minigpt.hub.hub_lookup import hub_has
from minigpt.hub.loading_errors import check_name, opening
from minigpt.hub.tokenizer_loading import load_tokenizer
from minigpt.hub.unfinished import refuse_unfinished
from minigpt.hub.weights import load_whole
from minigpt.tokenization.text_forms import convert, suggest_option
from minigpt.tokenization.tokenization_minigpt import UnknownCharacterError

_OURS = ("minigpt", "minigpt_bigram")
# What a model of somebody else's that takes long texts, or texts of any length, is shown at a time.
_LONG = 1024


def find_device(name: str | None = None) -> torch.device:
    """The device asked for, or the best there is: CUDA, else MPS, else the CPU.

    Raises:
        UsageError: If this machine does not have the device asked for.
    """
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if name is None:
        return torch.device(next(kind for kind, is_available in available.items() if is_available()))
    kind = name.partition(":")[0]
    if kind not in available or not available[kind]():
        raise UsageError(f"there is no device {name!r} here; use {find_device()} or leave it out.")
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


def limit_to_block(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Make the model's block the length that `truncation=True` cuts texts to; it is saved with the tokenizer.

    Args:
        tokenizer: Changed in place, if the model is a MiniGPT or a bigram.
        model: The model that it is saved with.
    """
    if model.config.model_type in _OURS:
        tokenizer.model_max_length = model.config.max_position_embeddings


def open_trained(
    source: str | Path, device: str | None = None, *, loading: dict[str, Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer for evaluation; an adapter with the model that it is for.

    Args:
        source: A folder, or a Hub repository's id, of a model or of an adapter.
        device: `cuda`, `mps` or `cpu`; the best there is by default.
        loading: More arguments of `from_pretrained` for a whole model: `dtype`, or `quantization_config` with the
            `device_map` of the device.

    Raises:
        OSError: If there is no model under that name.
        UsageError: If the device is not there, or a file cannot be used or does not fit the others.
    """
    check_name(source)
    target = find_device(device)
    register()
    local_only = Path(source).is_dir() or not hub_has(str(source))
    adapted = is_adapter(source, local_files_only=local_only)
    if adapted:
        model, tokenizer = open_adapter(source, local_files_only=local_only)
    else:
        model, tokenizer = _open_whole(source, local_files_only=local_only, **(loading or {}))
    check_vocabulary(model, tokenizer)
    limit_to_block(tokenizer, model)
    # A quantized model is on its device already.
    return (model if getattr(model, "is_quantized", False) else model.to(target)).eval(), tokenizer


def _open_whole(
    source: str | Path, *, local_files_only: bool, **loading: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    refuse_unfinished(Path(source))
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise OSError(f"the folder {source} holds no model: it has no config.json.")
    with opening(source, loading.get("revision")):
        model = load_whole(
            AutoModelForCausalLM.from_pretrained,
            source,
            local_files_only=local_files_only,
            # Where PEFT is installed, the Hub is also asked for an adapter, by other keywords.
            adapter_kwargs={"local_files_only": local_files_only},
            **loading,
        )
        tokenizer = load_tokenizer(source, local_files_only=local_files_only)
    return model, tokenizer


def default_block_size(model: PreTrainedModel) -> int:
    """How many tokens a model is shown at a time where nobody says.

    Returns:
        All that a MiniGPT or a bigram takes. Of another model what it takes up to 1,024, also where it names no limit.
    """
    longest: int | None = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and model.config.model_type in _OURS:
        return longest
    return min(longest or _LONG, _LONG)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, generation_config: GenerationConfig | None = None
) -> torch.Tensor:
    """Encode a prompt.

    An empty one begins a document where a model was trained on documents, and a new line elsewhere, as in the lecture.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The text to continue.
        generation_config: The model's, which tells whether it was trained on documents.

    Returns:
        Ids, int64 of shape (1, seq).

    Raises:
        UnknownCharacterError: A character vocabulary lacks one of the prompt's characters.
    """
    start = _start_of_document(generation_config) if generation_config is not None and not prompt else None
    encode_array = getattr(tokenizer, "encode_array", None)
    if start is not None and start < len(tokenizer):
        ids = [start]
    elif encode_array is not None:
        has_newline = "\n" in tokenizer.get_vocab()
        try:
            ids = encode_array(prompt or ("\n" if has_newline else ""), errors="strict").tolist()
        except UnknownCharacterError as error:
            known = set(tokenizer.get_vocab())
            found = suggest_option(lambda newlines, form: {*convert(prompt, newlines, form)} - known)
            remedy = found and f"write the prompt in the form that {found[0]} gives a text, {found[1]}"
            raise UnknownCharacterError(error.first_positions, remedy) from None
    else:
        ids = tokenizer(prompt or "\n", add_special_tokens=False)["input_ids"]
    return torch.tensor([ids or [tokenizer.eos_token_id]], dtype=torch.long)  # (1, seq)


def _start_of_document(config: GenerationConfig) -> int | None:
    """Return the BOS token if it ends documents as well and the model may write it, as one that it learned."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    # Exports of a model that was trained on plain text name such a BOS token too, and hold it back.
    biases = config.sequence_bias.items() if isinstance(config.sequence_bias, dict) else config.sequence_bias or []
    held_back = {
        *(config.suppress_tokens or []),
        *(tokens[0] for tokens, bias in biases if bias < 0 and len(tokens) == 1),
    }
    bos: int | None = config.bos_token_id
    return bos if bos in ends and bos not in held_back else None
