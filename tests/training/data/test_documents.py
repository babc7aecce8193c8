"""Texts that consist of documents: each ends with the EOS token, and none is parted."""

import json
import math
import random
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

from minigpt import (
    InstructionSettings,
    LoraSettings,
    ReadSettings,
    SplitSettings,
    export_model,
    finetune,
    load_text,
    tokenize_corpus,
    train,
)
from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.hub.loading import open_trained
from minigpt.hub.publishing.card import model_card
from minigpt.training.data import corpus as corpus_module
from minigpt.training.data.corpus import CorpusError
from minigpt.training.data.tokens import characters_per_token, training_text
from minigpt.training.data.vocabulary import Vocabulary

MARKER = "<|endoftext|>"
SMALL = {"n_embd": 16, "n_layer": 1, "n_head": 2, "block_size": 8}
SHORT = {"max_steps": 4, "per_device_train_batch_size": 4, "eval_interval": 2, "eval_iters": 1, "sample_length": 20}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def names(number=300):
    """Pronounceable names in alphabetical order."""
    chance = random.Random(0)
    made = set()
    while len(made) < number:
        made.add("".join(chance.choice("bdfgklmnr") + chance.choice("aeiou") for _ in range(chance.randint(2, 4))))
    return sorted(name.capitalize() for name in made)


def documents(source, rule, **split):
    """The documents of both splits, in order."""
    corpus = load_text(source, reading=ReadSettings(documents=rule), split=SplitSettings(**split))
    train = "".join(training_text(corpus))
    parts = [part.split(MARKER) for part in (train, corpus.text.removeprefix(train))]
    assert [part.pop() for part in parts] == ["", ""]  # each document is ended
    assert [corpus.train_documents, corpus.num_documents] == [len(parts[0]), len(parts[0] + parts[1])]
    return parts


def run(data, rule="lines", **training):
    reading = ReadSettings(documents=rule)
    return train("seed", data, reading=reading, device="cpu", model=SMALL, training=SHORT | training)


def tune(base, data, **options):
    training = SHORT | {"output_dir": "tuned"}
    return finetune(base, data, reading=ReadSettings(documents="lines"), device="cpu", training=training, **options)


def test_lines_are_documents_without_their_ends_and_blank_ones_are_not(tmp_path):
    write("names.txt", "Ann\r\n\r\nBo b\n \nCy")
    train, validation = documents("names.txt", "lines")
    assert sorted(train + validation) == ["Ann", "Bo b", "Cy"]
    notice = load_text("names.txt", reading=ReadSettings(documents="lines")).notice
    assert notice == "names.txt: 2 blank documents are left out."


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved", "folder"])
def test_rows_are_documents_exactly_as_they_are(kind):
    texts = ["one\ntwo\n", "three", " four, ", "fünf"]
    rows = datasets.Dataset.from_dict({"text": texts})
    if kind == "folder":
        Path("folder").mkdir()
        rows.to_parquet("folder/a.parquet")
    elif kind == "saved":
        rows.save_to_disk("rows.saved")
    else:
        getattr(rows, {"jsonl": "to_json"}.get(kind, f"to_{kind}"))(f"rows.{kind}")
    train, validation = documents("folder" if kind == "folder" else f"rows.{kind}", "rows")
    assert sorted(train + validation) == sorted(texts)


def test_files_are_documents_exactly_as_they_are():
    write("books/a.txt", "one\ntwo\n")
    write("books/b.txt", "three")
    write("books/c.txt", "\n")
    train, validation = documents("books", "files")
    assert sorted(train + validation) == ["one\ntwo\n", "three"]


@pytest.mark.parametrize("size", [1, 5, 2**20])
def test_separators_end_documents_and_a_line_end_after_one_belongs_to_it(monkeypatch, size):
    monkeypatch.setattr("minigpt.training.data.text_files.CHUNK_BYTES", size)
    write("stories/a.txt", f"one\n{MARKER}\ntwo\n\n{MARKER}{MARKER}\r\nthree{MARKER}\n")
    write("stories/b.txt", "four < five")
    train, validation = documents("stories", "separator")
    assert sorted(train + validation) == ["four < five", "one\n", "three", "two\n\n"]


