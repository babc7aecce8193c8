#!/usr/bin/env bash
# A tokenizer.json cuts a text at spaces with the pre-tokenizer Split and the behavior "merged_with_next": "a b" is "a", " b".
# One would guess that Hugging Face's tokenizer library in JavaScript, which reads the same file, cuts it the same way, or
# refuses the behavior. It takes "merged_with_next" for "isolated", without a word: "a", " ", "b". The text comes back the
# same, but a model gets other tokens than it was trained on, and more of them. "isolated" with a pattern that matches the
# whole piece gives the same cuts in both.
# tokenizers 0.23.3, @huggingface/tokenizers 0.2.0, Node.js 20; 2026-11-30.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3
npm install --silent --ignore-scripts --no-audit --no-fund --prefix . @huggingface/tokenizers@0.2.0

cat > make.py <<'PY'
import json
from importlib.metadata import version

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

print("tokenizers", version("tokenizers"))
cuts = {
    "merged_with_next": pre_tokenizers.Split(" ", "merged_with_next"),
    "isolated": pre_tokenizers.Split(Regex(" [^ ]*|[^ ]+"), "isolated"),
}
vocabulary = {token: index for index, token in enumerate(["a", " ", "b", " b"])}
expected = {}
for name, cut in cuts.items():
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[(" ", "b")]))
    tokenizer.pre_tokenizer = cut
    tokenizer.save(f"{name}.json")
    expected[name] = tokenizer.encode("a b").tokens
print("Python    ", json.dumps(expected))
assert expected == dict.fromkeys(cuts, ["a", " b"])
PY
venv/bin/python make.py

cat > read.mjs <<'JS'
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

const read = (file) => JSON.parse(readFileSync(file, "utf8"));
console.log("@huggingface/tokenizers", read("node_modules/@huggingface/tokenizers/package.json").version, "Node.js", process.version);
const found = {};
for (const name of ["merged_with_next", "isolated"]) {
  found[name] = new Tokenizer(read(`${name}.json`), {}).encode("a b").tokens;
}
console.log("JavaScript", JSON.stringify(found));
const known = { merged_with_next: ["a", " ", "b"], isolated: ["a", " b"] };
if (JSON.stringify(found) !== JSON.stringify(known)) {
  console.error("the behavior has changed");
  process.exit(1);
}
JS
node read.mjs
