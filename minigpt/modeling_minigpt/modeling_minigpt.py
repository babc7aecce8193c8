"""MiniGPT: the whole GPT, from token ids to the loss. Read it from top to bottom.

input_ids                                 (batch, seq)
    |
embed_tokens [+ embed_positions]          (batch, seq, hidden)
    |
    |------------------.              .
    |           input_layernorm       |
    |              self_attn          |   causal, [with rotary positions]
    + <----------------'              |
    |                                 |   MiniGPTBlock, num_hidden_layers times
    |------------------.              |
    |       post_attention_layernorm  |
    |                 mlp             |
    + <----------------'              '
    |
  norm
    |
 lm_head [softcap]                        (batch, seq, vocab)
"""

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_minigpt import MiniGPTConfig
from .fast_generation_minigpt import FastGenerationMixin
from .padding_minigpt import ignore_unpredicted

PositionEmbeddings = tuple[torch.Tensor, torch.Tensor]


def build_norm(config: MiniGPTConfig, size: int) -> nn.Module:
    """Build the configured norm over the last `size` features."""
    if config.norm_type == "layernorm":
        return nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias)
    return nn.RMSNorm(size, eps=config.norm_eps, elementwise_affine=config.norm_type == "rmsnorm")


class PositionEmbedding(nn.Embedding):
    """One learned vector for each position (GPT-2)."""

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Look up (batch, seq) positions.

        Returns:
            (batch, seq, hidden).

        Raises:
            ValueError: A position is outside the block. A GPU stops with an assertion of its own instead.
        """
        try:
            return super().forward(position_ids)
        except IndexError as error:
            raise ValueError(
                f"a position is outside the block of {self.num_embeddings} learned positions; crop the input to it."
            ) from error


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the positions' angles (RoFormer), in the layout of transformers' Llama.

    `PreTrainedModel` recomputes `inv_freq` and `original_inv_freq`, by these names, after it built a model on the meta
    device.
    """

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = rope_init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: MiniGPTConfig, device: torch.device | None = None, **kwargs: object
    ) -> tuple[torch.Tensor, float]:
        """Return the frequencies theta^(-2i/d), shape (head_dim / 2), and a factor of 1 for the cosines and sines."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> PositionEmbeddings:
        """Return cosines and sines, each (batch, 1, seq, head_dim), in the dtype of `hidden_states`."""
        # Angles are float32 whatever the model's dtype: bfloat16 cannot tell position 257 from 258.
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * inv_freq  # (batch, seq, head_dim / 2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (batch, 1, seq, head_dim)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def apply_rotary(states: torch.Tensor, position_embeddings: PositionEmbeddings) -> torch.Tensor:
    """Turn each pair (i, i + head_dim / 2) of `states` (batch, heads, seq, head_dim) by its position's angle."""
    cos, sin = position_embeddings
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def count_positions(inputs_embeds: torch.Tensor, attention_mask: object, past_key_values: Cache | None) -> torch.Tensor:
    """Count the positions of tokens that follow the cache, leaving out padding by a mask of (batch, total).

    Returns:
        (batch, seq), or (1, seq) without such a mask. Padding before a row's first token has position 0.
    """
    past_seen_tokens = 0 if past_key_values is None else past_key_values.get_seq_length()
    positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_seen_tokens  # (seq,)
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return positions[None]
    counted = (attention_mask.to(positions.device).long().cumsum(-1) - 1).clamp(min=0)  # (batch, total)
    return counted.index_select(1, positions)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute scaled dot-product attention step by step: the only implementation that returns its weights.

    Args:
        module: The attention layer; `num_key_value_groups` of its query heads share a key and value head.
        query: (batch, heads, seq, head_dim).
        key: (batch, key-value heads, total, head_dim).
        value: (batch, key-value heads, total, head_dim).
        attention_mask: Added to the scores, (batch, 1, seq, total); None to attend to every position.
        scaling: Factor of the scores.
        dropout: Probability of dropping a weight while training.
        **kwargs: Arguments of other implementations; ignored.

    Returns:
        The output, (batch, seq, heads, head_dim), and the weights, (batch, heads, seq, total).
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # (batch, heads, total, head_dim)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)  # (batch, heads, total, head_dim)
    scores = query @ key.transpose(2, 3) * scaling  # (batch, heads, seq, total)
    # At least as precise as the mask: its least number would become minus infinity, and a row of that NaN.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (batch, seq, heads, head_dim)


