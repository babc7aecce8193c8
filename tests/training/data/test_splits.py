"""Which part of a text is validated on, and which files a folder or a pattern means."""

import json

import pytest

from minigpt.cli import main
from minigpt.training.data.corpus import CorpusError, SplitSettings, load_text
from minigpt.training.data.tokens import training_text

SMALL = ["--n_embd", "8", "--n_layer", "1", "--n_head", "2", "--block_size", "8", "--device", "cpu"]
SHORT = ["--max_steps", "2", "--eval_iters", "1", "--sample_length", "10"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def parts(source, split=None):
    corpus = load_text(source, split=split)
    train = "".join(training_text(corpus))
    assert corpus.text.startswith(train)
    return train, corpus.text.removeprefix(train)


def test_by_default_the_last_tenth_of_the_characters_is_held_back(tmp_path):
    text = "0123456789" * 10 + "abc"
    assert parts(write(tmp_path / "a.txt", text)) == (text[:92], text[92:])
    assert load_text("a.txt").split_sha256 == load_text("a.txt").sha256


def test_any_other_fraction_can_be_held_back(tmp_path):
    assert parts(write(tmp_path / "a.txt", "0123456789"), SplitSettings(validation_fraction=0.4)) == ("012345", "6789")


@pytest.mark.parametrize("name", ["valid.txt", "val.md", "validation.txt", "DEV.TXT"])
def test_files_named_for_splits_are_the_splits_and_the_test_text_is_never_trained_on(tmp_path, name):
    write(tmp_path / "books" / "train.txt", "to train on")
    write(tmp_path / "books" / name, "to validate on\n")
    write(tmp_path / "books" / "test.txt", "to test on")
    write(tmp_path / "books" / "more" / "train.txt", "of another set")
    assert parts("books") == ("to train on\n", "to validate on\n")
    notice = load_text("books").notice
    assert "train.txt is the train split" in notice
    assert f"{name} is the validation split" in notice
    assert "leaving out more/train.txt and test.txt" in notice.replace("\\", "/")


def test_without_a_validation_file_the_training_file_is_parted_and_the_test_text_still_left_out(tmp_path):
    write(tmp_path / "books" / "train.txt", "0123456789")
    write(tmp_path / "books" / "test.txt", "to test on")
    assert parts("books") == ("012345678", "9")


def test_a_validation_file_is_validated_on_and_everything_else_trained_on(tmp_path):
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "b.txt", "two")
    assert parts("a.txt", SplitSettings(("b.txt",))) == ("one\n", "two")


def test_lines_are_shuffled_with_a_seed_and_none_is_lost_or_cut(tmp_path):
    names = [f"name {number}" for number in range(100)]
    write(tmp_path / "names.txt", "\n".join(names))
    by_line = SplitSettings(split_by="line")
    train, validation = (part.splitlines() for part in parts("names.txt", by_line))
    assert (len(train), len(validation)) == (90, 10)
    assert sorted(train + validation) == sorted(names)
    assert train != sorted(train)
    assert parts("names.txt", by_line) == parts("names.txt", by_line)
    assert parts("names.txt", by_line) != parts("names.txt", SplitSettings(split_by="line", split_seed=1))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"validation_fraction": 0.0}, r"above 0 and below 1, got 0\.0"),
        ({"validation_fraction": 1.0}, r"above 0 and below 1, got 1\.0"),
        ({"validation_fraction": float("nan")}, "got nan"),
        ({"split_by": "word"}, "'word'; use 'position' or 'line'"),
        ({"validation_file": ("b.txt",), "split_by": "line"}, "leave validation_fraction and split_by out"),
    ],
)
def test_impossible_splits_are_refused(settings, reason):
    with pytest.raises(CorpusError, match=reason):
        SplitSettings(**settings)