def test_a_marker_inside_a_document_ends_it_there_too_and_is_reported():
    write("rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in (f"a{MARKER}\nb", "c", "d")))
    train, validation = documents("rows.jsonl", "rows")
    assert sorted(train + validation) == ["a", "b", "c", "d"]
    notice = load_text("rows.jsonl", reading=ReadSettings(documents="rows")).notice
    assert notice == f"rows.jsonl: {MARKER} is inside 1 of its rows and ends a document there too."


def test_documents_are_shuffled_with_a_seed_and_held_back_whole():
    write("names.txt", "\n".join(names()))
    train, validation = documents("names.txt", "lines", validation_fraction=0.2)
    assert (len(train), len(validation)) == (240, 60)
    assert sorted(train + validation) == names()
    assert train != sorted(train)
    assert documents("names.txt", "lines", validation_fraction=0.2) == [train, validation]
    assert documents("names.txt", "lines", validation_fraction=0.2, split_seed=1) != [train, validation]


def test_given_splits_are_kept_in_their_order():
    write("lists/train.txt", "one\ntwo\nthree\n")
    write("lists/valid.txt", "four\nfive")
    write("lists/test.txt", "never")
    assert documents("lists", "lines") == [["one", "two", "three"], ["four", "five"]]
    assert documents("lists/train.txt", "lines", validation_file=("lists/valid.txt",)) == documents("lists", "lines")


def test_the_validation_split_of_a_hub_dataset_is_held_back_and_its_test_split_is_not_read(monkeypatch):
    offered = {"train": ["one", "two\n2"], "test": ["never"], "validation": ["three"]}

    def load_dataset(name, subset):
        return datasets.DatasetDict({one: datasets.Dataset.from_dict({"text": rows}) for one, rows in offered.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert documents("owner/name", "rows") == [["one", "two\n2"], ["three"]]
    assert load_text("owner/name", reading=ReadSettings(documents="rows")).notice == (
        "owner/name: leaving out the split test."
    )
    with pytest.raises(CorpusError, match=r"comes with a validation split \(validation\)"):
        documents("owner/name", "rows", validation_fraction=0.5)
    del offered["validation"]
    offered["train"] += ["four"]
    train, validation = documents("owner/name", "lines")
    assert sorted(train + validation) == ["2", "four", "one", "two"]


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        ("rows", "a\nb\n", r"a\.txt has no rows, .*; use --documents lines, files or separator\."),
        ("lines", "\n \n", r"a\.txt is empty"),
        ("words", "a\n", r"documents is 'words'; use one of lines, rows, files, separator\."),
    ],
)
def test_a_text_without_such_documents_is_refused(rule, text, reason):
    write("a.txt", text)
    with pytest.raises(CorpusError, match=reason):
        load_text("a.txt", reading=ReadSettings(documents=rule))


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("separator", r" \(it holds no <\|endoftext\|> between two\)"),
        ("files", ""),
    ],
)
def test_a_single_document_is_refused_before_anything_is_trained(rule, reason):
    write("a.txt", "some words\n" * 100)
    with pytest.raises(CorpusError, match=rf"a\.txt is a single document with --documents {rule}{reason} and none"):
        run("a.txt", rule, output_dir="run")
    assert not Path("run/run.json").exists()


def test_another_split_by_is_refused():
    write("a.txt", "a\nb\n")
    with pytest.raises(CorpusError, match=r"split_by is 'line' .*leave split_by out"):
        load_text("a.txt", reading=ReadSettings(documents="lines"), split=SplitSettings(split_by="line"))


