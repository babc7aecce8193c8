"""QLoRA: the frozen weights in 4 or 8 bits, the adapter above them in full precision (Dettmers et al. 2023)."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from minigpt.errors import UsageError
from minigpt.hub.extras import require_extra

BITS = (4, 8)


def check_bits(bits: int) -> None:
    """Refuses what bitsandbytes cannot do, or that it is not installed.

    Raises:
        UsageError: One of these.
    """
    if bits not in BITS:
        raise UsageError(f"weights are loaded in {' or '.join(map(str, BITS))} bits, got {bits}.")
    require_extra("qlora", f"--load_in_{bits}bit", "bitsandbytes", "peft")


def refuse_quantized(source: str | Path, *, local_files_only: bool) -> None:
    """Refuses to quantize a model once more, which transformers would pass over without a word.

    Raises:
        UsageError: Its weights are quantized already.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, local_files_only=local_files_only)
    except OSError:
        return  # whoever opens it says what is wrong with it
    if quantized := config.get("quantization_config"):
        raise UsageError(
            f"the weights of {source} are already quantized (by {quantized.get('quant_method')}); leave "
            "--load_in_4bit and --load_in_8bit out, or take the model in full precision."
        )


def quantized_loading(bits: int, device: torch.device, *, bf16: bool) -> dict[str, Any]:
    """The arguments of `from_pretrained` by which a model comes in 4 bits (NF4, double quantization) or in 8.

    Args:
        bits: 4 or 8.
        device: Where it is to lie.
        bf16: Whether layers compute in bfloat16, else in float32.
    """
    from transformers import BitsAndBytesConfig

    # It says at every product of 8-bit weights that it rounds the input, which is what they are for.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def prepare_quantized(model: PreTrainedModel, *, gradient_checkpointing: bool) -> PreTrainedModel:
    """Freezes a quantized model and puts what is not quantized, such as norms and embeddings, in float32."""
    from peft import prepare_model_for_kbit_training

    prepared: PreTrainedModel = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    return prepared