def test_a_folder_with_splits_takes_no_other_split(tmp_path):
    write(tmp_path / "books" / "train.txt", "to train on")
    write(tmp_path / "books" / "valid.txt", "to validate on")
    with pytest.raises(CorpusError, match=r"comes with a validation split \(valid\.txt\)"):
        load_text("books", split=SplitSettings(validation_fraction=0.5))


def test_a_pattern_reads_every_file_that_matches_without_a_shell(tmp_path):
    write(tmp_path / "src" / "b.py", "b = 2\n")
    write(tmp_path / "src" / "deep" / "a.py", "a = 1\n")
    write(tmp_path / "src" / ".hidden" / "c.py", "c = 3\n")
    write(tmp_path / "src" / "README.md", "words\n")
    assert load_text("src/**/*.py").text == "b = 2\na = 1\n"
    assert load_text(str(tmp_path / "src" / "*.py")).text == "b = 2\n"
    with pytest.raises(CorpusError, match=r"No file matches 'src/\*\.rs'"):
        load_text("src/*.rs")


def test_what_a_folder_leaves_out_is_counted_by_ending(tmp_path):
    for number in range(3):
        write(tmp_path / "src" / f"{number}.py", "code")
    write(tmp_path / "src" / "Makefile", "all:")
    write(tmp_path / "src" / "README.md", "words")
    notice = load_text("src").notice
    assert "reading README.md; leaving out 4 files (3 .py, 1 without an ending)" in notice
    assert "--data 'src" in notice
    assert load_text("src/README.md").notice is None


def test_a_run_takes_its_splits_records_them_and_goes_on_only_with_the_same(tmp_path, capsys):
    names = [f"{number:03}" for number in range(300)]
    write(tmp_path / "names.txt", "\n".join(names))
    command = ["train", "--data", "names.txt", "--output_dir", "run", *SMALL, *SHORT]
    assert main([*command, "--split-by", "line", "--split_seed", "7", "--validation_fraction", "0.2"]) == 0
    data = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["data"]
    assert data["split"] == {"validation_file": [], "validation_fraction": 0.2, "split_by": "line", "split_seed": 7}
    assert data["split_tokens"] == {"train": 960, "validation": 240}
    assert main([*command, "--resume_from_checkpoint", "--max_steps", "3"]) == 1
    assert "another text" in capsys.readouterr().err


def test_a_text_is_scored_whole_unless_the_run_was_trained_on_it(tmp_path, capsys):
    write(tmp_path / "mine.txt", "".join(f"{number:03}\n" for number in range(300)))
    write(tmp_path / "test.txt", "".join(f"{number:03}\n" for number in range(100)))
    assert main(["train", "--data", "mine.txt", "--split_by", "line", "--output_dir", "run", *SMALL, *SHORT]) == 0
    report = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))

    def score(*options):
        capsys.readouterr()
        assert main(["eval", "run", "--device", "cpu", *options]) == 0
        return capsys.readouterr().out

    own = score("--data", "mine.txt")
    assert own.startswith("mine.txt, validation split, 119 tokens")
    assert f"loss {report['losses']['validation']['loss']:.4f} " in own
    assert score("--data", "test.txt").startswith("test.txt, all of it, 399 tokens")
    assert score("--data", "test.txt", "--split", "validation").startswith("test.txt, validation split, 39 tokens")
    assert score("--data", "mine.txt", "--split", "all").startswith("mine.txt, all of it, 1,199 tokens")


def test_an_eval_that_cannot_find_the_validation_file_says_what_it_may_score(tmp_path, monkeypatch, capsys):
    for name in ("base.txt", "held.txt"):
        write(tmp_path / name, f"{name} to be or not to be\n" * 30)
    run = ["train", "--data", "base.txt", "--validation_file", "held.txt", "--output_dir", "run", *SMALL, *SHORT]
    assert main(run) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["eval", "../run", "--data", "../base.txt", "--device", "cpu"]) == 0
    assert "held.txt, the run's validation split, is not here: base.txt may be" in capsys.readouterr().err
