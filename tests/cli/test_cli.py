import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt import MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer, __version__
from minigpt.cli import COMMANDS, main
from minigpt.modeling_minigpt.generation_minigpt import lecture_generation_config

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a run leaves it, untrained: what it writes is noise of the text's characters."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    torch.manual_seed(0)
    config = MiniGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    model = MiniGPTForCausalLM(config)
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="\n")
    return path


def test_help_is_shown_without_importing_torch_or_transformers() -> None:
    script = (
        "import sys; sys.argv = ['minigpt', '--help']\n"
        "from minigpt.cli import main\n"
        "assert main() == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in COMMANDS)


def test_the_module_runs_as_the_command_does() -> None:
    result = subprocess.run([sys.executable, "-m", "minigpt", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"minigpt {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"minigpt {command} " in capsys.readouterr().out.partition("example")[2]


@pytest.mark.parametrize(
    "argv", [[], ["trian"], ["generate"], ["generate", "x", "--top_p", "2"], ["eval", "x", "--no"]]
)
def test_asking_wrongly_exits_2_and_says_why(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    output = capsys.readouterr()
    assert (output.err or output.out).strip()


def test_a_prompt_is_continued(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trained), "--prompt", "To be", "--max_new_tokens", "30"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("To be")
    assert len(text.removesuffix("\n")) == 35


def test_an_empty_prompt_starts_from_a_new_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trained), "--max_new_tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("\n")


def test_the_same_seed_writes_the_same_text_and_another_seed_another(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["generate", str(trained), "--seed", seed, "--max_new_tokens", "60"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_streaming_writes_what_is_written_at_once(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for flags in ([], ["--stream"]):
        assert main(["generate", str(trained), "--seed", "3", "--max_new_tokens", "80", *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_temperature_0_is_greedy(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trained), "--prompt", "be", "--temperature", "0", "--max_new_tokens", "9"]) == 0
    written = capsys.readouterr().out.removesuffix("\n")
    model = MiniGPTForCausalLM.from_pretrained(trained).eval()
    tokenizer = MiniGPTTokenizer.from_pretrained(trained)
    ids = [tokenizer.stoi[character] for character in "be"]
    for _ in range(9):
        logits = model(torch.tensor([ids[-16:]])).logits[0, -1]
        logits[tokenizer.all_special_ids] = -torch.inf
        ids.append(int(logits.argmax()))
    assert written == "".join(tokenizer.itos[i] for i in ids)


def test_an_unknown_character_in_the_prompt_is_refused_by_name(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(trained), "--prompt", "Café"]) == 2
    error = capsys.readouterr().err
    assert "é" in error
    assert "U+00E9" in error


def test_a_prompt_longer_than_the_block_is_cropped_and_said_once(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(trained), "--prompt", TEXT[:40], "--max_new_tokens", "5"]) == 0
    output = capsys.readouterr()
    assert output.err == "The prompt has 40 tokens: the model goes on from the last 16.\n"
    assert output.out.startswith(TEXT[:40])


def test_eval_prints_the_loss_over_every_next_character(
    trained: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(trained), "--data", str(text_file)]) == 0
    printed = capsys.readouterr().out
    model = MiniGPTForCausalLM.from_pretrained(trained).eval()
    tokenizer = MiniGPTTokenizer.from_pretrained(trained)
    ids = torch.tensor([tokenizer.stoi[character] for character in TEXT[int(0.9 * len(TEXT)) :]])
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        logits = model(window[None, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    assert f"{len(ids) - 1:,} tokens" in printed
    assert f"loss {total / (len(ids) - 1):.4f} " in printed


def test_a_tokenizer_beyond_the_models_vocabulary_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MiniGPTForCausalLM.from_pretrained(trained).save_pretrained(tmp_path)
    larger = MiniGPTTokenizer.from_pretrained(trained)
    larger.add_tokens(["é", "ü"])
    larger.save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path)]) == 1
    assert "resize_token_embeddings" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["runs/nothing-here", "/nothing/here", "."])
def test_a_missing_model_is_one_sentence_and_exits_1(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", name]) == 1
    error = capsys.readouterr().err
    assert error.startswith("minigpt: ")
    assert len(error.splitlines()) == 1


def test_a_traceback_is_shown_only_with_debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="nothing-here"):
        main(["--debug", "generate", "runs/nothing-here"])


def test_a_device_that_is_not_there_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trained), "--device", "tpu"]) == 1
    assert "no device 'tpu'" in capsys.readouterr().err
