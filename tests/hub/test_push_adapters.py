"""Claims about fine-tuned models and adapters on the Hub: what arrives, what the card says, and what is refused."""

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
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minigpt.cli import main
from minigpt.hub.loading import open_trained
from minigpt.hub.publishing.card import is_generated, model_card
from minigpt.training.data.corpus import PLAYS
from tests.hub.test_adapter_folders import logits_of

if TYPE_CHECKING:
    from tests.hub.double import Hub

BASE, TUNED = "tester/base", "tester/tuned"
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "base.sha256"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
RUN = {"run.json", "loss.png", "sample.txt"}
SHORT = ["--max_steps", "4", "--save_steps", "2", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a model trained on it (`base`) and one that went on from there (`whole`)."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "my.txt").write_text(PLAYS.read_text(encoding="utf-8")[:5000], encoding="utf-8", newline="\n")
    shape = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--block_size", "64"]
    begin = ["train", *shape, "--output_dir", str(folder / "base")]
    go_on = ["finetune", str(folder / "base"), "--output_dir", str(folder / "whole")]
    for command in (begin, go_on):
        assert main([*command, "--data", str(folder / "my.txt"), "--device", "cpu", *SHORT]) == 0
    return folder


@pytest.fixture(scope="module")
def adapted(runs: Path) -> Path:
    command = ["finetune", str(runs / "base"), "--lora", "--lora_r", "2", "--output_dir", str(runs / "adapter")]
    assert main([*command, "--data", str(runs / "my.txt"), "--device", "cpu", "--learning_rate", "0.1", *SHORT]) == 0
    return runs / "adapter"


@pytest.fixture
def base(hub: "Hub", runs: Path) -> str:
    """The base on the Hub."""
    assert main(["push", str(runs / "base"), BASE]) == 0
    return BASE


@pytest.fixture
def adapter(adapted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapted, tmp_path / "adapter"))


@pytest.fixture
def whole(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "whole", tmp_path / "whole"))


