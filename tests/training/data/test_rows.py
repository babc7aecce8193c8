import errno
import json
from pathlib import Path

import datasets
import pytest

from minigpt.cli import main
from minigpt.training.data.corpus import CorpusError, SplitSettings, load_text
from minigpt.training.data.read_settings import ReadSettings
from minigpt.training.data.rows import open_rows

TEXTS = ["été\r\n", "NA", "two\nlines", "007", 'a "word", and more']
JOINED = 'été\r\nNA\ntwo\nlines\n007\na "word", and more\n'
SHORT = ["--max_steps", "2", "--eval_iters", "1", "--sample_length", "0", "--device", "cpu"]
SMALL = ["--block_size", "8", "--n_embd", "8", "--n_head", "2", "--n_layer", "1"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(name, texts, column="text", **columns):
    """Write rows with the libraries that people write them with."""
    rows = datasets.Dataset.from_dict({column: texts} | columns)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps([dict(row) for row in rows], indent=2), encoding="utf-8")
    elif path.suffix == ".csv":
        rows.to_csv(path)
    elif path.suffix == ".tsv":
        rows.to_csv(path, sep="\t")
    elif path.suffix == ".parquet":
        rows.to_parquet(path)
    else:
        rows.save_to_disk(name)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.PARQUET", "saved"])
def test_rows_are_read_as_their_texts_one_after_the_other(name):
    path = write(name, TEXTS)
    assert list(open_rows(path)()) == TEXTS
    assert load_text(name).text == JOINED


def test_rows_without_text_are_skipped_and_empty_ones_stay():
    write("a.jsonl", ["a", None, "", "b"])
    assert load_text("a.jsonl").text == "a\n\nb\n"


def test_a_changed_file_is_read_again():
    write("a.jsonl", ["one"])
    assert load_text("a.jsonl").text == "one\n"
    write("a.jsonl", ["two"])
    assert load_text("a.jsonl").text == "two\n"


@pytest.mark.parametrize("name", ["we[i]rd*?.jsonl", "a#b%20 c.jsonl"])
def test_no_character_of_a_files_name_means_a_pattern(name):
    write(name, ["one"])
    assert load_text(name).text == "one\n"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_row_files_take_part_in_lists_patterns_folders_and_splits(kind):
    one, two = f"rows/one.{kind}", f"rows/two.{kind}"
    write(one, ["1"])
    write(two, ["2"])
    assert load_text([two, one]).text == "2\n1\n"
    assert load_text("rows").text == load_text(f"rows/*.{kind}").text == "1\n2\n"
    assert load_text(one, split=SplitSettings(validation_file=(two,))).train_characters == 2
    for split in ("train", "valid", "test"):
        write(f"parts/{split}.{kind}", [split])
    Path("parts/README.md").write_text("About the data.", encoding="utf-8")
    corpus = load_text("parts")
    assert (corpus.text, corpus.train_characters) == ("train\nvalid\n", 6)
    assert f"leaving out README.md and test.{kind}" in corpus.notice


def test_a_copy_of_a_hub_repository_is_read_by_its_splits():
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        write(f"repository/data/{name}.parquet", [name[:7]])
    Path("repository/README.md").write_text("About the data.", encoding="utf-8")
    corpus = load_text("repository")
    assert (corpus.text, corpus.train_characters) == ("train-0\ntrain-0\nvalidat\n", 16)


def test_text_comes_before_rows_in_a_folder_and_the_rows_are_named():
    write("books/table.csv", ["no"])
    Path("books/book.txt").write_text("yes", encoding="utf-8")
    corpus = load_text("books")
    assert corpus.text == "yes"
    assert "leaving out table.csv" in corpus.notice


