import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import pytest

from minigpt.cli import main
from minigpt.training.data import text_files
from minigpt.training.data.corpus import CorpusError, SplitSettings, load_text
from minigpt.training.data.read_settings import ReadSettings

TEXT = "café 12\u20ac\nnaïve\r\n" * 20
SHORT = ["--max_steps", "2", "--eval_iters", "1", "--sample_length", "0", "--device", "cpu"]
SMALL = ["--block_size", "8", "--n_embd", "8", "--n_head", "2", "--n_layer", "1"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("chunk", [1, 3, 2**20])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "UTF-16-BE", "utf-32", "utf_8", "gb18030"])
def test_a_text_in_another_encoding_is_the_same_text(monkeypatch, encoding, chunk):
    monkeypatch.setattr(text_files, "CHUNK_BYTES", chunk)
    Path("a.txt").write_bytes(TEXT.encode(encoding))
    assert load_text("a.txt", reading=ReadSettings(encoding=encoding)).text == TEXT


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_rows_in_another_encoding_are_the_same_rows(name):
    content = json.dumps({"text": "café"}, ensure_ascii=False) if name == "a.jsonl" else "text\ncafé"
    Path(name).write_bytes(f"{content}\n".encode("latin-1"))
    assert load_text(name, reading=ReadSettings(encoding="latin-1")).text == "café\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_encodings_of_unicode_are_named_with_the_option_that_reads_them(name, encoding):
    rows = '{"text": "some Latin letters"}\n' * 5
    Path(name).write_bytes(rows.encode(encoding))
    with pytest.raises(
        CorpusError, match=rf"{name} .*{encoding[:6].upper()}.*--encoding {encoding}, or save it as UTF-8"
    ):
        load_text(name)
    assert load_text(name, reading=ReadSettings(encoding=encoding)).num_characters


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("word/document.xml", "text")
    return buffer.getvalue()


def parquet():
    buffer = io.BytesIO()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "remedy"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document", "extract its text, for example with pdftotext"),
        (archive(), "a ZIP archive, as Word, EPUB and OpenDocument files are", "save it as plain text, or unpack it"),
        (gzip.compress(b"text"), "compressed with gzip", "unpack it"),
        (parquet(), "a Parquet file", r"let its name end in \.parquet"),
        (b"\x89PNG\r\n\x1a\n", "an image", "give a text file"),
        (b"{\\rtf1\\ansi text}", "an RTF document", "save it as plain text"),
    ],
)
@pytest.mark.parametrize("encoding", [None, "latin-1"])
def test_a_file_that_is_no_text_is_named_for_what_it_is(content, name, remedy, encoding):
    Path("a.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=rf"a\.txt is not text but {name}; {remedy}\."):
        load_text("a.txt", reading=ReadSettings(encoding=encoding))


def test_bytes_that_the_named_encoding_lacks_are_refused_with_their_offset():
    Path("a.txt").write_bytes(b"abc\x81")
    with pytest.raises(CorpusError, match=r"a\.txt is not CP1252: byte 0x81 at offset 3 .*--encoding"):
        load_text("a.txt", reading=ReadSettings(encoding="cp1252"))
    with pytest.raises(CorpusError, match=r"a\.txt is not UTF-16 .*--encoding"):
        load_text("a.txt", reading=ReadSettings(encoding="utf-16"))


@pytest.mark.parametrize("encoding", ["klingon", "hex", "a\0b", ""])
def test_an_encoding_that_python_does_not_know_is_refused(encoding):
    with pytest.raises(CorpusError, match="there is no encoding"):
        ReadSettings(encoding=encoding)


def test_a_run_reads_its_own_text_in_its_encoding_and_other_texts_in_theirs(capsys):
    Path("latin.txt").write_bytes(TEXT.encode("cp1252"))
    Path("other.txt").write_text(TEXT[:100], encoding="utf-8", newline="")
    command = ["train", "--data", "latin.txt", "--output_dir", "run", *SMALL, *SHORT]
    assert main(command) == 1
    assert "--encoding" in capsys.readouterr().err
    assert main([*command, "--encoding", "cp1252"]) == 0
    capsys.readouterr()
    for name, part in (("latin.txt", "validation split"), ("other.txt", "all of it")):
        assert main(["eval", "run", "--data", name, "--device", "cpu"]) == 0
        assert capsys.readouterr().out.startswith(f"{name}, {part}")


class StandardInput:
    def __init__(self, content):
        self.buffer = io.BytesIO(content)


def test_standard_input_is_read_once_and_can_be_read_again(monkeypatch):
    monkeypatch.setattr(sys, "stdin", StandardInput(TEXT.encode()))
    corpus = load_text("-")
    assert (corpus.name, corpus.text, corpus.text) == ("stdin", TEXT, TEXT)


def test_standard_input_with_a_column_is_json_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", StandardInput(b'{"story": "a", "title": "b"}\n'))
    assert load_text("-", reading=ReadSettings(text_column="story")).text == "a\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_a_pipe_is_read_once_as_text_and_as_validation_split():
    def pipe(name, text):
        os.mkfifo(name)
        return subprocess.Popen([sys.executable, "-c", f"open({name!r}, 'w').write({text!r})"])

    writers = [pipe("one", "1\n"), pipe("two", "2\n")]
    corpus = load_text("one", split=SplitSettings(validation_file=("two",)))
    assert (corpus.name, corpus.text, corpus.text, corpus.train_characters) == ("one", "1\n2\n", "1\n2\n", 2)
    assert [writer.wait() for writer in writers] == [0, 0]


def test_several_processes_cannot_share_standard_input(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CorpusError, match="- can be read by one process only, and WORLD_SIZE is 2; save the text to"):
        load_text("-")


def test_standard_input_that_is_closed_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CorpusError, match="- is closed; name a file"):
        load_text("-")


def test_a_run_trains_on_standard_input_and_is_scored_on_it(monkeypatch, capsys):
    text = "".join(f"{number:03}\n" for number in range(100)).encode()
    monkeypatch.setattr(sys, "stdin", StandardInput(text))
    assert main(["train", "--data", "-", "--output_dir", "run", *SMALL, *SHORT]) == 0
    assert "data    stdin: 360 characters to train on" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", StandardInput(text))
    assert main(["eval", "run", "--data", "-", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("stdin, validation split, 39 tokens")
