"""mergekit merges models whose architecture it does not know by name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.hub.without_package import WITHOUT_PACKAGE

pytestmark = pytest.mark.extra("merge")


LOADS = f"""{WITHOUT_PACKAGE}
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.save(model(torch.tensor([[1, 2, 3]])).logits.detach(), sys.argv[2])
"""


@pytest.mark.door(
    "`mergekit-yaml`: averages two models; opens without the package once the `.py` files are copied",
    "mergekit",
)
def test_mergekit_averages_two_models(lecture, tmp_path):
    other, merged = tmp_path / "other", tmp_path / "merged"
    model = AutoModelForCausalLM.from_pretrained(lecture)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    model.save_pretrained(other)
    recipe = {"merge_method": "linear", "dtype": "float32"}
    recipe["models"] = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (lecture, other)]
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    tool = Path(sys.executable).with_name("mergekit-yaml")
    subprocess.run([tool, tmp_path / "recipe.yml", merged, "--trust-remote-code"], check=True, cwd=tmp_path)

    first, second, average = (load_file(folder / "model.safetensors") for folder in (lecture, other, merged))
    assert average.keys() == first.keys()
    for name, weight in average.items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2)

    for code in lecture.glob("*.py"):
        shutil.copy(code, merged)
    logits = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", LOADS, merged, logits], check=True, cwd=tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(merged)(torch.tensor([[1, 2, 3]])).logits
    torch.testing.assert_close(torch.load(logits, weights_only=True), expected)
