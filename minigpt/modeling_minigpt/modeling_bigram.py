"""The bigram: one table, and the next token's logits are a row of it.

`_supports_default_dynamic_cache` is private in `GenerationMixin`; it was read in transformers 5.23.0.
"""

from typing import Any, NoReturn

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from .configuration_bigram import BigramConfig
from .generation_minigpt import UnboundedGenerationMixin
from .padding_minigpt import ignore_unpredicted


class BigramModel(PreTrainedModel):
    """The table without a use for it: tokens in, the row of each out.

    Row i of `token_embedding_table.weight` (vocab_size, vocab_size) holds the logits of whatever follows token i, which
    is all that a bigram knows of it.
    """

    config: BigramConfig
    config_class = BigramConfig
    supports_gradient_checkpointing = True
    _input_embed_layer = "token_embedding_table"
    _can_compile_fullgraph = True
    # There is no attention, so whichever implementation is asked for will do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: BigramConfig) -> None:
        super().__init__(config)
        self.token_embedding_table = nn.Embedding(config.vocab_size, config.vocab_size)
        # The switch must exist for a Trainer to turn it; there is nothing to recompute.
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Looks each token's row up.

        Args:
            input_ids: Tokens, int64 (batch, seq).
            attention_mask: Accepted and without effect, as no token sees another.
            position_ids: Accepted and without effect.
            past_key_values: Handed back untouched; nothing is stored in it.
            inputs_embeds: Rows looked up already, (batch, seq, vocab_size), in place of `input_ids`.
            use_cache: Accepted and without effect.
            **kwargs: `output_hidden_states`; anything else is accepted and without effect.

        Returns:
            The rows as `last_hidden_state`, (batch, seq, vocab_size), and on request as the one entry of
            `hidden_states`.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        rows = self.look_up(input_ids, inputs_embeds)  # (batch, seq, vocab)
        hidden_states = self.record(rows, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=rows, past_key_values=past_key_values, hidden_states=hidden_states
        )

    def record(
        self, rows: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor] | None:
        """Returns the hidden states if they were asked for: the rows only, as there are no layers after them."""
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return (rows,) if asked else None

    def look_up(self, input_ids: torch.LongTensor | None, inputs_embeds: torch.FloatTensor | None) -> torch.Tensor:
        """The tokens' rows, (batch, seq, vocab_size), or those that were looked up already."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        return self.token_embedding_table(input_ids) if inputs_embeds is None else inputs_embeds

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        table = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        # The stock method changes the rows, what follows a token; the columns, what a token follows, have to match.
        rows, columns = table.weight.shape
        weight = table.weight.detach()[:, :rows]  # (rows, at most rows)
        if rows > columns:
            new_columns = weight.new_empty(rows, rows - columns)
            if mean_resizing:
                # As likely as the average token, as a language-model head's new rows are.
                new_columns[:] = weight.mean(dim=1, keepdim=True)
            else:
                new_columns.normal_(mean=0.0, std=self.config.initializer_range)
            weight = torch.cat((weight, new_columns), dim=1)  # (rows, rows)
        table.weight.data = weight.contiguous()
        table.embedding_dim = rows
        return table


class BigramForCausalLM(BigramModel, UnboundedGenerationMixin, GenerationMixin):
    """Predicts the next token from the last one alone, behind the same interface as the GPT.

    Its best possible loss on a text is that of counting its pairs: a GPT that does no better has learned nothing more.
    """

    # There is no cache to roll back: assisted decoding, which needs one, is refused.
    _is_stateful = True

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Gives each token's row as the logits of what follows it.

        Args:
            input_ids: Tokens, int64 (batch, seq).
            attention_mask: Where it is 0, the next label is left out; nothing else changes.
            position_ids: See `BigramModel.forward`.
            past_key_values: See there.
            inputs_embeds: Rows looked up already, (batch, seq, vocab_size), in place of `input_ids`: the logits.
            labels: Targets, int64 (batch, seq), shifted inside unless `shift_labels` is given too; -100 is left out.
            use_cache: See there.
            logits_to_keep: The last so many positions (0 for all), or a tensor of positions.
            **kwargs: `output_hidden_states`; for the loss: `shift_labels`, `num_items_in_batch`.

        Returns:
            The loss if there were labels, the logits (batch, kept, vocab_size), and on request `hidden_states`.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        rows = self.look_up(input_ids, inputs_embeds)  # (batch, seq, vocab)
        logits = slice_logits_to_keep(rows, logits_to_keep)  # (batch, kept, vocab)
        loss = None
        if labels is not None:
            labels, loss_kwargs = ignore_unpredicted(labels, attention_mask, kwargs)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=past_key_values, hidden_states=self.record(rows, **kwargs)
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # Without a cache, generate() still feeds the last token alone, which is all that a bigram needs.
        return False

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: continuous batching pages keys and values, and there are none."""
        raise ValueError(
            "continuous batching serves models with attention, which a bigram lacks; use plain generate()."
        )


# With label smoothing the Trainer shifts labels for these names only, and AutoModelForCausalLM.register adds none.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[BigramConfig.model_type] = BigramForCausalLM.__name__
BigramModel.register_for_auto_class("AutoModel")
BigramForCausalLM.register_for_auto_class("AutoModelForCausalLM")
