"""The command lines of huggingface_hub, and safetensors itself, read what we wrote."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, get_local_safetensors_metadata
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from minigpt.hub.publishing.push import push_folder

HF = str(Path(sys.executable).with_name("hf"))


def run(environment, *command) -> str:
    done = subprocess.run([HF, *command], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.door("`hf upload` and `hf download`: every byte of a saved folder, there and back", "huggingface_hub")
def test_a_folder_goes_up_and_comes_down_again(hub, lecture, tmp_path):
    run(hub.environment(), "upload", "tester/lecture", str(lecture), ".")
    assert {name: hub.files("tester/lecture")[name] for name in contents(lecture)} == contents(lecture)
    run(hub.environment(), "download", "tester/lecture", "--local-dir", str(tmp_path / "down"))
    downloaded = contents(tmp_path / "down")
    assert {name: downloaded[name] for name in contents(lecture)} == contents(lecture)


@pytest.mark.slow
@pytest.mark.door(
    "`hf models`, `hf download`, `hf cache`: what `minigpt push` wrote is listed, fetched and verified",
    "huggingface_hub",
)
def test_what_was_pushed_is_listed_fetched_and_verified(hub, lecture, rows):
    push_folder(lecture, "tester/lecture")
    environment = hub.environment()
    listed = run(environment, "models", "ls", "tester/lecture", "--json")
    names = {entry["path"] for entry in json.loads(listed)}
    assert {"README.md", "config.json", "model.safetensors", "modeling_minigpt.py", "tokenizer.json"} <= names
    assert json.loads(run(environment, "models", "info", "tester/lecture", "--json"))["id"] == "tester/lecture"
    card = hub.files("tester/lecture")["README.md"].decode()
    assert run(environment, "models", "card", "tester/lecture").strip() == card.strip()

    printed = json.loads(run(environment, "download", "tester/lecture", "--json"))
    folder = Path(printed["path"] if isinstance(printed, dict) else printed)
    assert contents(folder) == hub.files("tester/lecture")
    cached = json.loads(run(environment, "cache", "ls", "--json"))
    assert [repository["id"] for repository in cached] == ["model/tester/lecture"]
    run(environment, "cache", "verify", "tester/lecture", "--fail-on-missing-files", "--fail-on-extra-files")

    ids = torch.tensor(rows["input_ids"][:2])
    fetched, model = (AutoModelForCausalLM.from_pretrained(source) for source in (folder, lecture))
    assert torch.equal(fetched(ids).logits, model(ids).logits)


@pytest.mark.door("`safetensors` opens the weights for torch and NumPy, and the header is the format's", "safetensors")
def test_the_weights_are_plain_safetensors(saved):
    file, model = saved / "model.safetensors", AutoModelForCausalLM.from_pretrained(saved)
    expected = model.state_dict()
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]  # one memory, written once
    for framework in ("pt", "np"):
        with safe_open(file, framework=framework) as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == expected.keys()
            for name, weight in expected.items():
                assert np.array_equal(np.asarray(opened.get_tensor(name)), weight.numpy())
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    assert {name: entry["shape"] for name, entry in header.items()} == {n: [*w.shape] for n, w in expected.items()}
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - 8 - length


@pytest.mark.door("`get_local_safetensors_metadata` counts the parameters", "huggingface_hub", "safetensors")
def test_the_hubs_client_counts_the_parameters(saved):
    metadata = get_local_safetensors_metadata(saved)
    assert metadata.parameter_count == {"F32": AutoModelForCausalLM.from_pretrained(saved).num_parameters()}


@pytest.mark.door("`get_safetensors_metadata` of a model on the Hub, sharded too", "huggingface_hub", "safetensors")
@pytest.mark.parametrize("shard", ["50MB", "20KB"])
def test_the_hubs_client_reads_the_header_from_afar(hub, lecture, shard):
    model = AutoModelForCausalLM.from_pretrained(lecture)
    model.push_to_hub("tester/lecture", max_shard_size=shard)
    metadata = HfApi().get_safetensors_metadata("tester/lecture")
    assert metadata.parameter_count == {"F32": model.num_parameters()}
    assert metadata.sharded == (shard == "20KB")
    assert set(metadata.weight_map) == set(model.state_dict())
