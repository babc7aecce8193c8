"""Fine-tuning goes on with any causal language model, on any text that its vocabulary has or is extended by."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from minigpt.cli import main
from minigpt.cli.finetune import main as main_finetune
from minigpt.hub.adapter_folders import base_sha256
from minigpt.hub.publishing.push import push_folder
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.base_model import check_loss
from minigpt.training.data.added_characters import extend_vocabulary
from minigpt.training.data.corpus import CorpusError, load_text
from minigpt.training.data.token_stream import TokenStream
from minigpt.training.data.tokens import tokenize_corpus
from minigpt.training.evaluation import validation_loss
from minigpt.training.finetune import finetune
from minigpt.training.train import train

SHORT = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "eval_interval": 2,
    "eval_iters": 1,
    "save_steps": 2,
    "learning_rate": 1e-2,
    "sample_length": 0,
    "use_cpu": True,
}
FLAGS = ["--max_steps", "4", "--eval_interval", "2", "--eval_iters", "1", "--sample_length", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def base(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    train(
        "seed",
        str(text_file),
        device="cpu",
        model={"n_embd": 8, "n_layer": 1, "n_head": 2, "block_size": 8},
        training={**SHORT, "output_dir": str(folder), "save_strategy": "no"},
    )
    return folder


@pytest.fixture
def prose(tmp_path):
    """A text of the base's characters, but not its text."""
    file = tmp_path / "prose.txt"
    file.write_text("a good king is a sweet lord.\nof thee my crown is dead.\n" * 100, encoding="utf-8")
    return file


def bytes_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def exact_loss(folder, text, block_size):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenize_corpus(load_text(text), tokenizer)
    return validation_loss(model, TokenStream(tokens["validation"]), block_size).loss


def test_it_begins_where_the_base_has_ended_and_leaves_it_as_it_was(base, prose, tmp_path):
    before, loss = bytes_in(base), exact_loss(base, prose, 8)
    run = finetune(base, str(prose), training={**SHORT, "output_dir": str(tmp_path / "run"), "learning_rate": 0.0})
    assert run.validation.loss == pytest.approx(loss, abs=1e-6)
    ours, theirs = load_file(tmp_path / "run" / "model.safetensors"), load_file(base / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert bytes_in(base) == before


def test_it_learns_the_new_text_and_its_folder_is_like_any_runs(base, prose, tmp_path):
    run = finetune(base, str(prose), training={**SHORT, "output_dir": str(tmp_path / "run"), "max_steps": 20})
    report = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert run.validation.loss < exact_loss(base, prose, 8) - 0.1
    assert report["losses"]["validation"]["loss"] == pytest.approx(exact_loss(run.folder, prose, 8), abs=1e-6)
    assert report["base"]["name"] == str(base)
    assert report["base"]["sha256"] == base_sha256(base)
    assert report["data"]["name"] == "prose.txt"
    assert {"loss.png", "sample.txt", "config.json", "tokenizer.json"} <= {path.name for path in run.folder.iterdir()}


def test_a_resumed_fine_tuning_ends_as_the_uninterrupted_one(base, prose, tmp_path):
    whole = {**SHORT, "output_dir": str(tmp_path / "whole")}
    finetune(base, str(prose), training=whole)
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    resumed = {**whole, "output_dir": str(tmp_path / "again")}
    resumed["resume_from_checkpoint"] = str(tmp_path / "checkpoint-2")
    finetune(base, str(prose), training=resumed)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_tokenizer_that_opens_as_a_class_that_loses_text_is_refused_before_training(prose, tmp_path):
    alphabet = sorted(set(prose.read_text(encoding="utf-8")))
    backend = Tokenizer(models.BPE({character: place for place, character in enumerate(alphabet)}, merges=[]))
    backend.decoder = decoders.Fuse()
    # By this config transformers opens a `Qwen2Tokenizer`, which cuts text at spaces and has no ids for them.
    config = Qwen2Config(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen2")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "qwen2")
    lost = (
        r"\(Qwen2Tokenizer\) loses text of prose.txt: from character 1 on, ' good king is a swee' comes back as 'good"
    )
    with pytest.raises(CorpusError, match=lost):
        finetune(tmp_path / "qwen2", str(prose), block_size=8, training={**SHORT, "output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run" / "model.safetensors").exists()


def byte_level_tokenizer(text, **special):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", **special)


def gpt2(vocab_size):
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_positions=16, n_embd=8, n_layer=1, n_head=2))


def llama(vocab_size):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            max_position_embeddings=16,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )


