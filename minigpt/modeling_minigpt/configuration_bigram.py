"""The description of a bigram: how many characters there are, and little else."""

from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_minigpt import MiniGPTConfig, NameCheckingConfig


@strict
class BigramConfig(NameCheckingConfig):
    """Configuration of a bigram, the baseline that every GPT must beat.

    Args:
        vocab_size: Number of tokens, special tokens included; the model is one table of vocab_size x vocab_size.
        max_position_embeddings: Length in tokens of the pieces it is trained and evaluated on (`block_size`). The model
            itself looks one token back and has no limit.
        initializer_range: Standard deviation of the initial table.
        use_cache: Accepted as every causal model's is; a bigram has nothing to keep.
        bos_token_id: Beginning-of-text id, if any.
        eos_token_id: End-of-text id, if any.
        pad_token_id: Padding id, if any.
        tie_word_embeddings: Without effect: the one table is input and output at once.

    Raises:
        StrictDataclassError: If a value has the wrong type or is impossible.
        TypeError: If an argument's name belongs to a GPT's config, is a near-miss of a field, or belongs to
            `generation_config`.
    """

    model_type = "minigpt_bigram"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"block_size": "max_position_embeddings"}

    vocab_size: int = 65
    max_position_embeddings: int = 32
    initializer_range: float | int = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if "model_type" not in kwargs:
            gpt_names = {*(field.name for field in fields(MiniGPTConfig)), *MiniGPTConfig.attribute_map}
            for key in kwargs.keys() & gpt_names - self.attribute_map.keys():
                raise TypeError(f"BigramConfig has no field {key!r}: a bigram is one table of vocab_size x vocab_size.")
            self._refuse_near_misses(kwargs)
        kwargs.setdefault(
            "auto_map",
            {
                "AutoConfig": "configuration_bigram.BigramConfig",
                "AutoModel": "modeling_bigram.BigramModel",
                "AutoModelForCausalLM": "modeling_bigram.BigramForCausalLM",
                "AutoModelForDecision": "modeling_bigram.BigramForCausalLM",  # as in MiniGPTConfig
            },
        )
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """None at all, so that a cache made for a bigram is an empty one."""
        return 0

    def validate_architecture(self) -> None:
        """Refuses sizes that no table can have."""
        for name in ("vocab_size", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range must be at least 0, got {self.initializer_range}.")


BigramConfig.register_for_auto_class()
