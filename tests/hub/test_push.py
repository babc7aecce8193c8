"""Claims about `minigpt push`: what arrives, what stays here, what is refused, and what a failure leaves behind."""

import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from minigpt import (
    BigramConfig,
    BigramForCausalLM,
    MiniGPTConfig,
    MiniGPTForCausalLM,
    MiniGPTForSequenceClassification,
    MiniGPTTokenizer,
)
from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.hub.publishing.card import model_card
from minigpt.hub.publishing.push import push_folder
from minigpt.hub.publishing.push_checkpoints import open_repository, push_checkpoint
from minigpt.hub.run_lock import LOCK
from minigpt.training.data.corpus import PLAYS
from tests.hub.copied_code import CODE
from tests.hub.double import UPLOAD

if TYPE_CHECKING:
    from tests.hub.double import Hub

MODEL = {"config.json", "generation_config.json", "model.safetensors", *CODE}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
RUN = {"run.json", "loss.png", "sample.txt"}
PUSHED = {*MODEL, *TOKENIZER, *RUN, "README.md"}
TEXT = "What say you, sir?\n"


def fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file with the time of its last change and its hash."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model, with all that a run leaves."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "my.txt").write_text(PLAYS.read_text(encoding="utf-8")[:5000], encoding="utf-8", newline="\n")
    shape = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--block_size", "8"]
    length = ["--max_steps", "4", "--save_steps", "2", "--eval_iters", "1", "--sample_length", "5"]
    run = ["train", "--data", str(folder / "my.txt"), "--output_dir", str(folder / "tiny"), *shape, *length]
    assert main(run) == 0
    return folder / "tiny"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


@pytest.fixture
def pushed(hub: "Hub", run: Path) -> str:
    assert main(["push", str(run), "tiny"]) == 0
    hub.requests.clear()
    return "tester/tiny"


def refused(capsys: pytest.CaptureFixture[str], *command: str, status: int = 2) -> str:
    """Pushes in vain, and returns the one sentence that says why."""
    capsys.readouterr()
    assert main(["push", *command]) == status
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("minigpt: ")
    assert not re.search("hf_(tester|reader|stranger|expired)|/_(storage|xet|xorbs)/", line), "a secret is shown"
    return line


# What arrives.


@pytest.mark.door("`minigpt push`: model, tokenizer, code, card, picture and sample in one commit", "huggingface_hub")
def test_a_run_arrives_whole_and_in_one_commit(hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprint(run)
    assert main(["push", str(run), "tester/tiny"]) == 0
    assert fingerprint(run) == before
    assert capsys.readouterr().out == f"{hub.url}/tester/tiny\n"
    there = hub.files("tester/tiny")
    assert there.keys() - {".gitattributes"} == PUSHED
    for name in PUSHED - {"README.md"}:
        assert there[name] == (run / name).read_bytes()
    first, start = hub.commits("tester/tiny")
    assert first.changed() == PUSHED
    assert start.title == "initial commit"
    assert not hub.repository("tester/tiny").private


def test_what_stays_here_is_named(hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    (run / ".env").write_text("SECRET=1", encoding="utf-8")
    (run / "helper.py").write_text("raise SystemExit", encoding="utf-8")
    assert main(["push", str(run), "tiny"]) == 0
    err = capsys.readouterr().err
    for name in ("checkpoint-2", "checkpoint-4", "trainer_state.json", "training_args.bin", "notes.txt", "helper.py"):
        assert name in err
        assert not [path for path in hub.files("tester/tiny") if path.startswith(name)]
    assert ".env" not in hub.files("tester/tiny")


def test_the_card_is_that_of_the_run_and_names_the_repository(hub: "Hub", run: Path, pushed: str) -> None:
    card = ModelCard.load(pushed)
    (loss, *_) = card.data.eval_results
    assert loss.metric_value == round(
        json.loads((run / "run.json").read_text("utf-8"))["losses"]["validation"]["loss"], 6
    )
    assert f'"{pushed}"' in card.text
    assert not (run / "README.md").exists()


def test_the_commit_says_how_far_the_model_has_come(hub: "Hub", run: Path) -> None:
    assert main(["push", str(run), "tiny"]) == 0
    loss = json.loads((run / "run.json").read_text("utf-8"))["losses"]["validation"]["loss"]
    assert hub.commits("tester/tiny")[0].title == f"MiniGPTForCausalLM, step 4: validation loss {loss:.4f}"


def test_commit_message(hub: "Hub", run: Path) -> None:
    assert main(["push", str(run), "tiny", "--commit-message", "My first model"]) == 0
    assert hub.commits("tester/tiny")[0].title == "My first model"


@pytest.mark.door("`minigpt push`: a second push sends only what has changed", "huggingface_hub")
def test_a_second_push_sends_only_what_has_changed(
    hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), pushed]) == 0
    assert "Nothing has changed" in capsys.readouterr().err
    assert len(hub.commits(pushed)) == 2
    assert not hub.requested("POST .*/(preupload|commit|batch)|PUT ")

    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    assert main(["push", str(run), pushed]) == 0
    (
        latest,
        *_,
    ) = hub.commits(pushed)
    assert latest.changed() == {"sample.txt", "README.md"}
    assert not hub.requested(UPLOAD)

    weights = load_file(run / "model.safetensors")
    weights["lm_head.weight"].add_(1)
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    assert main(["push", str(run), pushed]) == 0
    assert hub.commits(pushed)[0].changed() == {"model.safetensors"}
    assert len(hub.requested(UPLOAD)) == 1


