"""Tiny models of every kind, so sharp that their greedy texts tell them apart, and the lecture's loop over them."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minigpt import BigramConfig, BigramForCausalLM, MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,:?!\n"
BLOCK = 16
ROPE = {"position_embedding_type": "rope"}
# The first three have to compute everything anew past their block; the last one's cache rolls.
KINDS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rope": {**ROPE, "norm_type": "rmsnorm", "num_key_value_heads": 2},
    "a window in one layer": {**ROPE, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "rolling": {**ROPE, "sliding_window": 5, "num_key_value_heads": 2},
}


def characters(text: str = CHARACTERS, **kwargs: Any) -> MiniGPTTokenizer:
    return MiniGPTTokenizer.from_text(text, **kwargs)


def sharpened(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, std: float, seed: int) -> PreTrainedModel:
    """The model with every weight drawn anew, and special tokens that it was not trained on."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * std
            weight.copy_(noise + 1 if weight.ndim == 1 and name.endswith("weight") else noise)
    if model.can_generate():
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model.generation_config = lecture_generation_config(sorted(tokenizer.all_special_ids), **ids)
    return model.eval()


def gpt(
    tokenizer: PreTrainedTokenizerBase,
    model_class: type[PreTrainedModel] = MiniGPTForCausalLM,
    seed: int = 0,
    **fields: Any,
) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": BLOCK}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = MiniGPTConfig(vocab_size=len(tokenizer), **{**sizes, **ids, **fields})
    return sharpened(model_class(config), tokenizer, std=0.3, seed=seed)


def bigram(
    tokenizer: PreTrainedTokenizerBase, model_class: type[PreTrainedModel] = BigramForCausalLM, seed: int = 0
) -> Any:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = BigramConfig(vocab_size=len(tokenizer), max_position_embeddings=BLOCK, **ids)
    return sharpened(model_class(config), tokenizer, std=2.0, seed=seed)


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> Path:
    model.save_pretrained(folder, **kwargs)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def lecture_loop(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    new_tokens: int,
    allowed: Any = None,
) -> str:
    """The lecture's loop, greedy: each character from a whole forward of the last block, special tokens left out.

    A model whose cache rolls sees all of the text instead. `allowed(text)` gives the only characters that may follow.
    """
    rolls = getattr(model.config, "rolls_past_block", False)
    special = sorted(tokenizer.all_special_ids)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    for _ in range(new_tokens):
        context = ids if rolls else ids[:, -model.config.max_position_embeddings :]
        scores = model(context, use_cache=False).logits[0, -1].float()
        scores[special] = -torch.inf
        if allowed is not None:
            keep = tokenizer.convert_tokens_to_ids(list(allowed(tokenizer.decode(ids[0]))))
            scores = torch.full_like(scores, -torch.inf).index_copy(0, torch.tensor(keep), scores[keep])
        ids = torch.cat((ids, scores.argmax().view(1, 1)), dim=1)
    return tokenizer.decode(ids[0])
