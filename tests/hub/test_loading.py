"""A saved folder and a Hub repository open by the Auto classes, with this package and without it."""

import importlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    pipeline,
)

import minigpt
from minigpt import (
    BigramConfig,
    BigramForCausalLM,
    BigramModel,
    MiniGPTConfig,
    MiniGPTForCausalLM,
    MiniGPTForSequenceClassification,
    MiniGPTForTokenClassification,
    MiniGPTModel,
    MiniGPTTokenizer,
)
from tests.hub.bare_python import OURS, BarePython, required
from tests.hub.sharp_models import bigram, characters, gpt, lecture_loop, save

if TYPE_CHECKING:
    from tests.hub.double import Hub

HEADS = {
    "gpt": {
        AutoModel: MiniGPTModel,
        AutoModelForCausalLM: MiniGPTForCausalLM,
        AutoModelForSequenceClassification: MiniGPTForSequenceClassification,
        AutoModelForTokenClassification: MiniGPTForTokenClassification,
    },
    "bigram": {AutoModel: BigramModel, AutoModelForCausalLM: BigramForCausalLM},
}
CONFIGS = {"gpt": MiniGPTConfig, "bigram": BigramConfig}
MAKE = {"gpt": gpt, "bigram": bigram}
TOKENIZER = characters()
SHARDED = {"max_shard_size": "10KB"}


@pytest.fixture(params=HEADS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 30, (2, 8), generator=torch.Generator().manual_seed(0))


def heads_of(source: str | Path, kind: str, ids: torch.Tensor, original: PreTrainedModel, **kwargs: Any) -> None:
    """Opens a causal model by every door that there is for it, and compares."""
    assert type(AutoConfig.from_pretrained(source, **kwargs)) is CONFIGS[kind]
    for auto_class, ours in HEADS[kind].items():
        assert type(auto_class.from_pretrained(source, **kwargs)) is ours
    model = AutoModelForCausalLM.from_pretrained(source, **kwargs)
    assert torch.equal(model(ids).logits, original(ids).logits)
    assert type(AutoTokenizer.from_pretrained(source, **kwargs)) is MiniGPTTokenizer
    writer = pipeline("text-generation", model=str(source), **kwargs)
    written = writer("hear me", max_new_tokens=30, do_sample=False)[0]["generated_text"]
    assert written == lecture_loop(original, TOKENIZER, "hear me", 30)


# With the package.


@pytest.mark.door(
    "A saved folder opens by `AutoConfig`, every `AutoModel…`, `AutoTokenizer` and `pipeline`, no remote code", *OURS
)
def test_every_auto_class_opens_a_saved_folder(tmp_path: Path, kind: str, ids: torch.Tensor) -> None:
    model = MAKE[kind](TOKENIZER)
    save(tmp_path, model, TOKENIZER)
    heads_of(tmp_path, kind, ids, model)


@pytest.mark.door(
    "A Hub repository opens by `AutoConfig`, every `AutoModel…`, `AutoTokenizer` and `pipeline`, no remote code",
    *OURS,
    "huggingface_hub",
)
def test_every_auto_class_opens_a_hub_repository(hub: "Hub", kind: str, ids: torch.Tensor) -> None:
    model = MAKE[kind](TOKENIZER)
    model.push_to_hub("tester/model")
    TOKENIZER.push_to_hub("tester/model")
    heads_of("tester/model", kind, ids, model)
    # Local classes opened it, so none of the code that it carries was asked for.
    assert not [request for request in hub.requested("GET /tester/model/resolve/") if request.path.endswith(".py")]


def test_a_head_that_a_bigram_cannot_have_is_refused_by_the_configs_name(tmp_path: Path) -> None:
    save(tmp_path, bigram(TOKENIZER), TOKENIZER)
    for trust in (None, True):
        with pytest.raises(ValueError, match=r"BigramConfig.* for this kind of AutoModel"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=trust)


