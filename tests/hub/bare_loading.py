"""What somebody without this package does with folders that we saved: run in a bare Python, by test_loading.py.

Arguments: the folder of the saved folders, and one to save them again in. What was seen goes into `seen.json` there.
"""

import builtins
import json
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, pipeline

# A question for the permission to run code; transformers goes on as after a no.
questions: list[Any] = []
builtins.input = questions.append
saved, again = map(Path, sys.argv[1:])
expected = load_file(saved / "expected.safetensors")
seen: dict[str, Any] = {
    "distributions": sorted(one.name for one in distributions()),
    "has minigpt": find_spec("minigpt") is not None,
    "folders": {},
}
for folder in sorted(path for path in saved.iterdir() if path.is_dir()):
    here = seen["folders"][folder.name] = {"heads": {}}
    here["files"] = sorted(path.name for path in folder.glob("*.py"))
    try:
        transformers.AutoModel.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        here["asks for trust"] = "trust_remote_code=True" in str(error)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    here["config"] = type(config).__name__
    tokenizer = None
    if (folder / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        here["tokenizer"] = type(tokenizer).__module__
        here["ids"] = tokenizer("hear me!")["input_ids"]
        writer = pipeline("text-generation", model=str(folder), trust_remote_code=True)
        here["written"] = writer("hear me", max_new_tokens=30, do_sample=False)[0]["generated_text"]
    for auto in (name for name in config.auto_map if hasattr(transformers, name) and name != "AutoConfig"):
        model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        here["heads"][auto] = type(model).__name__
        if type(model).__name__ == folder.name:
            here["equal"] = torch.equal(model(expected["ids"])[0], expected[folder.name])
            model.save_pretrained(again / folder.name)
            if (folder / "inside").is_dir():
                inner = getattr(transformers, auto).from_pretrained(folder, subfolder="inside", trust_remote_code=True)
                here["equal inside"] = torch.equal(inner(expected["ids"])[0], expected["inside"])
                inner.save_pretrained(again / folder.name / "inside")
            if tokenizer is not None:
                tokenizer.save_pretrained(again / folder.name)
assert not questions, questions
assert not any(name.partition(".")[0] == "minigpt" for name in sys.modules)
(saved / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
