"""Models in 4 bits on a CPU."""

from transformers import PreTrainedModel


def keep_weights_unpacked(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights, as it does on CPUs with AVX512-BF16.

    A `Linear4bit` of bitsandbytes 0.50.2 repacks its weight for good at its first forward pass in evaluation mode. From
    then on it computes in bfloat16 without autograd: a layer with a bias raises in training, and one without passes no
    gradient on. It also refuses sizes that are no multiples of 64 and 32.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