@pytest.mark.parametrize("rule", ["lines", "separator"])
@pytest.mark.parametrize(
    "kind", ["char", "bpe", pytest.param("sentencepiece", marks=pytest.mark.extra("sentencepiece"))]
)
@pytest.mark.parametrize("size", [40, 2**20])
def test_the_tokens_are_those_of_the_tokenizer_for_the_whole_text(tmp_path, monkeypatch, kind, rule, size):
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", size)
    text = [f"{name} <|endoftex and ünd {name}s" for name in names(80)]
    write("a.txt", (MARKER + "\n" if rule == "separator" else "\n").join(text))
    corpus = load_text("a.txt", reading=ReadSettings(documents=rule))
    tokenizer = Vocabulary(kind, None if kind == "char" else 300).learn(corpus)
    tokens = tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path)
    train, validation = ([token for row in tokens[split]["tokens"] for token in row] for split in tokens)
    assert train + validation == tokenizer(corpus.text)["input_ids"]
    assert validation.count(tokenizer.eos_token_id) == 8
    assert train[-1] == validation[-1] == tokenizer.eos_token_id
    characters = sum(len(text) + 1 for text in corpus.text.split(MARKER)[-9:-1])  # EOS is one
    per_token = characters_per_token(corpus, tokens["validation"])
    assert per_token * len(validation) == pytest.approx(characters)


@pytest.mark.parametrize("kind", ["bpe", pytest.param("sentencepiece", marks=pytest.mark.extra("sentencepiece"))])
def test_no_subword_is_learned_from_markers_or_across_them(kind):
    write("a.txt", "\n".join(f"x{name}y" for name in names(200)))
    corpus = load_text("a.txt", reading=ReadSettings(documents="lines"))
    tokenizer = Vocabulary(kind, 330).learn(corpus)
    learned = set(tokenizer.get_vocab()) - {"<unk>", *tokenizer.all_special_tokens}
    assert not [token for token in learned if "endo" in token or "|" in token[1:] or "yx" in token]


def test_an_unknown_character_is_named_with_its_place_in_the_text(tmp_path):
    from minigpt import MiniGPTTokenizer

    write("a.txt", "ab\nac\nb!")
    corpus = load_text("a.txt", reading=ReadSettings(documents="lines"))
    with pytest.raises(ValueError, match=f"'!' .* position {corpus.text.index('!')}"):
        tokenize_corpus(corpus, MiniGPTTokenizer.from_text("abc"), cache_dir=tmp_path)


@pytest.mark.parametrize(
    "kind", ["char", "bpe", pytest.param("sentencepiece", marks=pytest.mark.extra("sentencepiece"))]
)
def test_without_documents_the_marker_is_text_for_every_vocabulary(tmp_path, kind):
    write("a.txt", "\n".join(f"{name}{MARKER}" for name in names(80)))
    corpus = load_text("a.txt")
    said = "a.txt holds <|endoftext|> 80 times, as 13 ordinary characters each; --documents separator makes it the end"
    assert corpus.notice == f"{said} of a document."
    tokenizer = Vocabulary(kind, None if kind == "char" else 310).learn(corpus)
    tokens = tokenize_corpus(corpus, tokenizer, cache_dir=tmp_path)
    ids = [token for split in ("train", "validation") for row in tokens[split]["tokens"] for token in row]
    assert not {*ids} & {*tokenizer.all_special_ids}
    assert tokenizer.decode(ids) == corpus.text
    # The same text with documents is another entry of the cache.
    split = load_text("a.txt", reading=ReadSettings(documents="separator"))
    assert tokenizer.eos_token_id in tokenize_corpus(split, tokenizer, cache_dir=tmp_path)["train"]["tokens"][0]


def test_a_file_that_spells_a_documents_run_is_another_text(tmp_path):
    write("a.txt", "one\ntwo\nthree\nfour")
    corpus = load_text("a.txt", reading=ReadSettings(documents="lines"))
    write("b.txt", corpus.text)
    plain = load_text("b.txt", split=SplitSettings(validation_fraction=0.27))
    assert (plain.sha256, plain.split_sha256 == corpus.split_sha256) == (corpus.sha256, False)


