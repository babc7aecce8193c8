import io
import json
import unicodedata
from pathlib import Path

import datasets
import pytest
import torch

from minigpt import MiniGPTTokenizer, import_model
from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.hub.loading import encode_prompt
from minigpt.tokenization.text_forms import convert, convert_pieces
from minigpt.tokenization.tokenization_minigpt import UnknownCharacterError
from minigpt.training.data.corpus import CorpusError, SplitSettings, load_text
from minigpt.training.data.read_settings import ReadSettings
from minigpt.training.data.tokens import tokenize_corpus

SHORT = ["--max_steps", "2", "--eval_iters", "1", "--sample_length", "0", "--device", "cpu"]
SMALL = ["--block_size", "8", "--n_embd", "8", "--n_head", "2", "--n_layer", "1"]
COMPOSED = "café naïve\n"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
# Line ends of all kinds, several marks on a letter, Hangul in pieces, marks that are sorted, and letters without words.
HARD = "a\r\nb\rc\n\r\n\re\u0301\u0323 \u1100\u1161\u11a8가\u11a8 は\u3099 \r\u0301\u0915\u093c\u09c7\u09be 漢字漢字\r"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(name, text):
    Path(name).write_bytes(text.encode())
    return name


@pytest.mark.parametrize("form", ["none", "nfc", "nfd"])
@pytest.mark.parametrize("newlines", ["keep", "unix"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_are_converted_as_python_converts_the_whole(newlines, form, size):
    pieces = [HARD[start : start + size] for start in range(0, len(HARD), size)]
    whole = io.StringIO(HARD, newline=None).read() if newlines == "unix" else HARD
    whole = whole if form == "none" else unicodedata.normalize(form.upper(), whole)
    assert "".join(convert_pieces(pieces, newlines, form)) == convert(HARD, newlines, form) == whole


def test_no_character_that_joins_the_one_before_is_cut_from_it():
    joining = [
        c for c in map(chr, range(0x110000)) if unicodedata.normalize("NFD", c)[1:] and not "\ud800" <= c <= "\udfff"
    ]
    for composed in joining:
        for form in ("nfc", "nfd"):
            letters = unicodedata.normalize("NFD", composed)
            assert "".join(convert_pieces(letters, "keep", form)) == unicodedata.normalize(form.upper(), letters)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_line_ends_are_kept_with_a_notice_unless_asked_otherwise(name):
    text = "one\r\ntwo\rthree\n"
    write(name, text if name == "a.txt" else json.dumps({"text": text}))
    corpus = load_text(name)
    assert corpus.text == text
    assert r"holds carriage returns (\r" in corpus.notice
    assert "2 times" in corpus.notice
    assert "--newlines unix" in corpus.notice
    kept, unix = (load_text(name, reading=ReadSettings(newlines=newlines)) for newlines in ("keep", "unix"))
    assert (kept.text, kept.notice) == (text, None)
    assert (unix.text, unix.notice) == ("one\ntwo\nthree\n", None)


def test_a_validation_file_is_read_in_the_same_form():
    write("a.txt", "one\r\n")
    write("b.txt", "two\r\n")
    corpus = load_text("a.txt", split=SplitSettings(validation_file=("b.txt",)), reading=ReadSettings(newlines="unix"))
    assert corpus.text == "one\ntwo\n"


@pytest.mark.parametrize(("field", "value"), [("newlines", "windows"), ("normalize", "nfkc")])
def test_a_form_that_there_is_not_is_refused(field, value):
    with pytest.raises(CorpusError, match=f"{field} is '{value}'; use one of"):
        ReadSettings(**{field: value})


@pytest.mark.parametrize(
    ("known", "text", "option"),
    [
        (COMPOSED, DECOMPOSED, "--normalize nfc, with which the vocabulary lacks nothing"),
        (DECOMPOSED, COMPOSED, "--normalize nfd, with which the vocabulary lacks nothing"),
        (COMPOSED, COMPOSED.replace("\n", "\r\n"), "--newlines unix, with which the vocabulary lacks nothing"),
        (COMPOSED, DECOMPOSED + "€", "--normalize nfc, with which the vocabulary lacks only '€'"),
        (COMPOSED, DECOMPOSED.replace("\n", "\r\n"), "--newlines unix --normalize nfc, with which .* nothing"),
    ],
)
def test_an_unknown_character_names_the_option_that_makes_the_text_known(known, text, option):
    tokenizer = MiniGPTTokenizer.from_text(known)
    with pytest.raises(UnknownCharacterError, match=f"add {option}"):
        tokenize_corpus(load_text(write("a.txt", text)), tokenizer)
    with pytest.raises(UnknownCharacterError, match="write the prompt in the form that --"):
        encode_prompt(tokenizer, text)


def test_a_character_that_no_form_explains_keeps_its_message():
    with pytest.raises(UnknownCharacterError, match="take out what is missing"):
        encode_prompt(MiniGPTTokenizer.from_text(COMPOSED), "€")


def test_a_run_its_evaluation_its_resumption_and_its_fine_tuning_read_in_one_form(tmp_path, capsys):
    text = COMPOSED * 20
    write("win.txt", unicodedata.normalize("NFD", text).replace("\n", "\r\n"))
    form = ["--newlines", "unix", "--normalize", "nfc"]
    command = ["train", "--data", "win.txt", "--output_dir", "run", *SMALL, *SHORT, "--lr_scheduler_type", "constant"]
    assert main([*command, *form, "--save_steps", "1"]) == 0
    report = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert report["data"]["characters"] == len(text)
    assert main([*command, "--resume_from_checkpoint", "run/checkpoint-1"]) == 0
    capsys.readouterr()
    for model in ("run", "run/checkpoint-1"):
        assert main(["eval", model, "--data", "win.txt", "--device", "cpu"]) == 0
        assert capsys.readouterr().err == ""
    write("other.txt", DECOMPOSED.replace("\n", "\r\n") * 10)
    for model in ("run", "run/checkpoint-1"):
        tuned = ["--data", "other.txt", "--output_dir", "tuned", "--overwrite", "--block_size", "4"]
        assert main(["finetune", model, *tuned, *SHORT]) == 0
    assert main(["eval", "tuned", "--data", "other.txt", "--device", "cpu"]) == 0


def test_fine_tuning_names_the_option_that_makes_a_text_known(capsys):
    write("a.txt", COMPOSED * 20)
    write("b.txt", DECOMPOSED * 20)
    assert main(["train", "--data", "a.txt", "--output_dir", "run", *SMALL, *SHORT]) == 0
    assert main(["finetune", "run", "--data", "b.txt", "--output_dir", "tuned", *SHORT]) == 2
    assert "add --normalize nfc, with which the vocabulary lacks nothing; or add them" in capsys.readouterr().err
    assert main(["eval", "run", "--data", "b.txt", "--device", "cpu"]) == 2
    assert "add --normalize nfc" in capsys.readouterr().err
    assert main(["eval", "run", "--data", "b.txt", "--device", "cpu", "--normalize", "nfc"]) == 0


def test_an_imported_models_text_is_scored_with_the_option_that_is_named(capsys):
    text = COMPOSED * 10
    write("win.txt", text.replace("\n", "\r\n"))
    torch.save({"token_embedding_table.weight": torch.zeros(len(set(text)), len(set(text)))}, "bigram.pt")
    assert main(["import", "bigram.pt", "--text", "win.txt", "--output_dir", "imported"]) == 0
    capsys.readouterr()
    evaluate = ["eval", "imported", "--data", "win.txt", "--device", "cpu"]
    assert main(evaluate) == 2
    assert "add --newlines unix, with which the vocabulary lacks nothing" in capsys.readouterr().err
    assert main([*evaluate, "--newlines", "unix"]) == 0


def test_an_import_reads_its_text_in_the_form_and_encoding_that_are_named():
    text = COMPOSED * 10
    torch.save({"token_embedding_table.weight": torch.zeros(len(set(text)), len(set(text)))}, "bigram.pt")
    write("nfd.txt", unicodedata.normalize("NFD", text))
    Path("latin.txt").write_bytes(text.encode("latin-1"))
    Path("wide.txt").write_bytes(text.encode("utf-16"))
    with pytest.raises(UsageError, match=r"nfd\.txt has .* add --normalize nfc, with which the text has as many"):
        import_model("bigram.pt", "imported", text="nfd.txt")
    with pytest.raises(UsageError, match=r"latin\.txt is not a text in UTF-8 .*--encoding"):
        import_model("bigram.pt", "imported", text="latin.txt")
    with pytest.raises(UsageError, match=r"wide\.txt is not UTF-8 but UTF-16 .*--encoding utf-16"):
        import_model("bigram.pt", "imported", text="wide.txt")
    with pytest.raises(UsageError, match="--encoding decides how --text is read"):
        import_model("bigram.pt", "imported", encoding="utf-16")
    for options in ({"text": "nfd.txt", "normalize": "nfc"}, {"text": "wide.txt", "encoding": "utf-16"}):
        import_model("bigram.pt", "imported", overwrite=True, **options)
        assert MiniGPTTokenizer.from_pretrained("imported").stoi.keys() == set(text)
