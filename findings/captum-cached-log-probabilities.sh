#!/usr/bin/env bash
# One would guess: a cache changes the speed of Captum's LLMAttribution, never its values.
# What happens: with transformers 5, `use_cached_outputs=True` gives other values than False, and only those of
#   False agree with forward passes done by hand. Captum's own decoding loop hands the whole sequence to
#   `prepare_inputs_for_generation`; transformers 5 cuts off what the cache holds only if it is told
#   `next_sequence_length`, so every token after the first is computed on top of a second copy of the prompt.
#   No error, no warning. Stock GPT-2 and Llama are affected alike; True is the default of `attribute`.
# Versions: captum 0.9.0, transformers 5.23.0, torch 2.13.0. Tried on 2026-11-30.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 captum==0.9.0
"$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

print({name: version(name) for name in ("captum", "transformers", "torch")})
backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}, []))
backend.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
shape = {"vocab_size": 27, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **shape)
llama = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **shape)


def by_hand(model):
    """The loss of log-probability of " you" when token 0 takes the place of each letter of "hello"."""
    ids = tokenizer("hello you", return_tensors="pt").input_ids

    def score(ids):
        scores = model(ids).logits.log_softmax(-1)[0, 4:-1]
        return scores.gather(-1, ids[0, 5:, None]).sum().item()

    found = []
    for place in range(5):
        without = ids.clone()
        without[0, place] = 0
        found.append(score(ids) - score(without))
    return found


same = {}
for make, config in ((GPT2LMHeadModel, gpt2), (LlamaForCausalLM, llama)):
    torch.manual_seed(0)
    model = make(config).eval()
    with torch.no_grad():
        expected = by_hand(model)
    print(make.__name__)
    print("  by hand                 ", [f"{value:.4f}" for value in expected])
    for cached in (False, True):
        tool = LLMAttribution(FeatureAblation(model), tokenizer)
        prompt = TextTokenInput("hello", tokenizer, skip_tokens=[])
        found = tool.attribute(prompt, target=" you", use_cached_outputs=cached).seq_attr.tolist()
        print(f"  use_cached_outputs={cached!s:5}", [f"{value:.4f}" for value in found])
        same[make.__name__, cached] = max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-3
assert same == {(name, cached): not cached for name, cached in same}, f"changed: {same}"
PYTHON
