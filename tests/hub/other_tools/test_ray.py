"""Ray's workers are one training: two with half a batch each learn what one process learns from the whole batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import minigpt

pytestmark = pytest.mark.extra("ray")

SHAPE = {"n_embd": 16, "n_layer": 2, "n_head": 2, "block_size": 16}
# AdamW would hide a wrong scale of the gradients.
TRAINING = {"max_steps": 6, "logging_steps": 1, "optim": "sgd", "learning_rate": 0.1}
TRAINING |= {"eval_interval": 3, "eval_iters": 2, "sample_length": 0}
SCRIPT = """
import json, sys
import ray, ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def work(config):
    import minigpt

    run = minigpt.train("seed", config["text"], model=config["model"], training=config["training"])
    ray.train.report({"loss": run.validation.loss})

ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
trainer = TorchTrainer(
    work,
    train_loop_config=json.loads(sys.argv[1]),
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(storage_path=sys.argv[2]),
)
trainer.fit()
"""


@pytest.mark.door(
    "Ray Train: `minigpt.train` in the workers of a `TorchTrainer`: what one process learns", "ray", "torch"
)
def test_two_workers_learn_what_one_process_learns(text, tmp_path):
    pytest.importorskip("ray")
    text_file = tmp_path / "my.txt"
    text_file.write_text(text, encoding="utf-8", newline="\n")
    one = {**TRAINING, "per_device_train_batch_size": 8, "output_dir": str(tmp_path / "one")}
    expected = minigpt.train("seed", str(text_file), device="cpu", model=SHAPE, training=one)
    two = {**TRAINING, "per_device_train_batch_size": 4, "output_dir": str(tmp_path / "two")}
    config = json.dumps({"text": str(text_file), "model": SHAPE, "training": two})
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", SCRIPT, config, str(tmp_path / "ray")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]

    report = json.loads((tmp_path / "two" / "run.json").read_text(encoding="utf-8"))
    assert report["training"]["processes"] == 2
    assert report["losses"]["validation"]["loss"] == pytest.approx(expected.validation.loss, rel=1e-5)
    weights, whole = (load_file(tmp_path / run / "model.safetensors") for run in ("two", "one"))
    assert weights.keys() == whole.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-4, atol=1e-6)
