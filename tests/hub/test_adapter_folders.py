"""Claims about adapters: each opens with the very model that it was trained on, or is refused in one sentence."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import HfApi, constants, snapshot_download
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from minigpt import MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.hub import extras
from minigpt.hub.adapter_folders import BASE_HASH, CONFIG, WEIGHTS, base_sha256, is_adapter, open_adapter
from minigpt.hub.exporting.formats import export_model
from minigpt.hub.loading import open_trained
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.training.data.corpus import PLAYS

if TYPE_CHECKING:
    from tests.hub.double import Hub

TEXT = PLAYS.read_text(encoding="utf-8")[:3000]
BLOCK = 16


def save_base(folder: Path, seed: int = 0, **fields: Any) -> Path:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    torch.manual_seed(seed)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "block_size": BLOCK, "initializer_range": 0.2}
    model = MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), **ids, **{**small, **fields}))
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path | str, revision: str | None = None) -> torch.Tensor:
    """Saves an adapter that is seen in the logits, and returns these as PEFT's own model gives them."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=2, revision=revision)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, revision=revision or "main"), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    (folder / BASE_HASH).write_text(f"{base_sha256(base, revision)}\n", encoding="utf-8")
    return logits_of(model)


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(torch.arange(BLOCK)[None]).logits
    return logits


def change(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | fields), encoding="utf-8")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    save_adapter(tmp_path / "adapter", base)
    return tmp_path / "adapter"


# What a base is known by.


def printed_by_sha256sum(folder: Path, *names: str) -> str:
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_model_is_known_by_its_weights_alone(base: Path) -> None:
    known = base_sha256(base)
    assert known == printed_by_sha256sum(base, "model.safetensors")
    (base / "notes.safetensors").write_bytes(b"no weights of a model")
    (base / WEIGHTS).write_bytes(b"nor these")
    change(base / "config.json", anything="else")
    assert base_sha256(base) == known
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, base / "model.safetensors")
    assert base_sha256(base) != known


def test_shards_are_all_read_and_their_names_count(base: Path) -> None:
    model = MiniGPTForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="5KB")
    names = [path.name for path in base.glob("model-*.safetensors")]
    assert len(names) > 1
    known = base_sha256(base)
    assert known == printed_by_sha256sum(base, *names)
    one, another = sorted(names)[:2]
    (base / one).rename(base / "kept")
    (base / another).rename(base / one)
    (base / "kept").rename(base / another)
    assert base_sha256(base) != known


def test_pickled_weights_are_hashed_where_there_are_no_others_and_never_opened(base: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(b"whatever would happen if this were unpickled")
    assert base_sha256(base) == printed_by_sha256sum(base, "model.safetensors")
    (base / "model.safetensors").unlink()
    assert base_sha256(base) == printed_by_sha256sum(base, "pytorch_model.bin")
    (base / "pytorch_model.bin").unlink()
    with pytest.raises(OSError, match="holds no weights"):
        base_sha256(base)


def test_a_model_on_the_hub_is_known_without_downloading_it(hub: "Hub", base: Path) -> None:
    assert main(["push", str(base), "tester/base"]) == 0
    hub.requests.clear()
    assert base_sha256("tester/base") == base_sha256(base)
    assert not hub.requested("model.safetensors")
    commit = hub.commits("tester/base")[0].oid
    hub.put("tester/base", {"model.safetensors": b"another model's"})
    assert base_sha256("tester/base") != base_sha256(base)
    assert base_sha256("tester/base", commit) == base_sha256(base)


def test_a_model_in_the_cache_is_known_without_the_hub(hub: "Hub", base: Path) -> None:
    assert main(["push", str(base), "tester/base"]) == 0
    snapshot_download("tester/base")
    hub.fail("GET")
    assert base_sha256("tester/base") == base_sha256(base)
    with pytest.raises(OSError, match="tester/none is neither a folder nor a model"):
        base_sha256("tester/none")


# Opening.


@pytest.mark.extra("lora")
def test_an_adapter_opens_as_a_plain_model_with_the_logits_of_pefts_own(base: Path, tmp_path: Path) -> None:
    expected = save_adapter(tmp_path / "adapter", base)
    model, tokenizer = open_trained(tmp_path / "adapter", "cpu")
    assert type(model) is MiniGPTForCausalLM
    assert not model.training
    assert not [name for name in model.state_dict() if "lora" in name]
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits_of(MiniGPTForCausalLM.from_pretrained(base)), expected, atol=0.1)
    assert tokenizer.get_vocab() == MiniGPTTokenizer.from_pretrained(base).get_vocab()
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(base)


