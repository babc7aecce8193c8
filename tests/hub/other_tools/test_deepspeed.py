"""DeepSpeed's ZeRO-1 trains as the plain Trainer does.

Its extra is no part of `all`: on a CPU it compiles its communication with the machine's C++ compiler.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.extra("deepspeed")
TRAINS = """
import json, sys
import minigpt
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model, rows, output = sys.argv[1:]
zero = {"zero_optimization": {"stage": 1}, "gradient_clipping": "auto"}
zero |= dict.fromkeys(["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"], "auto")
losses = []
for deepspeed in (None, zero):
    arguments = TrainingArguments(
        output_dir=output + "-run", use_cpu=True, max_steps=10, learning_rate=1e-2, logging_steps=1, max_grad_norm=0.1,
        save_strategy="no", disable_tqdm=True, deepspeed=deepspeed,
    )
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(model), arguments, train_dataset=load_from_disk(rows))
    trainer.train()
    losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
assert type(trainer.model_wrapped).__name__ == "DeepSpeedEngine"
with open(output, "w", encoding="utf-8") as file:
    json.dump(losses, file)
"""


@pytest.mark.door(
    'DeepSpeed ZeRO-1 under the stock `Trainer`, with `"gradient_clipping": "auto"`: the losses of the plain `Trainer`',
    "deepspeed",
)
def test_zero_1_gives_the_losses_of_the_plain_trainer(lecture, rows, tmp_path):
    pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`")
    if shutil.which("c++") is None:
        pytest.skip("DeepSpeed needs a C++ compiler")
    rows.save_to_disk(tmp_path / "rows")
    one_process = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment = os.environ | one_process | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, "-c", TRAINS, lecture, tmp_path / "rows", tmp_path / "losses.json"]
    subprocess.run(script, check=True, env=environment, timeout=900)
    plain, zero = json.loads((tmp_path / "losses.json").read_text(encoding="utf-8"))
    assert zero == pytest.approx(plain, rel=1e-5)