class MiniGPTAttention(nn.Module):
    """Multi-head causal self-attention with one projection for queries, keys and values."""

    is_causal = True

    def __init__(self, config: MiniGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.dropout
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None

        query_size = config.num_attention_heads * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.heads) * self.head_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_output_bias)
        self.o_proj.is_residual_projection = True
        self.qk_norm = config.qk_norm
        if self.qk_norm is not None:
            self.q_norm = build_norm(config, self.head_dim)
            self.k_norm = build_norm(config, self.head_dim)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: PositionEmbeddings | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, seq, _ = hidden_states.shape
        states = self.qkv_proj(hidden_states).view(batch, seq, -1, self.head_dim)  # (batch, seq, all heads, head_dim)
        query, key, value = states.transpose(1, 2).split(self.heads, dim=1)  # each (batch, heads, seq, head_dim)
        if self.qk_norm == "before_rotary":
            query, key = self.q_norm(query), self.k_norm(key)
        if position_embeddings is not None:
            query, key = apply_rotary(query, position_embeddings), apply_rotary(key, position_embeddings)
        if self.qk_norm == "after_rotary":
            query, key = self.q_norm(query), self.k_norm(key)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (batch, kv heads, total, head_dim)

        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        attn_output = attn_output.reshape(batch, seq, -1)  # (batch, seq, heads * head_dim)
        return self.resid_dropout(self.o_proj(attn_output)), attn_weights


