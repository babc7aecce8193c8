#!/usr/bin/env bash
# One would guess: TRL's SFTTrainer, which accepts ShareGPT rows and OpenAI's messages, trains ShareGPT's "human" and
# "gpt" as user and assistant, and takes no loss on an assistant message of "weight": 0, as OpenAI's fine-tuning does.
# What happens: only the keys are renamed. With a ChatML template the model is trained to answer as "gpt", a role that
# no chat prompt asks for, and with assistant_only_loss a message of weight 0 has labels like any other. Neither warns.
# Versions: trl 1.16.0, transformers 5.23.0, datasets 5.2.0, accelerate 1.15.0, torch 2.13.0. Date: 2026-12-01.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cat > show.py <<'PY'
import datasets
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

datasets.disable_progress_bars()
print("trl", trl.__version__, "transformers", transformers.__version__, "datasets", datasets.__version__)
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
tokenizer.chat_template = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
)
size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def labels_of(row, assistant_only_loss):
    """Return the text that SFTTrainer takes a loss on."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **size))
    args = trl.SFTConfig("out", use_cpu=True, assistant_only_loss=assistant_only_loss, report_to="none")
    dataset = datasets.Dataset.from_list([row])
    trainer = trl.SFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
    (batch,) = trainer.get_train_dataloader()
    return tokenizer.decode(batch["labels"][batch["labels"] != -100])


sharegpt = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]}
openai = {
    "messages": [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "WRONG", "weight": 0},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "RIGHT", "weight": 1},
    ]
}
trained, weighted = labels_of(sharegpt, False), labels_of(openai, True)
print("ShareGPT row, trained on:", repr(trained))
print("weights 0 and 1, trained on:", repr(weighted))
assert trained == "<|im_start|>human\nWho?<|im_end|>\n<|im_start|>gpt\nI.<|im_end|>\n", "the behavior has changed"
assert weighted == "WRONG<|im_end|>RIGHT<|im_end|>", "the behavior has changed"
PY
venv/bin/python show.py