def change(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | fields), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def blocks_of_python(card: ModelCard) -> list[str]:
    return re.findall(r"```python\n(.*?)\n```", card.text, re.DOTALL)


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main(["push", *command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line.removeprefix("minigpt: ")


# Adapters.


@pytest.mark.extra("lora")
@pytest.mark.door(
    "`minigpt push` of an adapter: `AutoPeftModelForCausalLM` and `AutoModelForCausalLM` load it from the Hub",
    "peft",
    "transformers",
    "huggingface_hub",
)
def test_a_pushed_adapter_loads_with_the_base_that_is_on_the_hub(hub: "Hub", base: str, adapter: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    before = contents(adapter)
    expected = logits_of(open_trained(adapter, "cpu")[0])
    commit = hub.commits(base)[0].oid
    assert main(["push", str(adapter), TUNED, "--base", base]) == 0
    assert contents(adapter) == before
    files = hub.files(TUNED)
    assert files.keys() - {".gitattributes"} == ADAPTER | TOKENIZER | RUN | {"README.md"}
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (base, commit)
    assert config["r"] == 2
    assert str(adapter.parent).encode() not in b"".join(files.values())
    assert json.loads(files["run.json"])["base"]["name"] == base
    hub.put(base, {"model.safetensors": b"what its owner has trained since"})
    models = [AutoPeftModelForCausalLM.from_pretrained(TUNED), open_trained(TUNED, "cpu")[0]]
    for model in models:
        torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-4)
    hub.put(base, {"model.safetensors": hub.repository(base).at(commit).files["model.safetensors"].content})
    # This door looks at the base's main branch alone.
    torch.testing.assert_close(logits_of(AutoModelForCausalLM.from_pretrained(TUNED)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.extra("lora")
def test_the_card_of_an_adapter_names_its_base_and_its_results(hub: "Hub", base: str, adapter: Path) -> None:
    assert main(["push", str(adapter), TUNED, "--base", base]) == 0
    content = hub.files(TUNED)["README.md"].decode()
    card, run = ModelCard(content), json.loads((adapter / "run.json").read_text(encoding="utf-8"))
    assert is_generated(content)
    assert card.data.base_model == base
    assert card.data.base_model_relation == "adapter"
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert {"minigpt", "lora", "character-level"} <= set(card.data.tags)
    assert card.data.eval_results[0].metric_value == pytest.approx(run["losses"]["validation"]["loss"], abs=1e-6)
    trainable = run["adapter"]["trainable"]
    assert f"A LoRA adapter of rank 2 with {trainable:,} parameters" in card.text
    assert f"{run['adapter']['share']:.1%} of all, for [{base}](https://huggingface.co/{base})" in card.text
    base_size = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(base).parameters())
    assert f"GPT with {base_size:,} parameters" in card.text
    assert "Fine-tuned on `my.txt` with `minigpt finetune`." in card.text
    assert "| `lora_alpha` | `16" in card.text
    assert "[More Information Needed]" not in card.text
    assert run["model"]["class"] == "MiniGPTForCausalLM"


@pytest.mark.extra("lora")
def test_the_card_of_a_merged_adapter_says_what_it_was_trained_on(
    hub: "Hub", base: str, runs: Path, adapter: Path, tmp_path: Path
) -> None:
    assert main(["export", str(adapter), "--to", "merged"]) == 0
    local = model_card(tmp_path / "adapter-merged")
    assert "beginning with `base`, by a LoRA adapter that has been merged into its weights." in local.text
    assert main(["push", str(adapter), "tester/adapter", "--base", base]) == 0
    assert main(["export", "tester/adapter", "--to", "merged", "--output_dir", str(tmp_path / "merged")]) == 0
    assert main(["push", str(tmp_path / "merged"), TUNED]) == 0
    card, run = ModelCard.load(TUNED), json.loads((adapter / "run.json").read_text(encoding="utf-8"))
    size = sum(weight.numel() for weight in load_file(runs / "base" / "model.safetensors").values())
    assert f"GPT with {size:,} parameters" in card.text
    assert f"Fine-tuned on `my.txt` with `minigpt finetune`, beginning with [{base}]" in card.text
    assert "by a LoRA adapter that has been merged into its weights." in card.text
    assert (card.data.base_model, card.data.base_model_relation) == (base, "finetune")
    assert card.data.library_name == "transformers"
    assert card.data.eval_results[0].metric_value == pytest.approx(run["losses"]["validation"]["loss"], abs=1e-6)


@pytest.mark.extra("lora")
@pytest.mark.door("The card of an adapter: its lines run in a fresh process without the package", "peft")
def test_the_lines_of_the_card_run_without_the_package(hub: "Hub", base: str, adapter: Path, tmp_path: Path) -> None:
    assert main(["push", str(adapter), TUNED, "--base", base]) == 0
    first, second = blocks_of_python(ModelCard.load(TUNED))
    assert "import minigpt" in second
    hide = 'import sys\nsys.modules["minigpt"] = None\n'
    done = subprocess.run(
        [sys.executable, "-c", hide + first],
        env=hub.environment(token=None),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100
    exec(second, {})


@pytest.mark.extra("sft")
@pytest.mark.parametrize("options", [[], ["--lora"]], ids=["whole", "adapter"])
def test_the_card_of_a_model_that_answers_shows_how_to_talk_with_it(
    options: list[str], hub: "Hub", base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [{"role": "user", "content": "O sir"}, {"role": "assistant", "content": "I"}]}] * 10
    (tmp_path / "talk.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    command = ["finetune", base, "--sft", *options, "--output_dir", str(tmp_path / "talker")]
    assert main([*command, "--data", str(tmp_path / "talk.jsonl"), "--device", "cpu", *SHORT]) == 0
    assert main(["push", str(tmp_path / "talker"), TUNED]) == 0
    card = ModelCard.load(TUNED)
    assert "Taught to answer by the conversations of `talk.jsonl` with `minigpt finetune`" in card.text
    assert "The split is the last 1 of 10 conversations, a tenth of them;" in card.text
    assert "| trained on | the first 9 conversations, " in card.text
    assert "every token of the answers in the validation split" in card.text
    assert "Answers to prompts that were held back" in card.text
    assert card.data.base_model == base
    asking = blocks_of_python(card)[0]
    assert '{"role": "user", "content": "' in asking
    capsys.readouterr()
    exec(f"import minigpt\n{asking.replace(', trust_remote_code=True', '')}", {})
    assert capsys.readouterr().out


@pytest.mark.extra("lora")
def test_an_adapter_for_a_base_on_the_hub_needs_no_word_about_it(
    hub: "Hub", base: str, runs: Path, tmp_path: Path
) -> None:
    command = ["finetune", base, "--lora", "--output_dir", str(tmp_path / "tuned"), "--device", "cpu", *SHORT]
    assert main([*command, "--data", str(runs / "my.txt")]) == 0
    assert main(["push", str(tmp_path / "tuned"), "tuned"]) == 0
    files = hub.files(TUNED)
    assert files["adapter_config.json"] == (tmp_path / "tuned" / "adapter_config.json").read_bytes()
    assert json.loads(files["adapter_config.json"])["revision"] == hub.commits(base)[0].oid
    assert hub.commits(TUNED)[0].title.startswith("Adapter, step 4: validation loss ")


@pytest.mark.extra("lora")
def test_a_checkpoint_of_an_adapter_can_be_pushed(hub: "Hub", base: str, adapter: Path) -> None:
    assert main(["push", str(adapter / "checkpoint-2"), TUNED, "--base", base]) == 0
    files = hub.files(TUNED)
    assert files.keys() - {".gitattributes"} == ADAPTER | TOKENIZER | {"README.md"}
    assert files["adapter_model.safetensors"] == (adapter / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert "This is the model after step 2 of 4 of a training." in card.text
    assert card.data.base_model == base


@pytest.mark.extra("lora")
def test_the_form_that_peft_writes_is_nobodys_card_and_words_of_a_person_are_kept(
    hub: "Hub", base: str, adapter: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    AutoPeftModelForCausalLM.from_pretrained(adapter).save_pretrained(adapter)
    form = (adapter / "README.md").read_text(encoding="utf-8")
    assert "[More Information Needed]" in form
    assert is_generated(model_card(adapter).content)
    assert main(["push", str(adapter), TUNED, "--base", base]) == 0
    content = hub.files(TUNED)["README.md"].decode()
    assert "[More Information Needed]" not in content
    assert ModelCard(content).data.base_model == base

    (adapter / "README.md").write_text(form.replace("[More Information Needed]", "Mine.", 1), encoding="utf-8")
    card = model_card(adapter)
    assert "Mine." in card.text
    assert not is_generated(card.content)


@pytest.mark.extra("lora")
def test_an_adapter_and_a_whole_model_do_not_share_a_repository(
    hub: "Hub", base: str, adapter: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, str(adapter), base, "--base", base) == (
        f"{base} holds a model of type 'minigpt' already and {adapter} is an adapter; push to another name."
    )
    assert main(["push", str(adapter), TUNED, "--base", base]) == 0
    assert refused(capsys, str(runs / "base"), TUNED) == (
        f"{TUNED} holds an adapter already and {runs / 'base'} is one of type 'minigpt'; push to another name."
    )


# Refusals.


@pytest.mark.extra("lora")
def test_an_adapter_for_a_base_on_this_machine_alone_is_refused_with_what_to_do(
    hub: "Hub", adapter: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = (runs / "base").resolve()
    assert refused(capsys, str(adapter), TUNED) == (
        f"{adapter} is an adapter for {folder}, which is on this machine alone; push that first (`minigpt push "
        f"{folder} OWNER/NAME`), then push the adapter with --base OWNER/NAME."
    )
    assert not hub.repositories


@pytest.mark.extra("lora")
def test_an_adapter_that_could_not_be_pushed_is_not_trained(
    hub: "Hub", base: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(runs / "my.txt"), "--lora", "--push_to_hub", "--device", "cpu", *SHORT]
    there = ["--output_dir", str(tmp_path / "run"), "--hub_model_id"]
    assert main(["finetune", str(runs / "base"), *command, *there, TUNED]) == 2
    assert "which is on this machine alone; push that first" in capsys.readouterr().err
    assert main(["finetune", base, *command, *there, base]) == 2
    assert "holds a model of type 'minigpt' already and what is to be trained is an adapter" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert ("models", TUNED) not in hub.repositories


@pytest.mark.extra("lora")
def test_another_base_on_the_hub_is_refused(
    hub: "Hub", adapter: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(whole), BASE]) == 0
    assert refused(capsys, str(adapter), TUNED, "--base", BASE).startswith(
        f"{adapter} is an adapter for another base: the weights of {BASE} are not those that it was trained on;"
    )
    assert ("models", TUNED) not in hub.repositories


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ("tester/none", "there is no tester/none on the Hub; push there what {folder} was fine-tuned from."),
        ("base", "a base on the Hub is called OWNER/NAME, and not 'base'."),
    ],
)
def test_a_base_that_is_not_there_is_refused(
    hub: "Hub", whole: Path, capsys: pytest.CaptureFixture[str], base: str, sentence: str
) -> None:
    assert refused(capsys, str(whole), TUNED, "--base", base) == sentence.format(folder=whole)


def without_task(adapter: Path) -> None:
    change(adapter / "adapter_config.json", task_type=None)


def without_tokenizer(adapter: Path) -> None:
    for name in TOKENIZER:
        (adapter / name).unlink()


def with_another_vocabulary(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({f"{name}x": weight for name, weight in weights.items()}, adapter / "adapter_model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no task": (without_task, "adapter_config.json names no task_type, by which PEFT opens it; write CAUSAL_LM there."),
    "no tokenizer": (without_tokenizer, "holds no tokenizer; save it there"),
    "other weights": (with_another_vocabulary, "are not those that its configuration describes"),
}


@pytest.mark.extra("lora")
@pytest.mark.parametrize("damage", DAMAGE)
def test_an_adapter_that_nobody_could_open_is_refused(
    damage: str, hub: "Hub", base: str, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply, words = DAMAGE[damage]
    apply(adapter)
    assert words in refused(capsys, str(adapter), TUNED, "--base", base)
    assert ("models", TUNED) not in hub.repositories


# Whole models that began as others.


def test_the_card_of_a_fine_tuned_model_says_what_it_began_as(hub: "Hub", base: str, whole: Path, runs: Path) -> None:
    assert main(["push", str(whole), TUNED]) == 0
    files = hub.files(TUNED)
    card = ModelCard(files["README.md"].decode())
    assert "Fine-tuned on `my.txt` with `minigpt finetune`, beginning with `base`." in card.text
    assert card.data.base_model is None
    # Where on this machine it lies is nobody's business.
    assert str(runs).encode() not in b"".join(files.values())
    assert json.loads(files["run.json"])["base"]["name"] == "base"

    assert main(["push", str(whole), TUNED, "--base", base]) == 0
    card = ModelCard(hub.files(TUNED)["README.md"].decode())
    assert f"beginning with [{base}](https://huggingface.co/{base})." in card.text
    assert (card.data.base_model, card.data.base_model_relation) == (base, "finetune")
    assert card.data.library_name == "transformers"


def test_what_a_fine_tuned_model_did_not_begin_as_is_not_named_as_its_base(
    hub: "Hub", whole: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(whole), BASE]) == 0
    assert refused(capsys, str(whole), TUNED, "--base", BASE) == (
        f"{whole} was fine-tuned from another base: the weights of {BASE} are not those that it began as; name the "
        "base that has them."
    )
    assert refused(capsys, str(runs / "base"), TUNED, "--base", BASE) == (
        f"{runs / 'base'} is no adapter and records no base that it was fine-tuned from; leave --base out."
    )
