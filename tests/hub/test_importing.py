"""`minigpt import`: what a source is, what its ids stand for, and that nothing is written unless all is well."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from minigpt import MiniGPTConfig, MiniGPTForCausalLM, MiniGPTTokenizer
from minigpt.cli import main
from minigpt.errors import UsageError
from minigpt.hub.importing import sources
from minigpt.hub.importing.sources import import_model
from minigpt.training.data.corpus import PLAYS
from tests.hub.double import Hub
from tests.hub.foreign_models import LectureBigram, LectureGPT, NanoGPT, save_nanogpt, sharpen, write

CHARACTERS = list("zyx wvuabc\n")
PROSE = PLAYS.read_text(encoding="utf-8")[:20_000]


def save_meta(path: Path, characters: list[str] = CHARACTERS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stoi = {character: index for index, character in enumerate(characters)}
    path.write_bytes(pickle.dumps({"vocab_size": len(stoi), "itos": dict(enumerate(characters)), "stoi": stoi}))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """nanoGPT's, of eleven characters."""
    (tmp_path / "out").mkdir()
    return save_nanogpt(NanoGPT(), tmp_path / "out" / "ckpt.pt")


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of GPT-2's kind: byte pairs, and its end of text, the last id, for every purpose."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=299, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator([PROSE], trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end, model_max_length=1024
    )
    folder = tmp_path_factory.mktemp("subwords")
    tokenizer.save_pretrained(folder)
    assert tokenizer.eos_token_id == 299
    return folder


# What the ids stand for


def test_meta_says_it_in_its_own_order(checkpoint: Path, tmp_path: Path) -> None:
    folder = import_model(checkpoint, tmp_path / "model", meta=save_meta(tmp_path / "elsewhere" / "meta.pkl"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, MiniGPTTokenizer)
    assert list(tokenizer.stoi) == CHARACTERS
    assert tokenizer("cab zyx")["input_ids"] == [CHARACTERS.index(character) for character in "cab zyx"]


def test_a_text_says_it_as_the_scripts_read_it(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "input.txt"
    text.write_bytes(b"abcuv\r\nwx yz")  # a line end is one character, whoever has written the file
    folder = import_model(checkpoint, tmp_path / "model", text=text)
    assert list(MiniGPTTokenizer.from_pretrained(folder).stoi) == sorted(CHARACTERS)


def test_a_meta_beside_the_checkpoint_is_found_and_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = save_meta(checkpoint.with_name("meta.pkl"))
    folder = import_model(checkpoint, tmp_path / "model")
    assert list(MiniGPTTokenizer.from_pretrained(folder).stoi) == CHARACTERS
    assert f"The characters of the ids are those of {meta}." in capsys.readouterr().err


@pytest.mark.parametrize("home", ["the checkpoint's", "here"])
def test_a_meta_is_found_where_nanogpt_keeps_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    root = tmp_path if home == "the checkpoint's" else tmp_path / "here"
    save_meta(root / "data" / "shakespeare_char" / "meta.pkl")
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    folder = import_model(checkpoint, tmp_path / "model")
    assert list(MiniGPTTokenizer.from_pretrained(folder).stoi) == CHARACTERS


def test_a_data_set_named_like_a_path_leads_nowhere(tmp_path: Path) -> None:
    save_meta(tmp_path / "meta.pkl")
    (tmp_path / "out").mkdir()
    checkpoint = save_nanogpt(NanoGPT(), tmp_path / "out" / "ckpt.pt", config={"dataset": "../../" + tmp_path.name})
    with pytest.raises(UsageError, match="does not say what they stand for"):
        import_model(checkpoint, tmp_path / "model")


def test_a_tokenizer_with_special_tokens_of_its_own_keeps_its_ids(checkpoint: Path, tmp_path: Path) -> None:
    mine = MiniGPTTokenizer.from_characters(CHARACTERS)
    mine.save_pretrained(tmp_path / "mine")
    folder = import_model(checkpoint, tmp_path / "model", tokenizer=str(tmp_path / "mine"))
    model, tokenizer = MiniGPTForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == mine.get_vocab()
    assert model.config.vocab_size == len(mine) == 14
    assert model.generation_config.suppress_tokens == [11, 12, 13]


@pytest.mark.door(
    "`minigpt import ckpt.pt`: nanoGPT's checkpoints of GPT-2's subwords: equal logits", "torch", "tokenizers"
)
@pytest.mark.parametrize(("vocab_size", "rows"), [(300, 301), (320, 320)], ids=["as it is", "rounded up"])
def test_subwords_keep_their_ids_and_their_logits(subwords: Path, tmp_path: Path, vocab_size: int, rows: int) -> None:
    oracle = sharpen(NanoGPT(vocab_size=vocab_size, bias=True, tied=False), std=1.0).double()
    folder = import_model(save_nanogpt(oracle, tmp_path / "ckpt.pt"), tmp_path / "model", tokenizer=str(subwords))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(subwords)
    assert tokenizer("the king's élan\n")["input_ids"] == theirs("the king's élan\n")["input_ids"]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.pad_token) == (299, 300, "<|pad|>")
    assert model.config.vocab_size == rows

    ids = torch.randint(0, vocab_size, (3, 8))
    torch.testing.assert_close(model(ids).logits[..., :vocab_size], oracle(ids), rtol=1e-10, atol=1e-10)
    inputs = tokenizer("the king", return_tensors="pt")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=30)[0].tolist()
    # Rows that only round the table up stand for no text: they are not written, and neither is padding.
    assert written == write(oracle, inputs["input_ids"][0].tolist(), 30, never=tuple(range(300, vocab_size)))
    assert tokenizer.decode(written) == theirs.decode(written)
    assert model.generation_config.suppress_tokens == list(range(300, rows))


