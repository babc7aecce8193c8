"""The description of a MiniGPT: the lecture's GPT by default, one typed field for each step towards today's models."""

import math
import os
from difflib import get_close_matches
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

_MOST_LAYERS = 10**5
_GENERATION_KEYS = set(GenerationConfig().to_dict())
_ROTARY_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor")
# Every class stands here whichever of them was saved, so that each opens a repository by its Auto class.
_AUTO_MAP = {
    "AutoConfig": "configuration_minigpt.MiniGPTConfig",
    "AutoModel": "modeling_minigpt.MiniGPTModel",
    "AutoModelForCausalLM": "modeling_minigpt.MiniGPTForCausalLM",
    # Decisions are made by a language model's own next-token scores, and `transformers serve` asks for this class.
    "AutoModelForDecision": "modeling_minigpt.MiniGPTForCausalLM",
    "AutoModelForSequenceClassification": "modeling_minigpt.MiniGPTForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_minigpt.MiniGPTForTokenClassification",
}


class NameCheckingConfig(PreTrainedConfig):
    """Refuses a misspelt name where a person writes it, and keeps every key of a file.

    A file names its `model_type`, and a call of the constructor does not. What a file holds is kept as attributes, as
    transformers does it: any attribute may be set on a config, and the folder that is saved must open again.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the config that a file describes; an unknown key becomes an attribute."""
        return super().from_dict({"model_type": cls.model_type, **config_dict}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """Builds the config of a JSON file; an unknown key becomes an attribute."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def _refuse_near_misses(self, kwargs: dict[str, Any]) -> None:
        fields = [name for name in type(self).__dataclass_fields__ if not hasattr(PreTrainedConfig, name)]
        for key, value in kwargs.items():
            if key.startswith("_") or key in self.attribute_map or hasattr(PreTrainedConfig, key):
                continue
            if key in _GENERATION_KEYS:
                if value is not None:
                    # PreTrainedConfig would drop it, or keep it without effect.
                    raise TypeError(f"{type(self).__name__} has no field {key!r}; set it in generation_config.")
                continue
            if meant := get_close_matches(key, [*fields, *self.attribute_map], n=1, cutoff=0.8):
                raise TypeError(f"{type(self).__name__} has no field {key!r}; did you mean {meant[0]}?")

    def validate_finite(self) -> None:
        """Refuses numbers that are infinite or none, in every field and among the rotary parameters."""
        numbers = {name: getattr(self, name, None) for name in type(self).__dataclass_fields__}
        for name, value in {**numbers, **(numbers.get("rope_parameters") or {})}.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}.")


@strict
class MiniGPTConfig(NameCheckingConfig):
    """Configuration of a MiniGPT.

    The defaults are the GPT of Andrej Karpathy's lecture "Let's build GPT" at a laptop's size. The lecture's own names
    `n_embd`, `n_layer`, `n_head` and `block_size` are accepted and readable everywhere. Impossible values are refused
    with the field's name. The constructor refuses a near-miss of a field's name; loading keeps unknown keys.

    The first group is the lecture's GPT. The second holds the steps towards today's models. The third is needed only to
    convert other models exactly. The last one belongs to tasks and to the tokenizer.

    Args:
        vocab_size: Number of tokens, special tokens included.
        hidden_size: Width of the residual stream (`n_embd`).
        num_hidden_layers: Number of blocks (`n_layer`).
        num_attention_heads: Number of query heads (`n_head`).
        max_position_embeddings: Context length in tokens (`block_size`).
        dropout: Probability for the attention weights and both residual branches.
        initializer_range: Standard deviation of the initial weights.

        position_embedding_type: `"learned"` absolute positions, or `"rope"` (rotary, RoFormer).
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}` by default; linear, llama3 and yarn too.
        norm_type: `"layernorm"`, `"rmsnorm"`, or `"unweighted_rmsnorm"` (nanochat).
        qk_norm: Norm over each query and key head, `"before_rotary"` (Qwen3) or `"after_rotary"` (nanochat).
        hidden_act: Activation by its transformers name (`"relu"`, `"gelu_new"`, `"relu2"`, ...) or `"swiglu"`.
        intermediate_size: Width inside the feed-forward; 4 x `hidden_size` by default.
        num_key_value_heads: Number of key and value heads, a divisor of the query heads; all of them by default (GQA).
        sliding_window: Number of tokens that each token sees, itself included; at most `max_position_embeddings`.
        layer_types: `"full_attention"` or `"sliding_attention"` for each layer; all alike by default.
        tie_word_embeddings: Share the token embedding's weight with the head.
        residual_init: Output projections start `"normal"`, `"scaled"` by 1/sqrt(2 x layers) (GPT-2), or at `"zero"`.
        final_logit_softcapping: Bound c of the logits, as `c * tanh(logits / c)`; None for no bound.
        embedding_norm: Add a norm before the first block (nanochat).

        head_dim: Width of a head; `hidden_size // num_attention_heads` by default.
        norm_eps: Number added to the variance inside every norm.
        norm_bias: Give layer norms a bias.
        attention_bias: Give the query, key and value projections a bias.
        attention_output_bias: Give the attention's output projection a bias.
        mlp_bias: Give the feed-forward biases.
        lm_head_bias: Give the language-modeling head a bias.
        embedding_dropout: Probability after the embeddings (nanoGPT).

        classifier_dropout: Probability before a token classification head.
        use_cache: Return keys and values for the next token from `forward`.
        bos_token_id: Id of the BOS token, if any.
        eos_token_id: Id of the EOS token, if any.
        pad_token_id: Id of the padding token, if any.

    Raises:
        StrictDataclassError: If a value has the wrong type or is impossible.
        TypeError: If an argument's name is a near-miss of a field, or belongs to `generation_config`.
    """

    model_type = "minigpt"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "block_size": "max_position_embeddings",
    }

    vocab_size: int = 65
    hidden_size: int = 64
    intermediate_size: int | None = None
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 32
    position_embedding_type: Literal["learned", "rope"] = "learned"
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    norm_type: Literal["layernorm", "rmsnorm", "unweighted_rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    embedding_norm: bool = False
    qk_norm: Literal["before_rotary", "after_rotary"] | None = None
    hidden_act: str = "relu"
    attention_bias: bool = False
    attention_output_bias: bool = True
    mlp_bias: bool = True
    lm_head_bias: bool = True
    tie_word_embeddings: bool = False
    final_logit_softcapping: float | int | None = None
    dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    residual_init: Literal["normal", "scaled", "zero"] = "normal"
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                setattr(self, name, kwargs.pop(alias))
        is_written = "model_type" not in kwargs
        if is_written:
            self._refuse_near_misses(kwargs)
        if self.position_embedding_type == "learned":
            rotary = [self.rope_parameters, *(kwargs.pop(key, None) for key in _ROTARY_KEYS)]
            if is_written and any(rotary):
                raise ValueError("rotary parameters need position_embedding_type='rope', got 'learned'.")
            self.rope_parameters = None
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self._validate_divisible("hidden_size", "num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_hidden_layers > _MOST_LAYERS:  # before layer_types, a list of that length, is made
            raise ValueError(f"num_hidden_layers must be at most {_MOST_LAYERS:,}, got {self.num_hidden_layers:,}.")
        if self.layer_types is None:
            layer_type = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [layer_type] * max(self.num_hidden_layers, 0)
        kwargs.setdefault("auto_map", dict(_AUTO_MAP))
        super().__post_init__(**kwargs)
        if self.position_embedding_type == "learned":
            self.rope_parameters = None

    @property
    def rolls_past_block(self) -> bool:
        """Whether the model goes on past its block by itself: rotary, with every layer looking through a window."""
        return self.position_embedding_type == "rope" and set(self.layer_types or ()) == {"sliding_attention"}

    def _validate_divisible(self, whole: str, part: str) -> None:
        self._validate_at_least(part, 1)
        if getattr(self, whole) % getattr(self, part):
            raise ValueError(
                f"{whole} ({getattr(self, whole)}) must be a multiple of {part} ({getattr(self, part)}); change either."
            )

    def _validate_at_least(self, name: str, least: int) -> None:
        if getattr(self, name) is not None and getattr(self, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    def validate_architecture(self) -> None:
        """Refuses sizes and probabilities that no model can have, and switches that exclude each other."""
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            self._validate_at_least(name, 1)
        # A rolling cache keeps one token less than the window, and of none it would keep all.
        self._validate_at_least("sliding_window", 2)
        self._validate_divisible("num_attention_heads", "num_key_value_heads")
        for name in ("dropout", "embedding_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        for name in ("norm_eps", "initializer_range", "final_logit_softcapping"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}; change it or the heads.")

    def validate_activation(self) -> None:
        """Refuses an activation that transformers does not know."""
        from transformers.activations import ACT2FN

        if self.hidden_act not in ("swiglu", *ACT2FN):
            nearest = get_close_matches(self.hidden_act, ["swiglu", *ACT2FN], n=1, cutoff=0.0)[0]
            raise ValueError(f"hidden_act {self.hidden_act!r} is unknown; did you mean {nearest}?")

    def validate_rotary(self) -> None:
        """Refuses rotary scalings that the model does not implement."""
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        known = ("default", "linear", "llama3", "yarn")
        if rope_type not in known:
            raise ValueError(f"rope_type must be one of {', '.join(known)}, got {rope_type!r}.")
        if (theta := (self.rope_parameters or {}).get("rope_theta", 1)) <= 0:
            raise ValueError(f"rope_theta must be above 0, got {theta}.")
        # The attribute too: a file that holds it could not be opened.
        partial = [
            (self.rope_parameters or {}).get("partial_rotary_factor"),
            getattr(self, "partial_rotary_factor", None),
        ]
        if self.position_embedding_type == "rope" and any(partial):
            raise ValueError("partial_rotary_factor is not supported: rotary positions turn the whole head.")

    def validate_window(self) -> None:
        """Refuses layer types and windows that do not belong together."""
        known = {"full_attention", "sliding_attention"}
        if not set(self.layer_types) <= known:
            raise ValueError(f"layer_types must be of {sorted(known)}, got {sorted(set(self.layer_types) - known)}.")
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("layer_types name sliding_attention; set sliding_window, the number of tokens seen.")
        if self.sliding_window is not None and self.sliding_window > self.max_position_embeddings:
            raise ValueError(
                f"sliding_window ({self.sliding_window}) must not exceed max_position_embeddings "
                f"({self.max_position_embeddings}); no layer can see further than the block."
            )


MiniGPTConfig.register_for_auto_class()
