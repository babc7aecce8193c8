#!/usr/bin/env bash
# One would guess: AutoTokenizer opens a tokenizer.json as it was saved, whatever model is in the same folder, when
# tokenizer_config.json names the general class PreTrainedTokenizerFast.
# What happens: beside a Qwen2 config it opens a Qwen2Tokenizer, which takes over only vocabulary and merges and puts
# byte-level pieces in the place of the saved pre-tokenizer. A vocabulary of characters then loses every space and line
# end, without a warning. The same files beside a Llama config keep all text.
# Versions: transformers 5.23.0, tokenizers 0.23.3. Date: 2026-11-30.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.23.0 tokenizers==0.23.3
cat > show.py <<'PY'
import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
text = "First Citizen:\nBefore we go on.\n"
vocabulary = {character: place for place, character in enumerate(sorted(set(text)))}
backend = Tokenizer(models.BPE(vocabulary, merges=[]))
backend.decoder = decoders.Fuse()
kept = {}
for config in (LlamaConfig(), Qwen2Config()):
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(config.model_type)
    config.save_pretrained(config.model_type)
    tokenizer = AutoTokenizer.from_pretrained(config.model_type)
    ids = tokenizer(text)["input_ids"]
    kept[config.model_type] = tokenizer.decode(ids)
    print(f"{config.model_type}: {type(tokenizer).__name__}, {len(ids)} tokens, {kept[config.model_type]!r}")
assert kept == {"llama": text, "qwen2": "FirstCitizen:Beforewegoon."}, "the behavior has changed"
PY
venv/bin/python show.py
