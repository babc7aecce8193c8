import dataclasses
import hashlib
import json
from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.readme import RESULTS
from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer
from minigpt.training.data.chat_template import CHAT_TEMPLATE
from minigpt.training.data.conversations import load_conversations
from minigpt.training.data.corpus import PLAYS
from minigpt.training.data.labels import label_rows
from minigpt.training.data.plays_task import REPLY, SPEAK, WHO, Prompt, held_out_prompts, plays_conversations

SPEECHES = [tuple(part.split(":\n", 1)) for part in PLAYS.read_text(encoding="utf-8").strip("\n").split("\n\n")]
WORDS = dict(SPEECHES)
FOLLOWING = {(first, second) for (first, _), (second, _) in pairwise(SPEECHES)}
CONVERSATIONS = plays_conversations()
PROMPTS = held_out_prompts()


def asked(messages):
    """Every phrase of a conversation with the name that it is about."""
    about = None  # as where nothing was said before
    for message in messages:
        if message["role"] == "assistant":
            about = message["content"].partition(":\n")[0]
        elif message["content"] in REPLY:
            yield message["content"], about
        else:
            yield next(
                (phrase, name)
                for phrase in SPEAK + WHO
                for before, after in [phrase.split("{}")]
                if message["content"].startswith(before) and message["content"].endswith(after)
                for name in [message["content"][len(before) : len(message["content"]) - len(after)]]
                if name in WORDS
            )


LEARNED = Counter(pair for row in CONVERSATIONS.rows for pair in asked(row.messages))


def test_the_plays_are_what_conversations_are_made_of_by_that_name():
    assert load_conversations("plays") == CONVERSATIONS
    assert CONVERSATIONS.name == "plays"


def test_each_machine_makes_the_same_conversations():
    assert CONVERSATIONS.sha256 == "7f681ea5f38ac7526fa7b24937bd1fa6e633744d2bc39121333eab7c869ed748"
    content = "".join(json.dumps({"messages": row.messages}) + "\n" for row in CONVERSATIONS.rows).encode()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (CONVERSATIONS.num_bytes, CONVERSATIONS.sha256)


def test_of_a_held_out_prompt_the_phrase_and_the_name_are_learned_and_never_together():
    phrases, names = ({pair[place] for pair in LEARNED} - {None} for place in (0, 1))
    for prompt in PROMPTS:
        *_, (phrase, name) = asked(prompt.messages)
        assert (phrase, name) not in LEARNED
        assert phrase in phrases
        assert name in names
    assert phrases == {*SPEAK, *WHO, *REPLY}
    assert Counter(prompt.kind for prompt in PROMPTS) == dict.fromkeys(("speech", "name", "reply"), len(names))


def test_every_speech_is_in_the_plays_under_its_name():
    spoken = set(SPEECHES)
    for row in CONVERSATIONS.rows:
        for message in row.messages[1::2]:
            name, colon, words = message["content"].partition(":\n")
            assert not colon or (name, words) in spoken


def test_whoever_answers_does_so_in_the_plays():
    for row in CONVERSATIONS.rows:
        pairs = list(asked(row.messages))
        for (phrase, name), said in zip(pairs, row.messages[1::2], strict=True):
            other = said["content"].partition(":\n")[0].removesuffix(f" answers {name}.")
            if phrase in SPEAK:
                assert other == name
            elif name is not None:
                assert (name, other) in FOLLOWING
    for prompt in PROMPTS:
        *_, (phrase, name) = asked(prompt.messages)
        if phrase in SPEAK:
            assert prompt.names == prompt.true_names == {name}
        else:
            assert {(name, other) for other in prompt.true_names} <= FOLLOWING
            assert prompt.names == WORDS.keys()