@pytest.mark.parametrize("vocab_size", [50257, 50304])
def test_gpt2s_sizes_get_gpt2s_tokenizer_from_the_hub(
    vocab_size: int, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    put_gpt2(hub, tmp_path / "gpt2")
    oracle = NanoGPT(vocab_size=vocab_size, n_layer=1, n_head=1, n_embd=2)
    folder = import_model(save_nanogpt(oracle, tmp_path / "ckpt.pt"), tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (50256, 50257)
    assert model.config.vocab_size == max(vocab_size, 50258)
    assert model.generation_config.suppress_tokens == list(range(50257, model.config.vocab_size))
    ids = torch.randint(0, vocab_size, (1, 8))
    torch.testing.assert_close(model(ids).logits[..., :vocab_size], oracle(ids), rtol=1e-5, atol=1e-5)
    assert f"{vocab_size:,} ids: taking GPT-2's tokenizer, openai-community/gpt2." in capsys.readouterr().err


def put_gpt2(hub: Hub, folder: Path) -> None:
    """A tokenizer of GPT-2's size on the Hub, with words made up in place of its merges."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"<made up {index}>" for index in range(50_000))]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|endoftext|>"])}
    backend = Tokenizer(BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end).save_pretrained(
        folder
    )
    hub.create("openai-community/gpt2", **{path.name: path.read_bytes() for path in folder.iterdir()})


def test_without_the_hub_gpt2s_tokenizer_is_asked_for(tmp_path: Path) -> None:
    oracle = NanoGPT(vocab_size=50304, n_layer=1, n_head=1, n_embd=2)
    checkpoint = save_nanogpt(oracle, tmp_path / "ckpt.pt")
    with pytest.raises(
        OSError, match=r"^openai-community/gpt2 is neither a folder nor a tokenizer .*; give --tokenizer with"
    ):
        import_model(checkpoint, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def wrong_size(tmp_path: Path) -> dict[str, Any]:
    return {"meta": save_meta(tmp_path / "given" / "meta.pkl", CHARACTERS[:-1])}


def wrong_text(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "input.txt").write_text("twelve letters", encoding="utf-8")
    return {"text": tmp_path / "given" / "input.txt"}


def binary_text(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "input.txt").write_bytes(b"a\xff\x00")
    return {"text": tmp_path / "given" / "input.txt"}


def small_tokenizer(tmp_path: Path) -> dict[str, Any]:
    MiniGPTTokenizer.from_text("abcdefgh").save_pretrained(tmp_path / "given")  # eleven tokens, three of them special
    (tmp_path / "out" / "ckpt.pt").unlink()
    save_nanogpt(NanoGPT(vocab_size=12), tmp_path / "out" / "ckpt.pt")
    return {"tokenizer": tmp_path / "given"}


def large_tokenizer(tmp_path: Path) -> dict[str, Any]:
    MiniGPTTokenizer.from_text("abcdefghijkl").save_pretrained(tmp_path / "given")
    return {"tokenizer": tmp_path / "given"}


def no_tokenizer(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "given").mkdir()
    return {"tokenizer": tmp_path / "given"}


def config_alone(tmp_path: Path) -> dict[str, Any]:
    GPT2Config().save_pretrained(tmp_path / "given")
    return {"tokenizer": tmp_path / "given"}


def tokenizer_of_code(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}), encoding="utf-8"
    )
    (tmp_path / "given" / "mine.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    return {"tokenizer": tmp_path / "given"}


def both(tmp_path: Path) -> dict[str, Any]:
    return wrong_text(tmp_path) | {"meta": "meta.pkl"}


def missing(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "given").mkdir()
    return {"text": tmp_path / "given" / "input.txt"}


def none(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "given").mkdir()
    return {}


def none_that_fits(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "given").mkdir()
    save_meta(tmp_path / "out" / "meta.pkl", CHARACTERS[:-1])
    return {}


@pytest.mark.parametrize(
    ("give", "reason"),
    [
        (wrong_size, r"meta\.pkl has 10 different characters and \S+ckpt\.pt 11 ids; give the one"),
        (wrong_text, r"input\.txt has 8 different characters and \S+ckpt\.pt 11 ids; give the one"),
        (binary_text, r"input\.txt is not a text in UTF-8 \(.*\); .*save it as UTF-8"),
        (small_tokenizer, r"the tokenizer has 11 tokens and \S+ckpt\.pt 12 ids; give the one"),
        (large_tokenizer, r"the tokenizer has 15 tokens and \S+ckpt\.pt 11 ids; give the one"),
        (no_tokenizer, r"given holds no tokenizer; give --tokenizer with the folder or Hub id of its own"),
        (config_alone, r"given holds no tokenizer; give --tokenizer with the folder or Hub id of its own"),
        (tokenizer_of_code, r"tokenizer_config.json asks for code of its own, which no command runs"),
        (both, r"--meta and --text both say what the ids stand for; give one"),
        (missing, r"input\.txt cannot be read: No such file"),
        (none, r"has 11 ids and does not say what they stand for; give --meta meta\.pkl, --text .* or --tokenizer"),
        (none_that_fits, r"does not say what they stand for \(\S+meta\.pkl has another number\); give --meta"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, give: Any, reason: str
) -> None:
    given = give(tmp_path)
    with pytest.raises(UsageError, match=reason):
        import_model(checkpoint, tmp_path / "runs" / "model", **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "out"]


@pytest.mark.parametrize("oracle", [LectureGPT(), LectureBigram(), NanoGPT()], ids=lambda oracle: type(oracle).__name__)
def test_a_new_token_begins_as_unlikely_as_the_rarest(oracle: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(
        {"model": oracle.state_dict()} | ({"model_args": oracle.arguments} if isinstance(oracle, NanoGPT) else {}),
        tmp_path / "ckpt.pt",
    )
    model = AutoModelForCausalLM.from_pretrained(
        import_model(tmp_path / "ckpt.pt", tmp_path / "model", meta=save_meta(tmp_path / "meta.pkl"))
    )
    logits = model(torch.arange(11 * 88).view(-1, 8) ** 2 % 11).logits  # (121, 8, 14)
    likelihood = logits.softmax(-1).mean((0, 1))
    rarest = next(i for i in range(11) if torch.allclose(logits[..., 11:], logits[..., [i]], rtol=1e-4, atol=1e-4))
    assert likelihood[rarest] < 1.5 * likelihood[:11].min()  # it is found by a sample
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings[11:, :11], embeddings[rarest][:11].expand(3, -1))


# What a source is


def test_nanogpts_folder_is_its_checkpoint_and_the_default_output_has_its_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_meta(checkpoint.with_name("meta.pkl"))
    monkeypatch.chdir(tmp_path)
    assert import_model("out") == Path("runs/out")
    assert import_model("out/ckpt.pt") == Path("runs/ckpt")
    assert (tmp_path / "runs" / "ckpt" / "model.safetensors").is_file()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=300, bos_token_id=299, eos_token_id=299
    )
    return sharpen(GPT2LMHeadModel(config))


@pytest.mark.door("`minigpt import`: a stock GPT-2's folder: equal logits", "transformers")
@pytest.mark.parametrize("beside", [True, False], ids=["tokenizer beside it", "tokenizer elsewhere"])
def test_a_stock_models_folder_is_imported_with_its_tokenizer(subwords: Path, tmp_path: Path, beside: bool) -> None:
    stock = tiny_gpt2()
    stock.save_pretrained(tmp_path / "gpt2")
    if beside:
        shutil.copytree(subwords, tmp_path / "gpt2", dirs_exist_ok=True)
    else:
        with pytest.raises(UsageError, match=r"gpt2 holds no tokenizer; give --tokenizer"):
            import_model(tmp_path / "gpt2", tmp_path / "model")
    folder = import_model(tmp_path / "gpt2", tmp_path / "model", tokenizer=None if beside else subwords)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert isinstance(model, MiniGPTForCausalLM)
    ids = torch.randint(0, 300, (3, 16))
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-4, atol=1e-4)
    tokenizers = (AutoTokenizer.from_pretrained(path) for path in (folder, subwords))
    ours, theirs = (tokenizer("the king\n")["input_ids"] for tokenizer in tokenizers)
    assert ours == theirs


def test_a_stock_model_on_the_hub_is_imported(subwords: Path, tmp_path: Path, hub: Hub) -> None:
    stock = tiny_gpt2()
    stock.save_pretrained(tmp_path / "gpt2")
    shutil.copytree(subwords, tmp_path / "gpt2", dirs_exist_ok=True)
    hub.create("tester/gpt2", **{path.name: path.read_bytes() for path in (tmp_path / "gpt2").iterdir()})
    model = AutoModelForCausalLM.from_pretrained(import_model("tester/gpt2", tmp_path / "model")).eval()
    ids = torch.randint(0, 300, (1, 16))
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-4, atol=1e-4)


def minigpt(tmp_path: Path) -> Path:
    MiniGPTForCausalLM(MiniGPTConfig()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def nothing(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def numbers(tmp_path: Path) -> Path:
    torch.save([1, 2, 3], tmp_path / "numbers.pt")
    return tmp_path / "numbers.pt"


def another(tmp_path: Path) -> Path:
    torch.save({"fc1.weight": torch.zeros(2, 2)}, tmp_path / "another.pt")
    return tmp_path / "another.pt"


def half_safetensors(tmp_path: Path) -> Path:
    (tmp_path / "half.safetensors").write_bytes(b"\x00" * 4)
    return tmp_path / "half.safetensors"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (minigpt, r"model is a MiniGPT already; `minigpt generate \S+model` opens it"),
        (nothing, r"the folder \S+empty holds neither a ckpt\.pt nor a config\.json; name the file itself"),
        (numbers, r"numbers\.pt holds no weights \(list\); save them with torch\.save\(model\.state_dict\(\)"),
        (another, r"holds weights of another architecture \(fc1\.weight is one of them\)"),
        (half_safetensors, r"half\.safetensors is damaged, or no safetensors file"),
        (lambda tmp_path: "ckpt.pt", r"there is no file ckpt\.pt; check the name"),
        (lambda tmp_path: tmp_path / "model", r"there is no file \S+model; check the name"),
        (lambda tmp_path: "a/b/c", r"there is no file a/b/c; check the name"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=reason):
        import_model(source, tmp_path / "runs" / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_a_name_that_the_hub_does_not_know_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^tester/none is neither a folder nor a model that the Hub gives out"):
        import_model("tester/none", tmp_path / "runs" / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_damaged_config_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"model_type": "gp', encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"half.config\.json is not JSON \(Unterminated string starting at column 16\); put"
    ):
        import_model(tmp_path / "half", tmp_path / "runs" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_a_minigpt_on_the_hub_is_one_already(tmp_path: Path, hub: Hub) -> None:
    hub.create("tester/model", **{"config.json": MiniGPTConfig().to_json_string().encode()})
    with pytest.raises(UsageError, match=r"^tester/model is a MiniGPT already"):
        import_model("tester/model", tmp_path / "model")


@pytest.mark.parametrize("asked", [{"meta": "m.pkl"}, {"text": "t.txt"}, {"n_head": 2}, {"attention_scale": "n_embd"}])
def test_what_a_stock_model_says_itself_is_not_asked_for(tmp_path: Path, asked: dict[str, Any]) -> None:
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UsageError, match=rf"is a stock model and says it itself; leave --{next(iter(asked))} out"):
        import_model(tmp_path / "gpt2", tmp_path / "model", **asked)


# What is written


def test_an_output_that_holds_something_is_kept_unless_it_is_to_be_replaced(checkpoint: Path, tmp_path: Path) -> None:
    meta = save_meta(tmp_path / "meta.pkl")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="already holds something"):
        import_model(checkpoint, tmp_path / "model", meta=meta)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]
    import_model(checkpoint, tmp_path / "model", meta=meta, overwrite=True)
    assert (tmp_path / "model" / "config.json").is_file()
    assert (tmp_path / "model" / "mine").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("output", ["out", ".", "vocabulary"])
def test_what_is_read_is_never_replaced_by_what_is_made_of_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    meta = save_meta(tmp_path / "vocabulary" / "meta.pkl")
    with pytest.raises(UsageError, match=rf"^{output} holds \S+ itself; name another --output_dir"):
        import_model(checkpoint, output, meta=meta, overwrite=True)
    assert checkpoint.is_file()
    assert meta.is_file()


def test_the_same_checkpoint_gives_the_same_files_and_leaves_chance_alone(checkpoint: Path, tmp_path: Path) -> None:
    meta = save_meta(tmp_path / "meta.pkl")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = import_model(checkpoint, tmp_path / "first", meta=meta)
    assert torch.equal(torch.rand(3), expected)
    second = import_model(checkpoint, tmp_path / "second", meta=meta)
    names = sorted(path.name for path in first.iterdir())
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} < set(names)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_folder_that_does_not_come_back_as_written_is_taken_away(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_another(folder: Path, device: str) -> tuple[MiniGPTForCausalLM, PreTrainedTokenizerBase]:
        model = MiniGPTForCausalLM.from_pretrained(folder)
        torch.nn.init.zeros_(model.model.norm.weight)
        return model, AutoTokenizer.from_pretrained(folder)

    monkeypatch.setattr(sources, "open_trained", open_another)
    with pytest.raises(OSError, match=r"model\.norm\.weight was written and does not come back the same"):
        import_model(checkpoint, tmp_path / "runs" / "model", meta=save_meta(tmp_path / "meta.pkl"))
    assert list((tmp_path / "runs").iterdir()) == []


# The command


def test_the_command_imports_and_what_it_imports_writes_and_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text(PROSE, encoding="utf-8", newline="\n")
    oracle = LectureGPT(len(set(PROSE)))
    torch.save(oracle.state_dict(), "lecture.pt")
    asked = ["import", "lecture.pt", "--text", "input.txt", "--attention_scale", "n_embd", "--n_head", "3"]
    assert main([*asked, "--hidden_act", "gelu"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("model    runs/lecture\n", "")
    config = MiniGPTConfig.from_pretrained("runs/lecture")
    assert (config.hidden_act, config.num_attention_heads) == ("gelu", 3)
    assert main(["generate", "runs/lecture", "--prompt", "KING", "--max_new_tokens", "20"]) == 0
    assert len(capsys.readouterr().out) == 4 + 20 + 1
    assert main(["eval", "runs/lecture", "--data", "input.txt", "--split", "validation"]) == 0
    assert "input.txt, validation split, 1,999 tokens: loss " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["nothing.pt"], 2),
        (["ckpt.pt"], 2),
        (["ckpt.pt", "--meta", "meta.pkl", "--n_head", "7"], 2),
        (["ckpt.pt", "--meta", "meta.pkl", "--n_head", "none"], 2),
        (["ckpt.pt", "--meta", "meta.pkl", "--hidden_act", "gleu"], 2),
        (["ckpt.pt", "--meta", "meta.pkl", "--attention_scale", "C"], 2),
        (["tester/none"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_says_what_is_wrong_in_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], status: int
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    save_meta(checkpoint.parent / "other" / "meta.pkl").rename(checkpoint.parent / "other.pkl")
    argv = [{"meta.pkl": "other.pkl"}.get(word, word) for word in argv]
    assert main(["import", *argv]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("minigpt")
    assert printed.err.count("\n") == 1
    assert not Path("runs").exists()


def test_weights_of_a_training_that_diverged_are_refused(tmp_path: Path) -> None:
    oracle = NanoGPT()
    with torch.no_grad():
        oracle.transformer.wpe.weight[0, 0] = torch.nan
    checkpoint = save_nanogpt(oracle, tmp_path / "ckpt.pt")
    with pytest.raises(UsageError, match=r"ckpt\.pt holds weights that are not finite \(\S+\)"):
        import_model(checkpoint, tmp_path / "model", meta=save_meta(tmp_path / "meta.pkl"))
    assert not (tmp_path / "model").exists()


def test_an_empty_name_is_not_the_current_folder(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    for command in (["import", ""], ["export", "", "--to", "gpt2"]):
        assert main(command) == 2
        assert "the model's name is empty" in capsys.readouterr().err


def test_a_vocabulary_named_as_a_checkpoint_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    meta = save_meta(tmp_path / "meta.pkl")
    assert main(["import", str(meta), "--output_dir", str(tmp_path / "model")]) == 2
    assert capfd.readouterr().err == f"minigpt: {meta} is a vocabulary; name the checkpoint, and this with --meta.\n"
