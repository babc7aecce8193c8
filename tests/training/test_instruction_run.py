"""`minigpt finetune --sft`, from the command to the answers."""

import json
import os
import random
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from minigpt.cli import main
from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config
from minigpt.modeling_minigpt.modeling_minigpt import MiniGPTForCausalLM
from minigpt.tokenization.subword import train_bpe
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.data.chat_template import CHAT_TEMPLATE
from minigpt.training.finetune import finetune
from minigpt.training.instruction import InstructionSettings

if TYPE_CHECKING:
    from tests.hub.double import Hub

pytestmark = pytest.mark.extra("sft")

LETTERS = "abcdefghijklmnopqrstuvwxyz .:?!\n"
WORDS = ("cat", "dog", "king", "crown")
FEW = ["--device", "cpu", "--max_steps", "4", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0"]


def turns(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(folder: Path, *rows: Any) -> str:
    file = folder / "talk.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """To say what one is asked to say, in rows of every shape."""
    chance = random.Random(0)
    shapes = []
    for number in range(60):
        word = chance.choice(WORDS)
        row = turns(f"say {word}{'!' * chance.randrange(4)}", word)
        if number % 3 == 1:
            row = {"prompt": row["messages"][:1], "completion": row["messages"][1:]}
        elif number % 3 == 2:
            row = {"prompt": f"user: {row['messages'][0]['content']}\nassistant:", "completion": f" {word}"}
        shapes.append(row)
    return shapes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As `minigpt train` leaves a model: it never ends its text, and its tokenizer has no chat template."""
    torch.manual_seed(0)
    tokenizer = MiniGPTTokenizer.from_text(LETTERS)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = MiniGPTForCausalLM(
        MiniGPTConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, block_size=64, **ids)
    )
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **ids)
    folder = tmp_path_factory.mktemp("models") / "base"
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return str(folder)


def test_what_cannot_be_learned_from_is_refused_before_anything_is_written(base, rows, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    for given, options, sentence in (
        ((rows[0], '{"messages": ['), [], "talk.jsonl, line 2 is not JSON"),
        ((rows[0], {"messages": rows[0]["messages"][:1]}), [], "talk.jsonl, line 2 has no assistant turn; only"),
        ((rows[0],), [], "talk.jsonl has 1 conversation to learn from, and one more is held back"),
        ((rows[0], rows[1]), ["--block_size", "20"], "2 of 2 rows are longer than the block of 20 tokens"),
        ((rows[0], turns("say 1", "1")), [], "talk.jsonl, line 2 has what the vocabulary lacks ('1')"),
    ):
        data = write(tmp_path, *given)
        status = main(["finetune", base, "--sft", "--data", data, "--output_dir", str(output), *FEW, *options])
        error = capsys.readouterr().err
        assert status in (1, 2)
        assert sentence in error
        assert len(error.splitlines()) == 1
        assert not output.exists()


def test_a_template_without_marks_is_refused_unless_all_is_to_be_learned(base, rows, tmp_path, capsys) -> None:
    for part in (AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)):
        part.chat_template = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
        part.save_pretrained(tmp_path / "unmarked")
    command = ["finetune", str(tmp_path / "unmarked"), "--sft", "--data", write(tmp_path, *rows), *FEW]
    command += ["--output_dir", str(tmp_path / "out")]
    assert main(command) == 2
    assert "has no {% generation %} marks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--assistant_only_loss", "false"]) == 0


def test_how_many_rows_are_cut_and_left_out_is_said(base, rows, tmp_path, capsys) -> None:
    hopeless = turns("say " + "very " * 30 + "much", "cat")
    data = write(tmp_path, *rows[:20], turns("say much", "very " * 30), hopeless, hopeless)
    command = ["finetune", base, "--sft", "--truncate", "--block_size", "48", "--data", data, *FEW]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    said = (
        "19 conversations to train on, 2 to validate; 3 longer than the block were cut to its 48 tokens, 2 of them left"
    )
    assert f"data    talk.jsonl: {said} out" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["data"]
    assert report["split_rows"] == {"train": 19, "validation": 2}
    assert (report["rows_cut"], report["rows_left_out"]) == (3, 2)


@pytest.mark.door("`minigpt chat` with a model after `minigpt finetune --sft`: it answers and stops", "trl")
def test_rows_of_every_shape_teach_a_model_to_answer(base, rows, tmp_path, capfd, monkeypatch) -> None:
    output = str(tmp_path / "out")
    command = ["finetune", base, "--sft", "--data", write(tmp_path, *rows), "--output_dir", output, *FEW]
    command += ["--max_steps", "200", "--eval_interval", "100", "--learning_rate", "3e-3"]
    assert main(command) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "data    talk.jsonl: 54 conversations to train on, 6 to validate\n" in printed.out
    assert printed.out.endswith(f"more     minigpt chat {output}\n")
    assert (tmp_path / "out" / "sample.txt").read_text(encoding="utf-8").startswith("user: say ")
    assert not (tmp_path / "out" / "README.md").exists()
    monkeypatch.setattr("sys.stdin", StringIO("".join(f"say {word}\n" for word in WORDS)))
    assert main(["chat", output, "--device", "cpu", "--temperature", "0.1"]) == 0
    assert capfd.readouterr().out.split() == list(WORDS)


