#!/usr/bin/env bash
# One would guess: a causal language model that is registered with AutoModelForCausalLM and computes its loss as GPT-2
# does has nearly the same loss with label_smoothing_factor=1e-9 as without, in a stock Trainer.
# What happens: under label smoothing the Trainer shifts labels only for class names in
# MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, which register() does not fill. The registered model is trained to repeat its input,
# without a warning. A class of the library with the same weights is trained to predict.
# Versions: transformers 5.23.0, accelerate 1.15.0, datasets 5.2.0, torch 2.13.0. Date: 2026-11-30.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0
cat > show.py <<'PY'
import torch
import transformers
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig


AutoConfig.register("own", OwnConfig)
AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)

print("transformers", transformers.__version__, "torch", torch.__version__)
rows = torch.randint(0, 16, (4, 12), generator=torch.Generator().manual_seed(0)).tolist()
dataset = Dataset.from_dict({"input_ids": rows, "labels": rows})
size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
losses = {}
for model_class, config_class in ((LlamaForCausalLM, LlamaConfig), (OwnForCausalLM, OwnConfig)):
    torch.manual_seed(0)
    model = model_class(config_class(vocab_size=16, initializer_range=0.5, **size))
    for smoothing in (0.0, 1e-9):
        args = TrainingArguments("out", use_cpu=True, label_smoothing_factor=smoothing)
        loss = Trainer(model, args, eval_dataset=dataset).evaluate()["eval_loss"]
        losses[model_class.__name__, smoothing] = loss
        print(f"{model_class.__name__}, label_smoothing_factor={smoothing:g}: eval_loss {loss:.4f}")
plain, smoothed, own, own_smoothed = losses.values()
assert abs(smoothed - plain) < 1e-4 and abs(own - plain) < 1e-4, "the behavior has changed"
assert abs(own_smoothed - own) > 0.1, "the behavior has changed"
PY
venv/bin/python show.py
