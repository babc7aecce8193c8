import hashlib
import os
import sys
from pathlib import Path

import datasets
import pytest

from minigpt.training.data import corpus as corpus_module
from minigpt.training.data import rows, text_files
from minigpt.training.data.corpus import CorpusError, load_text
from minigpt.training.data.read_settings import ReadSettings

MANY_BYTES = "aé€😀\r\nzß漢𝄞 e\u0301\n"  # characters of one to four bytes, both line ends, a combining accent


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_files_corpus_tells_its_name_size_hash_and_exact_text(tmp_path):
    text = MANY_BYTES * 3
    corpus = load_text(write(tmp_path / "mine.txt", text))
    assert corpus.text == text
    assert corpus.name == "mine.txt"
    assert (corpus.num_characters, corpus.num_bytes) == (len(text), len(text.encode()))
    assert corpus.sha256 == hashlib.sha256((tmp_path / "mine.txt").read_bytes()).hexdigest()


@pytest.mark.parametrize("size", range(1, 9))
def test_characters_that_span_chunks_are_read_right(tmp_path, monkeypatch, size):
    monkeypatch.setattr(text_files, "CHUNK_BYTES", size)
    assert load_text(write(tmp_path / "a.txt", MANY_BYTES * 2)).text == MANY_BYTES * 2


@pytest.mark.parametrize("size", [1, 3, 10, 10**6])
def test_chunks_have_a_bounded_size_and_join_to_the_text(tmp_path, monkeypatch, size):
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", size)
    text = MANY_BYTES * 5
    chunks = list(load_text(write(tmp_path / "a.txt", text)).chunks())
    assert chunks == [text[start : start + size] for start in range(0, len(text), size)]


def test_a_byte_order_mark_is_dropped_at_the_beginning_only(tmp_path):
    corpus = load_text(write(tmp_path / "a.txt", "\ufeffone\ufefftwo"))
    assert corpus.text == "one\ufefftwo"
    assert corpus.sha256 == hashlib.sha256("one\ufefftwo".encode()).hexdigest()


def test_with_nothing_said_input_txt_of_the_current_folder_is_taken(tmp_path):
    write(tmp_path / "input.txt", "mine")
    corpus = load_text()
    assert corpus.text == "mine"
    assert "input.txt" in corpus.notice


def test_plays_are_the_bundled_file():
    corpus = load_text("plays")
    assert corpus.name == "plays"
    assert corpus.text.startswith("BERNARDO:\nWho's there?\n")


def test_a_folder_is_its_text_files_in_order_of_path(tmp_path):
    folder = tmp_path / "books"
    write(folder / "b.md", "second\n")
    write(folder / "a.TXT", "first")
    write(folder / "c" / "d.txt", "third")
    write(folder / "image.png", b"\0")
    write(folder / ".hidden.txt", "no")
    write(folder / ".git" / "note.txt", "no")
    corpus = load_text(folder)
    assert corpus.name == "books"
    assert corpus.text == "first\nsecond\nthird"


def test_several_files_are_joined_in_the_order_given(tmp_path):
    one, two = write(tmp_path / "one.txt", "1"), write(tmp_path / "two.txt", "2\r\n")
    assert load_text([two, str(one), two]).text == "2\r\n1\n2\r\n"
    assert load_text([two, one]).name == "two.txt + 1 more"


def test_an_empty_file_between_others_adds_no_line(tmp_path):
    one, empty = write(tmp_path / "one.txt", "1"), write(tmp_path / "empty.txt", "")
    assert load_text([one, empty, one]).text == "1\n1"


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"empty\.txt is empty"):
        load_text(write(tmp_path / "empty.txt", ""))


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="every file name is Unicode there")
def test_a_file_whose_name_is_not_utf8_has_a_name_that_can_be_written(tmp_path):
    file = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(file)).write_text("text\n", encoding="utf-8")
    assert load_text(os.fsdecode(file)).name == "caf\ufffd.txt"


@pytest.mark.parametrize("chunk", [4, 2**20])
def test_bytes_that_are_not_utf8_are_named_with_their_offset(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text_files, "CHUNK_BYTES", chunk)
    data = "é".encode() * 5 + b"caf\xe9 noir"  # Latin-1 from here on
    with pytest.raises(CorpusError, match=r"latin\.txt is not UTF-8: byte 0xe9 at offset 13 "):
        load_text(write(tmp_path / "latin.txt", data))


