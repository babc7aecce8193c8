import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from minigpt.errors import UsageError
from minigpt.tokenization.subword import train_bpe
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.data.batches import IGNORED
from minigpt.training.data.chat_template import CHAT_TEMPLATE, give_chat_template
from minigpt.training.data.conversations import load_conversations
from minigpt.training.data.labels import label_rows
from minigpt.training.data.text_files import CorpusError

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;'!?\n"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who is there?"},
    {"role": "assistant", "content": "Nay, answer me."},
    {"role": "user", "content": "Long live the king!"},
    {"role": "assistant", "content": "Bernardo?"},
]


@pytest.fixture(params=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "char":
        return MiniGPTTokenizer.from_text(LETTERS, chat_template=CHAT_TEMPLATE)
    talk = " ".join(turn["content"] for turn in TALK)
    return train_bpe([f"user: assistant: {talk}\n"] * 20, 300, chat_template=CHAT_TEMPLATE)


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "talk.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def labelled(tokenizer: Any, ids: list[int], labels: list[int]) -> list[str]:
    """The stretches of text that have labels."""
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    stretches: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


def test_only_what_the_assistant_says_is_learned_and_where_it_ends(tokenizer: Any, tmp_path: Path) -> None:
    (row,) = label_rows(load_conversations(write(tmp_path, {"messages": TALK})), tokenizer, 300).dataset
    assert tokenizer.decode(row["input_ids"]) == (
        "system: Be brief.\nuser: Who is there?\nassistant: Nay, answer me.<|endoftext|>\n"
        "user: Long live the king!\nassistant: Bernardo?<|endoftext|>\n"
    )
    said = labelled(tokenizer, row["input_ids"], row["labels"])
    assert said == [" Nay, answer me.<|endoftext|>", " Bernardo?<|endoftext|>"]


def test_a_prompt_for_generation_is_how_a_learned_answer_began(tokenizer: Any, tmp_path: Path) -> None:
    (row,) = label_rows(load_conversations(write(tmp_path, {"messages": TALK[:3]})), tokenizer, 300).dataset
    prompt = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True, return_dict=False)
    first = next(at for at, label in enumerate(row["labels"]) if label != IGNORED)
    assert row["input_ids"][:first] == prompt


def test_an_answer_is_shown_to_the_model_again_as_it_gave_it(tokenizer: Any) -> None:
    given = [turn | {"content": f" {turn['content']}"} if turn["role"] == "assistant" else turn for turn in TALK]
    written = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    again = tokenizer.apply_chat_template(given, return_dict=True, return_assistant_tokens_mask=True)
    assert again == written
    assert sum(written["assistant_masks"]) > 0


def test_of_a_prompt_and_its_completion_only_the_completion_is_learned(tokenizer: Any, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"prompt": TALK[:4], "completion": TALK[4:]},
        {"prompt": "Who is there?", "completion": " Bernardo."},
        {"prompt": "", "completion": "Long live the king!"},
    )
    talk, bare, whole = label_rows(load_conversations(file), tokenizer, 300).dataset
    assert labelled(tokenizer, talk["input_ids"], talk["labels"]) == [" Bernardo?<|endoftext|>"]
    assert tokenizer.decode(bare["input_ids"]) == "Who is there? Bernardo.<|endoftext|>"
    assert labelled(tokenizer, bare["input_ids"], bare["labels"]) == [" Bernardo.<|endoftext|>"]
    assert whole["labels"] == [IGNORED, *whole["input_ids"][1:]]  # nothing is before the first token


@pytest.mark.parametrize("row", [{"messages": TALK}, {"prompt": "Who is there?", "completion": " Bernardo."}])
def test_a_tokenizer_that_loses_what_is_said_is_refused(tmp_path: Path, row: Any) -> None:
    tokenizer = train_bpe(["user: assistant: who is there? nay, answer me.\n"] * 20, 280, chat_template=CHAT_TEMPLATE)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(CorpusError, match=r"loses text of talk\.jsonl, line 1: from character 0 on, '(Be|Who).* comes"):
        label_rows(load_conversations(write(tmp_path, row)), tokenizer, 300)


def test_all_is_learned_where_that_is_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    read = load_conversations(write(tmp_path, {"messages": TALK}))
    (row,) = label_rows(read, tokenizer, 300, assistant_only_loss=False).dataset
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]