def test_a_stock_model_without_a_padding_token_resumes_to_the_last_digit(rows, tmp_path) -> None:
    trained = train_bpe([json.dumps(rows)], 300).backend_tokenizer
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **special)
    end = tokenizer.eos_token_id
    small = {"n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 64, "bos_token_id": end, "eos_token_id": end}
    for part in (GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **small)), tokenizer):
        part.save_pretrained(tmp_path / "gpt2")

    def run(name: str, **training: Any) -> Any:
        few = {
            "max_steps": 6,
            "eval_interval": 3,
            "save_steps": 3,
            "eval_iters": 1,
            "sample_length": 0,
            "use_cpu": True,
        }
        few |= {"output_dir": str(tmp_path / name), "lr_scheduler_type": "constant", "keep_best": False}
        data = write(tmp_path, *rows)
        return finetune(tmp_path / "gpt2", data, instruction=InstructionSettings(), training={**few, **training})

    whole = run("whole")
    run("stopped", max_steps=3)
    resumed = run("stopped", resume_from_checkpoint=True)
    weights = resumed.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in whole.model.state_dict().items())
    assert resumed.validation == whole.validation
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").pad_token_id == end


@pytest.mark.door("A dataset of messages on the Hub, by its id: `minigpt finetune --sft --data owner/name`", "datasets")
def test_conversations_of_the_hub_are_learned_from(base, rows, hub: "Hub", tmp_path) -> None:
    datasets.Dataset.from_list([row for row in rows if "messages" in row]).push_to_hub("tester/talk")
    command = ["finetune", base, "--sft", "--data", "tester/talk", "--output_dir", str(tmp_path / "out"), *FEW]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert report["data"]["name"] == "tester/talk"
    assert report["data"]["split_rows"] == {"train": 18, "validation": 2}


@pytest.mark.slow
def test_an_export_that_never_ends_its_text_learns_to(rows, tmp_path) -> None:
    torch.manual_seed(0)
    tokenizer = MiniGPTTokenizer.from_text(LETTERS)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "block_size": 64, "hidden_act": "gelu_new", "lm_head_bias": False}
    model = MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), attention_bias=True, **shape, **ids))
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids, **ids)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--to", "gpt2", "--output_dir", str(tmp_path / "gpt2")]) == 0
    command = ["finetune", str(tmp_path / "gpt2"), "--sft", "--data", write(tmp_path, *rows), *FEW]
    command += ["--max_steps", "200", "--eval_interval", "200", "--learning_rate", "3e-3"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    chat = pipeline("text-generation", model=str(tmp_path / "out"), device="cpu")
    for word in WORDS:
        (result,) = chat([{"role": "user", "content": f"say {word}!"}], do_sample=False, max_new_tokens=20)
        assert result["generated_text"][-1]["content"] == f" {word}"


@pytest.mark.slow
def test_rows_of_other_forms_are_converted_and_one_line_says_so(base, rows, hub: "Hub", tmp_path, capfd) -> None:
    talk = [row["messages"] for row in rows if "messages" in row]
    sharegpt = [
        {"conversations": [{"from": "human", "value": user["content"]}, {"from": "gpt", "value": assistant["content"]}]}
        for user, assistant in talk
    ]
    alpaca = [{"instruction": user["content"], "output": assistant["content"]} for user, assistant in talk]
    for form, made in (("sharegpt", sharegpt), ("alpaca", alpaca)):
        datasets.Dataset.from_list(made).push_to_hub(f"tester/{form}")
    (tmp_path / "mixed.json").write_text(json.dumps(sharegpt[:10] + alpaca[10:]), encoding="utf-8")
    plain = write(tmp_path, *({"messages": turns} for turns in talk))
    capfd.readouterr()
    weights = []
    for data, said in (
        (plain, None),
        (str(tmp_path / "mixed.json"), "mixed.json: converted 10 Alpaca and 10 ShareGPT of 20 rows to messages.\n"),
        ("tester/sharegpt", "tester/sharegpt: converted 20 ShareGPT of 20 rows to messages.\n"),
        ("tester/alpaca", "tester/alpaca: converted 20 Alpaca of 20 rows to messages.\n"),
    ):
        output = tmp_path / "runs" / Path(data).name
        assert main(["finetune", base, "--sft", "--data", data, "--output_dir", str(output), *FEW]) == 0
        printed = capfd.readouterr().err
        assert said in printed if said else printed == ""
        weights.append(load_file(output / "model.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(weight, other[name]) for name, weight in weights[0].items())


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is not part of torch on Windows")
def test_two_processes_learn_as_one_with_twice_the_batch(base, rows, tmp_path) -> None:
    common = ["finetune", base, "--sft", "--data", write(tmp_path, *rows), *FEW]
    assert main([*common, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "minigpt"]
    done = subprocess.run(
        [*launch, *common, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "two")],
        **{"capture_output": True, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(line.startswith("step") for line in done.stdout.splitlines()) == 3  # one process prints
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert_close(two, one, rtol=1e-4, atol=1e-5)
    reports = [json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8")) for name in ("one", "two")]
    assert reports[0]["training"]["tokens"] == reports[1]["training"]["tokens"]
