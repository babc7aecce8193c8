"""The model that a fine-tuning begins with: any causal language model, opened with its own tokenizer."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt.errors import UsageError
from minigpt.hub.adapter_folders import base_sha256, is_adapter
from minigpt.hub.hub_lookup import commit_of, hub_has
from minigpt.hub.loading import open_trained
from minigpt.training.evaluation import evaluating
from minigpt.training.quantization import prepare_quantized, quantized_loading, refuse_quantized

# A longer block costs memory that a fine-tuning seldom needs.
_LONGEST_BY_DEFAULT = 1024


@dataclass(frozen=True)
class PretrainedBase:
    """A model, opened.

    Attributes:
        name: The Hub id, or the folder as a whole path.
        revision: The Hub repository's commit; None for a folder.
        sha256: Hash of its weight files.
        model: The model.
        tokenizer: Its tokenizer.
        bits: 4 or 8 if its weights were quantized when it was loaded, else None.
        num_parameters: How many it has, without an adapter's.
    """

    name: str
    revision: str | None
    sha256: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bits: int | None
    num_parameters: int

    def describe(self, vocabulary_added: int) -> dict[str, Any]:
        """What `run.json` says of it."""
        return {
            "name": self.name,
            "revision": self.revision,
            "sha256": self.sha256,
            "vocabulary_added": vocabulary_added,
            "load_in_bits": self.bits,
        }


def open_base(
    source: str | Path,
    device: torch.device,
    *,
    trains_adapter: bool,
    bits: int | None = None,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
) -> PretrainedBase:
    """Opens a model to fine-tune it.

    Args:
        source: A folder, or a Hub repository's id.
        device: Where it is to lie.
        trains_adapter: Whether only an adapter will be trained: the weights then keep the precision they are saved in,
            and else come in float32.
        bits: 4 or 8 to quantize its weights, None to leave them.
        bf16: Whether quantized layers compute in bfloat16.
        gradient_checkpointing: Whether a quantized model is prepared for that.

    Raises:
        UsageError: It is an adapter, or its weights are quantized, and the other options do not allow that.
        OSError: There is no model under that name, or it cannot be read.
    """
    is_folder = Path(source).is_dir()
    local_only = is_folder or not hub_has(str(source))
    if is_adapter(source, local_files_only=local_only):
        raise UsageError(
            f"{source} is an adapter and no whole model; make one of it with `minigpt export {source} --to merged`, "
            "and fine-tune that."
        )
    loading: dict[str, Any] = {} if trains_adapter else {"dtype": torch.float32}
    if bits is not None:
        refuse_quantized(source, local_files_only=local_only)
        loading = quantized_loading(bits, device, bf16=bf16)
    # First, so that what it names is what is loaded.
    revision = None if is_folder else commit_of(str(source))
    if revision:
        loading["revision"] = revision
    model, tokenizer = open_trained(source, str(device), loading=loading)
    is_quantized = getattr(model, "is_quantized", False)
    if is_quantized and not trains_adapter:
        raise UsageError(
            f"the weights of {source} are quantized and cannot be trained; put an adapter above them with --lora."
        )
    if is_quantized:
        model = prepare_quantized(model, gradient_checkpointing=gradient_checkpointing)
    name = str(Path(source).resolve()) if is_folder else str(source)
    sha256 = base_sha256(source, revision)
    return PretrainedBase(name, revision, sha256, model, tokenizer, bits, model.num_parameters())


def choose_block_size(model: PreTrainedModel, asked: int | None) -> int:
    """How many tokens a crop has: what was asked for, or what the model takes, up to 1,024.

    Raises:
        UsageError: The model does not take so many, or it is not even one.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    if asked is None:
        return min(longest or _LONGEST_BY_DEFAULT, _LONGEST_BY_DEFAULT)
    if asked < 1:
        raise UsageError(f"block_size must be at least 1, got {asked}.")
    if longest is not None and asked > longest:
        raise UsageError(f"block_size is {asked} and the model takes at most {longest} tokens; choose up to {longest}.")
    return asked


@torch.no_grad()
def check_causal(model: PreTrainedModel, source: str) -> None:
    """Refuses a model that looks at what comes after: it would see its targets, and its loss would mean nothing.

    Raises:
        UsageError: Logits change with a token that comes after.
    """
    ids = _few_tokens(model).repeat(2, 1)  # (2, seq)
    ids[1, -1] = ids[1, 0]
    with evaluating(model):
        first, second = model(input_ids=ids).logits.float()[:, :-1]  # (seq - 1, vocab) each
    # Rows of 8-bit products are rounded together.
    tolerance = 0.1 if getattr(model, "is_quantized", False) else 1e-5
    if (first - second).abs().max() > tolerance * first.std():
        raise UsageError(
            f"{source} is of the class {type(model).__name__} and looks at what comes after a token, so it is no "
            "causal language model; fine-tune one that is."
        )


@torch.no_grad()
def check_loss(model: PreTrainedModel, source: str) -> None:
    """Refuses a model that computes another loss than it is asked for, which nothing else would show.

    Crops come with their targets, as `shift_labels`; a model that does not know them would learn the token after next.

    Raises:
        UsageError: The model's loss is not the one of these targets.
    """
    ids = _few_tokens(model)
    inputs, targets = ids[:, :-1], ids[:, 1:].contiguous()  # (1, seq - 1)
    takes_more = any(one.kind == one.VAR_KEYWORD for one in inspect.signature(model.forward).parameters.values())
    if takes_more:
        with evaluating(model):
            output = model(input_ids=inputs, labels=targets, shift_labels=targets)
        expected = F.cross_entropy(output.logits.float().flatten(0, 1), targets.flatten())
        if torch.allclose(output.loss.float(), expected, rtol=1e-2):
            return
    raise UsageError(
        f"{source} is of the class {type(model).__name__}, whose loss takes no shift_labels; fine-tune a model of "
        "a class that transformers itself has."
    )


def _few_tokens(model: PreTrainedModel) -> Tensor:
    """The first few ids, shape (1, seq): two at least, and as many as the model takes up to four."""
    longest = getattr(model.config, "max_position_embeddings", None) or 4
    return torch.arange(min(max(longest, 2), 4), device=model.device)[None] % model.config.vocab_size  # (1, seq)