def test_long_rows_are_refused_or_cut_and_counted(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(LETTERS, chat_template=CHAT_TEMPLATE)
    short = {"prompt": "a", "completion": "b"}
    long = {"prompt": "a", "completion": "b" * 40}
    hopeless = {"prompt": "a" * 30, "completion": "b"}
    read = load_conversations(write(tmp_path, short, "", long, hopeless))
    with pytest.raises(CorpusError, match=r"^2 of 3 rows .* block of 20 .* talk\.jsonl, line 3, with 42\); cut them"):
        label_rows(read, tokenizer, 20)
    rows = label_rows(read, tokenizer, 20, truncate=True)
    assert [len(row["input_ids"]) for row in rows.dataset] == [3, 20]
    assert (rows.num_cut, rows.num_left_out) == (2, 1)
    with pytest.raises(CorpusError, match=r"no row of talk\.jsonl has an answer within its first 20 tokens"):
        label_rows(load_conversations(write(tmp_path, hopeless)), tokenizer, 20, truncate=True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"messages": [', r"line 2 is not JSON \(.+ at column \d+\); write one JSON object on each line, or"),
        ("[1]", "line 2 is a list, not an object"),
        ({"text": "a"}, 'line 2 has \'text\'; a row has "messages", "prompt" and "completion", ShareGPT'),
        ({"messages": "a"}, "line 2 has 'messages' that is a string; write a list of turns"),
        ({"messages": [{"role": "user"}]}, "line 2: turn 1 of 'messages' has no text"),
        (
            {"messages": [{"role": "king", "content": "a"}]},
            "turn 1 of 'messages' has the role 'king', not system, user",
        ),
        ({"messages": TALK[:2]}, "line 2 has no assistant turn; only those are trained on, so add one or take the row"),
        ({"messages": []}, "line 2 has no assistant turn"),
        ({"prompt": TALK[:3], "completion": TALK[3:4]}, "line 2 has no assistant turn"),
        ({"prompt": "a", "completion": ""}, "line 2 has an empty completion"),
    ],
)
def test_a_wrong_row_is_refused_by_file_and_line(row: Any, reason: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"messages": TALK}, row)
    with pytest.raises(CorpusError, match=rf"^talk\.jsonl, {reason}" if reason.startswith("line") else reason):
        load_conversations(file)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="There is no file"):
        load_conversations(tmp_path / "none.jsonl")
    with pytest.raises(CorpusError, match="holds no conversation"):
        load_conversations(write(tmp_path, "", ""))
    (tmp_path / "talk.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(CorpusError, match="line 1 is not UTF-8"):
        load_conversations(tmp_path / "talk.jsonl")


def test_characters_outside_the_vocabulary_are_refused_by_name(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(LETTERS, chat_template=CHAT_TEMPLATE)
    read = load_conversations(write(tmp_path, {"prompt": "a", "completion": "1 é"}))
    with pytest.raises(CorpusError, match=r"line 1 has what the vocabulary lacks \('1', 'é'\)"):
        label_rows(read, tokenizer, 30)
    composes = MiniGPTTokenizer.from_text(LETTERS + "é", chat_template=CHAT_TEMPLATE)
    with pytest.raises(
        CorpusError, match=r"the form that --normalize nfc gives a text, .* lacks nothing; or take it out"
    ):
        label_rows(load_conversations(write(tmp_path, {"prompt": "a", "completion": "e\u0301"})), composes, 30)
    lacks_a_colon = MiniGPTTokenizer.from_text(LETTERS.replace(":", ""), chat_template=CHAT_TEMPLATE)
    with pytest.raises(CorpusError, match=r"lacks \(':'\)"):
        label_rows(load_conversations(write(tmp_path, {"messages": TALK})), lacks_a_colon, 300)


def test_a_template_that_does_not_mark_answers_is_refused_where_they_alone_are_learned(tmp_path: Path) -> None:
    tokenizer = MiniGPTTokenizer.from_text(LETTERS)
    read = load_conversations(write(tmp_path, {"messages": TALK}))
    with pytest.raises(UsageError, match="has no chat template"):
        label_rows(read, tokenizer, 300)
    unmarked = "{% for message in messages %}{{ message.role + ':' + message.content }}{% endfor %}"
    tokenizer.chat_template = unmarked
    assert not give_chat_template(tokenizer)
    with pytest.raises(UsageError, match=r"has no \{% generation %\} marks"):
        label_rows(read, tokenizer, 300)
    assert len(label_rows(read, tokenizer, 300, assistant_only_loss=False).dataset) == 1
    tokenizer.chat_template = None
    assert give_chat_template(tokenizer)
    assert len(label_rows(read, tokenizer, 300).dataset) == 1


def test_a_template_by_which_no_answer_would_end_is_refused(tmp_path: Path) -> None:
    endless = CHAT_TEMPLATE.replace(" + eos_token", "")
    assert endless != CHAT_TEMPLATE
    tokenizer = MiniGPTTokenizer.from_text(LETTERS, chat_template=endless)
    with pytest.raises(UsageError, match=r"ends no answer with <\|endoftext\|>.* would never stop; write it before"):
        label_rows(load_conversations(write(tmp_path, {"messages": TALK})), tokenizer, 300)


def test_an_empty_answer_is_refused(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "well"}, {"role": "assistant", "content": ""}]
    with pytest.raises(CorpusError, match=r"line 1: turn 2 is an empty answer; fill it or take the row out"):
        load_conversations(write(tmp_path, {"messages": messages}))


SPELLED = "say <|endoftext|> now"


def test_a_bare_row_that_spells_the_end_of_text_does_not_hold_it(tmp_path: Path) -> None:
    knowing = MiniGPTTokenizer.from_text(LETTERS + "<|>")
    subwords = train_bpe([SPELLED] * 20, 270)
    rows = load_conversations(write(tmp_path, {"prompt": SPELLED, "completion": SPELLED}))
    for tokenizer in (knowing, subwords):
        (row,) = label_rows(rows, tokenizer, 300).dataset
        assert row["input_ids"].count(tokenizer.eos_token_id) == 1
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == SPELLED * 2


def test_characters_of_a_control_token_are_unknown_like_others(tmp_path: Path) -> None:
    rows = load_conversations(write(tmp_path, {"prompt": SPELLED, "completion": "b"}))
    with pytest.raises(CorpusError, match=r"line 1 has what the vocabulary lacks \('<', '>', '\|'\)"):
        label_rows(rows, MiniGPTTokenizer.from_text(LETTERS), 300)


def test_a_turn_that_spells_a_control_token_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": SPELLED}, {"role": "assistant", "content": "b"}]
    with pytest.raises(CorpusError, match=r"line 1: turn 1 spells <\|endoftext\|>, .*; take it out"):
        label_rows(load_conversations(write(tmp_path, {"messages": turns})), tokenizer, 300)