@pytest.mark.extra("lora")
def test_every_command_takes_an_adapter(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    assert main(["generate", str(adapter), "--max_new_tokens", "30", "--seed", "1", "--device", "cpu"]) == 0
    written = capsys.readouterr()
    assert written.err == ""
    assert main(["export", str(adapter), "--to", "merged"]) == 0
    merged = tmp_path / "adapter-merged"
    assert capsys.readouterr().out == f"written  {merged}\n"
    assert main(["generate", str(merged), "--max_new_tokens", "30", "--seed", "1", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == written.out
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    scores = []
    for folder in (adapter, merged):
        assert main(["eval", str(folder), "--data", str(tmp_path / "my.txt"), "--device", "cpu"]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1]
    assert not [warning for warning in recwarn if "peft" in str(warning.filename)]


@pytest.mark.extra("lora")
def test_an_adapter_on_the_hub_opens_with_a_base_on_the_hub_and_then_from_the_cache(
    hub: "Hub", base: Path, tmp_path: Path
) -> None:
    assert main(["push", str(base), "tester/base"]) == 0
    expected = save_adapter(tmp_path / "adapter", "tester/base", revision=hub.commits("tester/base")[0].oid)
    HfApi().create_repo("tester/adapter")
    HfApi().upload_folder(repo_id="tester/adapter", folder_path=tmp_path / "adapter")
    hub.put("tester/base", {"model.safetensors": b"what its owner has trained since"})
    for _ in ("from the Hub", "from the cache"):
        assert is_adapter("tester/adapter", local_files_only=bool(hub.faults))
        model, _ = open_trained("tester/adapter", "cpu")
        torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-4)
        hub.fail("GET")


@pytest.mark.extra("lora")
def test_what_is_generated_is_decided_beside_the_adapter(adapter: Path) -> None:
    assert open_trained(adapter, "cpu")[0].generation_config.suppress_tokens
    GenerationConfig(max_new_tokens=7, eos_token_id=3).save_pretrained(adapter)
    model, _ = open_trained(adapter, "cpu")
    assert model.generation_config.max_new_tokens == 7
    assert model.generation_config.suppress_tokens is None


@pytest.mark.extra("lora")
def test_new_tokens_come_with_the_adapter(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["é", "ø"])
    model.resize_token_embeddings(len(tokenizer))
    trained = ["embed_tokens", "lm_head"]
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=2, modules_to_save=trained)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    opened, _ = open_trained(tmp_path / "adapter", "cpu")
    assert opened.config.vocab_size == len(tokenizer)
    torch.testing.assert_close(logits_of(opened), logits_of(model), atol=1e-5, rtol=1e-4)


@pytest.fixture
def prompted(base: Path, tmp_path: Path) -> Path:
    """An adapter of virtual tokens, which have no weights of the model's to be merged into."""
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "prompted")
    return tmp_path / "prompted"