def test_a_run_learns_eos_records_documents_and_is_evaluated_by_its_own_rule(capsys):
    write("names.txt", "\n".join(names()))
    done = run("names.txt", output_dir="run")
    assert "270 documents (lines) to train on, 30 to validate, each ended by EOS" in capsys.readouterr().out
    data = json.loads(Path("run/run.json").read_text(encoding="utf-8"))["data"]
    assert (data["reading"]["documents"], data["split_documents"]) == ("lines", {"train": 270, "validation": 30})
    assert data["characters"] == sum(len(name) + 1 for name in names())
    settings, eos = GenerationConfig.from_pretrained("run"), done.tokenizer.eos_token_id
    assert (settings.bos_token_id, settings.eos_token_id, eos in settings.suppress_tokens) == (eos, eos, False)
    losses = done.report["losses"]["validation"]
    assert losses["bits_per_character"] == pytest.approx(losses["loss"] / math.log(2))
    card = model_card("run").content
    assert "30 of its 300 documents (lines), shuffled with seed 42" in card
    assert "Unedited, from the EOS token on, each document on a new line" in card
    assert main(["eval", "run", "--data", "names.txt", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"names.txt, validation split, {data['split_tokens']['validation'] - 1:,} tokens")
    assert f"loss {losses['loss']:.4f} " in said
    write("two.txt", f"Kalo{MARKER}Mi")
    assert main(["eval", "run", "--data", "two.txt", "--documents", "separator", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("two.txt, all of it, 7 tokens")
    write("one.txt", "Kalo\n")
    assert main(["eval", "run", "--data", "one.txt", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("one.txt, all of it, 4 tokens")


def test_fine_tuning_a_model_of_documents_without_them_names_the_option(capsys):
    write("names.txt", "\n".join(names()))
    run("names.txt", output_dir="run")
    capsys.readouterr()
    with pytest.raises(UsageError, match="lacks"):
        finetune("run", "names.txt", device="cpu", training=SHORT | {"output_dir": "tuned"})
    assert "run was trained on documents; add --documents lines if" in capsys.readouterr().out
    tune("run", "names.txt")
    assert "add --documents" not in capsys.readouterr().out


def test_a_run_on_rows_is_scored_on_the_lines_of_a_text_without_rows(capsys):
    write("names.jsonl", "".join(json.dumps({"text": name}) + "\n" for name in names()))
    run("names.jsonl", rule="rows", output_dir="run")
    write("two.txt", "Kalo\nMi\n")
    capsys.readouterr()
    assert main(["eval", "run", "--data", "two.txt", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("two.txt, all of it, 7 tokens")


def test_a_model_of_names_begins_ends_and_lists_them(capsys):
    write("names.txt", "\n".join(["Ann", "Bob"] * 50))
    model = SMALL | {"n_embd": 32}
    training = SHORT | {"max_steps": 150, "learning_rate": 1e-2, "eval_interval": 150, "output_dir": "run"}
    train("seed", "names.txt", reading=ReadSettings(documents="lines"), device="cpu", model=model, training=training)
    sample = Path("run/sample.txt").read_text(encoding="utf-8").split("\n")
    assert len(sample) > 100  # it goes on to the next name
    assert sum(name in ("Ann", "Bob") for name in sample) > 0.95 * len(sample)
    network, tokenizer = open_trained("run", "cpu")
    torch.manual_seed(0)
    written = network.generate(num_return_sequences=20)  # from BOS
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    assert sum(text in ("Ann", "Bob") for text in texts) >= 18
    capsys.readouterr()
    assert main(["generate", "run", "--seed", "0", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.strip()) < 20


@pytest.mark.slow
def test_an_alphabetical_list_has_the_same_loss_on_both_splits():
    write("names.txt", "\n".join(names(3000)))
    training = {"max_steps": 300, "learning_rate": 1e-2, "eval_interval": 300, "eval_iters": 100}
    done = run("names.txt", **training, output_dir="run")
    last = done.report["losses"]["curves"][-1]
    assert abs(last["train"] - last["validation"]) < 0.05
    plain = train("seed", "names.txt", device="cpu", model=SMALL, training=SHORT | training | {"output_dir": "plain"})
    last = plain.report["losses"]["curves"][-1]
    assert last["validation"] - last["train"] > 0.2


def test_fine_tuning_on_documents_lets_a_plain_model_end_its_text(tmp_path):
    write("names.txt", "\n".join(names()))
    base = train("seed", "names.txt", device="cpu", model=SMALL, training=SHORT | {"output_dir": "base"})
    eos = base.tokenizer.eos_token_id
    assert eos in GenerationConfig.from_pretrained("base").suppress_tokens
    done = tune("base", "names.txt")
    settings = GenerationConfig.from_pretrained("tuned")
    assert (settings.bos_token_id, settings.eos_token_id, eos in settings.suppress_tokens) == (eos, eos, False)
    assert done.report["data"]["split_documents"] == {"train": 270, "validation": 30}


@pytest.mark.extra("peft")
def test_an_adapter_trained_on_documents_opens_with_eos_enabled():
    write("names.txt", "\n".join(names()))
    train("seed", "names.txt", device="cpu", model=SMALL, training=SHORT | {"output_dir": "base"})
    tune("base", "names.txt", lora=LoraSettings())
    model, tokenizer = open_trained("tuned", "cpu")
    settings, eos = model.generation_config, tokenizer.eos_token_id
    assert (settings.bos_token_id, settings.eos_token_id, eos in settings.suppress_tokens) == (eos, eos, False)


@pytest.mark.parametrize("to", ["gpt2", pytest.param("gguf", marks=pytest.mark.extra("gguf"))])
def test_an_export_begins_and_ends_documents_with_eos(to):
    write("names.txt", "\n".join(names()))
    training = SHORT | {"output_dir": "run"}
    model = SMALL | {"hidden_act": "gelu_new"}
    reading = ReadSettings(documents="lines")
    eos = train(
        "nano-cpu", "names.txt", reading=reading, device="cpu", model=model, training=training
    ).tokenizer.eos_token_id
    folder = export_model("run", to)
    if to == "gpt2":
        settings = GenerationConfig.from_pretrained(folder)
        assert (settings.bos_token_id, settings.eos_token_id, eos in settings.suppress_tokens) == (eos, eos, False)
        assert settings.sequence_bias is None
    else:
        from gguf import GGUFReader

        fields = GGUFReader(next(Path(folder).glob("*.gguf"))).fields
        known = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("bos_token_id", "eos_token_id")}
        assert known == {"bos_token_id": eos, "eos_token_id": eos}
        assert eos not in fields["tokenizer.ggml.suppress_tokens"].contents()


def test_a_stock_model_is_fine_tuned_with_its_own_eos(tmp_path):
    write("names.txt", "\n".join(names()))
    corpus = load_text("names.txt")
    tokenizer = Vocabulary("bpe", 300).learn(corpus)
    tokenizer.add_special_tokens({"eos_token": "</s>", "pad_token": "</s>"})
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=len(tokenizer))
    GPT2LMHeadModel(config).save_pretrained("base")
    tokenizer.save_pretrained("base")
    done = tune("base", "names.txt")
    eos = AutoTokenizer.from_pretrained("tuned").eos_token_id
    assert done.tokenizer.convert_ids_to_tokens(eos) == "</s>"
    settings = GenerationConfig.from_pretrained("tuned")
    assert settings.bos_token_id == eos
    assert eos in ([settings.eos_token_id] if isinstance(settings.eos_token_id, int) else settings.eos_token_id)
    assert done.report["losses"]["validation"]["targets"] > 30


def test_documents_do_not_go_with_conversations(capsys):
    assert main(["finetune", "base", "--sft", "--data", "plays", "--documents", "lines"]) == 2
    assert capsys.readouterr().err.count("leave them out with --sft") == 1
    with pytest.raises(UsageError, match=r"documents 'lines' is for a text, .*leave it out with --sft"):
        finetune("base", "plays", reading=ReadSettings(documents="lines"), instruction=InstructionSettings())