def test_a_saved_dataset_dict_is_read_by_its_splits():
    splits = {split: datasets.Dataset.from_dict({"text": [split]}) for split in ("test", "train", "validation")}
    datasets.DatasetDict(splits).save_to_disk("saved")
    corpus = load_text("saved")
    assert (corpus.name, corpus.text, corpus.train_characters) == ("saved", "train\nvalidation\n", 6)
    assert "leaving out test" in corpus.notice


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_column_is_text_or_the_only_one_of_strings_or_named(kind):
    write(f"only.{kind}", ["a"], "story")
    assert load_text(f"only.{kind}").text == "a\n"
    path = write(f"two.{kind}", ["007", "b"], "story").with_suffix(".parquet")
    write(path, ["007", "b"], "story", title=["c", "d"], id=[1, 2])
    assert load_text(path, reading=ReadSettings(text_column="story")).text == "007\nb\n"
    with pytest.raises(CorpusError, match=r"--text_column \(story, title; all columns: story, title, id \(int64\)\)"):
        load_text(path)
    with pytest.raises(CorpusError, match=r"no text in a column 'id'"):
        load_text(path, reading=ReadSettings(text_column="id"))


def test_a_column_of_a_text_without_columns_is_refused():
    Path("a.txt").write_text("text", encoding="utf-8")
    for source in ("a.txt", "plays"):
        with pytest.raises(CorpusError, match=rf"{source} has no columns, so none is called 'story'"):
            load_text(source, reading=ReadSettings(text_column="story"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"cannot be read as JSON Lines \(JSON parse error.* row 1\)"),
        ("a.jsonl", b'{"text": "\xe9"}\n', r"has text that is not UTF-8 .*name the encoding with --encoding"),
        ("a.json", b"[]", "cannot be read as JSON"),
        ("a.csv", b'text,id\n"a,1\n', r"cannot be read as CSV \(Error tokenizing data"),
        ("a.csv", b"text\nHello, world\n", "rows with more cells than its header names; write quotation marks"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("a.jsonl", b'{"text": {"de": "a"}}\n', r"no text in a column 'text'; .*\(there is none"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
    ],
)
def test_damaged_rows_are_refused_in_one_sentence(name, content, reason, capfd):
    Path(name).write_bytes(content)
    with pytest.raises(CorpusError, match=reason) as refusal:
        load_text(name)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_told_apart_from_a_damaged_file(monkeypatch):
    def fill(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    write("a.jsonl", ["a"])
    monkeypatch.setattr(datasets, "load_dataset", fill)
    with pytest.raises(CorpusError, match=r"No space left on device\); make room .* HF_DATASETS_CACHE"):
        load_text("a.jsonl")


@pytest.mark.parametrize("damage", ["state.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_dataset_is_refused(damage):
    file = write("saved", ["a"]) / damage
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(CorpusError, match="saved cannot be read as a dataset saved to disk"):
        load_text("saved")


def test_a_run_trains_on_the_column_that_is_named_and_is_scored_on_it(tmp_path, capsys):
    rows = [f"{number:03}" for number in range(100)]
    path = write("rows.parquet", rows, "story", title=["no"] * 100)
    command = ["train", "--data", str(path), "--output_dir", "run", *SMALL, *SHORT]
    assert main(command) == 1
    assert "--text_column (story, title" in capsys.readouterr().err
    assert main([*command, "--text-column", "story"]) == 0
    report = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert report["data"]["reading"]["text_column"] == "story"
    assert report["data"]["characters"] == 400


def test_a_resumed_run_and_its_evaluation_remember_the_column(capsys):
    path = write("rows.parquet", [f"{number:03}" for number in range(100)], "story", title=["no"] * 100)
    command = ["train", "--data", str(path), "--output_dir", "run", *SMALL, *SHORT]
    assert main([*command, "--text_column", "story", "--save_steps", "1", "--lr_scheduler_type", "constant"]) == 0
    resumed = [*command, "--resume_from_checkpoint", "run/checkpoint-1", "--lr_scheduler_type", "constant"]
    assert main(resumed) == 0
    capsys.readouterr()
    assert main(["eval", "run", "--data", str(path), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("rows.parquet, validation split, 39 tokens")
    Path("other.txt").write_text("000\n111\n" * 5, encoding="utf-8")
    assert main(["eval", "run", "--data", "other.txt", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("other.txt, all of it, 39 tokens")