@pytest.mark.extra("lora")
def test_virtual_tokens_are_used_and_cannot_be_merged(
    prompted: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for folder in (prompted, base):
        command = ["generate", str(folder), "--temperature", "0", "--max_new_tokens", "30", "--device", "cpu"]
        assert main(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]
    with pytest.raises(UsageError, match=re.escape(f"the adapter in {prompted} cannot be merged into weights")):
        export_model(prompted, "merged")


# Merging into other formats.


@pytest.mark.extra("lora")
@pytest.mark.door("`minigpt export --to merged`: an adapter and its base as one plain model", "peft", "transformers")
def test_a_merged_folder_is_a_whole_model_that_opens_without_peft(base: Path, tmp_path: Path) -> None:
    expected = save_adapter(tmp_path / "adapter", base)
    folder = export_model(tmp_path / "adapter", "merged", tmp_path / "merged")
    shutil.rmtree(base)
    shutil.rmtree(tmp_path / "adapter")
    code = f"""
import sys
sys.modules["peft"] = sys.modules["minigpt"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=False)
with torch.no_grad():
    torch.save(model(torch.arange({BLOCK})[None]).logits, {str(tmp_path / "logits.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), expected, atol=1e-5, rtol=1e-4)
    assert not [path.name for path in folder.iterdir() if "adapter" in path.name or path.name == "README.md"]


@pytest.mark.extra("lora")
def test_another_format_holds_the_merged_model(tmp_path: Path) -> None:
    fits = {"hidden_act": "gelu_new", "lm_head_bias": False}
    expected = save_adapter(tmp_path / "adapter", save_base(tmp_path / "base", **fits))
    folder = export_model(tmp_path / "adapter", "gpt2")
    stock = AutoModelForCausalLM.from_pretrained(folder)
    assert stock.config.model_type == "gpt2"
    torch.testing.assert_close(logits_of(stock), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.extra("lora")
def test_the_model_that_an_adapter_is_for_is_never_replaced(
    base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (base / "model.safetensors").read_bytes()
    for to in ("merged", "gpt2"):
        assert main(["export", str(adapter), "--to", to, "--output_dir", str(base), "--overwrite"]) == 2
        assert capsys.readouterr().err.endswith(
            f"minigpt: {base} holds the model that {adapter} is an adapter for; name another --output_dir.\n"
        )
    assert (base / "model.safetensors").read_bytes() == weights


def test_what_is_no_adapter_is_not_merged(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(base), "--to", "merged"]) == 2
    assert (
        capsys.readouterr().err == f"minigpt: {base} is no adapter, and there is nothing to merge; use it as it is.\n"
    )
    assert not base.with_name("base-merged").exists()


# Refusals.


def test_without_peft_an_adapter_is_refused_with_what_to_install(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps({"base_model_name_or_path": str(base)}), encoding="utf-8")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert main(["generate", str(folder)]) == 2
    assert capsys.readouterr().err == f"minigpt: {folder}, an adapter, needs peft: pip install 'minigpt-hf[lora]'.\n"


def retrained(adapter: Path, base: Path) -> None:
    shutil.rmtree(base)
    save_base(base, seed=7)


def moved(adapter: Path, base: Path) -> None:
    base.rename(base.with_name("elsewhere"))


def pickled(adapter: Path, base: Path) -> None:
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()


def of_another_shape(adapter: Path, base: Path) -> None:
    shutil.rmtree(base)
    save_base(base, n_embd=24)
    (adapter / BASE_HASH).unlink()


def incomplete(adapter: Path, base: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    weights.pop(min(weights))
    save_file(weights, adapter / WEIGHTS)


def left_over(adapter: Path, base: Path) -> None:
    save_file(load_file(adapter / WEIGHTS) | {"soul": torch.ones(3)}, adapter / WEIGHTS)


def diverged(adapter: Path, base: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    weights[min(weights)].fill_(float("nan"))
    save_file(weights, adapter / WEIGHTS)


DAMAGE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "another base": (
        retrained,
        "{adapter} is an adapter for another base: the weights of {base} are not those that it was trained on; put "
        "these back, name the base that has them, or train it again.",
    ),
    "no base": (
        moved,
        "{adapter} is an adapter for {base}, which is neither a folder nor a model that the Hub gives out; put it "
        "back, or write where it is now into base_model_name_or_path of {adapter}/adapter_config.json.",
    ),
    "a pickle": (
        pickled,
        "{adapter} holds its weights as a pickle, adapter_model.bin; save the adapter again as safetensors.",
    ),
    "no weights": (
        lambda adapter, base: (adapter / WEIGHTS).unlink(),
        "{adapter} holds no adapter_model.safetensors; save the adapter again.",
    ),
    "another shape, and no hash": (of_another_shape, "the weights of {adapter} are not those that its configuration"),
    "weights missing": (incomplete, "the weights of {adapter} are not those that its configuration describes (base_"),
    "weights left over": (
        left_over,
        "the weights of {adapter} are not those that its configuration describes (soul is left over)",
    ),
    "weights that are not finite": (diverged, "{adapter} holds weights that are not finite (base_model."),
    "no base named": (
        lambda adapter, base: change(adapter / CONFIG, base_model_name_or_path=""),
        "{adapter}/adapter_config.json names no model that the adapter is for; write it into base_model_name_or_path.",
    ),
    "no JSON": (
        lambda adapter, base: (adapter / CONFIG).write_text("{", encoding="utf-8"),
        "{adapter}/adapter_config.json is not JSON",
    ),
}


@pytest.mark.extra("lora")
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_opened_is_refused_in_one_sentence(
    damage: str, adapter: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply, sentence = DAMAGE[damage]
    apply(adapter, base)
    capsys.readouterr()
    assert main(["generate", str(adapter), "--max_new_tokens", "5", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("minigpt: " + sentence.format(adapter=adapter, base=base))


@pytest.mark.extra("lora")
def test_a_base_that_has_moved_is_found_where_the_adapter_says_that_it_is_now(adapter: Path, base: Path) -> None:
    expected = logits_of(open_trained(adapter, "cpu")[0])
    elsewhere = base.rename(base.with_name("elsewhere"))
    change(adapter / CONFIG, base_model_name_or_path=str(elsewhere))
    assert torch.equal(logits_of(open_trained(adapter, "cpu")[0]), expected)


@pytest.mark.extra("lora")
def test_a_base_on_the_hub_that_was_never_fetched_is_refused_without_the_hub(
    hub: "Hub", adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(adapter / CONFIG, base_model_name_or_path="tester/none")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="is an adapter for tester/none, which is neither"):
        open_adapter(adapter)


@pytest.mark.extra("lora")
def test_of_an_adapter_on_the_hub_no_file_in_the_cache_is_named(hub: "Hub", adapter: Path, base: Path) -> None:
    base.rename(base.with_name("elsewhere"))
    (adapter / "README.md").unlink()  # the form of PEFT names the folder, and the Hub takes no such metadata
    HfApi().create_repo("tester/adapter")
    HfApi().upload_folder(repo_id="tester/adapter", folder_path=adapter)
    with pytest.raises(UsageError) as refusal:
        open_trained("tester/adapter", "cpu")
    assert str(refusal.value) == (
        f"tester/adapter is an adapter for {base}, which is neither a folder nor a model that the Hub gives out; "
        "ask for it where the adapter comes from."
    )