IMPORTS = {
    # The code in the folder is loaded before anybody has heard of the package.
    "after remote code": """
        from transformers import AutoModel, AutoModelForCausalLM
        early = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert type(early).__module__.startswith("transformers_modules."), type(early)
        import minigpt
        assert type(AutoModelForCausalLM.from_pretrained(folder)) is minigpt.MiniGPTForCausalLM
        early.save_pretrained(folder + "-again")
        assert type(AutoModel.from_pretrained(folder + "-again")) is minigpt.MiniGPTModel
    """,
    "before transformers, then remote code": """
        import minigpt
        from transformers import AutoModelForCausalLM, AutoTokenizer
        for trust in (None, True, False):
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
            assert type(model) is minigpt.MiniGPTForCausalLM, type(model)
        assert type(AutoTokenizer.from_pretrained(folder)) is minigpt.MiniGPTTokenizer
    """,
    "twice": """
        import minigpt
        first = minigpt.MiniGPTForCausalLM
        for name in [name for name in sys.modules if name.partition(".")[0] == "minigpt"]:
            del sys.modules[name]
        import minigpt
        from transformers import AutoModelForCausalLM, AutoTokenizer
        assert minigpt.MiniGPTForCausalLM is not first
        assert type(AutoModelForCausalLM.from_pretrained(folder)) is minigpt.MiniGPTForCausalLM
        assert type(AutoTokenizer.from_pretrained(folder)) is minigpt.MiniGPTTokenizer
    """,
}


@pytest.mark.slow
@pytest.mark.door("`import minigpt` is harmless twice, in any order, and after remote code was loaded", *OURS)
@pytest.mark.parametrize("order", IMPORTS)
def test_the_package_may_be_imported_in_any_order(tmp_path: Path, order: str) -> None:
    folder = save(tmp_path / "saved", gpt(TOKENIZER), TOKENIZER)
    code = f"import sys\nfolder = sys.argv[1]\n{dedent(IMPORTS[order])}"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_registering_again_in_the_same_process_is_harmless(tmp_path: Path, ids: torch.Tensor) -> None:
    model = bigram(TOKENIZER)
    save(tmp_path, model, TOKENIZER)
    minigpt.register()
    importlib.reload(minigpt).register()
    heads_of(tmp_path, "bigram", ids, model)


# Without the package.

