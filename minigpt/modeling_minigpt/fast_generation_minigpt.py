"""A faster sampling loop. Deleting it changes only speed: `MiniGPTForCausalLM` then inherits `BlockGenerationMixin`.

`_sample` is private in transformers; this was written for 5.23.0.
"""

import inspect
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList

from .generation_minigpt import BlockGenerationMixin


class BlockCache(Cache):
    """Keys and values of one block, written in place: nothing grows and nothing is copied."""

    def __init__(self, block_size: int) -> None:
        super().__init__(layers=[])
        self.block_size = block_size
        self.start = 0
        self.states: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (batch, kv heads, seq, head_dim) from `start` on and return everything up to there."""
        if layer_idx == len(self.states):
            shape = (*key_states.shape[:2], self.block_size, key_states.shape[-1])  # (batch, kv heads, block, head_dim)
            self.states.append((key_states.new_empty(shape), value_states.new_empty(shape)))
        keys, values = self.states[layer_idx]
        end = self.start + key_states.shape[2]
        keys[:, :, self.start : end] = key_states
        values[:, :, self.start : end] = value_states
        return keys[:, :, :end], values[:, :, :end]  # (batch, kv heads, total, head_dim)


class FastGenerationMixin(BlockGenerationMixin):
    """`generate()` with a sampling loop of its own for plain requests; anything else takes the stock loop.

    Attributes:
        replaced_forwards: `forward` of the language model and of its transformer. A model with any other is left to the
            stock loop.
    """

    replaced_forwards: ClassVar[tuple[Callable[..., Any], Callable[..., Any]]]

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: Any,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        if synced_gpus or not self._can_use_fast_loop(input_ids, generation_config, model_kwargs):
            return super()._sample(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
        return self._sample_fast(input_ids, logits_processor, stopping_criteria, generation_config, streamer)

    def _can_use_fast_loop(
        self, input_ids: torch.LongTensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
    ) -> bool:
        """Return True if the fast loop produces exactly what `GenerationMixin._sample` would."""
        kwargs = dict(model_kwargs)
        cache = kwargs.pop("past_key_values", None)
        position_ids = kwargs.pop("position_ids", None)
        for name in ("use_cache", "logits_to_keep", "tokenizer"):
            kwargs.pop(name, None)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        modules = (self, self.model, *self.model.layers)
        return (
            type(cache) is DynamicCache
            and not cache.offloading
            and not getattr(cache, "_is_user_defined", False)
            and all(value is None for value in kwargs.values())
            and (position_ids is None or bool((position_ids.to(positions.device) == positions).all()))
            and input_ids.shape[1] > 0
            and not (generation_config.return_dict_in_generate or generation_config.is_assistant)
            and generation_config.prefill_chunk_size is None
            and generation_config.guidance_scale in (None, 1)
            and self.config._attn_implementation == "sdpa"
            and set(self.config.layer_types) == {"full_attention"}
            and not self.training
            and input_ids.device == self.device
            and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
            and not any("forward" in vars(module) for module in modules)
            and (type(self).forward, type(self.model).forward) == self.replaced_forwards
            and type(self).prepare_inputs_for_generation is BlockGenerationMixin.prepare_inputs_for_generation
            and "prepare_inputs_for_generation" not in vars(self)
        )

    def _sample_fast(
        self,
        input_ids: torch.LongTensor,
        logits_processor: Any,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: Any,
    ) -> torch.LongTensor:
        """Sample as the stock loop does, without what one model in one block does not need.

        The tokens are those of the stock loop: the random numbers are drawn in the same order.
        """
        # Without the decorators, which resolve defaults and record outputs.
        forward = inspect.unwrap(type(self.model).forward)
        block_size = self.config.max_position_embeddings
        positions = torch.arange(block_size, device=input_ids.device).unsqueeze(0)  # (1, block)
        masks = dict.fromkeys(self.config.layer_types)  # without a mask, sdpa is causal
        cache = BlockCache(block_size)
        batch_size = input_ids.shape[0]
        unfinished = torch.ones(batch_size, dtype=torch.long, device=input_ids.device)
        has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        only_length = all(type(criterion) is MaxLengthCriteria for criterion in stopping_criteria)

        for length in count(input_ids.shape[1]):
            context, past_key_values = input_ids[:, cache.start :], cache
            if length > block_size:
                context, past_key_values = input_ids[:, -block_size:], None  # (batch, block)
            start = cache.start if past_key_values is not None else 0
            hidden_states = forward(
                self.model,
                context,
                attention_mask=masks,
                position_ids=positions[:, start : start + context.shape[1]],
                past_key_values=past_key_values,
            ).last_hidden_state
            cache.start = length
            logits = self.compute_logits(hidden_states[:, -1:])[:, -1]  # (batch, vocab)
            scores = logits_processor(input_ids, logits.to(torch.float32, copy=True))
            if generation_config.do_sample:
                next_tokens = torch.multinomial(nn.functional.softmax(scores, dim=-1), num_samples=1).squeeze(1)
            else:
                next_tokens = torch.argmax(scores, dim=-1)
            if has_eos:
                next_tokens = next_tokens * unfinished + generation_config._pad_token_tensor * (1 - unfinished)
            input_ids = torch.cat([input_ids, next_tokens[:, None]], dim=-1)  # (batch, length + 1)
            if streamer is not None:
                streamer.put(next_tokens.cpu())
            if only_length:
                if length + 1 >= generation_config.max_length:
                    break
            else:
                unfinished = unfinished & ~stopping_criteria(input_ids, None)
                if not unfinished.any():
                    break
        if streamer is not None:
            streamer.end()
        return input_ids
