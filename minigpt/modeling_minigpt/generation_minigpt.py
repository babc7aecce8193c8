"""Generation past the block: cropping, refusals, and defaults.

These methods of `GenerationMixin` are private and overridden here. They were read in transformers 5.23.0:

- `_prepare_generation_config`: the length a caller asks for, and EOS as the last choice.
- `_prepare_generated_length`: no default length is cut at the block.
- `_maybe_initialize_input_ids_for_generation`: padding moves to the front; an empty prompt is refused.
- `_get_stopping_criteria`: stop strings for any vocabulary; no warning past the block.
- `_prefill`: refusals that need the prompt's length.
- `_get_candidate_generator`, `_assisted_decoding`: drafts stay inside the block.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from transformers import (
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedTokenizerBase,
    SequenceBiasLogitsProcessor,
)
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList, StopStringCriteria


def lecture_generation_config(untrained_token_ids: Sequence[int], **kwargs: Any) -> GenerationConfig:
    """Sampling as the lecture does it: from the whole distribution, 500 tokens.

    Args:
        untrained_token_ids: Tokens that the model has never been trained on and that must not appear.
        **kwargs: More fields of `GenerationConfig`, such as `eos_token_id` and `pad_token_id`.
    """
    suppress_tokens = list(untrained_token_ids) or None
    # The temperature is said because pipelines take 0.7 where nothing is.
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0}
    return GenerationConfig(**sampling, max_new_tokens=500, suppress_tokens=suppress_tokens, **kwargs)


# Far below every logit, so that the probability is 0 beside any other token, and above the -1e9 of beams not in use.
_LAST_CHOICE = -1e6


def let_eos_through(config: GenerationConfig, vocab_size: int) -> None:
    """Moves EOS from `suppress_tokens`, which allows it nowhere, to a `sequence_bias` that makes it the last choice.

    What is drawn stays the same. But a grammar that is complete allows EOS only, and then it has to be there.

    Args:
        config: What is changed, in place. Without an EOS token nothing is.
        vocab_size: Number of tokens; a bias may name no other.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    suppressed = config.suppress_tokens or []
    if moved := [token for token in suppressed if token in ends and token < vocab_size]:
        config.suppress_tokens = [token for token in suppressed if token not in moved] or None
        biases = config.sequence_bias or []
        if isinstance(biases, dict):
            biases = [[list(tokens), bias] for tokens, bias in biases.items()]
        config.sequence_bias = [*biases, *([[token], _LAST_CHOICE] for token in moved)]


def hold_eos_back(config: GenerationConfig) -> None:
    """Moves EOS back to `suppress_tokens`: the inverse of `let_eos_through`."""
    biases = config.sequence_bias if isinstance(config.sequence_bias, list) else []
    if moved := [tokens[0] for tokens, bias in biases if bias == _LAST_CHOICE and len(tokens) == 1]:
        config.suppress_tokens = sorted({*(config.suppress_tokens or []), *moved})
        config.sequence_bias = [entry for entry in biases if entry[1] != _LAST_CHOICE] or None


class StopStrings(StopStringCriteria):
    """Stop strings for any vocabulary: transformers spells `abcdef` before each token, which not every one can."""

    @staticmethod
    def clean_tokenizer_vocab(
        tokenizer: PreTrainedTokenizerBase, static_prefix: str = "abcdef", stop_string_matching_mode: str | None = None
    ) -> tuple[tuple[str | bytes, ...], tuple[int, ...]]:
        """Each token's own text and its id, with any character that the vocabulary has written before it."""
        vocabulary = tokenizer.get_vocab()
        has_bytes = stop_string_matching_mode == "byte_level" or "<0x00>" in vocabulary
        if not has_bytes and not vocabulary.keys() >= set(static_prefix):
            spelled = (t for t in vocabulary if len(t) == 1 and tokenizer.convert_tokens_to_string([t]) == t)
            static_prefix = next(spelled, static_prefix)
        return StopStringCriteria.clean_tokenizer_vocab(tokenizer, static_prefix, stop_string_matching_mode)


_PLACED = {"past_key_values", "position_ids", "token_type_ids"}  # say where each token is