@pytest.mark.parametrize("chunk", [1, 3, 2**20])
def test_a_character_cut_off_at_the_files_end_is_named_with_its_offset(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text_files, "CHUNK_BYTES", chunk)
    with pytest.raises(CorpusError, match=r"byte 0xf0 at offset 5 "):
        load_text(write(tmp_path / "cut.txt", b"hello" + "😀".encode()[:3]))


def test_utf16_is_called_by_its_name(tmp_path):
    with pytest.raises(CorpusError, match=r"UTF-16.*save it as UTF-8"):
        load_text(write(tmp_path / "a.txt", "hello".encode("utf-16")))


def test_a_binary_file_is_refused_with_the_offset_of_its_nul(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "CHUNK_BYTES", 4)
    with pytest.raises(CorpusError, match=r"binary file .*offset 6"):
        load_text(write(tmp_path / "program", b"MZ tex\0"))


def test_a_missing_file_is_refused_and_the_nearest_name_told(tmp_path):
    write(tmp_path / "shakespeare.txt", "text")
    with pytest.raises(CorpusError, match=r"no file or folder 'shakespear\.txt' \(did you mean 'shakespeare\.txt'\?\)"):
        load_text("shakespear.txt")


def test_a_missing_file_of_a_folder_that_exists_is_not_looked_for_on_the_hub(tmp_path):
    write(tmp_path / "books" / "hamlet", "text")
    with pytest.raises(CorpusError, match=r"did you mean '.*hamlet'"):
        load_text("books/hamle")


def test_a_missing_folder_is_told_apart_from_a_missing_file():
    with pytest.raises(CorpusError, match="nor a folder"):
        load_text("nowhere/at/all.txt")


def test_a_folder_without_text_is_refused(tmp_path):
    write(tmp_path / "pictures" / "a.png", b"\0")
    with pytest.raises(CorpusError, match=r"pictures'? holds no text file \(\.txt, \.md, \.jsonl"):
        load_text(tmp_path / "pictures")


def test_an_empty_list_is_refused():
    with pytest.raises(CorpusError, match="empty list"):
        load_text([])


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    write(tmp_path / "secret.txt", "text")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorpusError, match=r"secret\.txt cannot be read: Permission denied"):
        load_text("secret.txt")


@pytest.fixture
def hub(monkeypatch):
    """Stands for `datasets.load_dataset`; a test in the slower lane asks a server."""
    offered = {}

    def load_dataset(name, subset):
        if (name, subset) not in offered:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub.\nMore lines.")
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_dict(columns) for split, columns in offered[name, subset].items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return offered


def test_a_hub_dataset_is_its_rows_line_by_line_held_out_splits_last(hub, monkeypatch):
    monkeypatch.setattr(rows, "ROWS_AT_ONCE", 2)
    hub["owner/name", None] = {
        "test": {"text": ["5"], "id": [0]},
        "extra": {"text": ["6"], "id": [0]},
        "validation": {"text": ["4"], "id": [0]},
        "train": {"text": ["1", "2\n", None, "", "3"], "id": [0] * 5},
    }
    corpus = load_text("owner/name")
    assert corpus.name == "owner/name"
    assert corpus.text == "1\n2\n\n3\n4\n5\n6\n"


def test_the_only_column_of_strings_is_the_text(hub):
    hub["owner/name", "small"] = {"train": {"story": ["a"], "id": [0]}}
    assert load_text("owner/name", subset="small").text == "a\n"


def test_a_choice_of_columns_is_refused_with_their_names(hub):
    hub["owner/name", None] = {"train": {"title": ["a"], "story": ["b"], "id": [0]}}
    with pytest.raises(CorpusError, match=r"text_column .*\(title, story; all columns: title, story, id \(int64\)\)"):
        load_text("owner/name")
    assert load_text("owner/name", reading=ReadSettings(text_column="story")).text == "b\n"
    with pytest.raises(CorpusError, match="'id'"):
        load_text("owner/name", reading=ReadSettings(text_column="id"))


def test_a_dataset_that_the_hub_does_not_give_is_refused_in_one_line(hub):
    with pytest.raises(
        CorpusError, match=r"'owner/name' is no file here and cannot be loaded from the Hub: .*exist"
    ) as e:
        load_text("owner/name")
    assert "\n" not in str(e.value)
