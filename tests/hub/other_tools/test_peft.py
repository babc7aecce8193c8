"""PEFT: adapters are trained, saved, loaded, merged and generated with, past the block too."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    pipeline,
)

from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM

pytestmark = pytest.mark.extra("lora")

BLOCK = 16
PROMPT_LEARNING = ["PromptTuningConfig", "PrefixTuningConfig"]


def train(model, arguments, rows):
    """Returns the losses that were logged."""
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    model.eval()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def adapted(saved):
    """A LoRA adapter on every linear layer, its weights drawn so that it is seen in the logits."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(saved), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=4)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


@torch.no_grad()
def greedy_by_hand(model, ids, new_tokens, room=BLOCK):
    """Each token from a whole forward of what fits into the block."""
    for _ in range(new_tokens):
        context = ids[:, -room:]
        logits = model(input_ids=context, attention_mask=torch.ones_like(context)).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        ids = torch.cat((ids, logits.argmax(dim=-1, keepdim=True)), dim=1)
    return ids


@pytest.fixture
def ids(rows):
    return torch.tensor(rows["input_ids"][:2])[:, :10]  # (2, 10)


@pytest.mark.door(
    'LoRA on `target_modules="all-linear"`: the adapter learns, nothing else does', "peft", "transformers"
)
def test_only_the_adapter_learns(saved, few_steps, rows):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(saved), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=4)
    )
    linear = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
    layers = {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"}
    assert linear == {f"model.layers.{i}.{name}" for i in range(2) for name in layers}
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    losses = train(model, few_steps(), rows)
    assert losses[-1] < losses[0] - 0.2
    learned = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert learned == {name for name in before if "lora_" in name}


@pytest.mark.door(
    "An adapter, saved as safetensors: `PeftModel`, `AutoPeftModelForCausalLM` and `AutoModelForCausalLM` load it",
    "peft",
    "transformers",
    "safetensors",
)
def test_a_saved_adapter_is_small_and_loads_by_every_door(saved, ids, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel

    model = adapted(saved)
    model.save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert weights
    assert all("lora_" in name for name in weights)
    assert not list((tmp_path / "adapter").glob("*.bin"))

    plain = AutoModelForCausalLM.from_pretrained(saved)
    expected, unadapted = model(input_ids=ids).logits, plain(input_ids=ids).logits
    assert not torch.allclose(expected, unadapted, atol=0.1)
    loaded = [
        PeftModel.from_pretrained(plain, tmp_path / "adapter"),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"),
    ]
    for other in loaded:
        torch.testing.assert_close(other.eval()(input_ids=ids).logits, expected)


@pytest.mark.door(
    "A merged adapter gives the same logits, and is a plain MiniGPT when it is saved", "peft", "transformers"
)
def test_a_merged_adapter_is_a_plain_model_with_the_same_logits(saved, ids, tmp_path):
    model = adapted(saved)
    expected = model(input_ids=ids).logits
    merged = model.merge_and_unload()
    assert type(merged) is MiniGPTForCausalLM
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)

    merged.save_pretrained(tmp_path / "merged")
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    assert not any("lora" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))
    torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_what_an_adapter_has_learned_survives_saving_loading_and_merging(saved, few_steps, rows, ids, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    plain = AutoModelForCausalLM.from_pretrained(saved)
    untrained = plain(ids).logits
    model = get_peft_model(plain, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=4))
    train(model, few_steps(), rows)
    learned = model(ids).logits
    assert not torch.allclose(learned, untrained, atol=1e-2)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(ids).logits, learned, atol=1e-6, rtol=0)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, learned, atol=1e-4, rtol=1e-4)


@pytest.mark.door("`generate` through an adapter, past the block too", "peft", "transformers")
def test_generating_through_an_adapter_is_the_loop_by_hand(saved, ids):
    model = adapted(saved).double()
    generated = model.generate(input_ids=ids, max_new_tokens=3 * BLOCK, do_sample=False)
    assert generated.tolist() == greedy_by_hand(model, ids, 3 * BLOCK).tolist()
    unadapted = AutoModelForCausalLM.from_pretrained(saved).double()
    assert generated.tolist() != greedy_by_hand(unadapted, ids, 3 * BLOCK).tolist()