def test_rows_fit_into_a_block_of_256_characters_of_the_plays():
    tokenizer = MiniGPTTokenizer.from_text(PLAYS.read_text(encoding="utf-8"), chat_template=CHAT_TEMPLATE)
    some = dataclasses.replace(CONVERSATIONS, rows=CONVERSATIONS.rows[:500])
    assert label_rows(some, tokenizer, 256).num_cut == 0
    for row in CONVERSATIONS.rows:
        text = tokenizer.apply_chat_template(list(row.messages), tokenize=False)
        text = text.replace(tokenizer.eos_token, ".")
        assert len(text) <= 256
        assert set(text) <= tokenizer.stoi.keys()


HAMLET, OPHELIA = frozenset({"HAMLET"}), frozenset({"OPHELIA", "LORD POLONIUS"})


@pytest.mark.parametrize(
    ("kind", "names", "answer"),
    [
        ("speech", HAMLET, "HAMLET:\nWords, words, words."),
        ("speech", HAMLET, " HAMLET:\nThe air bites shrewdly;\nit is very cold."),
        ("name", OPHELIA, " OPHELIA answers HAMLET."),
        ("reply", OPHELIA, "LORD POLONIUS:\nWhat is the matter, my lord?"),
    ],
)
def test_an_answer_of_the_asked_form_counts_if_it_ends(kind, names, answer):
    prompt = Prompt(kind, "HAMLET", (), names, names)
    assert prompt.has_asked_form(answer, has_ended=True)
    assert prompt.is_true(answer, has_ended=True)
    assert not prompt.has_asked_form(answer, has_ended=False)
    assert not prompt.is_true(answer, has_ended=False)


def test_an_answer_of_the_asked_form_may_be_untrue():
    prompt = Prompt("name", "HAMLET", (), OPHELIA | HAMLET, OPHELIA)
    assert prompt.has_asked_form("HAMLET answers HAMLET.", has_ended=True)
    assert not prompt.is_true("HAMLET answers HAMLET.", has_ended=True)


@pytest.mark.parametrize(
    ("kind", "names", "answer"),
    [
        ("speech", HAMLET, ""),
        ("speech", HAMLET, "HAMLET:\n"),
        ("speech", HAMLET, "HAMLET:\n \n"),
        ("speech", HAMLET, "HAMLET: Words, words, words."),
        ("speech", HAMLET, "OPHELIA:\nWords, words, words."),
        ("speech", HAMLET, "HAMLETS:\nWords, words, words."),
        ("speech", HAMLET, "Words, words, words."),
        ("speech", HAMLET, "HAMLET:\nWords.\n\nOPHELIA:\nMy lord?"),
        ("speech", HAMLET, "HAMLET."),
        ("name", OPHELIA, "HAMLET answers HAMLET."),
        ("name", OPHELIA, "OPHELIA answers HAMLET"),
        ("name", OPHELIA, "OPHELIA answers MACBETH."),
        ("name", OPHELIA, "OPHELIA answers HAMLET. My lord."),
        ("name", OPHELIA, "OPHELIA:\nMy lord."),
        ("name", OPHELIA, " answers HAMLET."),
        ("reply", OPHELIA, "HAMLET:\nWords, words, words."),
    ],
)
def test_an_answer_of_another_form_does_not_count(kind, names, answer):
    prompt = Prompt(kind, "HAMLET", (), names, names)
    assert not prompt.has_asked_form(answer, has_ended=True)
    assert not prompt.is_true(answer, has_ended=True)


def test_the_true_answers_have_the_asked_form():
    for prompt in PROMPTS:
        speaker = sorted(prompt.true_names)[-1]
        answer = f"{speaker} answers {prompt.about}." if prompt.kind == "name" else f"{speaker}:\n{WORDS[speaker]}"
        assert prompt.is_true(answer, has_ended=True)


def test_the_preset_learns_to_answer_in_the_asked_form():
    lines = (RESULTS / "chat.md").read_text(encoding="utf-8").splitlines()
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    measured = dict(zip(header, next(row for row in rows if row[0] == "all"), strict=True))
    assert float(measured["before"].rstrip("%")) <= 1
    assert float(measured["after"].rstrip("%")) >= 95
