"""TRL: `SFTTrainer` takes the text, the prompts, the chats and the packing as it does with any model of the Hub."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, pipeline

pytestmark = pytest.mark.extra("sft")

BLOCK = 64
# The head's bias and its bound are the model's own affair: a trainer that computes the loss by itself must know them.
MODELS = {
    "lecture": {"block_size": BLOCK},
    "modern": {
        "block_size": BLOCK,
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "num_key_value_heads": 1,
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"],
        "tie_word_embeddings": True,
        "final_logit_softcapping": 5.0,
    },
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] + '\n' }}"
    "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.fixture(params=MODELS)
def model(request, build_model):
    return build_model(**MODELS[request.param])


@pytest.fixture(scope="session")
def lines(text):
    return [line for line in text.splitlines() if 10 < len(line) < BLOCK - 2][:12]


@pytest.fixture
def finetune(tmp_path, tokenizer):
    """`finetune(model, dataset, **changes)`: an SFTTrainer whose every step sees the whole dataset, after training."""
    from trl import SFTConfig, SFTTrainer

    def run(model, dataset, processing_class=tokenizer, peft_config=None, **changes):
        few = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "max_length": BLOCK,
            "max_steps": 4,
            "per_device_train_batch_size": len(dataset),
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        trainer = SFTTrainer(
            model,
            SFTConfig(**{**few, **changes}),
            train_dataset=dataset,
            processing_class=processing_class,
            peft_config=peft_config,
        )
        trainer.train()
        return trainer

    return run


@torch.no_grad()
def loss_by_hand(model, tokenizer, documents):
    """The mean over the targets of documents, each scored alone; of each, its prompt's length and its text."""
    losses = []
    for prompt_length, text in documents:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])  # (1, seq)
        first = max(prompt_length, 1)  # the first token is nobody's target
        logits = model(ids).logits[0, first - 1 : -1]
        losses.append(F.cross_entropy(logits, ids[0, first:], reduction="none"))
    return torch.cat(losses).mean().item()


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check(trainer, expected):
    first, *_, last = losses_of(trainer)
    assert first == pytest.approx(expected, rel=1e-4)
    assert last < first


@pytest.mark.door("`SFTTrainer` on text", "trl", "transformers")
def test_text_is_trained_on_up_to_its_end(finetune, model, tokenizer, lines):
    expected = loss_by_hand(model, tokenizer, [(0, line) for line in lines])
    check(finetune(model, Dataset.from_dict({"text": lines})), expected)


@pytest.mark.door("`SFTTrainer` on prompts and completions: the loss is the completions'", "trl", "transformers")
def test_of_a_prompt_and_its_completion_the_completion_is_learned(finetune, model, tokenizer, lines):
    expected = loss_by_hand(model, tokenizer, [(6, line) for line in lines])
    rows = Dataset.from_dict({"prompt": [line[:6] for line in lines], "completion": [line[6:] for line in lines]})
    check(finetune(model, rows), expected)


@pytest.mark.door("`SFTTrainer` on chats with `assistant_only_loss=True`: the loss is the assistant's", "trl")
def test_of_a_chat_the_assistants_words_are_learned(finetune, model, tokenizer, lines):
    chats = [
        {"messages": [{"role": "user", "content": line[:6]}, {"role": "assistant", "content": line[6:]}]}
        for line in lines
    ]
    expected = loss_by_hand(model, tokenizer, [(7, f"{line[:6]}\n{line[6:]}") for line in lines])
    talking = deepcopy(tokenizer)
    talking.chat_template = CHAT_TEMPLATE
    check(finetune(model, Dataset.from_list(chats), talking, assistant_only_loss=True), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.door("`SFTTrainer` with `packing=True`: no text sees the one it is packed with", "trl", "transformers")
def test_packed_texts_do_not_see_each_other(finetune, model, tokenizer, lines, attention):
    expected = loss_by_hand(model, tokenizer, [(0, line) for line in lines])
    model.set_attn_implementation(attention)
    trainer = finetune(model, Dataset.from_dict({"text": lines}), packing=True)
    check(trainer, expected)
    (batch,) = trainer.get_train_dataloader()
    assert batch["input_ids"].shape == (1, sum(len(line) + 1 for line in lines))
    assert (batch["position_ids"] == 0).sum() == len(lines)


@pytest.mark.door("`SFTTrainer` with a LoRA adapter", "trl", "peft")
def test_an_adapter_is_finetuned(finetune, model, lines):
    from peft import LoraConfig

    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=4)
    trainer = finetune(model, Dataset.from_dict({"text": lines}), peft_config=config)
    first, *_, last = losses_of(trainer)
    assert last < first
    base = trainer.model.unload().state_dict()
    assert all(torch.equal(weight, base[name]) for name, weight in before.items())


@pytest.mark.door("A chat model out of `SFTTrainer`, saved: `pipeline` gives its answers and stops", "trl")
def test_a_finetuned_model_answers_and_stops(finetune, build_model, tokenizer, tmp_path):
    answers = {"Who is there": "The king", "What night": "A cold night", "Speak": "I will not", "Stay": "Good friend"}
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in answers.items()
    ]
    talking = deepcopy(tokenizer)
    talking.chat_template = CHAT_TEMPLATE
    model = build_model(block_size=BLOCK, std=0.02)
    model.generation_config.suppress_tokens = None  # it is to learn where a text ends
    trainer = finetune(model, Dataset.from_list(chats), talking, assistant_only_loss=True, max_steps=60)
    trainer.save_model(tmp_path / "chatty")

    chat = pipeline("text-generation", model=str(tmp_path / "chatty"), device="cpu")
    assert "{% generation %}" in chat.tokenizer.chat_template
    for question, answer in answers.items():
        (result,) = chat([{"role": "user", "content": question}], do_sample=False, max_new_tokens=50)
        assert result["generated_text"][-1] == {"role": "assistant", "content": answer}


def test_a_text_longer_than_the_block_is_refused_by_name(finetune, build_model, text):
    with pytest.raises(ValueError, match="a position is outside the block of 64 learned positions; crop the input"):
        finetune(build_model(block_size=BLOCK), Dataset.from_dict({"text": [text[:200]]}), max_length=1024)


@pytest.mark.door("The `trl sft` command with `--trust_remote_code`, without `import minigpt`", "trl", "transformers")
def test_the_command_finetunes_a_saved_folder(lecture, lines, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.dumps({"text": line}) + "\n" for line in lines * 2]
    (data / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("trl")), "sft", "--model_name_or_path", str(lecture)]
    command += ["--trust_remote_code", "--dataset_name", str(data), "--max_length", "16", "--max_steps", "5"]
    command += ["--learning_rate", "1e-2", "--use_cpu", "--bf16", "False", "--output_dir", str(tmp_path / "tuned")]
    done = subprocess.run(
        [*command, "--logging_steps", "1"], capture_output=True, text=True, encoding="utf-8", timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "tuned" / "checkpoint-5" / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (lecture, tmp_path / "tuned"))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
