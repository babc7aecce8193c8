"""Claims about a training that is pushed to the Hub: what arrives at every save, and what nothing there can break."""

import json
import re
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from safetensors.torch import load
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from minigpt.cli import main
from minigpt.errors import PushFailed, UsageError
from minigpt.hub.adapter_folders import base_sha256
from minigpt.hub.folders import clear_folder
from minigpt.hub.publishing.card import is_generated
from minigpt.training import push_callback as publishing
from minigpt.training.checkpoints import all_checkpoints, checkpoint_fault
from minigpt.training.data.batches import RandomCrops, collate
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.trainer import MiniGPTTrainer
from tests.hub.copied_code import CODE

if TYPE_CHECKING:
    from tests.hub.double import Hub
    from tests.hub.repositories import Commit

POET = "tester/poet"
MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
RUN = {"run.json", "loss.png", "sample.txt"}
ALWAYS = {".gitattributes", "README.md", *MODEL, *CODE}
SMALL = ["--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", "8", "--device", "cpu"]
SHORT = ["--max_steps", "4", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0"]


@pytest.fixture
def pushing(arguments: Any) -> Any:
    """Builds the arguments of a run that saves after every second of six steps and waits for no push."""

    def build(**changes: Any) -> Any:
        every_other = {"save_steps": 2, "keep_best": False, "eval_strategy": "no", "eval_on_start": False}
        hub = {"push_to_hub": True, "hub_model_id": POET, "hub_always_push": True}
        return arguments(**{**every_other, **hub, **changes})

    return build


@pytest.fixture
def build_trainer(build_model: Any, tokens: Any, tokenizer: Any) -> Any:
    def build(args: Any, **kwargs: Any) -> MiniGPTTrainer:
        return MiniGPTTrainer(build_model(), args, tokens, **{"processing_class": tokenizer, **kwargs})

    return build


@pytest.fixture
def command(text_file: Path, tmp_path: Path) -> list[str]:
    few = ["--data", str(text_file), "--output_dir", str(tmp_path / "run"), *SMALL, *SHORT]
    return ["train", *few, "--push_to_hub", "--hub_model_id", POET]


class StopAt(TrainerCallback):
    """Ends a training as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def saves(hub: "Hub", revision: str = "main") -> "dict[str, Commit]":
    """The commits by their titles, the first first."""
    return {commit.title: commit for commit in reversed(hub.commits(POET, revision))}


@pytest.mark.door(
    "`MiniGPTTrainer(push_to_hub=True)`: a whole model, its code and its card at every save", "transformers"
)
def test_every_save_puts_a_whole_model_its_code_and_its_card_on_the_hub(
    hub: "Hub", pushing: Any, build_trainer: Any
) -> None:
    args = pushing()
    build_trainer(args).train()
    commits = saves(hub)
    assert list(commits) == ["initial commit", *(f"Training in progress, step {step}" for step in (2, 4, 6))]
    for step in (4, 6):  # the first one is over the limit of two checkpoints
        files = commits[f"Training in progress, step {step}"].files
        checkpoint = Path(args.output_dir) / f"checkpoint-{step}"
        assert set(files) == ALWAYS
        assert all(files[name].content == (checkpoint / name).read_bytes() for name in MODEL | CODE)
    for step in (2, 4, 6):
        card = commits[f"Training in progress, step {step}"].files["README.md"].content.decode()
        assert is_generated(card)
        assert f"the model after step {step} of 6 of a training" in card
        assert f'model="{POET}"' in card
    # The folder holds no model before there is a finished one.
    assert not (Path(args.output_dir) / "config.json").exists()


@pytest.mark.door("`minigpt train --push_to_hub`: run, picture, sample and card on the Hub", "huggingface_hub")
def test_a_finished_run_is_on_the_hub_with_all_that_it_has_made(
    hub: "Hub", command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    folder, files = tmp_path / "run", hub.files(POET)
    assert set(files) == ALWAYS | RUN
    for name in set(files) - {".gitattributes"}:
        assert files[name] == (folder / name).read_bytes(), name
    results = {
        result.metric_type: result.metric_value for result in ModelCard(files["README.md"].decode()).data.eval_results
    }
    loss = json.loads(files["run.json"])["losses"]["validation"]["loss"]
    assert results["cross_entropy"] == pytest.approx(loss, abs=1e-6)
    assert capsys.readouterr().out.splitlines()[-1] == f"hub      {hub.url}/{POET}"


def test_nothing_is_pushed_before_the_end_if_that_was_asked(hub: "Hub", pushing: Any, build_trainer: Any) -> None:
    trainer = build_trainer(pushing(hub_strategy="end"))
    trainer.train()
    assert list(saves(hub)) == ["initial commit"]
    pushed = trainer.push_to_hub()
    assert pushed.url == f"{hub.url}/{POET}"
    assert list(saves(hub)) == ["initial commit", "End of training"]
    assert set(hub.files(POET)) == ALWAYS


def test_saving_the_model_pushes_it_as_with_the_stock_trainer(hub: "Hub", pushing: Any, build_trainer: Any) -> None:
    build_trainer(pushing(hub_strategy="end")).save_model()
    assert list(saves(hub)) == ["initial commit", "Model save"]


def test_a_push_that_is_not_waited_for_is_a_future(hub: "Hub", pushing: Any, build_trainer: Any) -> None:
    future = build_trainer(pushing(hub_strategy="end")).push_to_hub(blocking=False)
    assert future.result().url == f"{hub.url}/{POET}"
    assert set(hub.files(POET)) == ALWAYS


@pytest.mark.door("`hub_strategy=checkpoint`: a run resumed from the Hub, equal to one never stopped", "transformers")
def test_a_run_goes_on_from_the_checkpoint_on_the_hub_to_the_same_weights(
    hub: "Hub", pushing: Any, build_trainer: Any, tmp_path: Path
) -> None:
    whole = build_trainer(pushing(output_dir=str(tmp_path / "whole"), push_to_hub=False, hub_model_id=None))
    whole.train()
    stopped = build_trainer(pushing(hub_strategy="checkpoint"), callbacks=[StopAt(4)])
    stopped.train()
    assert stopped.state.global_step == 4
    names = {name for name in hub.files(POET) if name.startswith("last-checkpoint/")}
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"} < names
    assert "last-checkpoint/training_args.bin" not in names
    local = snapshot_download(POET, allow_patterns="last-checkpoint/*", local_dir=tmp_path / "elsewhere")
    resumed = build_trainer(pushing(output_dir=str(tmp_path / "elsewhere"), push_to_hub=False, hub_model_id=None))
    resumed.train(resume_from_checkpoint=str(Path(local) / "last-checkpoint"))
    assert resumed.state.global_step == 6
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_only_the_last_checkpoint_is_there_whole(hub: "Hub", pushing: Any, build_trainer: Any) -> None:
    build_trainer(pushing(hub_strategy="checkpoint", max_steps=2)).train()
    hub.put(POET, {"last-checkpoint/rng_state_7.pth": b"of another training"})
    build_trainer(pushing(hub_strategy="checkpoint", max_steps=4)).train()
    files = hub.files(POET)
    assert json.loads(files["last-checkpoint/trainer_state.json"])["global_step"] == 4
    assert "last-checkpoint/rng_state_7.pth" not in files


def test_all_checkpoints_are_there_if_that_was_asked(hub: "Hub", pushing: Any, build_trainer: Any) -> None:
    build_trainer(pushing(hub_strategy="all_checkpoints")).train()
    files = hub.files(POET)
    for step in (2, 4, 6):
        state = json.loads(files[f"checkpoint-{step}/trainer_state.json"])
        assert state["global_step"] == step
        assert f"checkpoint-{step}/optimizer.pt" in files


def test_what_an_earlier_run_left_on_the_hub_does_not_stand_beside_another_model(
    hub: "Hub", command: list[str], pushing: Any, build_trainer: Any
) -> None:
    assert main(command) == 0
    assert set(hub.files(POET)) > RUN
    build_trainer(pushing(max_steps=2)).train()
    assert set(hub.files(POET)) == ALWAYS


def weights_without_the_hub(arguments: Any, build_trainer: Any, tmp_path: Path) -> dict[str, torch.Tensor]:
    quiet = {"save_steps": 2, "keep_best": False, "eval_strategy": "no", "eval_on_start": False}
    trainer = build_trainer(arguments(output_dir=str(tmp_path / "quiet"), **quiet))
    trainer.train()
    return trainer.model.state_dict()


BREAK = {
    "a full disk": lambda hub: hub.fill_disk(),
    "a cut connection": lambda hub: hub.cut(),
    "a Hub that fails": lambda hub: hub.fail("POST .*/commit/"),
    "a token that no longer may": lambda hub: hub.fail("POST .*/preupload/", 403, "Forbidden"),
}


@pytest.mark.parametrize("accident", BREAK)
def test_a_push_that_fails_is_said_once_and_changes_nothing_about_the_training(
    hub: "Hub",
    pushing: Any,
    arguments: Any,
    build_trainer: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    accident: str,
) -> None:
    expected = weights_without_the_hub(arguments, build_trainer, tmp_path)
    args = pushing()
    trainer = build_trainer(args)
    BREAK[accident](hub)
    trainer.train()
    assert list(saves(hub)) == ["initial commit"]
    (said,) = caplog.messages
    assert re.match(r".*checkpoint-2 is not on the Hub, and the training goes on: ", said)
    assert len(said.splitlines()) == 1
    assert all(torch.equal(weight, trainer.model.state_dict()[name]) for name, weight in expected.items())
    kept = all_checkpoints(Path(args.output_dir))
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-6"]
    assert [checkpoint_fault(path) for path in kept] == [None, None]


def test_the_next_save_arrives_when_the_hub_is_well_again(
    hub: "Hub", pushing: Any, build_trainer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_trainer(pushing())
    hub.fill_disk()
    real = publishing.push_checkpoint

    def push_and_heal(checkpoint: Path, *args: Any, **kwargs: Any) -> Any:
        if checkpoint.name == "checkpoint-4":
            hub.heal()
        return real(checkpoint, *args, **kwargs)

    monkeypatch.setattr(publishing, "push_checkpoint", push_and_heal)
    trainer.train()
    assert list(saves(hub)) == ["initial commit", "Training in progress, step 4", "Training in progress, step 6"]
    assert len(caplog.messages) == 1


def test_a_last_push_that_fails_says_what_to_do_and_that_does_it(
    hub: "Hub", command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    hub.fill_disk()
    assert main([*command, "--hub_strategy", "end"]) == 1
    out, err = capsys.readouterr()
    assert "validation loss" in out
    assert len(err.splitlines()) == 1
    remedy = re.search(r"`minigpt (push \S+ \S+)`", err)
    assert remedy, err
    for name in (*MODEL, *RUN):
        assert (tmp_path / "run" / name).is_file()
    hub.heal()
    assert main(remedy[1].split()) == 0
    assert set(hub.files(POET)) == ALWAYS | RUN


REFUSALS = {
    "wrong token": ({"HF_TOKEN": "hf_wrong"}, [], 1, "does not accept the token"),
    "no token": ({"HF_TOKEN": None}, [], 2, "has to know who pushes"),
    "token that may only read": ({"HF_TOKEN": "hf_reader"}, [], 2, "the token may read and not write"),
    "somebody else's": ({"HF_TOKEN": "hf_stranger"}, ["--hub_model_id", "tester/there"], 1, "may not write"),
    "another kind of model": ({}, ["--hub_model_id", "tester/other"], 2, "holds a model of type 'gpt2' already"),
    "public, not private": ({}, ["--hub_model_id", "tester/there", "--hub_private_repo"], 2, "everybody can read it"),
    "no name": ({}, ["--hub_model_id", "a/b/c"], 2, "a repository is called OWNER/NAME"),
    "no branch": ({}, ["--hub_revision", "a b"], 2, "is no branch's name"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_would_refuse_is_refused_before_work(
    hub: "Hub",
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    environment, options, status, reason = REFUSALS[case]
    hub.create("tester/other", **{"config.json": b'{"model_type": "gpt2"}'})
    hub.create("tester/there")
    before = {name: len(hub.commits(name[1])) for name in hub.repositories}
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    monkeypatch.setattr("minigpt.training.train.load_text", lambda data: pytest.fail("the text has been read"))
    assert main([*command, *options]) == status
    out, err = capsys.readouterr()
    assert reason in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not (tmp_path / "run").exists()
    assert {name: len(hub.commits(name[1])) for name in hub.repositories} == before


def test_a_repository_without_push_to_hub_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command.remove("--push_to_hub")
    assert main(command) == 2
    assert "hub_model_id names tester/poet and nothing is pushed there without push_to_hub" in capsys.readouterr().err


def test_a_text_that_cannot_be_trained_on_leaves_no_repository(hub: "Hub", command: list[str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("to be", encoding="utf-8")
    assert main([*command, "--data", str(tmp_path / "short.txt")]) == 1
    assert not hub.repositories


def test_a_trainer_finds_a_wrong_token_before_it_trains(
    hub: "Hub", pushing: Any, build_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PushFailed, match="does not accept the token"):
        build_trainer(pushing())


@pytest.mark.parametrize("token", ["hf_secret y", "hf_secret\u200b"], ids=ascii)
def test_a_trainers_token_that_cannot_be_sent_is_refused_and_not_shown(
    hub: "Hub", pushing: Any, build_trainer: Any, command: list[str], capsys: pytest.CaptureFixture[str], token: str
) -> None:
    with pytest.raises(UsageError, match="holds a character that no token has") as caught:
        build_trainer(pushing(hub_token=token))
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert main([*command, "--hub_token", token]) == 2
    assert "secret" not in "".join(capsys.readouterr())
    assert hub.requests == []


def test_a_model_without_its_tokenizer_is_not_pushed(hub: "Hub", pushing: Any, build_trainer: Any) -> None:
    with pytest.raises(UsageError, match="give it as processing_class"):
        build_trainer(pushing(), processing_class=None)


def test_a_new_repository_is_as_its_owner_has_it_by_default(hub: "Hub", pushing: Any, build_trainer: Any) -> None:
    hub.new_are_private = True
    build_trainer(pushing(hub_model_id="tester/default"))
    build_trainer(pushing(hub_model_id="tester/public", hub_private_repo=False))
    assert hub.repository("tester/default").private
    assert not hub.repository("tester/public").private


def test_private_repositories_and_branches_are_those_asked_for(hub: "Hub", command: list[str]) -> None:
    assert main([*command, "--hub_private_repo", "--hub_revision", "try-2"]) == 0
    assert hub.repository(POET).private
    assert set(hub.files(POET, "try-2")) == ALWAYS | RUN
    assert set(hub.files(POET, "main")) == {".gitattributes"}
    titles = list(saves(hub, "try-2"))
    assert "Training in progress, step 4" in titles


def test_a_repository_without_an_owner_is_ones_own(
    hub: "Hub", pushing: Any, build_trainer: Any, tmp_path: Path
) -> None:
    named = build_trainer(pushing(hub_model_id="poet"))
    unnamed = build_trainer(pushing(hub_model_id=None, output_dir=str(tmp_path / "runs" / "ode")))
    assert (named.hub_model_id, unnamed.hub_model_id) == ("tester/poet", "tester/ode")


def test_the_token_is_in_no_file_here_or_there(
    hub: "Hub", command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main([*command, "--hub_token", "hf_tester", "--hub_strategy", "checkpoint"]) == 0
    assert {request.account for request in hub.requested("POST .*/commit/")} == {"tester"}
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)
    for path in written:
        assert b"hf_tester" not in path.read_bytes(), path
    for commit in hub.commits(POET):
        for name, blob in commit.files.items():
            assert b"hf_tester" not in blob.content, name
    assert "hf_tester" not in "".join(capfd.readouterr())


def test_metadata_given_to_the_last_push_is_in_the_card_and_stays(hub: "Hub", pushing: Any, build_trainer: Any) -> None:
    trainer = build_trainer(pushing(hub_strategy="end"))
    trainer.push_to_hub(license="mit", tags="rhymes", language="en", finetuned_from="tester/prose")
    card = ModelCard(hub.files(POET)["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", "en", "tester/prose")
    assert card.data.tags == ["rhymes", "minigpt", "character-level", "custom_code"]
    trainer.push_to_hub()
    again = ModelCard(hub.files(POET)["README.md"].decode())
    assert (again.data.license, again.data.tags) == ("mit", card.data.tags)
    assert "## How to use it" in again.text


def test_what_a_person_wrote_on_the_hub_outlives_every_save(hub: "Hub", command: list[str]) -> None:
    hub.create(POET, **{"README.md": b"---\nlicense: cc0-1.0\n---\n# Mine\n\nIt rhymes.\n"})
    assert main(command) == 0
    for title, commit in saves(hub).items():
        card = ModelCard(commit.files["README.md"].content.decode()) if "README.md" in commit.files else None
        assert card is None or (card.data.license, "It rhymes." in card.text) == ("cc0-1.0", True), title
    assert "## Results" not in hub.files(POET)["README.md"].decode()


def test_an_overwritten_run_takes_its_own_card_along_and_leaves_a_persons(
    hub: "Hub", pushing: Any, build_trainer: Any
) -> None:
    trainer = build_trainer(pushing(hub_strategy="end"))
    trainer.push_to_hub()
    card = Path(trainer.args.output_dir) / "README.md"
    assert is_generated(card.read_text(encoding="utf-8"))
    clear_folder(card.parent)
    assert not card.exists()
    card.write_text("# Mine\n", encoding="utf-8")
    clear_folder(card.parent)
    assert card.read_text(encoding="utf-8") == "# Mine\n"


def test_a_save_during_a_push_waits_and_no_checkpoint_is_deleted_under_it(
    hub: "Hub", pushing: Any, build_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = pushing(hub_always_push=False, save_total_limit=1, max_steps=8)
    trainer = build_trainer(args)
    trained, names_then = threading.Event(), []
    real = publishing.push_checkpoint

    def slow_push(checkpoint: Path, *others: Any, **kwargs: Any) -> Any:
        assert trained.wait(60)
        names_then.append([path.name for path in all_checkpoints(Path(args.output_dir))])
        return real(checkpoint, *others, **kwargs)

    class Release(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            trained.set()

    monkeypatch.setattr(publishing, "push_checkpoint", slow_push)
    trainer.callback_handler.callbacks.insert(0, Release())  # before the one that waits for the uploads
    trainer.train()
    # The first goes up all the while, the last when it is through, and those between are passed over.
    assert names_then[0] == ["checkpoint-2", "checkpoint-8"]
    assert list(saves(hub)) == ["initial commit", "Training in progress, step 2", "Training in progress, step 8"]
    assert [path.name for path in all_checkpoints(Path(args.output_dir))] == ["checkpoint-8"]


def stock_trainer(output_dir: Path, build_model: Any, tokens: Any, tokenizer: Any) -> Trainer:
    args = TrainingArguments(
        str(output_dir),
        use_cpu=True,
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        push_to_hub=True,
        hub_model_id=POET,
        hub_always_push=True,
    )
    crops = RandomCrops(TokenStream(tokens["train"]), 8, length=16)
    return Trainer(build_model(), args, train_dataset=crops, data_collator=collate, processing_class=tokenizer)


@pytest.mark.door(
    "A stock `Trainer(push_to_hub=True)`, the model saved in its folder before: code at every save", "transformers"
)
def test_with_the_stock_trainer_the_code_is_there_at_every_save_once_it_lies_in_the_folder(
    hub: "Hub", build_model: Any, tokens: Any, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = stock_trainer(tmp_path / "run", build_model, tokens, tokenizer)
    trainer.model.save_pretrained(trainer.args.output_dir)

    class Wait(TrainerCallback):
        """The stock Trainer writes the next save over the files that it is still uploading, and loses that push."""

        def on_save(self, *args: Any, **kwargs: Any) -> None:
            trainer.push_in_progress.wait_until_done()

    trainer.add_callback(Wait())
    trainer.train()
    trainer.push_to_hub()
    commits = saves(hub)
    for title in ("Training in progress, step 2", "Training in progress, step 4", "End of training"):
        assert set(commits[title].files) >= MODEL | CODE, title
    last = load(commits["End of training"].files["model.safetensors"].content)
    assert all(torch.equal(last[name], weight) for name, weight in trainer.model.state_dict().items())
    assert "README.md" in commits["End of training"].files


def test_with_the_stock_trainer_alone_the_code_arrives_at_the_end(
    hub: "Hub", build_model: Any, tokens: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """What docs/push.md says of it, and why; should this fail, the library has changed and the page can be shorter."""
    trainer = stock_trainer(tmp_path / "run", build_model, tokens, tokenizer)
    trainer.train()
    assert not CODE & set(hub.files(POET))
    trainer.push_to_hub()
    assert set(hub.files(POET)) >= MODEL | CODE


@pytest.mark.slow
@pytest.mark.door(
    "A model pushed in the middle of its training loads in a fresh process without the package", "transformers"
)
def test_a_save_loads_in_a_fresh_process_while_the_training_goes_on(
    hub: "Hub", pushing: Any, build_trainer: Any, tmp_path: Path
) -> None:
    args = pushing()
    build_trainer(args).train()
    commit = saves(hub)["Training in progress, step 4"].oid
    ids = torch.arange(8)[None]
    local = AutoModelForCausalLM.from_pretrained(Path(args.output_dir) / "checkpoint-4").eval()
    with torch.no_grad():
        torch.save(local(ids).logits, tmp_path / "logits.pt")
    code = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "minigpt":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
repository, revision, logits = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(repository, revision=revision, trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(model(torch.arange(8)[None]).logits, torch.load(logits, weights_only=True))
assert tokenizer.decode(tokenizer("the king").input_ids) == "the king"
"""
    result = subprocess.run(
        [sys.executable, "-c", code, POET, commit, str(tmp_path / "logits.pt")],
        env=hub.environment(token=None),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def build_adapted(hub: "Hub", build_model: Any, tokenizer: Any, tokens: Any, tmp_path: Path) -> Any:
    """Builds a Trainer of an adapter for a base that is on the Hub, or elsewhere."""
    from peft import LoraConfig, get_peft_model

    build_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert main(["push", str(tmp_path / "base"), "tester/base"]) == 0

    def build(args: Any, base: str | Path = "tester/base", **kwargs: Any) -> MiniGPTTrainer:
        config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", r=2, base_model_name_or_path=str(base))
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        model.peft_config["default"].base_model_name_or_path = str(base)
        sha256 = base_sha256(base)
        return MiniGPTTrainer(model, args, tokens, processing_class=tokenizer, base_sha256=sha256, **kwargs)

    return build


ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "base.sha256"}


@pytest.mark.extra("lora")
@pytest.mark.door(
    "`MiniGPTTrainer(push_to_hub=True)` of an adapter: it loads by `AutoPeftModelForCausalLM` at every save", "peft"
)
def test_every_save_of_an_adapter_is_on_the_hub_and_loads(hub: "Hub", pushing: Any, build_adapted: Any) -> None:
    from peft import AutoPeftModelForCausalLM

    args = pushing(max_steps=4, hub_token="hf_tester")
    trainer = build_adapted(args)
    trainer.train()
    commits = saves(hub)
    assert list(commits) == ["initial commit", "Training in progress, step 2", "Training in progress, step 4"]
    for step in (2, 4):
        commit = commits[f"Training in progress, step {step}"]
        checkpoint = Path(args.output_dir) / f"checkpoint-{step}"
        assert set(commit.files) == ADAPTER | {".gitattributes", "README.md", "tokenizer.json", "tokenizer_config.json"}
        for name in ADAPTER:
            assert commit.files[name].content == (checkpoint / name).read_bytes(), name
        assert not (checkpoint / "README.md").exists()
        content = commit.files["README.md"].content.decode()
        assert is_generated(content)
        assert ModelCard(content).data.base_model == "tester/base"
        assert f"the model after step {step} of 4 of a training" in content
        loaded = AutoPeftModelForCausalLM.from_pretrained(POET, revision=commit.oid)
        saved = load(commit.files["adapter_model.safetensors"].content)
        ours = {name.replace(".default", ""): weight for name, weight in loaded.state_dict().items() if "lora" in name}
        assert saved.keys() == ours.keys()
        assert all(torch.equal(weight, ours[name]) for name, weight in saved.items())
    trainer.push_to_hub()
    assert set(hub.files(POET)) >= ADAPTER | {"README.md"}
    assert is_generated(hub.files(POET)["README.md"].decode())
    assert not [
        path for path in Path(args.output_dir).rglob("*") if path.is_file() and b"hf_tester" in path.read_bytes()
    ]


@pytest.mark.extra("lora")
def test_an_adapter_whose_base_is_on_this_machine_alone_is_not_trained_in_vain(
    hub: "Hub", pushing: Any, build_adapted: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="which is on this machine alone; push that first"):
        build_adapted(pushing(), tmp_path / "base")
    assert ("models", POET) not in hub.repositories


def test_the_oldest_models_of_the_hub_have_no_owner_and_are_no_folders(tmp_path: Path) -> None:
    publishing.check_base_is_published("gpt2")
    with pytest.raises(UsageError, match="on this machine alone"):
        publishing.check_base_is_published(str(tmp_path))


@pytest.mark.extra("lora")
def test_an_adapter_is_not_trained_to_be_pushed_over_a_whole_model(
    hub: "Hub", pushing: Any, build_adapted: Any
) -> None:
    with pytest.raises(UsageError, match="holds a model of type 'minigpt' already and what is to be trained is an ad"):
        build_adapted(pushing(hub_model_id="tester/base"))


@pytest.mark.extra("lora")
def test_a_card_in_the_folder_of_an_adapter_is_left_as_it_is(
    hub: "Hub", pushing: Any, build_adapted: Any, tmp_path: Path
) -> None:
    args = pushing(max_steps=2)
    card = Path(args.output_dir) / "README.md"
    card.parent.mkdir(parents=True, exist_ok=True)
    card.write_text("# Mine\n", encoding="utf-8")
    trainer = build_adapted(args)
    trainer.train()
    trainer.save_model(_internal_call=True)
    assert card.read_text(encoding="utf-8") == "# Mine\n"
    trainer.push_to_hub()
    assert "# Mine" in hub.files(POET)["README.md"].decode()
