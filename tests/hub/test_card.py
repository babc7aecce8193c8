"""Claims about the model card: its numbers are the run's, its lines run, and nobody's words are lost."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from minigpt import (
    BigramConfig,
    BigramForCausalLM,
    MiniGPTConfig,
    MiniGPTForCausalLM,
    MiniGPTForSequenceClassification,
    MiniGPTTokenizer,
    train,
)
from minigpt.errors import UsageError
from minigpt.hub.publishing.card import is_generated, model_card
from minigpt.hub.publishing.known_texts import KNOWN_TEXTS
from minigpt.hub.publishing.saved_folder import read_saved_folder
from minigpt.training.data.corpus import PLAYS
from minigpt.training.data.tiny_shakespeare import SHA256
from tests.hub.without_package import WITHOUT_PACKAGE

if TYPE_CHECKING:
    from tests.hub.double import Hub

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "diary.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    few = {"output_dir": str(folder / "run"), "max_steps": 4, "eval_interval": 2, "eval_iters": 1, "sample_length": 0}
    train(data=folder / "diary.txt", device="cpu", model=TINY, training=few)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def write_report(run: Path, report: dict[str, Any]) -> None:
    (run / "run.json").write_text(json.dumps(report), encoding="utf-8")


def changed(run: Path, **places: Any) -> ModelCard:
    """The card of the run with something else in the report: `losses__validation__loss=1` and the like."""
    report = report_of(run)
    for place, value in places.items():
        *path, last = place.split("__")
        inner = report
        for name in path:
            inner = inner[name]
        inner[last] = value
    write_report(run, report)
    return model_card(run)


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the content of each fenced block, as CommonMark reads them."""
    found: list[tuple[str, str]] = []
    fence, language, lines = "", "", []
    for line in re.split(r"\r\n|\r|\n", text):
        if not fence:
            if match := re.fullmatch(r"(`{3,})([^`]*)", line):
                fence, language, lines = match[1], match[2], []
        elif re.fullmatch(r"`+ *", line) and len(line.rstrip()) >= len(fence):
            found.append((language, "\n".join(lines)))
            fence = ""
        else:
            lines.append(line)
    assert not fence, "a block has no end"
    return found


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, as GitHub's Markdown reads them."""
    found = re.findall(r"^(?:\|.*\n)+", text, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", row)[1:-1] for row in rows.splitlines()] for rows in found]


PLACES = {
    "losses__validation__loss": (1.2345678, "1.2346"),
    "losses__validation__bits_per_character": (3.4567891, "3.4568"),
    "losses__validation__perplexity": (7.6543219, "7.654"),
    "losses__validation__targets": (987_654, "987,654"),
    "model__parameters": (31_337, "31,337"),
    "model__step": (4_321, "4,321"),
    "data__name": ("another.txt", "`another.txt`"),
    "data__bytes": (123_457, "123,457"),
    "data__characters": (123_456, "123,456"),
    "data__sha256": ("ab" * 32, "ab" * 32),
    "data__split_tokens__train": (111_222, "111,222"),
    "data__split_tokens__validation": (12_345, "12,345"),
    "training__steps": (5_432, "5,432 steps"),
    "training__tokens": (765_432, "765,432 tokens"),
    "training__seconds": (4_000.2, "67 min"),
    "training__tokens_per_second": (191.3, "191 tokens a second"),
    "training__learning_rate": (0.0123, "`0.0123`"),
    "hardware__name": ("Abacus 9000", "Abacus 9000"),
    "versions__torch": ("9.8.7", "torch 9.8.7"),
    "preset": ("best-of-all", "`best-of-all`"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_the_card_says_is_what_the_run_says(run: Path, place: str) -> None:
    value, said = PLACES[place]
    assert said not in model_card(run).content
    assert said in changed(run, **{place: value}).content


def test_every_setting_of_the_run_and_every_field_of_the_config_is_in_the_card(run: Path) -> None:
    report, config = report_of(run), json.loads((run / "config.json").read_text(encoding="utf-8"))
    rows = {name.strip(" `"): value.strip(" `") for table in tables(model_card(run).text) for name, value in table}
    for name, value in (report["training"] | config).items():
        if name not in ("architectures", "auto_map", "model_type", "transformers_version"):
            told = value if isinstance(value, str) else json.dumps(value).replace("null", "none")
            assert rows[name] == told, name


def test_card_says_what_the_run_was_trained_with_before_it_was_resumed_with_other_settings(run: Path) -> None:
    change = {"after_step": 2000, "before": {"learning_rate": 0.01, "seed": 1}, "after": {"learning_rate": 0.001}}
    told = "Until step 2,000, before it was resumed with these settings: `learning_rate` `0.01`, `seed` `1`."
    assert told not in model_card(run).content
    assert told in " ".join(changed(run, changes=[change]).content.split())


def test_results_are_of_the_run_and_say_what_the_split_is(run: Path) -> None:
    report = report_of(run)
    validation, split = report["losses"]["validation"], report["data"]["split_tokens"]
    results = {result.metric_type: result for result in model_card(run, "me/poet").data.eval_results}
    assert {kind: result.metric_value for kind, result in results.items()} == {
        "cross_entropy": pytest.approx(validation["loss"], abs=1e-6),
        "bits_per_character": pytest.approx(validation["bits_per_character"], abs=1e-6),
        "perplexity": pytest.approx(validation["perplexity"], abs=1e-6),
    }
    (told,) = {json.dumps(result.dataset_args) for result in results.values()}
    definition = f"the last {split['validation']} of {sum(split.values()):,} characters, the text's last tenth"
    assert json.loads(told) == {
        "definition": definition,
        "targets": validation["targets"],
        "sha256": report["data"]["sha256"],
    }


@pytest.mark.door("A model card that the Hub's validation takes, its results as `EvalResult`s", "huggingface_hub")
def test_metadata_passes_the_validation_of_the_hub_and_of_its_client(run: Path, hub: "Hub", tmp_path: Path) -> None:
    card = model_card(run, "me/poet")
    card.validate()
    assert hub.requested("POST /api/validate-yaml")
    card.save(tmp_path / "README.md")
    read = ModelCard.load(tmp_path / "README.md")
    assert read.content == card.content
    assert len(read.data.eval_results) == 3
    assert read.data.eval_results == card.data.eval_results
    index = eval_results_to_model_index(read.data.model_name, read.data.eval_results)
    assert model_index_to_eval_results(index) == ("poet", card.data.eval_results)
    assert (read.data.library_name, read.data.pipeline_tag) == ("transformers", "text-generation")
    assert read.data.tags == ["minigpt", "character-level", "custom_code"]


def test_loss_that_is_no_number_is_no_result(run: Path) -> None:
    card = changed(run, losses__validation__perplexity=None)
    assert [result.metric_type for result in card.data.eval_results] == ["cross_entropy", "bits_per_character"]
    assert "| perplexity | not a finite number |" in card.text


def test_the_known_texts_are_the_ones_that_we_train_on() -> None:
    import hashlib

    assert list(KNOWN_TEXTS) == [SHA256, hashlib.sha256(PLAYS.read_bytes()).hexdigest()]


def test_a_known_text_is_known_by_its_hash_under_any_name(run: Path) -> None:
    card = changed(run, data__sha256=SHA256, data__name="input.txt")
    assert (card.data.language, card.data.datasets) == ("en", ["karpathy/tiny_shakespeare"])
    assert "Tiny Shakespeare (`input.txt`): 40,000 lines" in card.text
    assert {result.dataset_type for result in card.data.eval_results} == {"karpathy/tiny_shakespeare"}


@pytest.mark.parametrize("name", ["plays", "tiny_shakespeare", "karpathy", "diary.txt"])
def test_nothing_is_claimed_about_a_persons_own_text(run: Path, name: str) -> None:
    card = changed(run, data__name=name)
    assert (card.data.language, card.data.datasets, card.data.license) == (None, None, None)
    assert "Shakespeare" not in card.text


def test_a_dataset_of_the_hub_is_linked(run: Path) -> None:
    card = changed(run, data__name="someone/old-letters")
    assert card.data.datasets == ["someone/old-letters"]
    assert "https://huggingface.co/datasets/someone/old-letters" in card.text


def test_a_checkpoint_chosen_on_the_validation_split_is_called_that(run: Path) -> None:
    assert "whatever its estimates on the way" in model_card(run).text
    card = changed(run, model__chosen_on_validation=True, model__step=2)
    assert "after step 2, chosen for the lowest estimate on this same split" in card.text
    assert "chosen on the split that it is judged by" in card.text


def test_a_better_checkpoint_than_the_model_is_mentioned(run: Path) -> None:
    best = {"step": 2, "estimate": 1.5, "checkpoint": "checkpoint-2", "validation": {"loss": 1.5432}}
    assert "The checkpoint after step 2 had the lowest estimate on the way, and a validation loss of 1.5432" in (
        changed(run, losses__best=best).text
    )


EVIL = "a`b``c```d````e\n```\n---\nlicense: mit\n---\n# Head\n</details>\n| x | y |\n~~~\n\n    four\n<script>\n"


def test_a_sample_stands_there_as_it_is_and_ends_no_block(run: Path) -> None:
    metadata = model_card(run).data.to_dict()
    (run / "sample.txt").write_text(EVIL, encoding="utf-8", newline="\n")
    card = model_card(run)
    assert blocks(card.text)[-1] == ("text", EVIL.rstrip("\n"))
    assert ModelCard(card.content).data.to_dict() == metadata
    assert card.text.rstrip().endswith("-->")


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_line_ends_of_a_sample_do_not_become_those_of_the_card(run: Path, end: str) -> None:
    (run / "sample.txt").write_bytes(f"one{end}two{end}".encode() * 300)
    card = model_card(run)
    assert "\r" not in card.content
    assert blocks(card.text)[-1][1].split() == ["one", "two"] * 300


NAMES = ["a|b`c``.txt", "[x](http://y) **z** <b>.txt", "---", ": {}#&*!%@", "\N{PILE OF POO} é.txt", "`", "a\nb\r---\n"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_can_break_neither_the_markdown_nor_the_metadata(run: Path, name: str) -> None:
    plain = changed(run, data__name="plain.txt", hardware__name="plain", preset="plain")
    card = changed(run, data__name=name, hardware__name=name, preset=name)
    read = ModelCard(card.content)
    assert {result.dataset_name for result in read.data.eval_results} == {" ".join(name.split())}
    assert [[len(row) for row in table] for table in tables(read.text)] == [
        [len(row) for row in table] for table in tables(plain.text)
    ]
    assert [language for language, _ in blocks(read.text)] == [language for language, _ in blocks(plain.text)]
    assert re.findall(r"^#.*", read.text, re.MULTILINE) == re.findall(r"^#.*", plain.text, re.MULTILINE)
    assert not re.search(r"(?<!\\)\[x\]\(", re.sub(r"(`+).*?\1", "", read.text))


def test_a_folder_of_any_name_gives_python_that_can_be_read(run: Path, tmp_path: Path) -> None:
    odd = Path(run.rename(tmp_path / 'it\'s "odd" ```'))
    for language, source in blocks(model_card(odd).text):
        if language == "python":
            compile(source, "card", "exec")


def test_a_model_saved_by_hand_gets_a_short_and_honest_card(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    model = MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), **TINY))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    card = model_card(tmp_path, "me/poet")
    assert f"with {model.num_parameters():,} parameters" in card.text
    assert "How this model was trained, and on what, is not recorded beside it." in card.text
    assert "## Results" not in card.text
    assert "loss.png" not in card.text
    assert (card.data.eval_results, card.data.datasets, card.data.language) == (None, None, None)
    assert card.data.pipeline_tag == "text-generation"


def test_tied_and_sharded_weights_are_counted_once(tmp_path: Path) -> None:
    model = MiniGPTForCausalLM(MiniGPTConfig(tie_word_embeddings=True, lm_head_bias=False, **TINY))
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert f"with {model.num_parameters():,} parameters" in model_card(tmp_path).text


def test_a_bigram_is_called_one(tmp_path: Path) -> None:
    BigramForCausalLM(BigramConfig(vocab_size=10)).save_pretrained(tmp_path)
    card = model_card(tmp_path)
    assert "bigram with 100 parameters" in card.text
    assert "looks one token back" in card.text
    assert card.data.tags == ["minigpt", "bigram", "custom_code"]


def test_a_head_is_opened_with_the_class_that_it_has(tmp_path: Path) -> None:
    MiniGPTForSequenceClassification(MiniGPTConfig(**TINY)).save_pretrained(tmp_path)
    card = model_card(tmp_path)
    assert card.data.pipeline_tag == "text-classification"
    assert 'AutoModelForSequenceClassification.from_pretrained("' in card.text
    assert "AutoModelForCausalLM" not in card.text


def test_subwords_are_not_called_characters(tmp_path: Path) -> None:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path)
    MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(tmp_path)
    card = model_card(tmp_path)
    assert "a context of 8 tokens" in card.text
    assert "character" not in card.text
    assert "character-level" not in card.data.tags


def test_characters_added_to_a_vocabulary_are_counted(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    known = len(set(TEXT))
    tokenizer.add_tokens([AddedToken("é", normalized=False), AddedToken("ß", normalized=False)])
    tokenizer.save_pretrained(tmp_path)
    MiniGPTForCausalLM(MiniGPTConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(tmp_path)
    assert f"It knows {known + 2} characters and no other" in model_card(tmp_path).text


def test_the_context_of_a_stock_model_is_a_limit(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1, n_positions=48)).save_pretrained(tmp_path)
    assert "It sees at most 48 tokens at a time." in model_card(tmp_path).text


def test_the_example_of_a_stock_model_writes_within_its_positions(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(TEXT)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 48}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=None, bos_token_id=None)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    card = model_card(tmp_path, str(tmp_path)).text
    (example,) = re.findall(r"```python\n(.*?pipeline.*?)```", card, re.DOTALL)
    exec(example, {})  # GPT-2 raises an IndexError past its last position


def test_a_loss_measured_above_quantized_weights_is_called_that(run: Path) -> None:
    assert "weights in" not in model_card(run).text
    base = {"name": "me/base", "revision": "abc", "sha256": "0" * 64, "vocabulary_added": 0, "load_in_bits": 4}
    assert "The loss was measured above weights in 4 bits" in changed(run, base=base).text


ORIGINS = {
    "gpt2 of the Hub": ("gpt2", "abc", "gpt2"),
    "with an owner": ("me/base", "abc", "me/base"),
    "a folder": ("/home/me/base", None, None),
    "a folder, published": ("base", None, None),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_base_is_on_the_hub_if_the_run_had_it_from_there(origin: str, run: Path) -> None:
    name, revision, on_the_hub = ORIGINS[origin]
    card = changed(run, base={"name": name, "revision": revision, "sha256": "0" * 64, "load_in_bits": None})
    assert card.data.base_model == on_the_hub


def test_a_whole_model_beside_an_adapter_is_one_whatever_its_weights_are_called(tmp_path: Path) -> None:
    adapter = {"base_model_name_or_path": "gpt2", "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    (tmp_path / "model-notes.safetensors").write_bytes(b"no weights of a model")
    assert read_saved_folder(tmp_path).published_type == "adapter"
    assert read_saved_folder(tmp_path).base_on_the_hub == "gpt2"
    MiniGPTForCausalLM(MiniGPTConfig(**TINY)).save_pretrained(tmp_path / "whole")
    (tmp_path / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    assert read_saved_folder(tmp_path).published_type == "adapter"
    (tmp_path / "pytorch_model.bin").write_bytes(b"a whole model's")
    (tmp_path / "model-notes.safetensors").unlink()
    assert read_saved_folder(tmp_path).published_type == "minigpt"


def test_a_stock_model_needs_no_code_of_ours(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    card = model_card(tmp_path)
    assert "trust_remote_code" not in card.text
    assert "minigpt" not in card.data.tags + card.text.split("<!--")[0].split()


def test_a_checkpoint_says_how_far_it_is_and_how_it_did(run: Path) -> None:
    (checkpoint,) = run.glob("checkpoint-4")
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    loss = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry][-1]
    card = model_card(checkpoint)
    assert "the model after step 4 of 4 of a training" in card.text
    assert f"| `eval_loss` | {loss:.4f} |" in card.text
    assert card.data.eval_results is None
    (checkpoint / "text.sha256").write_text(f"{SHA256}\n", encoding="utf-8")
    assert "Tiny Shakespeare: 40,000 lines" in model_card(checkpoint).text


@pytest.mark.parametrize("damage", ['{"losses": ', "[]", "{}", '{"preset": "seed", "model": null}'])
def test_a_damaged_report_is_refused_by_name(run: Path, damage: str) -> None:
    (run / "run.json").write_text(damage, encoding="utf-8")
    with pytest.raises(UsageError, match=r"run\.json") as refusal:
        model_card(run)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no model: it has no config\.json"):
        model_card(tmp_path)


HANDWRITTEN = "---\nlicense: cc0-1.0\nlanguage: de\n---\n\n# My poet\n\nIt rhymes.\n"


def test_a_persons_own_card_keeps_every_word_and_gets_what_the_hub_needs_to_know(run: Path) -> None:
    (run / "README.md").write_text(HANDWRITTEN, encoding="utf-8")
    card = model_card(run)
    assert card.text == "\n# My poet\n\nIt rhymes.\n"
    assert card.data.to_dict() == {
        "license": "cc0-1.0",
        "language": "de",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["minigpt", "character-level", "custom_code"],
    }


def test_a_persons_card_without_metadata_is_kept_too(run: Path) -> None:
    (run / "README.md").write_text("    code\n---\nIt rhymes.\n", encoding="utf-8")
    card = model_card(run)
    assert card.text.endswith("\n    code\n---\nIt rhymes.\n")
    assert card.data.library_name == "transformers"


def test_a_card_of_ours_is_written_anew(run: Path) -> None:
    first = model_card(run, "me/poet")
    (run / "README.md").write_text(first.content, encoding="utf-8")
    assert is_generated(first.content)
    assert model_card(run, "me/poet").content == first.content
    card = changed(run, losses__validation__loss=1.2345678, data__sha256=SHA256)
    assert "1.2346" in card.text
    assert card.data.language == "en"


@pytest.mark.parametrize("standing", ["in the folder", "in the repository", "in both"])
def test_a_licence_that_a_person_has_added_stays_and_the_text_is_written_anew(run: Path, standing: str) -> None:
    card = model_card(run, "me/poet")
    card.data.license = "mit"
    for _ in range(2):  # the second time over a card with it of our own making
        published = card.content if standing != "in the folder" else None
        if standing != "in the repository":
            (run / "README.md").write_text(card.content, encoding="utf-8")
        assert not is_generated(card.content)
        report = report_of(run)
        report["losses"]["validation"]["loss"] += 1
        write_report(run, report)
        card = model_card(run, "me/poet", published)
        assert card.data.license == "mit"
        assert f"{report['losses']['validation']['loss']:.4f}" in card.text


def test_a_repository_made_with_a_licence_and_tags_keeps_them(run: Path) -> None:
    card = model_card(run, "me/poet", "---\nlicense: mit\ntags:\n- rhymes\n---\n")
    again = model_card(run, "me/poet", card.content)
    for one in (card, again):
        assert one.data.license == "mit"
        assert one.data.tags == ["rhymes", "minigpt", "character-level", "custom_code"]
        assert "## Results" in one.text


def test_words_that_a_person_has_changed_stay(run: Path) -> None:
    changed_words = model_card(run).content.replace("## Limits", "## What it cannot do")
    card = model_card(run, "me/poet", changed_words)
    assert card.text.rstrip() + "\n" == ModelCard(changed_words).text.partition("<!--")[0].rstrip() + "\n"
    assert "-->" not in card.text
    assert not is_generated(changed_words)


def test_the_folders_own_card_goes_before_the_repositorys(run: Path) -> None:
    (run / "README.md").write_text("# From the folder\n", encoding="utf-8")
    card = model_card(run, "me/poet", "---\nlicense: mit\n---\n# From the repository\n")
    assert card.text.strip() == "# From the folder"
    assert card.data.license == "mit"


def test_other_line_ends_change_nothing_about_whose_card_it_is(run: Path) -> None:
    content = model_card(run).content.replace("\n", "\r\n")
    assert is_generated(content)


def test_the_form_that_a_models_own_push_leaves_is_filled_in(run: Path) -> None:
    """The same template and words as in transformers' `create_and_tag_model_card`."""
    described = "This is the model card of a transformers model. This model card has been automatically generated."
    form = ModelCard.from_template(ModelCardData(tags=[], library_name="transformers"), model_description=described)
    assert "## Results" in model_card(run, "me/poet", form.content).text
    filled = form.content.replace("[More Information Needed]", "Me", 1)
    assert "## Credit" not in model_card(run, "me/poet", filled).text


def test_metadata_that_cannot_be_read_is_refused_by_place(run: Path) -> None:
    broken = "---\nlicense: [mit\n---\n"
    with pytest.raises(UsageError, match=r"the card of me/poet cannot be read .*; correct it\.$"):
        model_card(run, "me/poet", broken)
    (run / "README.md").write_text(broken, encoding="utf-8")
    with pytest.raises(UsageError, match=r"README\.md cannot be read .*; correct it\.$"):
        model_card(run)


@pytest.mark.slow
@pytest.mark.door("The lines of a model card run in a fresh process without the package", "transformers")
def test_the_lines_of_the_card_run_as_they_stand(run: Path, hub: "Hub", tmp_path: Path) -> None:
    HfApi().create_repo("tester/poet")
    HfApi().upload_folder(repo_id="tester/poet", folder_path=run, ignore_patterns=["checkpoint-*"])
    model_card(run, "tester/poet").push_to_hub("tester/poet")
    published = hub.files("tester/poet")["README.md"].decode()
    python = [source for language, source in blocks(published) if language == "python"]
    assert len(python) == 3
    equal = """
import torch
from safetensors.torch import load_file
saved = load_file(sys.argv[1])
assert all(torch.equal(saved[name], weight) for name, weight in model.state_dict().items())
"""
    without, with_package = python[:2], python[2:]
    for source in (WITHOUT_PACKAGE + "\n".join(without), "import sys\n" + with_package[0]):
        result = subprocess.run(
            [sys.executable, "-c", source + equal, str(run / "model.safetensors")],
            env=hub.environment(token=None),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        if source.startswith(WITHOUT_PACKAGE):
            assert len(result.stdout) > 200
