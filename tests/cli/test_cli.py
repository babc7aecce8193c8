import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import WordLevelTrainer
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging

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


@pytest.mark.parametrize("command", ["generate", "chat", "eval", "export"])
def test_a_model_may_be_an_adapter_and_need_not_be_of_our_training(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "MODEL the folder of a model or of an adapter, or a Hub id" in said


@pytest.mark.parametrize(
    "argv", [[], ["trian"], ["generate"], ["generate", "x", "--top_p", "2"], ["eval", "x", "--no"]]
)
def test_asking_wrongly_exits_2_and_says_why(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    output = capsys.readouterr()
    assert (output.err or output.out).strip()


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--temperature", ["inf", "nan", "1e-45", "-1", "1e30", "hot"]),
        ("--top_p", ["0", "1.1", "nan"]),
        ("--top_k", ["-1", "1.5", "nan"]),
        ("--seed", ["-1", "4294967296", "1.0"]),
        ("--max_new_tokens", ["0", "-3", "inf"]),
    ],
)
def test_impossible_sampling_is_refused_by_name_and_value_before_a_model_is_looked_for(
    command: str, option: str, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        assert main([command, "no/such/model", option, value]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"minigpt {command}: argument {option}: must be ")
        assert value in said


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


def test_a_stop_string_of_the_generation_config_ends_the_text(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--prompt", "be", "--temperature", "0", "--max_new_tokens", "9"]
    assert main(["generate", str(trained), *asked]) == 0
    whole = capsys.readouterr().out
    shutil.copytree(trained, tmp_path / "stops")
    config = GenerationConfig.from_pretrained(trained)
    config.stop_strings = [whole[5]]
    config.save_pretrained(tmp_path / "stops")
    for flags in ([], ["--stream"]):
        assert main(["generate", str(tmp_path / "stops"), *asked, *flags]) == 0
        assert capsys.readouterr().out == whole[: whole.index(whole[5], 2) + 1] + "\n"


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
    assert output.err == "The prompt has 40 tokens: the model continues from the last 16.\n"
    assert output.out.startswith(TEXT[:40])


def test_eval_prints_the_loss_over_every_next_character(
    trained: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(trained), "--data", str(text_file), "--split", "validation"]) == 0
    printed = capsys.readouterr().out
    model = MiniGPTForCausalLM.from_pretrained(trained).eval()
    tokenizer = MiniGPTTokenizer.from_pretrained(trained)
    ids = torch.tensor([tokenizer.stoi[character] for character in TEXT[int(0.9 * len(TEXT)) :]])
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        logits = model(window[None, :-1]).logits[0].detach()
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
    assert main(["generate", str(trained), "--device", "tpu"]) == 2
    assert "no device 'tpu'" in capsys.readouterr().err


def test_a_corpus_is_known_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--n_embd", "8", "--n_layer", "1", "--n_head", "1", "--eval_iters", "1", "--sample_length", "3"]
    folder = tmp_path / "run"
    assert main(["train", "--data", "plays", "--max_steps", "1", "--output_dir", str(folder), *small]) == 0
    assert "plays" in capsys.readouterr().out
    assert main(["eval", str(folder), "--data", "plays", "--split", "validation"]) == 0
    assert capsys.readouterr().out.startswith("plays, validation split, 87,")


def test_a_corpus_named_among_files_is_refused(
    trained: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(trained), "--data", "plays", str(text_file)]) == 1
    assert "give it alone" in capsys.readouterr().err


def test_bits_a_character_of_a_subword_model_count_characters(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subwords = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    subwords.pre_tokenizer = Split(" ", "isolated")
    subwords.decoder = Fuse()
    subwords.train_from_iterator([TEXT], WordLevelTrainer(special_tokens=["<unk>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=subwords, unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path)
    config = MiniGPTConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    MiniGPTForCausalLM(config).save_pretrained(tmp_path)
    assert main(["eval", str(tmp_path), "--data", str(text_file), "--split", "validation"]) == 0
    loss, bits = map(float, re.search(r"loss (\S+) nats a token, (\S+) bits", capsys.readouterr().out).groups())
    validation = TEXT[int(0.9 * len(TEXT)) :]
    tokens = len(re.findall(" |[^ ]+", validation))
    assert bits == pytest.approx(loss * (tokens - 1) * tokens / (tokens - 1) / len(validation) / math.log(2), rel=1e-3)


def test_a_half_written_model_is_one_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert main(["generate", str(tmp_path / "cut")]) == 2
    error = capsys.readouterr().err
    assert f"{weights} cannot be opened" in error
    assert len(error.splitlines()) == 1


def test_asking_wrongly_is_one_sentence(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["generate", str(trained), "--top_p", "2"], ["eval", str(trained), "--split", "test"]):
        assert main(argv) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_character_that_the_console_lacks_does_not_end_in_an_error(trained: Path, tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text("é\n")
    config = MiniGPTConfig(vocab_size=len(tokenizer), hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    model = MiniGPTForCausalLM(config)
    model.generation_config = lecture_generation_config(tokenizer.all_special_ids)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "minigpt", "generate", str(tmp_path), "--prompt", "é", "--max_new_tokens", "3"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert result.stdout.startswith(b"?")


def test_a_reader_that_goes_away_is_no_traceback(trained: Path) -> None:
    command = [sys.executable, "-m", "minigpt", "generate", str(trained), "--max_new_tokens", "20000", "--stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(20)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == 1


def test_ctrl_c_exits_130(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MiniGPTForCausalLM, "generate", interrupt)
    assert main(["generate", str(trained)]) == 130
    assert capsys.readouterr().err == "minigpt: interrupted.\n"


def test_a_package_that_is_run_with_m_gets_the_auto_classes_too(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("import minigpt\n", encoding="utf-8")
    (package / "go.py").write_text(
        "from transformers import AutoConfig\nprint(type(AutoConfig.for_model('minigpt')).__name__)\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "mine.go"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "MiniGPTConfig\n"


def test_a_command_leaves_the_librarys_settings_as_they_were(trained: Path) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    assert main(["generate", str(trained), "--max_new_tokens", "3"]) == 0
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_hyphens_do_for_underscores(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["generate", str(trained), "--prompt", "To be", "--seed", "1"]
    texts = []
    for option in (["--max_new_tokens", "5"], ["--max-new-tokens", "5"], ["--max-new-tokens=5"]):
        assert main([*asked, *option]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    assert main([*asked, "--no-such-option"]) == 2
    assert "--no_such_option" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["-o", "--output_dir", "--output-dir"])
@pytest.mark.parametrize("command", ["import ../weights.pt", "export model --to gpt2", "train", "finetune model"])
def test_every_command_that_writes_a_folder_calls_it_output_dir(command, spelling, tmp_path, monkeypatch, capsys):
    (tmp_path / "weights.pt").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([*command.split(), spelling, "."]) == 2
    assert capsys.readouterr().err.startswith("minigpt: --output_dir . is or holds the current folder; ")