@pytest.mark.door("`pipeline` on the folder of an adapter", "peft", "transformers")
def test_a_pipeline_opens_the_folder_of_an_adapter(saved, text, tokenizer, tmp_path):
    model = adapted(saved)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    write = pipeline("text-generation", model=str(tmp_path / "adapter"), device="cpu")
    (result,) = write(text[:10], max_new_tokens=30, do_sample=False)
    ids = tokenizer(text[:10], return_tensors="pt").input_ids
    assert result["generated_text"] == tokenizer.decode(greedy_by_hand(model, ids, 30)[0])


@pytest.mark.door("LoRA on sequence classification: the new head is trained and saved with the adapter", "peft")
def test_a_classifiers_head_is_saved_with_its_adapter(saved, ids, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    def load():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(saved, num_labels=3)

    model = get_peft_model(load(), LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"))
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name]
    assert learning == ["base_model.model.score.modules_to_save.default.weight"]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def prompted(saved, name, virtual_tokens):
    import peft

    config = getattr(peft, name)(task_type="CAUSAL_LM", num_virtual_tokens=virtual_tokens)
    torch.manual_seed(0)
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(saved), config)


@pytest.mark.parametrize("name", PROMPT_LEARNING)
@pytest.mark.door("Prompt tuning and prefix tuning learn", "peft", "transformers")
def test_virtual_tokens_learn(saved, few_steps, rows, name):
    model = prompted(saved, name, virtual_tokens=4)
    # The virtual tokens take places of the block.
    short = rows.map(lambda row: {key: ids[: BLOCK - 4] for key, ids in row.items()})
    before = {name: weight.clone() for name, weight in model.get_base_model().state_dict().items()}
    losses = train(model, few_steps(learning_rate=0.1), short)
    assert losses[-1] < losses[0] - 0.2
    assert all(torch.equal(weight, before[name]) for name, weight in model.get_base_model().state_dict().items())


@pytest.mark.parametrize("length", [5, 3 * BLOCK])
@pytest.mark.parametrize("name", PROMPT_LEARNING)
@pytest.mark.door("`generate` behind a tuned prompt or prefix, which stays in sight past the block too", "peft")
def test_virtual_tokens_stay_in_sight_past_the_block(saved, rows, name, length):
    model = prompted(saved, name, virtual_tokens=4).eval().double()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    ids = torch.tensor(rows["input_ids"][:6]).view(2, -1)[:, :length]  # (2, length)
    generated = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3 * BLOCK, do_sample=False
    )
    assert generated.tolist() == greedy_by_hand(model, ids, 3 * BLOCK, room=BLOCK - 4).tolist()


@pytest.mark.parametrize("name", PROMPT_LEARNING)
def test_virtual_tokens_that_fill_the_block_are_refused(saved, ids, name):
    model = prompted(saved, name, virtual_tokens=BLOCK).eval()
    with pytest.raises(ValueError, match="16 virtual tokens leave no room in the block of 16; train"):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3)


@pytest.mark.door(
    'Token classification with LoRA on `"all-linear"` and `exclude_modules=["score"]`: the new head learns too',
    "peft",
    "transformers",
)
def test_token_classification_learns_its_head_beside_the_adapter(saved, few_steps, rows):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForTokenClassification.from_pretrained(saved, num_labels=2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = LoraConfig(task_type="TOKEN_CLS", target_modules="all-linear", exclude_modules=["score"], r=4)
    model = get_peft_model(model, config)
    spaces = [[int(token == 1) for token in row] for row in rows["input_ids"]]
    losses = train(model, few_steps(), rows.remove_columns("labels").add_column("labels", spaces))
    assert losses[-1] < losses[0]
    merged = model.merge_and_unload().state_dict()
    assert not torch.equal(merged["score.weight"], before["score.weight"])
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(merged["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