SAVED = {ours.__name__: (kind, ours) for kind, heads in HEADS.items() for ours in heads.values()}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen in a process that has only torch and transformers, and in one that opened what the first saved."""
    root = tmp_path_factory.mktemp("bare")
    ids = torch.randint(0, 30, (2, 8), generator=torch.Generator().manual_seed(0))
    expected, written = {"ids": ids}, {}
    for name, (kind, ours) in SAVED.items():
        model = MAKE[kind](TOKENIZER, ours)
        expected[name] = model(ids)[0].detach().clone()
        if model.can_generate():
            save(root / "saved" / name, model, TOKENIZER)
            written[name] = lecture_loop(model, TOKENIZER, "hear me", 30)
        else:
            model.save_pretrained(root / "saved" / name)
    inner = gpt(TOKENIZER, seed=1)
    inner.save_pretrained(root / "saved" / "MiniGPTForCausalLM" / "inside")
    expected["inside"] = inner(ids).logits.detach().clone()
    (root / "again").mkdir()
    for folder in ("saved", "again"):
        save_file(expected, root / folder / "expected.safetensors")
    script = Path(__file__).with_name("bare_loading.py")
    try:
        python = BarePython(root / "python")
    except OSError as error:  # Windows gives the right to make links only to some
        pytest.skip(f"no links can be made here: {error}")
    python.run(script, root / "saved", root / "again")
    seen = json.loads((root / "saved" / "seen.json").read_text(encoding="utf-8"))
    # The code's cache is emptied: the second process has nothing but what the first has saved.
    shutil.rmtree(python.home)
    shutil.rmtree(root / "saved")
    python.run(script, root / "again", root / "third")
    return seen | {
        "written": written,
        "again": json.loads((root / "again" / "seen.json").read_text(encoding="utf-8"))["folders"],
    }


@pytest.mark.slow
def test_the_bare_python_has_torch_and_transformers_alone(bare: dict[str, Any]) -> None:
    assert {name.lower().replace("_", "-") for name in bare["distributions"]} == set(required(*OURS))
    assert {"datasets", "accelerate", "matplotlib", "peft", "minigpt-hf"}.isdisjoint(required(*OURS))
    assert not bare["has minigpt"]


@pytest.mark.slow
@pytest.mark.door("Only torch and transformers: `trust_remote_code=True` opens every head, whichever was saved", *OURS)
@pytest.mark.parametrize("name", SAVED)
def test_without_the_package_every_head_opens_whichever_was_saved(bare: dict[str, Any], name: str) -> None:
    kind = SAVED[name][0]
    heads = {auto.__name__: ours.__name__ for auto, ours in HEADS[kind].items()}
    found = bare["folders"][name]
    assert heads.items() <= found["heads"].items()
    assert found["config"] == CONFIGS[kind].__name__
    assert found["asks for trust"]


@pytest.mark.slow
@pytest.mark.door("Only torch and transformers: the logits are the original's", *OURS)
@pytest.mark.parametrize("name", SAVED)
def test_without_the_package_the_logits_are_the_originals(bare: dict[str, Any], name: str) -> None:
    assert bare["folders"][name]["equal"]


@pytest.mark.slow
@pytest.mark.door("Only torch and transformers: `subfolder=`, with the code of the folder around it", *OURS)
def test_without_the_package_a_subfolder_is_opened_by_the_code_around_it(bare: dict[str, Any]) -> None:
    assert bare["folders"]["MiniGPTForCausalLM"]["equal inside"]


@pytest.mark.slow
@pytest.mark.door("Only torch and transformers: `pipeline` writes the original's text", *OURS)
def test_without_the_package_a_pipeline_writes_the_same_text(bare: dict[str, Any]) -> None:
    assert set(bare["written"]) == {"MiniGPTForCausalLM", "BigramForCausalLM"}
    for name, text in bare["written"].items():
        assert bare["folders"][name]["written"] == text


@pytest.mark.slow
@pytest.mark.door(
    "Only torch and transformers: the tokenizer opens with `trust_remote_code=False`", *OURS, "tokenizers"
)
def test_without_the_package_the_tokenizer_runs_no_code(bare: dict[str, Any]) -> None:
    for name in bare["written"]:
        assert bare["folders"][name]["tokenizer"].startswith("transformers.")
        assert bare["folders"][name]["ids"] == TOKENIZER("hear me!")["input_ids"]


@pytest.mark.slow
@pytest.mark.door("Only torch and transformers: saved again from there, the code comes along and opens it", *OURS)
@pytest.mark.parametrize("name", SAVED)
def test_saved_again_without_the_package_a_folder_keeps_its_code(bare: dict[str, Any], name: str) -> None:
    first, second = bare["folders"][name], bare["again"][name]
    assert second["files"] == first["files"] != []
    assert second == first


# How it is loaded.


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    model = gpt(TOKENIZER)
    save(tmp_path / "sharded", model, TOKENIZER, **SHARDED)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    return tmp_path / "sharded", model


@pytest.mark.door("`dtype=` float64, float16 and bfloat16, and `auto`", *OURS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, "auto"])
def test_the_dtype_asked_for_is_given(tmp_path: Path, kind: str, ids: torch.Tensor, dtype: Any) -> None:
    model = MAKE[kind](TOKENIZER)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    expected = torch.bfloat16 if dtype == "auto" else dtype
    assert {weight.dtype for weight in loaded.parameters()} == {expected}
    assert loaded(ids).logits.dtype == expected
    # Every bfloat16 number is a float64; the weights are still those.
    if expected in (torch.float64, torch.bfloat16):
        assert torch.equal(loaded(ids).logits, model.to(expected)(ids).logits)


ON_DISK = {"model.layers.1": "disk", "model.layers.0": "cpu", "lm_head": "cpu"} | {
    f"model.{name}": "cpu" for name in ("embed_tokens", "embed_positions", "norm")
}


@pytest.mark.door("`device_map=` `cpu`, `auto`, and a map with one block on the disk", *OURS, "accelerate")
@pytest.mark.parametrize("device_map", ["cpu", "auto", ON_DISK], ids=["cpu", "auto", "disk"])
def test_a_model_is_placed_by_a_device_map(
    sharded: tuple[Path, PreTrainedModel], tmp_path: Path, ids: torch.Tensor, device_map: Any
) -> None:
    folder, model = sharded
    # On a machine with a GPU, "auto" would rightly take it.
    room = {"max_memory": {"cpu": "1GB"}} if device_map == "auto" else {}
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "off", **room
    )
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    settings = {"max_new_tokens": 20, "do_sample": False}
    assert loaded.generate(ids, **settings).tolist() == model.generate(ids, **settings).tolist()
    devices = {weight.device.type for weight in loaded.parameters()}
    assert devices == ({"cpu", "meta"} if device_map is ON_DISK else {"cpu"})


@pytest.mark.door("`low_cpu_mem_usage=True`, and sharded safetensors", *OURS, "safetensors")
def test_shards_are_put_together(sharded: tuple[Path, PreTrainedModel], ids: torch.Tensor) -> None:
    folder, model = sharded
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert set(index) == set(model.state_dict())
    for kwargs in ({}, {"low_cpu_mem_usage": True}):
        loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **kwargs)
        assert not any(info.values())
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.door("`subfolder=` of a folder", *OURS)
def test_a_subfolder_is_opened(tmp_path: Path, kind: str, ids: torch.Tensor) -> None:
    model = MAKE[kind](TOKENIZER)
    save(tmp_path / "runs" / "best", model, TOKENIZER)
    for trust in (None, True):
        where: dict[str, Any] = {"subfolder": "runs/best", "trust_remote_code": trust}
        assert type(AutoConfig.from_pretrained(tmp_path, **where)) is CONFIGS[kind]
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **where)
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, subfolder="runs/best")
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()


@pytest.mark.door("`revision=` a branch, a tag or a commit, and `subfolder=` of a repository", *OURS, "huggingface_hub")
def test_a_revision_of_a_repository_is_opened(hub: "Hub", kind: str, ids: torch.Tensor) -> None:
    from huggingface_hub import HfApi

    api, id = HfApi(), "tester/model"
    models = {name: MAKE[kind](TOKENIZER, seed=seed) for seed, name in enumerate(("old", "new", "tried", "best"))}
    first = models["old"].push_to_hub(id)
    TOKENIZER.push_to_hub(id)
    api.create_tag(id, tag="v1")
    models["new"].push_to_hub(id)
    api.create_branch(id, branch="experiment")
    models["tried"].push_to_hub(id, revision="experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub.caches)
        models["best"].save_pretrained("best")
        api.upload_folder(repo_id=id, folder_path="best", path_in_repo="runs/best")

    def logits(**where: Any) -> torch.Tensor:
        return AutoModelForCausalLM.from_pretrained(id, **where)(ids).logits

    for where, name in (
        ({}, "new"),
        ({"revision": "v1"}, "old"),
        ({"revision": first.oid}, "old"),
        ({"revision": "experiment"}, "tried"),
        ({"subfolder": "runs/best"}, "best"),
    ):
        assert torch.equal(logits(**where), models[name](ids).logits), where
    with pytest.raises(OSError, match="not a valid git identifier"):
        logits(revision="v2")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What transformers logs."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")
    return caplog


def test_weights_that_do_not_fit_are_named(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    gpt(TOKENIZER).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = weights.pop("model.layers.1.mlp.down_proj.bias")
    weights["model.soul.weight"] = torch.ones(3)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"model.layers.1.mlp.down_proj.bias"}
    assert info["unexpected_keys"] == {"model.soul.weight"}
    for line in (r"model.layers.1.mlp.down_proj.bias", "MISSING", "model.soul.weight", "UNEXPECTED"):
        assert line in said.text
    said.clear()

    weights["model.layers.1.mlp.down_proj.bias"] = lost
    weights["lm_head.bias"] = torch.ones(3)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "lm_head.bias" in said.text
    assert "MISMATCH" in said.text


def test_the_saved_code_is_this_packages(tmp_path: Path, kind: str) -> None:
    MAKE[kind](TOKENIZER).save_pretrained(tmp_path)
    here = Path(sys.modules[CONFIGS[kind].__module__].__file__ or "").parent
    copies = {path.name: path.read_bytes() for path in tmp_path.glob("*.py")}
    assert copies == {name: (here / name).read_bytes() for name in copies}
    auto_map = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
    for auto_class, ours in HEADS[kind].items():
        module = ours.__module__.rpartition(".")[2]
        assert auto_map[auto_class.__name__] == f"{module}.{ours.__name__}"
        assert f"{module}.py" in copies
    assert {name for name in auto_map if not hasattr(transformers, name)} <= {"AutoModelForDecision"}