class UnboundedGenerationMixin(GenerationMixin):
    """`generate()` of a length that `max_position_embeddings` does not bound."""

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        prepared, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        asked = {**(generation_config.to_dict() if generation_config is not None else {}), **kwargs}
        if asked.get("max_length") is not None and asked.get("max_new_tokens") is None:
            # A caller's `max_length` would lose against the number of new tokens that a saved model brings along.
            prepared.max_new_tokens = None
        let_eos_through(prepared, self.config.vocab_size)
        return prepared, model_kwargs

    def _prepare_generated_length(
        self, generation_config: GenerationConfig, has_default_max_length: bool, **kwargs: Any
    ) -> GenerationConfig:
        if has_default_max_length and generation_config.max_new_tokens is None:
            # transformers would cut its default at the block, and refuse a prompt longer than that.
            generation_config.max_new_tokens = generation_config.max_length
        return super()._prepare_generated_length(
            generation_config=generation_config, has_default_max_length=has_default_max_length, **kwargs
        )

    def _maybe_initialize_input_ids_for_generation(
        self, inputs: torch.Tensor | None, bos_token_id: int | None, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        mask = model_kwargs.get("attention_mask")
        if inputs is not None and mask is not None and mask.shape == inputs.shape and not model_kwargs.keys() & _PLACED:
            # Tokens go on from a row's last column: padding that a batch has there moves to its front.
            order = mask.long().argsort(dim=-1, stable=True)  # (batch, seq)
            inputs, model_kwargs["attention_mask"] = inputs.gather(1, order), mask.gather(1, order)
        length = inputs.shape[-1] if inputs is not None else int(bos_token_id is not None)
        if length == 0 and model_kwargs.get("inputs_embeds") is None:
            raise ValueError("generate() got a prompt of 0 tokens and needs 1 to start from; a new line will do.")
        return super()._maybe_initialize_input_ids_for_generation(inputs, bos_token_id, model_kwargs)

    def _prefill(
        self,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        mask = model_kwargs.get("attention_mask")
        if mask is not None and not mask.any(dim=-1).all():
            row = int((~mask.any(dim=-1)).nonzero()[0])
            row //= max(generation_config.num_beams, generation_config.num_return_sequences)
            raise ValueError(f"row {row} of the prompts is padding alone and needs 1 token to start from; take it out.")
        return super()._prefill(input_ids, generation_config, model_kwargs, **kwargs)

    def _get_stopping_criteria(
        self,
        generation_config: GenerationConfig,
        stopping_criteria: StoppingCriteriaList | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> StoppingCriteriaList:
        stop_strings = generation_config.stop_strings
        if stop_strings is not None and tokenizer is not None:
            generation_config = copy(generation_config)
            generation_config.stop_strings = None
            stopping_criteria = StoppingCriteriaList([*(stopping_criteria or []), StopStrings(tokenizer, stop_strings)])
        criteria = super()._get_stopping_criteria(generation_config, stopping_criteria, tokenizer)
        for criterion in criteria:
            if isinstance(criterion, MaxLengthCriteria):
                # Silences "exceeded the model's predefined maximum length": going past the block is what we do.
                criterion.max_position_embeddings = None
        return criteria


class BlockGenerationMixin(UnboundedGenerationMixin):
    """`generate()` for a model that sees one block.

    Past the block the context is its last `max_position_embeddings` tokens, computed anew for each token as the lecture
    does: every position shifts by one, so no key or value can be kept. Rotary models whose layers all look through a
    window need none of it: their cache rolls.
    """

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Crops the context to the last block; inside the block, and for rolling caches, as transformers does it."""
        block_size = self._room_in_block()
        if input_ids.shape[1] > block_size and not self.config.rolls_past_block:
            input_ids, next_sequence_length = input_ids[:, -block_size:], None  # (batch, block)
            position_ids = None
            if attention_mask is not None:
                attention_mask = attention_mask[:, -block_size:]
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)  # (batch, block)
            if past_key_values is not None:
                past_key_values.reset()
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            # Named, not left to kwargs: generate() looks for it in the signature.
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def _room_in_block(self) -> int:
        """Tokens that one block takes: all of its places but those of the virtual tokens of PEFT's prompt learning."""
        block_size = self.config.max_position_embeddings
        # A prompt-learning PEFT model puts its own method in the place of ours while it generates.
        wrapper = getattr(vars(self).get("prepare_inputs_for_generation"), "__self__", None)
        virtual = getattr(getattr(wrapper, "active_peft_config", None), "num_virtual_tokens", None) or 0
        if virtual >= block_size:
            raise ValueError(
                f"{virtual} virtual tokens leave no room in the block of {block_size}; train an adapter of fewer."
            )
        return block_size - virtual

    def _refuse_past_block(self, total_length: int | None, what: str) -> None:
        block_size = self._room_in_block()
        if not self.config.rolls_past_block and (total_length is None or total_length > block_size):
            length = "any length" if total_length is None else f"{total_length} tokens"
            raise ValueError(
                f"{what} cannot crop its context, and {length} would pass the block of {block_size}; "
                "ask for fewer new tokens or use plain generate()."
            )

    def _refuse_short_cache(self, cache: Cache, total_length: int) -> None:
        """Refuses a static cache that would overflow, or forget what its window still sees, on the way."""
        fed = total_length - 1  # the last token is only returned
        if not self.config.rolls_past_block:
            fed = min(fed, self.config.max_position_embeddings)
        for layer in cache.layers:
            if isinstance(layer, StaticLayer):
                window = self.config.sliding_window if isinstance(layer, StaticSlidingWindowLayer) else fed
                if layer.max_cache_len < min(fed, window):
                    raise ValueError(
                        f"a static cache of {layer.max_cache_len} tokens is too short for a text of {total_length}; "
                        f"make it with max_cache_len={fed}."
                    )

    def _prefill(
        self,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        total_length = generation_config.max_length
        new_tokens = total_length - input_ids.shape[1]
        if model_kwargs.get("inputs_embeds") is not None:
            total_length = model_kwargs["inputs_embeds"].shape[1] + new_tokens
            self._refuse_past_block(total_length, "generation from inputs_embeds")
        seen = mask.shape[1] if mask is not None else getattr(generation_config, "_mask_length", 0)
        if cache is not None and seen > input_ids.shape[1]:
            total_length = seen + new_tokens
            self._refuse_past_block(total_length, "continuing a cache from the new tokens alone")
        if cache is not None:
            self._refuse_short_cache(cache, total_length)
        if generation_config.guidance_scale not in (None, 1):
            self._refuse_past_block(generation_config.max_length, "guided generation")
        if input_ids.shape[1] > self._room_in_block() and not self.config.rolls_past_block:
            generation_config.prefill_chunk_size = None  # the crop is one block: there is nothing to cut in chunks
        return super()._prefill(input_ids, generation_config, model_kwargs, **kwargs)

    def _get_candidate_generator(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        generator = super()._get_candidate_generator(generation_config, *args, **kwargs)
        get_candidates = generator.get_candidates
        assistant = getattr(generator, "assistant_model", None)
        if assistant is not None and assistant.config.vocab_size != self.config.vocab_size:
            # The assistant follows this model's settings and processors, and a bias may name no token that it lacks.
            hold_eos_back(generator.generation_config)
            generator.logits_processor = [
                processor
                for processor in generator.logits_processor
                if type(processor) is not SequenceBiasLogitsProcessor
            ]

        def get_candidates_within(
            input_ids: torch.LongTensor, **kwargs: Any
        ) -> tuple[torch.LongTensor, torch.Tensor | None]:
            # Drafts that are looked up or translated may be longer than asked for, and reach past the block.
            candidate_ids, logits = get_candidates(input_ids, **kwargs)  # (1, seq + drafted), (1, drafted, vocab)
            length = max(generation_config.max_length - 1, input_ids.shape[1])
            return candidate_ids[:, :length], None if logits is None else logits[:, : length - input_ids.shape[1]]

        generator.get_candidates = get_candidates_within
        return generator

    def _assisted_decoding(self, input_ids: torch.LongTensor, *args: Any, **kwargs: Any) -> Any:
        generation_config = kwargs["generation_config"]
        self._refuse_past_block(generation_config.max_length, "assisted and prompt-lookup decoding")
        if any(isinstance(criterion, StopStringCriteria) for criterion in kwargs["stopping_criteria"]):
            raise ValueError(
                "assisted and prompt-lookup decoding look for stop strings only where a draft ends and may pass over "
                "one; leave out either."
            )
        return super()._assisted_decoding(input_ids, *args, **kwargs)

    def _refuse_request(self, input_ids: Sequence[int], max_new_tokens: int | None) -> None:
        """Refuses a request that would end the worker of continuous batching, or give a wrong text."""
        if len(input_ids) == 0:
            raise ValueError(
                "continuous batching got a request of 0 tokens and needs 1 to start from; a new line will do."
            )
        vocab_size = self.config.vocab_size
        if outside := [token for token in input_ids if not 0 <= token < vocab_size]:
            raise ValueError(
                f"continuous batching got the id {outside[0]}, and the model has the ids 0 to {vocab_size - 1}; "
                "use the model's own tokenizer."
            )
        total_length = None if max_new_tokens is None else len(input_ids) + max_new_tokens
        self._refuse_past_block(total_length, "continuous batching")

    def generate_batch(
        self, inputs: list[list[int]], generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Continuous batching, as in transformers, for requests that stay inside the block.

        Raises:
            ValueError: If a request is empty, has an id outside the vocabulary, or may pass the block: its pages cannot
                be cropped.
        """
        max_new_tokens = kwargs.get("max_new_tokens") or (generation_config or self.generation_config).max_new_tokens
        for input_ids in inputs:
            self._refuse_request(input_ids, max_new_tokens)
        return super().generate_batch(inputs, generation_config=generation_config, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """The manager of continuous batching, as in transformers; `generate_batch` and servers add requests to it.

        A request that `generate_batch` would refuse raises a `ValueError` and leaves the worker running.
        """
        manager = super().init_continuous_batching(*args, **kwargs)

        def add_request(
            input_ids: list[int], request_id: str | None = None, max_new_tokens: int | None = None, **kwargs: Any
        ) -> str | None:
            limit = manager.generation_config.max_new_tokens if max_new_tokens is None else max_new_tokens
            self._refuse_request(input_ids, limit)
            return type(manager).add_request(manager, input_ids, request_id, max_new_tokens, **kwargs)

        manager.add_request = add_request
        return manager