@pytest.mark.door("`minigpt finetune`: a stock GPT-2 or Llama folder, with its own tokenizer", "transformers")
@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_stock_model_stays_of_its_kind_and_learns_with_its_own_tokenizer(build, prose, tmp_path):
    tokenizer = byte_level_tokenizer(prose.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = build(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "stock")
    run = finetune(tmp_path / "stock", str(prose), training={**SHORT, "output_dir": str(tmp_path / "run")})
    saved = AutoModelForCausalLM.from_pretrained(run.folder)
    assert type(saved) is type(model)
    assert run.validation.loss == pytest.approx(exact_loss(run.folder, prose, 16), abs=1e-6)
    assert run.validation.loss < exact_loss(tmp_path / "stock", prose, 16)
    assert AutoTokenizer.from_pretrained(run.folder).get_vocab() == tokenizer.get_vocab()


def test_weights_saved_in_half_precision_are_trained_in_whole(base, prose, tmp_path):
    AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
    run = finetune(tmp_path / "half", str(prose), training={**SHORT, "output_dir": str(tmp_path / "run")})
    weights = load_file(run.folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_model_of_the_hub_is_named_with_its_commit(base, prose, hub, tmp_path, monkeypatch):
    push_folder(base, "tester/base")
    run = finetune("tester/base", str(prose), training={**SHORT, "output_dir": str(tmp_path / "run")})
    described = run.report["base"]
    assert described["name"] == "tester/base"
    assert len(described["revision"]) == 40
    assert described["sha256"] == base_sha256(base)


def test_characters_that_the_vocabulary_lacks_are_all_listed_before_any_work(base, tmp_path, capsys):
    file = tmp_path / "menu.txt"
    file.write_text("crème brûlée 7€\n" * 50, encoding="utf-8")
    assert main(["finetune", str(base), "--data", str(file), "--output_dir", str(tmp_path / "run"), *FLAGS]) == 2
    error = capsys.readouterr().err
    for character in "bè7û€é":
        assert repr(character) in error
    assert "7 characters" not in error
    assert "--extend_vocabulary" in error
    assert not (tmp_path / "run").exists()


def test_added_characters_leave_every_old_id_its_meaning(base, text_file):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    text = text_file.read_text(encoding="utf-8")[:8]
    old_ids, old_vocabulary = tokenizer(text, return_tensors="pt"), tokenizer.get_vocab()
    old_logits = model(**old_ids).logits
    extend_vocabulary(model, tokenizer, ["\t", "é", "😀"])
    ids = tokenizer(text, return_tensors="pt")
    assert torch.equal(ids["input_ids"], old_ids["input_ids"])
    assert {token: index for token, index in tokenizer.get_vocab().items() if token in old_vocabulary} == old_vocabulary
    logits = model(**ids).logits
    assert logits.shape[-1] == len(tokenizer) == len(old_vocabulary) + 3
    assert torch.equal(logits[..., : len(old_vocabulary)], old_logits)


def test_an_extended_model_writes_and_reads_the_new_characters(base, tmp_path):
    file = tmp_path / "new.txt"
    text = "the king\tof é 😀.\n"
    file.write_text(text * 60, encoding="utf-8")
    run = finetune(
        base, str(file), extend_vocabulary=True, training={**SHORT, "output_dir": str(tmp_path / "run"), "max_steps": 8}
    )
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    assert isinstance(tokenizer, MiniGPTTokenizer)
    assert tokenizer.decode_array(tokenizer.encode_array(text)) == text
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert run.report["base"]["vocabulary_added"] == 3
    assert run.validation.loss == pytest.approx(exact_loss(run.folder, file, 8), abs=1e-6)
    assert main(["generate", str(run.folder), "--prompt", "é\t😀", "--max_new_tokens", "5", "--device", "cpu"]) == 0


def test_a_byte_level_vocabulary_lacks_nothing(prose, tmp_path):
    tokenizer = byte_level_tokenizer(prose.read_text(encoding="utf-8"))
    for part in (gpt2(len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "stock")
    file = tmp_path / "menu.txt"
    file.write_text("crème brûlée 7€\n" * 50, encoding="utf-8")
    run = finetune(tmp_path / "stock", str(file), training={**SHORT, "output_dir": str(tmp_path / "run")})
    assert run.report["base"]["vocabulary_added"] == 0


def characters_only(characters, **special):
    """A stock tokenizer that knows these characters, and not the bytes of any other."""
    known = [*special.values(), *sorted(characters)]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(known)}, [], **special))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize("special", [{}, {"unk_token": "<unk>"}], ids=["dropped", "unknown"])
