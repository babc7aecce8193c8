#!/usr/bin/env bash
# One would guess: with stop_strings, each row of a batch ends at its own stop string, as it does at the EOS token.
# What happens: generate() pads rows that have ended only if there is an eos_token_id. A model that has none, as
# character models often have, keeps writing text after a row's stop string until the last row has ended.
# Versions: transformers 5.23.0, tokenizers 0.23.3, torch 2.13.0. Date: 2026-12-01.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
cat > show.py <<'PY'
import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

print("transformers", transformers.__version__, "torch", torch.__version__)
letters = Tokenizer(models.BPE({letter: number for number, letter in enumerate("abcdefghij")}, []))
letters.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
torch.manual_seed(0)
size = {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 64}
model = GPT2LMHeadModel(GPT2Config(vocab_size=10, bos_token_id=None, eos_token_id=None, **size)).eval()
prompts = torch.zeros(8, 1, dtype=torch.long)
after = {}
for eos in (None, 9):
    torch.manual_seed(1)
    rows = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        max_new_tokens=40,
        stop_strings=["c"],
        tokenizer=tokenizer,
        eos_token_id=eos,
        pad_token_id=9,
        suppress_tokens=[9],  # in both runs, so that only the stop string ends a row
    )
    texts = [tokenizer.decode(row) for row in rows]
    print(f"eos_token_id={eos}: {texts}")
    after[eos] = "".join(text.partition("c")[2] for text in texts)
assert set(after[9]) == {"j"}, "the behavior has changed"  # padding
assert len(set(after[None])) > 1 and "j" not in after[None], "the behavior has changed"  # text
PY
venv/bin/python show.py
