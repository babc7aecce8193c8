"""Text out of a model in training, drawn without touching the randomness that the training draws from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from minigpt.hub.context import Context
from minigpt.hub.loading import encode_prompt
from minigpt.training.data.vocabulary import untrained_ids


def write_sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, length: int, seed: int = 0, *, has_documents: bool = False
) -> str:
    """Samples text as the lecture does: from a new line on, from the whole distribution, without special tokens.

    Args:
        model: A causal language model; it is left in the mode it was in.
        tokenizer: Its tokenizer.
        length: Tokens to write; fewer where a model has no context for so many, as every MiniGPT has.
        seed: Which sample; the same seed and the same model write the same text.
        has_documents: Sample from EOS on, and continue with the next document where one ends.

    Returns:
        The text after the new line, or documents, each beginning on a new line.
    """
    start = encode_prompt(tokenizer, "", model.generation_config if has_documents else None)  # (1, 1)
    start = start.to(model.device)
    length = Context.of(model).fit(start.shape[1], length)
    untrained = untrained_ids(tokenizer, has_documents=has_documents)
    special = {"suppress_tokens": untrained or None, "pad_token_id": tokenizer.pad_token_id}
    if has_documents:
        special["eos_token_id"] = None
    ids = _draw(model, start, length, seed, **special)
    documents: list[list[int]] = [[]]
    for token in ids:
        if has_documents and token == tokenizer.eos_token_id:
            documents.append([])
        else:
            documents[-1].append(token)
    *whole, last = (tokenizer.decode(document, skip_special_tokens=True) for document in documents)
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in whole) + last


def write_answer(model: Any, prompt: Sequence[int], length: int, seed: int = 0) -> list[int]:
    """Samples what follows on a prompt, until the model ends it, from the whole distribution likewise.

    Args:
        model: A causal language model whose generation config says where an answer ends; left in the mode it was in.
        prompt: Ids of the prompt.
        length: Tokens to write at most.
        seed: Which answer.

    Returns:
        The answer's ids, the end of text included if it is there.
    """
    return _draw(model, torch.tensor([prompt], device=model.device), length, seed)


def _draw(model: Any, start: torch.Tensor, length: int, seed: int, **how: Any) -> list[int]:
    """The ids that follow on `start`, of shape (1, seq)."""
    was_training = model.training
    model.eval()
    try:
        with _randomness_of_its_own(model.device, seed):
            output = model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                use_cache=True,
                max_new_tokens=length,
                **how,
            )
    finally:
        model.train(was_training)
    return list(output[0, start.shape[1] :].tolist())


@contextmanager
def _randomness_of_its_own(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds the generators that sampling draws from, and puts them back afterwards as they were."""
    backend = None if device.type == "cpu" else torch.get_device_module(device)
    cpu_state, device_state = torch.get_rng_state(), backend and backend.get_rng_state()
    try:
        # Not torch.manual_seed, which would seed every other device as well.
        torch.default_generator.manual_seed(seed)
        if backend:
            backend.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if backend:
            backend.set_rng_state(device_state)