class MiniGPTMLP(nn.Module):
    """Feed-forward layer: up to `intermediate_size`, an activation, and back down."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__()
        self.is_gated = config.hidden_act == "swiglu"
        self.act_fn = nn.SiLU() if self.is_gated else ACT2FN[config.hidden_act]
        up_size = (2 if self.is_gated else 1) * config.intermediate_size
        self.up_proj = nn.Linear(config.hidden_size, up_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.is_residual_projection = True
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.up_proj(hidden_states)  # (batch, seq, intermediate), twice that with a gate
        if self.is_gated:  # SwiGLU (Shazeer, "GLU Variants Improve Transformer"); the gate comes first
            gate, up = hidden_states.chunk(2, dim=-1)  # each (batch, seq, intermediate)
            hidden_states = self.act_fn(gate) * up
        else:
            hidden_states = self.act_fn(hidden_states)
        return self.resid_dropout(self.down_proj(hidden_states))  # (batch, seq, hidden)


class MiniGPTBlock(GradientCheckpointingLayer):
    """Attention, then feed-forward, each on a normed copy and added to the residual stream."""

    def __init__(self, config: MiniGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = build_norm(config, config.hidden_size)
        self.self_attn = MiniGPTAttention(config, layer_idx)
        self.post_attention_layernorm = build_norm(config, config.hidden_size)
        self.mlp = MiniGPTMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class MiniGPTPreTrainedModel(PreTrainedModel):
    """Base class of all MiniGPT models: configuration, initialization, and supported features."""

    config: MiniGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MiniGPTBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MiniGPTBlock, "attentions": MiniGPTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # The flag is on the leaf: for code outside transformers, this method is never called with a container that has
        # no parameters of its own.
        if getattr(module, "is_residual_projection", False):
            if self.config.residual_init == "scaled":
                std = self.config.initializer_range / (2 * self.config.num_hidden_layers) ** 0.5
                init.normal_(module.weight, mean=0.0, std=std)
            elif self.config.residual_init == "zero":
                init.zeros_(module.weight)


class MiniGPTModel(MiniGPTPreTrainedModel):
    """MiniGPT without a head: returns one normed vector per token."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config)
        config.validate()  # fields may have been set since it was built
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = self.rotary_emb = self.embedding_norm = None
        if config.position_embedding_type == "learned":
            self.embed_positions = PositionEmbedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.rotary_emb = RotaryEmbedding(config)
        if config.embedding_norm:
            self.embedding_norm = build_norm(config, config.hidden_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([MiniGPTBlock(config, idx) for idx in range(config.num_hidden_layers)])
        self.norm = build_norm(config, config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Compute the hidden states of the last block.

        Args:
            input_ids: (batch, seq), int64; or give `inputs_embeds`.
            attention_mask: (batch, total), 0 for padding; or (batch, 1, seq, total); or these by layer type.
            position_ids: (batch, seq); by default each row's own, counted from its first token that is not padding.
            past_key_values: Keys and values of the tokens before.
            inputs_embeds: (batch, seq, hidden), in place of `input_ids`.
            use_cache: Whether to return a cache; the configuration's `use_cache` by default.
            **kwargs: Passed on to the attention implementation.

        Returns:
            `last_hidden_state` (batch, seq, hidden), `past_key_values`, and on request `hidden_states`, `attentions`.

        Raises:
            ValueError: Not exactly one of `input_ids` and `inputs_embeds` is given, or `position_ids` are of another
                length or outside the block.
            TypeError: `past_key_values` is no `Cache`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        if not isinstance(past_key_values, Cache | None):
            raise TypeError(f"past_key_values must be a Cache (DynamicCache), not a {type(past_key_values).__name__}.")
        token_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (batch, seq, hidden)

        # Only positions that the caller gives can mark packed sequences, which the masks then keep apart.
        masks = attention_mask
        if not isinstance(masks, dict):
            build_mask = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
            masks = {
                layer_type: build_mask[layer_type](
                    config=self.config,
                    inputs_embeds=token_embeds,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    position_ids=position_ids,
                )
                for layer_type in set(self.config.layer_types)
            }
        if position_ids is None:
            position_ids = count_positions(token_embeds, attention_mask, past_key_values)
        if position_ids.shape[-1] != token_embeds.shape[1]:
            # A sum would broadcast one token over all positions without an error.
            given = f"{position_ids.shape[-1]} position_ids were given for {token_embeds.shape[1]} tokens"
            raise ValueError(f"{given}; give one for each token.")
        # Only after the masks: with a cache, even an empty one, they do not look for packed sequences.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states, position_embeddings = token_embeds, None
        if self.embed_positions is not None:
            position_embeds = self.embed_positions(position_ids)  # (batch, seq, hidden)
            hidden_states = token_embeds + position_embeds
        if self.rotary_emb is not None:
            position_embeddings = self.rotary_emb(token_embeds, position_ids)
        if self.embedding_norm is not None:
            hidden_states = self.embedding_norm(hidden_states)
        hidden_states = self.embedding_dropout(hidden_states)
        # The slice lets early exit, which lowers the number of layers, run only the first ones.
        for idx, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[self.config.layer_types[idx]],
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


class MiniGPTForCausalLM(MiniGPTPreTrainedModel, FastGenerationMixin, GenerationMixin):
    """MiniGPT with a language-modeling head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config)
        self.model = MiniGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.final_logit_softcapping = config.final_logit_softcapping
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position.

        Args:
            input_ids: (batch, seq), int64; or give `inputs_embeds`.
            attention_mask: See `MiniGPTModel.forward`.
            position_ids: See `MiniGPTModel.forward`.
            past_key_values: Keys and values of the tokens before.
            inputs_embeds: (batch, seq, hidden), in place of `input_ids`.
            labels: (batch, seq), the same ids as `input_ids`: the loss shifts them; -100 counts for nothing. For rows
                already shifted by one, pass them as `shift_labels` too.
            use_cache: Whether to return a cache; the configuration's `use_cache` by default.
            logits_to_keep: How many of the last positions get logits, 0 for all, or a tensor of positions.
            **kwargs: Passed on to the attention implementation and to the loss.

        Returns:
            `loss` in nats a token if labels were given, `logits` (batch, kept, vocab), `past_key_values`, and on
            request `hidden_states` and `attentions`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.compute_logits(hidden_states)  # (batch, kept, vocab)
        loss = None
        if labels is not None:
            labels, loss_kwargs = ignore_unpredicted(labels, attention_mask, kwargs)
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **loss_kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute (batch, kept, vocab) logits, bounded smoothly if the configuration says so (Gemma 2)."""
        logits = self.lm_head(hidden_states)
        cap = self.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


# The fast generation loop replaces these two methods, and only these.
MiniGPTForCausalLM.replaced_forwards = (MiniGPTForCausalLM.forward, MiniGPTModel.forward)


class MiniGPTForSequenceClassification(GenericForSequenceClassification, MiniGPTPreTrainedModel):
    """MiniGPT with a classification head on each row's last token that is not padding."""

    def __init__(self, config: MiniGPTConfig) -> None:
        # Not the mixin's `__init__`: it builds the model with `AutoModel`, which does not know code from a repository.
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = MiniGPTModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class MiniGPTForTokenClassification(GenericForTokenClassification, MiniGPTPreTrainedModel):
    """MiniGPT with a classification head on every token."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super(GenericForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = MiniGPTModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


# With label smoothing the Trainer shifts labels for these names only, and AutoModelForCausalLM.register adds none.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MiniGPTConfig.model_type] = MiniGPTForCausalLM.__name__
MiniGPTModel.register_for_auto_class("AutoModel")
MiniGPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
MiniGPTForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
MiniGPTForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
