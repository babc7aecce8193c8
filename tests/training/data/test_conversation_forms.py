"""Conversations in every form that people keep them in, and the labels that they get."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from minigpt.errors import CorpusError, UsageError
from minigpt.tokenization.subword import train_bpe
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.data.batches import IGNORED
from minigpt.training.data.chat_template import CHAT_TEMPLATE
from minigpt.training.data.conversations import load_conversations
from minigpt.training.data.labels import label_rows
from minigpt.training.instruction import prepare_instruction

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;'!?\n"
# A template in the manner of Qwen's, whose end of a turn is not the end of text.
CHATML = (
    "{% for message in messages %}{{ '[' + message.role + ']' }}{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content + eos_token }}{% endgeneration %}{% else %}{{ message.content + ';' }}{% endif %}{% endfor %}"
)

# One conversation. The pieces are what our template writes, and whether they are trained on.
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "Nay, answer me."},
        {"role": "user", "content": "Say\nking"},
        {"role": "assistant", "content": "Bernardo?"},
    ]
}
PIECES = [
    ("system: Be brief.\nuser: Who is there?\nassistant:", False),
    (" Nay, answer me.", True),
    (None, True),
    ("\nuser: Say\nking\nassistant:", False),
    (" Bernardo?", True),
    (None, True),
    ("\n", False),
]
SHAREGPT = {
    "id": "a",
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Who is there?"},
        {"from": "gpt", "value": "Nay, answer me."},
        {"from": "human", "value": "Say\nking"},
        {"from": "gpt", "value": "Bernardo?"},
    ],
}
SPELLED_OTHERWISE = {
    "system": "Be brief.",
    "conversations": [
        {"role": "User", "content": "Who is there?", "weight": None},
        {"from": "chatgpt", "value": "Nay, answer me.", "weight": 1.0},
        {"from": "Human", "value": "Say\nking", "weight": 0.0},
        {"role": "model", "content": "Bernardo?", "tool_calls": None},
    ],
    "tools": "[]",
}
ALPACA = {
    "system": "Be brief.",
    "history": [["Who is there?", "Nay, answer me."]],
    "instruction": "Say",
    "input": "king",
    "output": "Bernardo?",
}
WHOLE_INSTRUCTION = ALPACA | {"instruction": "Say\nking", "input": "", "text": "### Instruction: Say"}
FORMS = {
    "messages": MESSAGES,
    "ShareGPT": SHAREGPT,
    "ShareGPT, spelled otherwise": SPELLED_OTHERWISE,
    "ShareGPT under messages": {"messages": SHAREGPT["conversations"]},
    "Alpaca": ALPACA,
    "Alpaca without an input": WHOLE_INSTRUCTION,
}


def json_lines(folder: Path, rows: list[Any]) -> Path:
    file = folder / "talk.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def json_array(folder: Path, rows: list[Any]) -> Path:
    file = folder / "talk.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def pretty_array_with_a_byte_order_mark(folder: Path, rows: list[Any]) -> Path:
    file = folder / "talk.json"
    file.write_text(f"\n{json.dumps(rows, indent=2)}\n", encoding="utf-8-sig")
    return file


def parquet(folder: Path, rows: list[Any]) -> Path:
    file = folder / "talk.parquet"
    datasets.Dataset.from_list(rows).to_parquet(file)
    return file


def saved_to_disk(folder: Path, rows: list[Any]) -> Path:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "talk")
    return folder / "talk"


@pytest.fixture
def characters() -> MiniGPTTokenizer:
    return MiniGPTTokenizer.from_text(LETTERS, chat_template=CHAT_TEMPLATE)


def ids_and_labels(tokenizer: MiniGPTTokenizer, pieces: list[tuple[str | None, bool]]) -> dict[str, list[int]]:
    """Return the row that pieces of a text spell, character by character; None is the EOS token."""
    ids, labels = [], []
    for text, is_trained in pieces:
        piece = [tokenizer.eos_token_id] if text is None else [tokenizer.stoi[character] for character in text]
        ids += piece
        labels += piece if is_trained else [IGNORED] * len(piece)
    return {"input_ids": ids, "labels": labels}


def stretches(tokenizer: Any, labels: list[int]) -> list[str]:
    """Return the text of each stretch of labels."""
    found: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [tokenizer.decode(stretch) for stretch in found if stretch]


@pytest.mark.parametrize("write", [json_lines, json_array, pretty_array_with_a_byte_order_mark, parquet, saved_to_disk])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_kind_of_file_is_the_same_conversation(
    form: str, write: Callable[[Path, list[Any]], Path], characters: MiniGPTTokenizer, tmp_path: Path
) -> None:
    read = load_conversations(write(tmp_path, [FORMS[form]] * 2))
    assert list(label_rows(read, characters, 300).dataset) == [ids_and_labels(characters, PIECES)] * 2


def test_cells_of_csv_are_text_whatever_they_look_like(characters: MiniGPTTokenizer, tmp_path: Path) -> None:
    rows = [("instruction", "input", "output"), ('Say "NA",\nnow', "", "None"), ("null", "NA", "nan")]
    with (tmp_path / "talk.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)
    read = load_conversations(tmp_path / "talk.csv")
    assert [[turn["content"] for turn in row.messages] for row in read.rows] == [
        ['Say "NA",\nnow', "None"],
        ["null\nNA", "nan"],
    ]
    assert read.notice == "talk.csv: converted 2 Alpaca of 2 rows to messages."


def test_a_mixed_file_is_read_and_a_line_counts_what_was_converted(
    characters: MiniGPTTokenizer, tmp_path: Path
) -> None:
    plain = {"prompt": "a", "completion": "b"}
    read = load_conversations(json_array(tmp_path, [SHAREGPT, plain, ALPACA, MESSAGES, SPELLED_OTHERWISE]))
    assert read.notice == "talk.json: converted 1 Alpaca and 2 ShareGPT of 5 rows to messages."
    talk = ids_and_labels(characters, PIECES)
    bare = ids_and_labels(characters, [("a", False), ("b", True), (None, True)])
    assert list(label_rows(read, characters, 300).dataset) == [talk, bare, talk, talk, talk]
    assert load_conversations(json_lines(tmp_path, [MESSAGES, plain])).notice is None


def test_a_system_text_is_not_written_twice(tmp_path: Path) -> None:
    for row in (MESSAGES, SHAREGPT):
        (read,) = load_conversations(json_lines(tmp_path, [{**row, "system": "Be brief."}])).rows
        assert [turn["role"] for turn in read.messages] == ["system", "user", "assistant", "user", "assistant"]


def weighted(*weights: float | None) -> dict[str, Any]:
    """Return the conversation with weights on the turns; None leaves one out."""
    pairs = zip(MESSAGES["messages"], weights, strict=True)
    return {"messages": [turn if weight is None else {**turn, "weight": weight} for turn, weight in pairs]}


def test_a_turn_of_weight_0_is_read_and_not_trained_on(characters: MiniGPTTokenizer, tmp_path: Path) -> None:
    read = load_conversations(
        json_lines(tmp_path, [weighted(None, None, 0, None, None), weighted(0, 0, 1, 0, 0.0), weighted(*[None] * 5)])
    )
    first, second, both = label_rows(read, characters, 300).dataset
    without_first = [(text, is_trained and place > 2) for place, (text, is_trained) in enumerate(PIECES)]
    without_second = [(text, is_trained and place < 4) for place, (text, is_trained) in enumerate(PIECES)]
    assert first == ids_and_labels(characters, without_first)
    assert second == ids_and_labels(characters, without_second)
    assert both == ids_and_labels(characters, PIECES)


def test_a_weight_of_0_holds_where_all_is_trained_on(characters: MiniGPTTokenizer, tmp_path: Path) -> None:
    read = load_conversations(json_lines(tmp_path, [weighted(None, None, 0, None, None)]))
    (row,) = label_rows(read, characters, 300, assistant_only_loss=False).dataset
    expected = ids_and_labels(characters, [(text, place not in (1, 2)) for place, (text, _) in enumerate(PIECES)])
    expected["labels"][0] = IGNORED  # nothing is before the first token
    assert row == expected
    characters.chat_template = "{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"
    with pytest.raises(
        UsageError, match=r"line 1 has answers .* marks 0 separate answers of 2; give a template with \{%"
    ):
        label_rows(read, characters, 300, assistant_only_loss=False)


@pytest.mark.parametrize("assistant_only_loss", [True, False])
def test_weights_hold_for_subwords_another_template_and_answers_in_a_row(
    assistant_only_loss: bool, tmp_path: Path
) -> None:
    said = "[user]Who?;[assistant]Nay, king.[assistant]Bernardo.[user]Well;[assistant]Be brief."
    tokenizer = train_bpe([said] * 20, 290, chat_template=CHATML)
    turns = [("human", "Who?", None), ("gpt", "Nay, king.", 1), ("gpt", "Bernardo.", 0), ("user", "Well", None)]
    row = [{"from": role, "value": text, "weight": weight} for role, text, weight in [*turns, ("gpt", "Be brief.", 1)]]
    read = load_conversations(json_lines(tmp_path, [{"conversations": row}]))
    (row,) = label_rows(read, tokenizer, 300, assistant_only_loss=assistant_only_loss).dataset
    end = tokenizer.eos_token
    whole = f"[user]Who?;[assistant]Nay, king.{end}[assistant]Bernardo.{end}[user]Well;[assistant]Be brief.{end}"
    assert tokenizer.decode(row["input_ids"]) == whole
    labelled = stretches(tokenizer, row["labels"])
    if assistant_only_loss:
        assert labelled == [f"Nay, king.{end}", f"Be brief.{end}"]
    else:
        first = tokenizer.decode(row["input_ids"][:1])
        assert [first + labelled[0], *labelled[1:]] == whole.split(f"Bernardo.{end}")


def test_answers_that_a_template_does_not_keep_apart_are_refused(tmp_path: Path) -> None:
    glued = (
        "{% for message in messages %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{% endfor %}"
    )
    tokenizer = MiniGPTTokenizer.from_text(LETTERS, chat_template=glued)
    read = load_conversations(json_lines(tmp_path, [weighted(None, None, 0, None, None)]))
    with pytest.raises(UsageError, match=r"marks 1 separate answers of 2"):
        label_rows(read, tokenizer, 300)


def test_what_is_held_back_has_the_same_labels_and_is_asked_for_what_is_trained_on(
    characters: MiniGPTTokenizer, tmp_path: Path
) -> None:
    rows = [MESSAGES] * 18 + [weighted(None, None, 0, None, 1), {"conversations": SHAREGPT["conversations"][2:]}]
    data = prepare_instruction(json_lines(tmp_path, rows), characters, 300)
    second_only = [(text, is_trained and place > 2) for place, (text, is_trained) in enumerate(PIECES)]
    begins_with_an_answer = [("assistant:", False), *PIECES[1:]]
    held_back = [ids_and_labels(characters, second_only), ids_and_labels(characters, begins_with_an_answer)]
    assert list(data.validation) == held_back
    assert data.num_targets == len(" Bernardo?") + 1 + len(" Nay, answer me.") + 1 + len(" Bernardo?") + 1
    assert data.validation_characters == len(" Bernardo?") * 2 + len(" Nay, answer me.")
    # Of an answer that begins its conversation there is no prompt.
    assert [characters.decode(prompt) for prompt in data.prompts] == [
        "".join(text or characters.eos_token for text, _ in PIECES[:4])
    ]


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [*MESSAGES["messages"], {"role": "assistant", "content": "b"} | fields]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            turn(weight=0.5),
            r": turn 6 of 'messages' has a weight of 0\.5; give 1, or 0 for a turn that is not trained on",
        ),
        (turn(weight=2), ": turn 6 of 'messages' has a weight of 2"),
        (turn(weight=-1), ": turn 6 of 'messages' has a weight of -1"),
        (turn(weight="0"), ": turn 6 of 'messages' has a weight of '0'"),
        (turn(weight=False), ": turn 6 of 'messages' has a weight of False"),
        (turn(weight=[]), r": turn 6 of 'messages' has a weight of \[\]"),
        (
            turn(role="user", weight=1),
            ": turn 6 of 'messages' has a weight of 1 and the role 'user', but only assistant",
        ),
        (weighted(None, None, 0, None, 0), " has no assistant turn with a weight of 1; only those are trained on"),
        (
            turn(role="tool"),
            ": turn 6 of 'messages' has the role 'tool', not system, user or assistant; take the row out",
        ),
        (turn(role="developer"), ": turn 6 of 'messages' has the role 'developer'"),
        (turn(role=None), ": turn 6 of 'messages' has the role None"),
        (turn(content=None, tool_calls=[{"type": "function"}]), ": turn 6 of 'messages' calls a tool"),
        (turn(content=[{"type": "text", "text": "b"}]), ": turn 6 of 'messages' has no text"),
        ({"messages": [*MESSAGES["messages"], "b"]}, ": turn 6 of 'messages' is a string; write an object"),
        ({**MESSAGES, "tools": [{"type": "function"}]}, " has 'tools', which no model here is trained to call"),
        (
            {**SHAREGPT, "conversations": [{"from": "observation", "value": "a"}]},
            ": turn 1 of 'conversations' has the role",
        ),
        ({**SHAREGPT, "conversations": "a"}, " has 'conversations' that is a string; write a list of turns"),
        ({"conversations": SHAREGPT["conversations"][:2]}, " has no assistant turn; only those are trained on"),
        ({**ALPACA, "system": 3}, " has 'system' that is a number; write a text"),
        ({**ALPACA, "output": ["good", "bad"]}, " has 'output' that is a list; write a text"),
        ({**ALPACA, "output": ""}, ": turn 5 is an empty answer"),
        (
            {**ALPACA, "history": [["Who is there?"]]},
            r": part 1 of 'history' is no pair of texts; write \[\[instruction",
        ),
        ({**ALPACA, "history": "Who is there?"}, ": part 1 of 'history' is no pair of texts"),
        ({"instruction": "Say king"}, " has 'instruction'; a row has \"messages\", .* or Alpaca's"),
        ({"messages": None, "id": 3}, " has 'id'; a row has \"messages\""),
    ],
)
@pytest.mark.parametrize(("write", "place"), [(json_lines, "talk.jsonl, line 2"), (json_array, "talk.json, row 2")])
def test_what_cannot_be_converted_is_refused_by_file_and_row(
    write: Callable[[Path, list[Any]], Path], place: str, row: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=f"^{place}{reason}"):
        load_conversations(write(tmp_path, [MESSAGES, row]))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.json",
            b'[\n{"a": 1},\n{"b" 2}]',
            r"a\.json is not JSON \(Expecting ':' delimiter at line 3, column 6\); write",
        ),
        ("a.json", b'[{"a": "\xff"}]', r"a\.json is not UTF-8 text \(byte 8\); save the file as UTF-8"),
        ("a.json", b"[]", r"a\.json holds no conversation; write rows that have"),
        ("a.json", b"[3]", r"a\.json, row 1 is a number, not an object"),
        ("a.csv", b"instruction,output\na,b\na,b,c\n", r"a\.csv, row 2 has more or fewer cells than the header"),
        ("a.csv", b"instruction,output\na\n", r"a\.csv, row 1 has more or fewer cells than the header"),
        ("a.csv", b'instruction,output\n"a,b\n', r"a\.csv, line 2 cannot be read \(unexpected end of data\); save"),
        ("a.csv", b"instruction,output\n\xff,b\n", r"a\.csv is not UTF-8 text \(byte 19\); save the file as UTF-8"),
        ("a.parquet", b"a", r"a\.parquet is not Parquet \(.+\); save the file again"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=f"^{reason}"):
        load_conversations(tmp_path / name)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"is a folder that save_to_disk did not write; give a JSON, CSV or Parquet"):
        load_conversations(tmp_path)


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    alternating = (
        "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{% generation %}{{ message.content + eos_token }}"
        "{% endgeneration %}{% endfor %}"
    )
    tokenizer = MiniGPTTokenizer.from_text(LETTERS, chat_template=alternating)
    rows = [{"messages": MESSAGES["messages"][1:]}, MESSAGES]
    with pytest.raises(
        CorpusError, match=r"^talk\.jsonl, line 2 does not fit the chat template \(Roles must alternate\)"
    ):
        label_rows(load_conversations(json_lines(tmp_path, rows)), tokenizer, 300)
