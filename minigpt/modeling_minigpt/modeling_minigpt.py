"""MiniGPT: attention, feed-forward, block, and the models that are built of them."""

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_minigpt import MiniGPTConfig
from .generation_minigpt import BlockGenerationMixin
from .layers_minigpt import POSITIONS, SoftCap, build_activation, build_norm, eager_attention_forward
from .padding_minigpt import count_positions, ignore_unpredicted

PositionEmbeddings = tuple[torch.Tensor, torch.Tensor] | None
MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class MiniGPTAttention(nn.Module):
    """Causal self-attention of several heads, their queries, keys and values from one projection."""

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
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.rotate = POSITIONS[config.position_embedding_type].rotate
        self.norms_first = config.qk_norm != "after_rotary"
        self.resid_dropout = nn.Dropout(config.dropout)

    def place(
        self, query: torch.Tensor, key: torch.Tensor, position_embeddings: PositionEmbeddings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Norms and rotates queries and keys, in the configuration's order."""
        if self.norms_first:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = self.rotate(query, position_embeddings), self.rotate(key, position_embeddings)
        return (query, key) if self.norms_first else (self.q_norm(query), self.k_norm(key))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: PositionEmbeddings = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, seq, _ = hidden_states.shape
        states = self.qkv_proj(hidden_states).view(batch, seq, -1, self.head_dim)  # (batch, seq, all heads, head_dim)
        query, key, value = states.transpose(1, 2).split(self.heads, dim=1)  # each (batch, heads, seq, head_dim)
        query, key = self.place(query, key, position_embeddings)
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
    """The feed-forward: out to `intermediate_size`, an activation, and back."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__()
        self.act_fn, width = build_activation(config.hidden_act)
        self.up_proj = nn.Linear(config.hidden_size, width * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.is_residual_projection = True
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.resid_dropout(self.down_proj(self.act_fn(self.up_proj(hidden_states))))


class MiniGPTBlock(GradientCheckpointingLayer):
    """Communication, then computation, each on a normed copy and added to the residual stream."""

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
    """What every MiniGPT shares: its configuration, its initialisation, and what it supports."""

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
        # The mark is on the leaf: transformers never shows this method a container that has no parameters of its own.
        if getattr(module, "is_residual_projection", False):
            if self.config.residual_init == "scaled":
                std = self.config.initializer_range / (2 * self.config.num_hidden_layers) ** 0.5
                init.normal_(module.weight, mean=0.0, std=std)
            elif self.config.residual_init == "zero":
                init.zeros_(module.weight)


class MiniGPTModel(MiniGPTPreTrainedModel):
    """The transformer without a head: ids in, one normed vector a token out."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config)
        config.validate()  # fields may have been set since it was built
        positions = POSITIONS[config.position_embedding_type]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = positions.embedding(config)
        self.embedding_norm = build_norm(config, config.hidden_size) if config.embedding_norm else nn.Identity()
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([MiniGPTBlock(config, idx) for idx in range(config.num_hidden_layers)])
        self.norm = build_norm(config, config.hidden_size)
        self.rotary_emb = positions.rotary(config)
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
        """Runs the blocks.

        Args:
            input_ids: (batch, seq), int64; or give `inputs_embeds`.
            attention_mask: (batch, total), 0 for padding; or (batch, 1, seq, total); or one such for each layer type.
            position_ids: (batch, seq); by default each row's own, counted from its first token that is not padding.
            past_key_values: Keys and values of the tokens before.
            inputs_embeds: (batch, seq, hidden), in place of `input_ids`.
            use_cache: Whether to return a cache; the configuration's `use_cache` by default.
            **kwargs: Passed on to the attention implementation.

        Returns:
            `last_hidden_state` (batch, seq, hidden), `past_key_values`, and on request `hidden_states`, `attentions`.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        if not isinstance(past_key_values, Cache | None):
            raise TypeError(f"past_key_values must be a Cache (DynamicCache), not a {type(past_key_values).__name__}.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (batch, seq, hidden)
        # Positions that we count ourselves are never packed sequences: the masks need not look for them.
        packed_position_ids = position_ids
        if position_ids is None:
            position_ids = count_positions(inputs_embeds, attention_mask, past_key_values)

        masks = attention_mask
        if not isinstance(masks, dict):
            masks = {
                layer_type: MASKS[layer_type](
                    config=self.config,
                    inputs_embeds=inputs_embeds,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    position_ids=packed_position_ids,
                )
                for layer_type in set(self.config.layer_types)
            }
        # Only now: with a cache given, even an empty one, the masks do not look for packed sequences.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_states = self.run_blocks(inputs_embeds, position_ids, masks, past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def run_blocks(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        masks: dict[str, torch.Tensor | None],
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Computes the normed output from embeddings, (batch, seq, hidden), in as many layers as early exit leaves."""
        hidden_states = self.embed_positions(inputs_embeds, position_ids)
        hidden_states = self.embedding_dropout(self.embedding_norm(hidden_states))
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for idx, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[self.config.layer_types[idx]],
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )
        return self.norm(hidden_states)


class MiniGPTForCausalLM(MiniGPTPreTrainedModel, BlockGenerationMixin, GenerationMixin):
    """MiniGPT with a language-model head: predicts the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config)
        self.model = MiniGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.softcap = SoftCap(config.final_logit_softcapping) if config.final_logit_softcapping else nn.Identity()
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
        """Predicts the next token at every position.

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
        logits = self.softcap(self.lm_head(hidden_states))  # (batch, kept, vocab)
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


class MiniGPTForSequenceClassification(GenericForSequenceClassification, MiniGPTPreTrainedModel):
    """MiniGPT with a linear head on each row's last token that is not padding."""

    def __init__(self, config: MiniGPTConfig) -> None:
        # The mixin's own `__init__` builds its model by `AutoModel`, which code loaded from a repository is unknown to.
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = MiniGPTModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class MiniGPTForTokenClassification(GenericForTokenClassification, MiniGPTPreTrainedModel):
    """MiniGPT with a linear head on every token."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super(GenericForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = MiniGPTModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


# By these names a Trainer knows whose labels label smoothing has to shift; AutoModelForCausalLM.register adds none.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MiniGPTConfig.model_type] = MiniGPTForCausalLM.__name__
MiniGPTModel.register_for_auto_class("AutoModel")
MiniGPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
MiniGPTForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
MiniGPTForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
