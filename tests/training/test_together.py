"""All of it in one command: LoRA, 4 bits, bf16, gradient checkpointing and conversations, killed, resumed, pushed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load, load_file
from transformers import AutoTokenizer, BitsAndBytesConfig, GenerationConfig

import minigpt
from minigpt.cli import main
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.checkpoints import all_checkpoints
from minigpt.training.instruction import InstructionSettings
from minigpt.training.lora import LoraSettings

if TYPE_CHECKING:
    from tests.hub.double import Hub

pytestmark = [pytest.mark.extra("lora"), pytest.mark.extra("qlora"), pytest.mark.extra("sft")]

BASE, TALKER = "tester/base", "tester/talker"
STEPS = 32
TRAINING = {
    "bf16": True,
    "gradient_checkpointing": True,
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "save_steps": 6,
    "eval_interval": 8,
    "eval_iters": 1,
    "sample_length": 5,
}
CLOCKS = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


@pytest.fixture
def base(hub: "Hub", tmp_path: Path) -> MiniGPTTokenizer:
    """A rotary model that no text has taught anything, on the Hub."""
    torch.manual_seed(0)
    tokenizer = MiniGPTTokenizer.from_text("abcdefghijklmnopqrstuvwxyz .:?!\n")
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 2, "block_size": 48, "position_embedding_type": "rope"}
    model = MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), **shape, **ids))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    assert main(["push", str(tmp_path / "base"), BASE]) == 0
    return tokenizer


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    file = tmp_path / "talk.jsonl"
    words = [f"{first}{second}" for first in "bcdfghkl" for second in ("at", "ow", "en", "ing", "it")]
    rows = (
        {"messages": [{"role": "user", "content": f"say {word}!"}, {"role": "assistant", "content": word}]}
        for word in words
    )
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def command(talk: Path, tmp_path: Path) -> list[str]:
    options = [word for name, value in TRAINING.items() for word in (f"--{name}", *([] if value is True else [value]))]
    adapter = ["--load_in_4bit", "--lora_r", "4", "--lora_dropout", "0.1"]
    pushed = ["--push_to_hub", "--hub_model_id", TALKER]
    given = [BASE, "--sft", "--data", talk, *adapter, *options, *pushed, "--output_dir", tmp_path / "run"]
    return [sys.executable, "-m", "minigpt", "finetune", *map(str, given), "--device", "cpu"]


def kill_after_step(step: int, command: list[str], environment: dict[str, str], errors: Path) -> None:
    with errors.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True)
    assert process.stdout is not None
    with process:
        while (line := process.stdout.readline()) and not line.startswith(f"step {step}/"):
            pass
        process.kill()
    assert line, errors.read_text(encoding="utf-8")
    assert process.returncode != 0


def log_of(folder: Path) -> list[dict[str, object]]:
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [{key: value for key, value in entry.items() if key not in CLOCKS} for entry in history]


@pytest.mark.door(
    "`minigpt finetune`: LoRA, 4 bits, bf16, gradient checkpointing and conversations in one command, killed, resumed, "
    "pushed, and loaded by `AutoPeftModelForCausalLM`",
    "peft",
    "bitsandbytes",
    "trl",
    "transformers",
)
def test_everything_together_killed_and_resumed_is_the_uninterrupted_run_and_loads_from_the_hub(
    hub: "Hub", base: MiniGPTTokenizer, talk: Path, command: list[str], tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    environment = hub.environment()
    kill_after_step(16, command, environment, tmp_path / "errors.txt")
    assert all_checkpoints(tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    resumed = subprocess.run(
        [*command, "--resume_from_checkpoint"], env=environment, capture_output=True, text=True, timeout=500
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert resumed.stderr == ""
    assert "going on from checkpoint-" in resumed.stdout

    whole = minigpt.finetune(
        BASE,
        talk,
        device="cpu",
        load_in=4,
        lora=LoraSettings(r=4, dropout=0.1),
        instruction=InstructionSettings(),
        training={**TRAINING, "output_dir": str(tmp_path / "whole")},
    )
    weights, expected = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("run", "whole"))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name]), name
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    assert {"peft", "bitsandbytes", "trl"} <= whole.report["versions"].keys()
    curve = [point["validation"] for point in whole.report["losses"]["curves"]]
    assert curve[-1] < curve[0] - 0.5  # there was something to learn

    assert load(hub.files(TALKER)["adapter_model.safetensors"]).keys() == expected.keys()
    in_4_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    loaded = AutoPeftModelForCausalLM.from_pretrained(TALKER, quantization_config=in_4_bits, device_map={"": "cpu"})
    for layer in loaded.modules():  # as docs/lora.md says
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    tokenizer = AutoTokenizer.from_pretrained(TALKER)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say cow!"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(prompt).logits, whole.model(prompt).logits, rtol=0, atol=0)
    assert GenerationConfig.from_pretrained(TALKER).suppress_tokens is None  # it may end its answer
