"""LoRA: a small adapter learns, the model under it stays as it is, and PEFT and transformers open what comes of it."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from minigpt.cli import main
from minigpt.hub.adapter_folders import base_sha256
from minigpt.hub.loading import open_trained
from minigpt.training.checkpoints import last_whole_checkpoint
from minigpt.training.data.corpus import load_text
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.data.tokens import tokenize_corpus
from minigpt.training.evaluation import validation_loss
from minigpt.training.finetune import finetune
from minigpt.training.lora import LoraSettings
from minigpt.training.train import train
from tests.training.test_finetune import byte_level_tokenizer, bytes_in, gpt2, llama

pytestmark = pytest.mark.extra("lora")

SHORT = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "eval_interval": 3,
    "eval_iters": 1,
    "save_steps": 2,
    "learning_rate": 1e-1,
    "sample_length": 0,
    "use_cpu": True,
}
BLOCK = 16
LAYERS = {
    "minigpt": ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": [
        *(f"self_attn.{letter}_proj" for letter in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    ],
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of the bases' characters, but not the one that the first of them was trained on."""
    file = tmp_path_factory.mktemp("prose") / "prose.txt"
    file.write_text("a good king is a sweet lord.\nof thee my crown is dead.\n" * 100, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def bases(text, text_file, tmp_path_factory):
    """`bases[kind]`: the folder of a MiniGPT, a stock GPT-2 or a stock Llama."""
    folder = tmp_path_factory.mktemp("bases")
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "block_size": BLOCK}
    few = {**SHORT, "max_steps": 30, "learning_rate": 1e-2, "save_strategy": "no"}
    train("seed", str(text_file), model=shape, training={**few, "output_dir": str(folder / "minigpt")})
    tokenizer = byte_level_tokenizer(text.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    for kind, build in (("gpt2", gpt2), ("llama", llama)):
        build(len(tokenizer)).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return {kind: folder / kind for kind in LAYERS}


@pytest.fixture
def base(bases):
    return bases["minigpt"]


@pytest.fixture
def adapt(text, tmp_path):
    """`adapt(base, name="run", lora=..., **arguments)`: trains an adapter in a folder of that name."""

    def run(base, name="run", lora=None, **changes):
        lora = lora or LoraSettings(r=2, alpha=4)
        return finetune(base, str(text), lora=lora, training={**SHORT, "output_dir": str(tmp_path / name), **changes})

    return run


@pytest.fixture(scope="module")
def adapted(bases, text, tmp_path_factory):
    """`adapted(kind)`: an adapter that was trained once for all tests that leave it as it is."""
    folder, runs = tmp_path_factory.mktemp("adapted"), {}

    def run(kind="minigpt"):
        if kind not in runs:
            few = {**SHORT, "output_dir": str(folder / kind), "save_total_limit": 3}
            runs[kind] = finetune(bases[kind], str(text), lora=LoraSettings(r=2, alpha=4), training=few)
        return runs[kind]

    return run


@torch.no_grad()
def logits_of(model):
    return model.eval()(torch.arange(BLOCK)[None]).logits


def exact_loss(model, tokenizer, text):
    tokens = tokenize_corpus(load_text(text), tokenizer)
    return validation_loss(model, TokenStream(tokens["validation"]), BLOCK).loss


def weights_in(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.door("`minigpt finetune --lora` on a MiniGPT, a stock GPT-2 or Llama", "peft", "transformers")
def test_all_linear_layers_but_the_head_learn_and_nothing_else_does(kind, bases, adapted, text):
    before = bytes_in(bases[kind])
    began = exact_loss(*open_trained(bases[kind], "cpu"), text)
    run = adapted(kind)
    assert run.validation.loss < began - 0.02
    layers = range(2 if kind == "minigpt" else 1)
    stem = "transformer.h" if kind == "gpt2" else "model.layers"
    expected = {f"{stem}.{layer}.{name}" for layer in layers for name in LAYERS[kind]}
    base = run.model.get_base_model()
    assert {name for name, module in base.named_modules() if hasattr(module, "lora_A")} == expected
    frozen = load_file(bases[kind] / "model.safetensors")
    ours = {name.replace(".base_layer", ""): weight for name, weight in base.state_dict().items() if "lora" not in name}
    assert all(torch.equal(ours[name], weight) for name, weight in frozen.items())
    assert bytes_in(bases[kind]) == before


def test_only_the_adapter_is_saved_and_every_checkpoint_says_for_which_base(base, adapted):
    run = adapted()
    for folder in (run.folder, run.folder / "checkpoint-4", run.folder / "checkpoint-6"):
        assert not list(folder.glob("model*")) + list(folder.glob("*.bin.index*")) + list(folder.glob("config.json"))
        weights = weights_in(folder)
        assert weights
        assert all("lora_" in name for name in weights)
        assert (folder / "base.sha256").read_text(encoding="utf-8") == f"{base_sha256(base)}\n"
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == str(base)
        assert config["target_modules"] == sorted(config["target_modules"])
        assert {"tokenizer.json", "tokenizer_config.json"} < {path.name for path in folder.iterdir()}
        assert not (folder / "README.md").exists()


def test_the_report_says_what_was_trained_and_the_score_is_that_of_the_opened_folder(base, adapt, text):
    run = adapt(base, lora=LoraSettings(r=3, alpha=5, dropout=0.1))
    report = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    trainable = sum(weight.numel() for weight in weights_in(run.folder).values())
    whole = sum(weight.numel() for weight in load_file(base / "model.safetensors").values())
    assert report["adapter"] == {
        "r": 3,
        "alpha": 5,
        "dropout": 0.1,
        "targets": "all-linear",
        "trainable": trainable,
        "share": pytest.approx(trainable / (whole + trainable)),
    }
    assert report["losses"]["validation"]["loss"] == pytest.approx(
        exact_loss(*open_trained(run.folder, "cpu"), text), abs=1e-6
    )


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.door(
    "The folder of `minigpt finetune --lora`: `AutoPeftModelForCausalLM` and `AutoModelForCausalLM` load it", "peft"
)
def test_pefts_and_transformers_own_doors_open_the_folder(kind, bases, adapted):
    from peft import AutoPeftModelForCausalLM

    run = adapted(kind)
    expected = logits_of(run.model)
    assert not torch.allclose(expected, logits_of(AutoModelForCausalLM.from_pretrained(bases[kind])), atol=1e-2)
    for opened in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        torch.testing.assert_close(logits_of(opened.from_pretrained(run.folder)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.door("`merge_and_unload` after `minigpt finetune --lora`: a plain model, logits equal", "peft")
def test_a_merged_model_is_a_plain_one_with_the_same_logits(kind, bases, adapted, tmp_path):
    from peft import AutoPeftModelForCausalLM

    run = adapted(kind)
    merged = AutoPeftModelForCausalLM.from_pretrained(run.folder).merge_and_unload()
    assert type(merged) is type(AutoModelForCausalLM.from_pretrained(bases[kind]))
    torch.testing.assert_close(logits_of(merged), logits_of(run.model), atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(logits_of(plain), logits_of(run.model), atol=1e-5, rtol=1e-4)


@pytest.mark.door("Several adapters on one base, switched by `set_adapter`", "peft")
def test_several_adapters_switch_on_one_base(base, adapt, adapted):
    from peft import AutoPeftModelForCausalLM

    one, other = adapted(), adapt(base, "other", lora=LoraSettings(r=4), seed=7)
    model = AutoPeftModelForCausalLM.from_pretrained(one.folder, adapter_name="one")
    model.load_adapter(other.folder, adapter_name="other")
    for name, run in (("other", other), ("one", one), ("other", other)):
        model.set_adapter(name)
        torch.testing.assert_close(logits_of(model), logits_of(run.model), atol=1e-6, rtol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(AutoModelForCausalLM.from_pretrained(base)))


def test_a_resumed_adapter_ends_as_the_uninterrupted_one(base, adapt, tmp_path):
    settings = LoraSettings(r=2, alpha=4, dropout=0.2)
    whole = adapt(base, "whole", settings)
    (whole.folder / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    again = adapt(base, "again", settings, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    ours, theirs = weights_in(again.folder), weights_in(whole.folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.report["losses"] == whole.report["losses"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_checkpoint_that_has_lost_part_of_its_adapter_is_passed_over(name, adapted, tmp_path):
    run = shutil.copytree(adapted().folder, tmp_path / "run")
    (run / "checkpoint-6" / name).unlink()
    assert last_whole_checkpoint(run) == run / "checkpoint-4"


def test_the_dropout_of_the_base_is_on_from_the_first_step_of_a_resumed_run_too(text_file, adapt, tmp_path):
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "block_size": BLOCK, "dropout": 0.3}
    few = {**SHORT, "output_dir": str(tmp_path / "base"), "save_strategy": "no"}
    train("seed", str(text_file), model=shape, training=few)
    whole = adapt(tmp_path / "base", "whole")
    (whole.folder / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    again = adapt(tmp_path / "base", "again", resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    ours, theirs = weights_in(again.folder), weights_in(whole.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_best_adapter_is_the_one_that_is_kept(base, adapt, text):
    run = adapt(base, learning_rate=1.0, max_steps=9, save_steps=3, load_best_model_at_end=True)
    estimates = {point["step"]: point["validation"] for point in run.report["losses"]["curves"]}
    best = min((step for step in estimates if step), key=lambda step: estimates[step])
    assert run.report["model"]["step"] == best
    kept = weights_in(run.folder / f"checkpoint-{best}")
    assert all(torch.equal(weight, kept[name]) for name, weight in weights_in(run.folder).items())
    assert run.validation.loss == pytest.approx(exact_loss(*open_trained(run.folder, "cpu"), text), abs=1e-6)


def test_layers_can_be_named(base, adapt):
    run = adapt(base, lora=LoraSettings(r=2, targets=("qkv_proj", "up_proj")))
    names = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in weights_in(run.folder)}
    assert names == {"qkv_proj", "up_proj"}
    assert run.report["adapter"]["targets"] == ["qkv_proj", "up_proj"]


@pytest.mark.door("`minigpt generate` and `eval` on the folder of an adapter", "peft")
def test_the_commands_take_the_folder(adapted, text, capsys):
    run = adapted()
    capsys.readouterr()
    assert main(["generate", str(run.folder), "--max_new_tokens", "20", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out) >= 20
    assert main(["eval", str(run.folder), "--data", str(text), "--device", "cpu"]) == 0
    assert f"loss {run.validation.loss:.4f} nats" in capsys.readouterr().out


# Refusals.

FEW = ["--max_steps", "2", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0", "--device", "cpu"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lora_r", "0"], "lora_r must be a whole number of at least 1, got 0."),
        (["--lora_alpha", "0"], "lora_alpha must be a number above 0, got 0."),
        (["--lora_alpha", "nan"], "lora_alpha must be a number above 0, got nan."),
        (["--lora_dropout", "1"], "lora_dropout must be at least 0 and below 1, got 1."),
        (["--lora_dropout", "-0.1"], "lora_dropout must be at least 0 and below 1, got -0.1."),
        (["--lora_targets", ","], "lora_targets names no layer; name some, or say all-linear."),
        *(
            (
                ["--lora_targets", names],
                "lora_targets c_attn fit no layer of this model; its linear layers are down_proj, lm_head, o_proj, "
                "qkv_proj, up_proj.",
            )
            for names in ("c_attn", "qkv_proj,c_attn")
        ),
    ],
)
def test_what_no_adapter_can_be_is_refused_in_one_line(options, sentence, base, text, tmp_path, capsys):
    command = ["finetune", str(base), "--data", str(text), "--lora", "--output_dir", str(tmp_path / "run"), *FEW]
    assert main([*command, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"minigpt: {sentence}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_what_shares_its_weights_gets_no_adapter(target, text, adapt, tmp_path):
    tokenizer = byte_level_tokenizer(text.read_text(encoding="utf-8"))
    model = llama(len(tokenizer))
    model.config.tie_word_embeddings = True
    model.tie_weights()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "tied")
    with pytest.raises(ValueError, match=f"{target} shares its weights with model.embed_tokens and lm_head"):
        adapt(tmp_path / "tied", lora=LoraSettings(targets=("q_proj", target)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (LoraSettings(r=4, alpha=4), "has lora_r 2 and this run 4; give the options of the run that is to go on."),
        (LoraSettings(r=2, alpha=8), "has lora_alpha 4 and this run 8;"),
        (LoraSettings(r=2, alpha=4, dropout=0.5), "has lora_dropout 0.0 and this run 0.5;"),
        (LoraSettings(r=2, alpha=4, targets=("qkv_proj",)), "has its adapter in "),
    ],
)
def test_another_adapter_does_not_go_on(settings, sentence, base, adapt, adapted):
    run = adapted()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        adapt(base, lora=settings, resume_from_checkpoint=str(run.folder / "checkpoint-4"))


def test_an_adapter_does_not_go_on_with_another_base(base, adapt, adapted, tmp_path):
    run = adapted()
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="began with another base"):
        adapt(tmp_path / "other", resume_from_checkpoint=str(run.folder / "checkpoint-4"))


def test_an_adapter_and_a_whole_model_do_not_go_on_from_each_other(base, adapt, adapted, text, tmp_path):
    run = adapted()
    whole = {**SHORT, "output_dir": str(tmp_path / "whole")}
    with pytest.raises(ValueError, match="holds an adapter and no whole model; go on with --lora"):
        finetune(base, str(text), training={**whole, "resume_from_checkpoint": str(run.folder / "checkpoint-4")})
    finetune(base, str(text), training=whole)
    with pytest.raises(ValueError, match="holds a whole model and no adapter; go on without --lora"):
        adapt(base, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))


def test_an_adapter_is_no_base(adapt, adapted):
    run = adapted()
    with pytest.raises(ValueError, match=r"is an adapter and no whole model; make one of it with `minigpt export"):
        adapt(run.folder, "on top")


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["qkv_proj", "c_attn"], "lora_targets c_attn fit no layer of this model"),
        ("c_attn", "lora_targets c_attn fit no layer of this model"),
        ("mlp", "lora_targets mlp fit no layer of this model; its linear layers are"),
        ([], "lora_targets names no layer"),
    ],
)
def test_targets_are_checked_however_they_are_given(base, adapt, targets, reason):
    with pytest.raises(ValueError, match=reason):
        adapt(base, lora=LoraSettings(targets=targets))


def test_a_base_in_half_precision_stays_so_under_an_adapter(base, adapt, tmp_path):
    AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
    run = adapt(tmp_path / "half")
    weights = load_file(run.folder / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert open_trained(run.folder, "cpu")[0].dtype == torch.bfloat16


def test_a_model_without_linear_layers_is_told_that_no_adapter_fits(text, tmp_path):
    train("bigram", str(text), training={**SHORT, "output_dir": str(tmp_path / "bigram"), "learning_rate": 1e-2})
    with pytest.raises(ValueError, match="a minigpt_bigram has no linear layers"):
        finetune(tmp_path / "bigram", str(text), lora=LoraSettings(), training={"output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()