def test_what_a_repository_holds_besides_stays_and_what_would_change_the_model_goes(
    hub: "Hub", run: Path, pushed: str
) -> None:
    besides = {"LICENSE": b"mine", "notes.md": b"mine", "figures/a.png": b"mine", "onnx/model.onnx": b"mine"}
    besides |= {"__init__.py": b"", "my_helper.py": b"mine"}
    stale = {"chat_template.jinja": b"{{ 1 }}", "model-00001-of-00002.safetensors": b"", "configuration_bigram.py": b""}
    stale |= {"layers_minigpt.py": b""}
    hub.put(pushed, besides | stale)
    assert main(["push", str(run), pushed]) == 0
    assert hub.commits(pushed)[0].changed() == stale.keys()
    assert hub.files(pushed).keys() - {".gitattributes"} == PUSHED | besides.keys()


def linked(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("this system makes no links")


@pytest.mark.parametrize("name", ["sample.txt", "README.md", "LICENSE", "run.json", "modeling_minigpt.py"])
def test_nothing_outside_the_folder_is_published_through_a_link(
    hub: "Hub", run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((run / name).read_bytes() if (run / name).is_file() else b"a secret")
    linked(run / name, secret)
    assert refused(capsys, str(run), "tiny") == (
        f"minigpt: {run / name} is a link to {secret}, which is not published; put a copy in its place, or take it "
        "away."
    )
    assert not hub.requested("/api/repos/create")


def test_a_folder_that_is_a_link_below_the_model_is_not_published(
    hub: "Hub", run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.onnx").write_bytes(b"a secret")
    linked(run / "onnx", tmp_path / "elsewhere")
    assert "is a link to" in refused(capsys, str(run), "tiny")


def test_a_snapshot_in_the_hubs_cache_is_pushed_through_its_own_links(hub: "Hub", pushed: str) -> None:
    snapshot = Path(snapshot_download(pushed))
    assert main(["push", str(snapshot), "copy"]) == 0
    assert hub.files("tester/copy").keys() == hub.files(pushed).keys()


def test_the_folder_of_a_living_run_is_not_published_and_its_checkpoints_are(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(run / LOCK):
        assert refused(capsys, str(run), "tiny", status=1) == (
            f"minigpt: a run is writing to {run}; push one of its checkpoints, or wait until it ends."
        )
        assert main(["push", str(run / "checkpoint-2"), "tiny"]) == 0
    assert main(["push", str(run), "whole"]) == 0
    assert LOCK not in hub.files("tester/whole")
    assert LOCK not in capsys.readouterr().err


def test_only_known_files_go_up_and_all_are_named(hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "onnx").mkdir()
    for name in ("onnx/model.onnx", "onnx/model.onnx.data", "onnx/passwords.txt", "onnx/model.onnx.bak", ".env"):
        (run / name).write_bytes(b"stray")
    assert main(["push", str(run), "tiny"]) == 0
    there = {*PUSHED, "onnx/model.onnx", "onnx/model.onnx.data"}
    assert hub.files("tester/tiny").keys() - {".gitattributes"} == there
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Pushed: ")]
    assert set(line.removeprefix("Pushed: ").removesuffix(".").split(", ")) == there


def test_words_that_a_person_wrote_into_the_card_stay(hub: "Hub", run: Path, pushed: str) -> None:
    edited = hub.files(pushed)["README.md"].replace(b"---\n", b"---\nlicense: mit\n", 1) + b"\nTrained on a Sunday.\n"
    hub.put(pushed, {"README.md": edited})
    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    assert main(["push", str(run), pushed]) == 0
    card = ModelCard.load(pushed)
    assert "Trained on a Sunday." in card.text
    assert card.data.license == "mit"


def test_a_card_that_cannot_be_read_is_not_written_over(
    hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.put(pushed, {"README.md": "# Mein Modell für Theater\n".encode("latin-1")})
    assert "not UTF-8" in refused(capsys, str(run), pushed)
    assert hub.files(pushed)["README.md"].startswith(b"# Mein Modell")


def test_a_checkpoint_is_pushed_without_what_only_training_needs(hub: "Hub", run: Path) -> None:
    assert main(["push", str(run / "checkpoint-2"), "tiny"]) == 0
    assert hub.files("tester/tiny").keys() - {".gitattributes"} == {*MODEL, *TOKENIZER, "README.md"}


# Where it arrives.


def test_private(hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "hidden", "--private"]) == 0
    assert hub.repository("tester/hidden").private
    # Without being asked again, it stays private; and nothing private is put where everybody reads.
    assert main(["push", str(run), "hidden"]) == 0
    assert hub.repository("tester/hidden").private
    assert "everybody can read it" in refused(capsys, str(run), pushed, "--private")


def test_what_new_repositories_are_by_default_is_their_owners_choice(hub: "Hub", run: Path) -> None:
    hub.new_are_private = True
    assert main(["push", str(run), "pushed"]) == 0
    assert open_repository("opened", "minigpt") == "tester/opened"
    assert open_repository("public", "minigpt", private=False) == "tester/public"
    assert {id: repository.private for (_, id), repository in hub.repositories.items()} == {
        "tester/pushed": True,
        "tester/opened": True,
        "tester/public": False,
    }


def test_revision(hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["push", str(run), pushed, "--revision", "try/longer"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/{pushed}/tree/try%2Flonger\n"
    assert hub.files(pushed, "try/longer")["sample.txt"] == b"Another sample.\n"
    assert hub.files(pushed)["sample.txt"] != b"Another sample.\n"
    assert main(["push", str(run), pushed, "--revision", "try/longer"]) == 0
    assert len(hub.commits(pushed, "try/longer")) == 3
    assert main(["push", str(run), "new", "--revision", "first"]) == 0
    assert hub.files("tester/new", "first").keys() >= PUSHED
    assert hub.files("tester/new").keys() == {".gitattributes"}


def test_create_pr(hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    before = hub.files(pushed)
    capsys.readouterr()
    assert main(["push", str(run), pushed, "--create-pr", "--commit-message", "Better"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/{pushed}/discussions/1\n"
    assert hub.files(pushed) == before
    (proposed,) = hub.repository(pushed).pull_requests
    assert proposed.title == "Better"
    assert hub.commits(pushed, "refs/pr/1")[0].changed() == {"sample.txt", "README.md"}
    # The way to improve it is to push to it.
    (run / "sample.txt").write_text("A third sample.\n", encoding="utf-8")
    assert main(["push", str(run), pushed, "--revision", "refs/pr/1"]) == 0
    assert hub.files(pushed, "refs/pr/1")["sample.txt"] == b"A third sample.\n"
    assert "no such revision" in refused(capsys, str(run), pushed, "--revision", "refs/pr/7", status=1)


def test_to_what_is_not_there_no_change_is_proposed(hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no tester/tiny to propose a change to" in refused(capsys, str(run), "tiny", "--create-pr")
    assert not hub.repositories


def test_a_change_can_be_proposed_to_whom_it_belongs(
    hub: "Hub", run: Path, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    assert main(["push", str(run), pushed, "--create-pr"]) == 0
    (proposed,) = hub.repository(pushed).pull_requests
    assert proposed.author == "stranger"


# What is refused before anything is sent.

WRONG_NAMES = [
    (["a/b/c"], "OWNER/NAME"),
    (["https://huggingface.co/me/model"], "OWNER/NAME"),
    (["my model"], "OWNER/NAME"),
    (["tiny", "--commit-message", " "], "commit message is empty"),
    (["tiny", "--revision", "a branch"], "no branch's name"),
    (["tiny", "--revision", "a..b"], "no branch's name"),
    (["tiny", "--revision", "refs/heads/main"], "no branch's name"),
    (["tiny", "--revision", "8" * 40], "no branch's name"),
    (["tiny", "--revision", "next", "--create-pr"], "--create-pr"),
]


@pytest.mark.parametrize(("names", "says"), WRONG_NAMES, ids=[" ".join(names) for names, _ in WRONG_NAMES])
def test_wrong_names_are_refused(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str], names: list[str], says: str
) -> None:
    assert says in refused(capsys, str(run), *names)
    assert hub.requests == []


def lose_the_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()


def lose_the_tokenizer(run: Path) -> None:
    for name in TOKENIZER:
        (run / name).unlink()


def lose_the_folder(run: Path) -> None:
    shutil.rmtree(run)


def truncate(run: Path) -> None:
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[:-100])


def forget_a_weight(run: Path) -> None:
    weights = load_file(run / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})


def swap_the_tokenizer(run: Path) -> None:
    MiniGPTTokenizer.from_text("".join(map(chr, range(32, 400)))).save_pretrained(run)


def pickle_the_weights(run: Path) -> None:
    torch.save(load_file(run / "model.safetensors"), run / "pytorch_model.bin")
    (run / "model.safetensors").unlink()


def leave_the_checkpoints(run: Path) -> None:
    for path in run.iterdir():
        if path.is_file():
            path.unlink()


def spoil_the_config(run: Path) -> None:
    (run / "config.json").write_text('{"model_type": ', encoding="utf-8")


NOT_WHOLE = [
    (lose_the_folder, "there is no folder"),
    (leave_the_checkpoints, "checkpoint-4"),
    (spoil_the_config, "config.json"),
    (lose_the_weights, "no model.safetensors"),
    (pickle_the_weights, "no model.safetensors"),
    (truncate, "model.safetensors"),
    (forget_a_weight, "lm_head.weight"),
    (lose_the_tokenizer, "no tokenizer"),
    (swap_the_tokenizer, "largest id"),
]


@pytest.mark.parametrize(("spoil", "says"), NOT_WHOLE, ids=[spoil.__name__ for spoil, _ in NOT_WHOLE])
def test_a_folder_that_is_not_whole_is_refused(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], says: str
) -> None:
    spoil(run)
    assert says in refused(capsys, str(run), "tiny")
    assert hub.requests == []


def test_without_a_token_it_says_how_to_log_in(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "`hf auth login`" in refused(capsys, str(run), "tiny")
    assert hub.requests == []


@pytest.mark.parametrize("token", ["hf_secret y", "hf_secret\u200b", "hf_\nsecret", "hf_secret\x7f"], ids=ascii)
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    if "\n" not in token:  # in the environment the client takes it away
        with monkeypatch.context() as environment:
            environment.setenv("HF_TOKEN", token)
            said = refused(capsys, str(run), "tiny")
        assert "holds a character that no token has" in said
        assert "secret" not in said
    for push in (
        lambda: push_folder(run, "tiny", token=token),
        lambda: open_repository("tiny", "minigpt", token=token),
        lambda: push_checkpoint(run / "checkpoint-4", "tester/tiny", token=token, commit_message="A save"),
    ):
        with pytest.raises(UsageError, match="holds a character that no token has") as caught:
            push()
        assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert hub.requests == []


def test_the_space_around_a_token_does_no_harm(hub: "Hub", run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert open_repository("tiny", "minigpt", token="hf_tester\n") == "tester/tiny"
    assert push_folder(run, "tiny", token=" hf_tester\n").written
    monkeypatch.setenv("HF_TOKEN", "hf_tester\n")
    assert not push_folder(run, "tiny").written


@pytest.mark.parametrize("message", ["Illegal header value b'Bearer hf_secret'", "hf_secret is no token of ours"])
def test_a_token_in_what_the_hub_or_a_library_says_is_not_repeated(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    with monkeypatch.context() as library:
        library.setattr("minigpt.hub.publishing.push.look_at", Mock(side_effect=ValueError(message)))
        assert "secret" not in refused(capsys, str(run), "tester/tiny", status=1)
    hub.fail("GET /api/models/", 400, message)
    assert "secret" not in refused(capsys, str(run), "tester/tiny", status=1)


TAKEN = {
    "another architecture": {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"weights"},
    "a config that is none": {"config.json": b"no json"},
    "another format": {"model.gguf": b"weights"},
    "an adapter": {"adapter_model.safetensors": b"weights"},
}


@pytest.mark.parametrize("files", TAKEN.values(), ids=TAKEN.keys())
def test_another_kind_of_model_is_not_written_over(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes]
) -> None:
    hub.create("tester/taken")
    hub.put("tester/taken", files)
    before = hub.files("tester/taken")
    assert "push to another name" in refused(capsys, str(run), "taken")
    assert hub.files("tester/taken") == before
    assert main(["push", str(run), "free"]) == 0


def test_a_repository_that_waits_for_its_model_is_filled(hub: "Hub", run: Path) -> None:
    hub.create("tester/waiting")
    hub.put("tester/waiting", {"README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"MIT"})
    assert main(["push", str(run), "waiting"]) == 0
    assert hub.files("tester/waiting").keys() - {".gitattributes"} == PUSHED | {"LICENSE"}
    assert ModelCard.load("tester/waiting").data.license == "mit"


# What fails on the way: one sentence, nothing changed here or there, and the same command works when it is repeated.


def wrong_token(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    return "does not accept the token"


def token_that_cannot_see_it(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fail("GET /api/models/", 404, "Repository not found", code="RepoNotFound")
    return "tester/tiny is there already and this token may not see it"


def name_of_somebody_else(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    return "may not write to tester/tiny"


def full_disk(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fill_disk()
    return "507: Insufficient Storage"


def full_disk_of_a_client_without_xet(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.fill_disk()
    return "507: No space left on device"


def full_disk_at_the_commit(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fail("POST .*/commit/", 500, "No space left on device")
    return "500: No space left on device), and whether it arrived in tester/tiny is not known"


def connection_cut_in_an_upload(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.cut(UPLOAD, after=1000)
    return "connection to the Hub broke"


def connection_cut_in_an_upload_without_xet(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.cut(UPLOAD, after=1000)
    return "connection to the Hub broke"


def storage_that_is_used_up(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fail(UPLOAD, 403, "Private repository storage limit reached")
    return "storage is used up, or the token may not write there"


def storage_that_is_used_up_and_says_so_first(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fail("POST .*/preupload/", 403, "Private repository storage limit reached")
    return "storage is used up, or the token may not write there"


def files_that_are_not_taken_without_xet(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.fail(UPLOAD, 403, "Forbidden")
    return "storage is used up, or the token may not write there"


def connection_cut_in_the_commit(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.cut("POST .*/commit/", after=1000)
    return "connection to the Hub broke"


def connection_cut_at_once(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.cut("GET /api/models/", after=0)
    return "connection to the Hub broke"


def hub_that_fails(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fail(".", 503, "Service unavailable")
    return "503: Service unavailable"


def too_many_requests(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fail("POST .*/commit/", 429, "Slow down")
    return "too many requests"


def change_by_somebody_else(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fail("POST .*/commit/", 412, "A commit has happened since")
    return "somebody else has changed"


def metadata_that_the_hub_refuses(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    hub.fail("POST /api/validate-yaml", 400, "the license is unknown")
    return "does not accept the model card's metadata"


def hub_out_of_reach(hub: "Hub", monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return "cannot be reached"


FAULTS = [
    wrong_token,
    token_that_cannot_see_it,
    name_of_somebody_else,
    full_disk,
    full_disk_of_a_client_without_xet,
    storage_that_is_used_up,
    storage_that_is_used_up_and_says_so_first,
    files_that_are_not_taken_without_xet,
    full_disk_at_the_commit,
    connection_cut_in_an_upload,
    connection_cut_in_an_upload_without_xet,
    connection_cut_in_the_commit,
    connection_cut_at_once,
    hub_that_fails,
    too_many_requests,
    change_by_somebody_else,
    metadata_that_the_hub_refuses,
    hub_out_of_reach,
]


@pytest.mark.door(
    "`minigpt push`: any failure is one sentence, changes nothing, and can be repeated", "huggingface_hub"
)
@pytest.mark.parametrize(
    ("fault", "first"),
    [(fault, False) for fault in FAULTS]
    + [(fault, True) for fault in (wrong_token, name_of_somebody_else, full_disk, connection_cut_in_an_upload)],
    ids=lambda value: getattr(value, "__name__", "the first push" if value else "a later push"),
)
def test_a_failure_changes_nothing_and_the_same_command_works_when_repeated(
    hub: "Hub",
    run: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[["Hub", pytest.MonkeyPatch], str],
    first: bool,
) -> None:
    command = [str(run), "tester/tiny"]
    if not first:
        assert main(["push", *command]) == 0
        weights = load_file(run / "model.safetensors")
        weights["lm_head.weight"].add_(1)
        save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
        (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    here = fingerprint(run)
    there = {} if first else hub.files("tester/tiny")
    with pytest.MonkeyPatch.context() as monkeypatch:
        says = fault(hub, monkeypatch)
        assert says in refused(capsys, *command, status=1)
    assert fingerprint(run) == here
    if ("models", "tester/tiny") in hub.repositories:  # a new one may have been made, and is empty
        assert {name: data for name, data in hub.files("tester/tiny").items() if name != ".gitattributes"} == {
            name: data for name, data in there.items() if name != ".gitattributes"
        }
    hub.heal()
    assert main(["push", *command]) == 0
    assert fingerprint(run) == here
    assert hub.files("tester/tiny")["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert hub.files("tester/tiny").keys() - {".gitattributes"} == PUSHED


def test_a_token_that_may_only_read_is_told_so(
    hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    for command in ([pushed], [pushed, "--create-pr"], ["tester/new"], [pushed, "--revision", "next"]):
        said = refused(capsys, str(run), *command)
        assert "may read and not write" in said
        assert "make one that may write" in said
    assert len(hub.commits(pushed)) == 2


def test_a_pull_request_is_suggested_only_where_one_can_be_opened(
    hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    assert "--create-pr" in refused(capsys, str(run), pushed, status=1)
    assert "--create-pr" not in refused(capsys, str(run), "tester/new", status=1)
    assert "--create-pr" not in refused(capsys, str(run), pushed, "--revision", "next", status=1)
    hub.fail("POST .*/preupload/", 403, "Discussions are disabled")
    assert "--create-pr" not in refused(capsys, str(run), pushed, "--create-pr", status=1)


@pytest.mark.parametrize("first", [True, False], ids=["the first push", "a later push"])
def test_a_commit_whose_answer_is_lost_is_not_called_unpublished_and_is_not_made_twice(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str], first: bool
) -> None:
    if not first:
        assert main(["push", str(run), "tiny"]) == 0
        (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    hub.lose_answers("POST .*/commit/")
    said = refused(capsys, str(run), "tester/tiny", status=1)
    assert "whether it arrived in tester/tiny is not known; run the same command again to find out" in said
    assert "nothing was published" not in said
    assert hub.files("tester/tiny")["sample.txt"] == (run / "sample.txt").read_bytes()
    commits = hub.commits("tester/tiny")
    hub.heal()
    assert main(["push", str(run), "tester/tiny"]) == 0
    assert "Nothing has changed" in capsys.readouterr().err
    assert hub.commits("tester/tiny") == commits


def test_of_a_pull_request_whose_answer_is_lost_no_second_one_is_suggested_blindly(
    hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    hub.lose_answers("POST .*/commit/")
    assert f"look for it in {pushed}" in refused(capsys, str(run), pushed, "--create-pr", status=1)
    assert len(hub.repository(pushed).pull_requests) == 1


def test_what_somebody_else_commits_at_the_same_moment_is_not_lost(
    hub: "Hub", run: Path, pushed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def slowly(*what: Any, **named: Any) -> ModelCard:
        hub.put(pushed, {"README.md": b"# By hand\n"})
        return model_card(*what, **named)

    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("minigpt.hub.publishing.push.model_card", slowly)
        assert "somebody else has changed" in refused(capsys, str(run), pushed, status=1)
    assert hub.files(pushed)["README.md"] == b"# By hand\n"
    assert main(["push", str(run), pushed]) == 0
    assert "# By hand" in ModelCard.load(pushed).text
    assert hub.files(pushed)["sample.txt"] == b"Another sample.\n"


def test_a_connection_that_breaks_twice_is_tried_again(hub: "Hub", run: Path) -> None:
    hub.cut(UPLOAD, after=1000, times=2)
    assert main(["push", str(run), "tiny"]) == 0
    assert hub.files("tester/tiny")["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_the_client_says_nothing_of_its_own_and_is_left_as_it_was(
    hub: "Hub", run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    listener = logging.Handler()
    monkeypatch.setattr(listener, "emit", lambda record: said.append(record.getMessage()))
    client = logging.getLogger("huggingface_hub")
    client.addHandler(listener)
    try:
        before = client.level, are_progress_bars_disabled()
        # Without Xet it is this client that tries again, and would say so, address and all.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        hub.cut(UPLOAD, times=2)
        assert main(["push", str(run), "tiny"]) == 0
        assert said == []
        assert (client.level, are_progress_bars_disabled()) == before
    finally:
        client.removeHandler(listener)


def test_from_python_no_bar_is_drawn_and_whoever_wants_bars_has_them_afterwards(
    hub: "Hub", run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    had = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    transformers_logging.enable_progress_bar()
    try:
        capsys.readouterr()
        assert push_folder(run, "tiny").written
        assert capsys.readouterr() == ("", "")
        assert transformers_logging.is_progress_bar_enabled()
        assert not are_progress_bars_disabled()
    finally:
        if not had[0]:
            transformers_logging.disable_progress_bar()
        if had[1]:
            disable_progress_bars()


def test_what_has_arrived_before_a_failure_is_not_sent_again(hub: "Hub", run: Path) -> None:
    hub.fail("POST .*/commit/", 500)
    assert main(["push", str(run), "tiny"]) == 1
    hub.heal()
    hub.requests.clear()
    assert main(["push", str(run), "tiny"]) == 0
    assert not hub.requested(UPLOAD)


# What else is pushed.


def test_a_folder_without_its_code_gets_it_on_the_way(hub: "Hub", run: Path) -> None:
    config = json.loads((run / "config.json").read_text("utf-8"))
    del config["auto_map"]
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in CODE:
        (run / name).unlink()
    before = fingerprint(run)
    assert main(["push", str(run), "tiny"]) == 0
    assert fingerprint(run) == before
    there = hub.files("tester/tiny")
    assert there.keys() - {".gitattributes"} == PUSHED
    assert json.loads(there["config.json"])["auto_map"]["AutoModel"] == "modeling_minigpt.MiniGPTModel"
    assert there["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_code_that_imports_what_is_not_there_is_completed(hub: "Hub", run: Path) -> None:
    (run / "padding_minigpt.py").unlink()
    assert main(["push", str(run), "tiny"]) == 0
    assert hub.files("tester/tiny").keys() >= CODE


@pytest.mark.parametrize("kind", ["classifier", "bigram", "gpt2", "sharded"])
def test_whatever_save_pretrained_wrote_can_be_pushed(hub: "Hub", tmp_path: Path, kind: str) -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    size = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": len(tokenizer)}
    model = {
        "classifier": lambda: MiniGPTForSequenceClassification(MiniGPTConfig(**size, num_labels=3)),
        "bigram": lambda: BigramForCausalLM(BigramConfig(vocab_size=len(tokenizer))),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**size, n_positions=8)),
        "sharded": lambda: MiniGPTForCausalLM(MiniGPTConfig(**size)),
    }[kind]()
    folder = tmp_path / kind
    model.save_pretrained(folder, **({"max_shard_size": "2KB"} if kind == "sharded" else {}))
    tokenizer.save_pretrained(folder)
    assert main(["push", str(folder), kind]) == 0
    there = hub.files(f"tester/{kind}")
    assert there.keys() - {".gitattributes", "README.md"} == {path.name for path in folder.iterdir()}
    loaded = type(model).from_pretrained(f"tester/{kind}").eval()
    ids = tokenizer(TEXT[:8], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits, rtol=0, atol=0)


def exported(folder: Path, run: Path) -> Path:
    """What an export to ONNX looks like from outside."""
    for name in ("config.json", "generation_config.json", *TOKENIZER):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(run / name, folder / name)
    config = json.loads((run / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "auto_map"}), "utf-8")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    (folder / "README.md").write_text("# A graph\n", encoding="utf-8")
    return folder


def test_an_exported_model_has_a_repository_of_its_own(hub: "Hub", run: Path, tmp_path: Path) -> None:
    assert main(["push", str(exported(tmp_path / "tiny-onnx", run)), "tiny-onnx"]) == 0
    assert hub.files("tester/tiny-onnx").keys() - {".gitattributes"} == {
        *("config.json", "generation_config.json", "onnx/model.onnx", "README.md"),
        *TOKENIZER,
    }
    assert "# A graph" in ModelCard.load("tester/tiny-onnx").text


def test_an_exported_model_joins_the_one_it_was_made_of(hub: "Hub", run: Path, pushed: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "tiny-onnx", run)
    for _ in range(2):
        assert main(["push", str(folder), pushed]) == 0
    assert [commit.changed() for commit in hub.commits(pushed)[:2]] == [{"onnx/model.onnx"}, PUSHED]
    # And it is not in the way of the next push.
    (run / "sample.txt").write_text("Another sample.\n", encoding="utf-8")
    assert main(["push", str(run), pushed]) == 0
    assert hub.commits(pushed)[0].changed() == {"sample.txt", "README.md"}


@pytest.mark.door("`push_to_hub` of a model and of its tokenizer, code included", "transformers", "huggingface_hub")
def test_the_models_and_the_tokenizers_own_push_to_hub_carry_the_code(hub: "Hub", run: Path) -> None:
    before = fingerprint(run)
    AutoModelForCausalLM.from_pretrained(run).push_to_hub("tester/own")
    AutoTokenizer.from_pretrained(run).push_to_hub("tester/own")
    assert fingerprint(run) == before
    assert hub.files("tester/own").keys() >= {*MODEL, *TOKENIZER}
    # A push of the run goes on from there.
    assert main(["push", str(run), "own"]) == 0
    assert hub.files("tester/own").keys() - {".gitattributes"} == PUSHED


# The proof: what a fresh process with an empty cache makes of it.

LOGITS = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
repository, prompt, remote = sys.argv[1], sys.argv[2], {"trust_remote_code": True} if sys.argv[3] == "without" else {}
if remote:
    sys.modules["minigpt"] = None  # importing it fails, as where it was never installed
else:
    import minigpt
model = AutoModelForCausalLM.from_pretrained(repository, **remote).eval()
tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=False)
ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(ids).logits
write = pipeline("text-generation", repository, **remote)
(written,) = write(prompt, do_sample=False, max_new_tokens=12)
print(json.dumps([type(model).__module__, logits.tolist(), written["generated_text"]]))
"""


def in_a_fresh_process(hub: "Hub", *words: str) -> str:
    done = subprocess.run([sys.executable, *words], env=hub.environment(None), capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.door("`minigpt push`: loaded back in a fresh process, logits equal", "huggingface_hub", "transformers")
@pytest.mark.parametrize("package", ["with", "without"])
def test_a_pushed_run_is_loaded_back_in_a_fresh_process(hub: "Hub", run: Path, pushed: str, package: str) -> None:
    module, logits, written = json.loads(
        in_a_fresh_process(hub, "-c", LOGITS, pushed, TEXT[:8], package).splitlines()[-1]
    )
    assert module.startswith("minigpt." if package == "with" else "transformers_modules.")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run).eval(), AutoTokenizer.from_pretrained(run)
    ids = tokenizer(TEXT[:8], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(ids).logits.tolist() == logits
    greedy = model.generate(ids, do_sample=False, max_new_tokens=12)
    assert tokenizer.decode(greedy[0]) == written


@pytest.mark.door("`minigpt generate` and `minigpt eval` of a Hub id", "huggingface_hub", "transformers")
def test_the_commands_take_the_repository_for_the_run(
    hub: "Hub", run: Path, finished: Path, pushed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = ["--prompt", TEXT[:8], "--seed", "1", "--max_new_tokens", "20"]
    measure = ["--data", str(finished.parent / "my.txt")]
    for command, options in (("generate", generate), ("eval", measure)):
        capsys.readouterr()
        assert main([command, str(run), *options]) == 0
        here = capsys.readouterr().out
        assert main([command, pushed, *options]) == 0
        assert capsys.readouterr().out == here
    assert hub.requested(f"GET /{pushed}/resolve/.*/config.json")
