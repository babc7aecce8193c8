#!/usr/bin/env bash
# One would guess: a subclass of TokenizersBackend whose `__init__` only forwards its arguments to `super()` is saved and
# loaded like a subclass without one.
# What happens: `from_pretrained` takes a class with an `__init__` of its own for one that builds its backend itself, and
# passes it only parts of the tokenizer.json. The loaded tokenizer has a BOS token that was never saved, one id more than
# the model's table has rows, and has lost the saved decoder: "abc" decodes to "a b c". Nothing warns.
# Versions: transformers 5.23.0, tokenizers 0.23.3. Date: 2026-12-01.
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
from transformers import TokenizersBackend

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)


class Without(TokenizersBackend):
    pass


class Forwarding(TokenizersBackend):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


vocabulary = {token: place for place, token in enumerate(["a", "b", "c", "<|end|>", "<|unk|>"])}
seen = {}
for cls in (Without, Forwarding):
    backend = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<|unk|>"))
    backend.decoder = decoders.Fuse()
    saved = cls(tokenizer_object=backend, eos_token="<|end|>", unk_token="<|unk|>")
    saved.save_pretrained(cls.__name__)
    loaded = cls.from_pretrained(cls.__name__)
    print(f"{cls.__name__}: saved {len(saved)} tokens, {saved.decode([0, 1, 2])!r}")
    print(f"{cls.__name__}: loaded {len(loaded)} tokens, {loaded.decode([0, 1, 2])!r}, BOS {loaded.bos_token!r}")
    assert (len(saved), saved.decode([0, 1, 2]), saved.bos_token) == (5, "abc", None)
    seen[cls.__name__] = (len(loaded), loaded.decode([0, 1, 2]), loaded.bos_token)
assert seen == {"Without": (5, "abc", None), "Forwarding": (6, "a b c", "<s>")}, "the behavior has changed"
PY
venv/bin/python show.py