def test_a_stock_vocabulary_that_would_lose_characters_is_refused_or_extended(special, tmp_path):
    text = "schön und gut.\n"
    file = tmp_path / "de.txt"
    file.write_text(text * 100, encoding="utf-8")
    tokenizer = characters_only(set(text) - {"ö", "g"}, **special)
    for part in (gpt2(len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "stock")
    training = {**SHORT, "output_dir": str(tmp_path / "run")}
    with pytest.raises(ValueError, match=r"has 2 characters .* lacks: 'g' \(U\+0067\), 'ö' \(U\+00F6\)"):
        finetune(tmp_path / "stock", str(file), training=training)
    run = finetune(tmp_path / "stock", str(file), extend_vocabulary=True, training=training)
    assert sum(run.report["data"]["split_tokens"].values()) == len(text) * 100
    assert run.tokenizer.decode(run.tokenizer(text)["input_ids"]) == text


def test_a_model_that_sees_what_comes_after_is_refused(base, prose, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for part in (BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **small)), tokenizer):
        part.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="looks at what comes after a token, so it is no causal language model"):
        finetune(tmp_path / "bert", str(prose), training={**SHORT, "output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_going_on_with_another_block_is_refused(base, prose, tmp_path):
    training = {**SHORT, "output_dir": str(tmp_path / "run")}
    run = finetune(base, str(prose), block_size=4, training=training)
    assert run.report["training"]["block_size"] == 4
    with pytest.raises(ValueError, match="has block_size 4 and this run 8"):
        finetune(base, str(prose), training={**training, "resume_from_checkpoint": True})


def test_an_extended_fine_tuning_goes_on_and_extends_once_more(base, tmp_path):
    for name, text in (("new", "the king\tof é.\n"), ("newer", "the king\tof é 😀.\n")):
        (tmp_path / f"{name}.txt").write_text(text * 60, encoding="utf-8")
    training = {**SHORT, "output_dir": str(tmp_path / "run"), "save_total_limit": None}
    whole = finetune(base, str(tmp_path / "new.txt"), extend_vocabulary=True, training=training)
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    again = {
        **training,
        "output_dir": str(tmp_path / "again"),
        "resume_from_checkpoint": str(tmp_path / "checkpoint-2"),
    }
    resumed = finetune(base, str(tmp_path / "new.txt"), extend_vocabulary=True, training=again)
    assert resumed.validation == whole.validation
    more = finetune(
        whole.folder,
        str(tmp_path / "newer.txt"),
        extend_vocabulary=True,
        training={**training, "output_dir": str(tmp_path / "more")},
    )
    assert more.report["base"]["vocabulary_added"] == 1
    assert more.tokenizer.stoi.items() > whole.tokenizer.stoi.items()


def test_what_is_replaced_leaves_no_weights_behind(base, prose, tmp_path):
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "run", max_shard_size="2KB")
    assert list((tmp_path / "run").glob("model-*-of-*.safetensors"))
    finetune(base, str(prose), overwrite=True, training={**SHORT, "output_dir": str(tmp_path / "run")})
    assert [file.name for file in (tmp_path / "run").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_checkpoints_default_folder_says_whose_it_is(base, prose, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finetune(base, str(prose), training={**SHORT, "output_dir": "runs/first"})
    second = finetune(run.folder / "checkpoint-2", str(prose), training=SHORT)
    assert second.folder.as_posix() == "runs/first-checkpoint-2-finetuned"


def test_a_loss_of_other_targets_is_refused(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    check_loss(model, "base")
    forward = model.forward
    model.forward = lambda *args, shift_labels=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ValueError, match="shift_labels"):
        check_loss(model, "base")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--block_size", "9"], "block_size is 9 and the model takes at most 8 tokens"),
        (["--block_size", "0"], "block_size must be at least 1"),
        (["--output_dir", "{base}"], "which is to be fine-tuned; name another --output_dir"),
        (["--lora", "--extend_vocabulary"], "does not go with --lora"),
        (["--lora_r", "4"], "add --lora"),
        (["--load_in_4bit", "--load_in_8bit"], "not allowed with argument --load_in_4bit"),
        (["--lora", "--lora_alpha", "inf"], "lora_alpha must be a number above 0, got inf"),
        (["--truncate"], "add --sft"),
        (["--sft", "--data", "a.jsonl", "b.jsonl"], "one source of conversations, got 2"),
        (["--learning_rte", "1"], "did you mean --learning_rate?"),
        (["--fp16"], "say bf16 instead"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_and_nothing_is_written(
    options, reason, base, prose, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if {"--lora", "--sft"} & set(options):
        monkeypatch.setattr("minigpt.hub.extras.find_spec", lambda name: True)
    before = bytes_in(base)
    data = [] if "--data" in options else ["--data", str(prose)]
    status = main(["finetune", str(base), *data, *FLAGS, *(option.format(base=base) for option in options)])
    error = capsys.readouterr().err
    assert status in (1, 2)
    assert reason in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    assert bytes_in(base) == before


@pytest.mark.parametrize(
    ("options", "extra"),
    [(["--lora"], "lora"), (["--load_in_4bit"], "qlora"), (["--sft"], "sft")],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(options, extra, base, prose, capsys, monkeypatch):
    monkeypatch.setattr("minigpt.hub.extras.find_spec", lambda name: None)
    assert main(["finetune", str(base), "--data", str(prose), *FLAGS, *options]) == 2
    assert f"pip install 'minigpt-hf[{extra}]'" in capsys.readouterr().err


def test_going_on_with_another_base_is_refused(base, prose, text_file, tmp_path):
    training = {**SHORT, "output_dir": str(tmp_path / "run")}
    finetune(base, str(prose), training=training)
    other = AutoModelForCausalLM.from_pretrained(base)
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="began with another base"):
        finetune(tmp_path / "other", str(prose), training={**training, "resume_from_checkpoint": True})


def test_help_is_short_and_says_how_to_see_all(capsys):
    with pytest.raises(SystemExit):
        main_finetune(["--help"])
    out = capsys.readouterr().out
    assert "--lora" in out
    assert "--help_all" in out
    assert "--adam_beta1" not in out


def test_a_terminal_gets_a_bar_of_the_training_and_none_of_the_loading(base, prose, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["finetune", str(base), "--data", str(prose), "--output_dir", str(tmp_path / "run"), *FLAGS]) == 0
    error = capsys.readouterr().err
    assert "training" in error
    assert "4/4" in error
    assert "Loading weights" not in error
