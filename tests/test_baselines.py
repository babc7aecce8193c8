"""The count models give the numbers that one gets by hand, and their probabilities sum to one."""

import math
from typing import ClassVar

import pytest

from benchmarks.baselines import AddOne, WittenBell, baselines_table, cross_entropy, main


def test_unigram_adds_one_to_every_count():
    model = AddOne("aaab", "abc", order=0)

    # 3, 1 and 0 of 4, each one more.
    assert [model.probability("b", character) for character in "abc"] == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_bigram_reads_one_character_and_adds_one():
    model = AddOne("abacab", "abc", order=1)

    # a is followed by b, c, b; c by a; b by a, and the last b by nothing.
    assert [model.probability("bca", character) for character in "abc"] == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    assert [model.probability("b", character) for character in "abc"] == pytest.approx([2 / 4, 1 / 4, 1 / 4])


def test_witten_bell_mixes_each_context_with_the_shorter_one():
    model = WittenBell("abacab", "abcd", order=2)

    # No context: 6 characters, 3 different. P(a) = (3 + 3/4) / 9, P(b) = (2 + 3/4) / 9.
    none = (2 + 3 / 4) / 9
    # After a: 3 times, 2 different, b twice.
    after_a = (2 + 2 * none) / 5
    # After ca: once, 1 different, which was b.
    after_ca = (1 + after_a) / 2
    assert model.probability("", "b") == pytest.approx(none)
    assert model.probability("a", "b") == pytest.approx(after_a)
    assert model.probability("xyzca", "b") == pytest.approx(after_ca)


def test_witten_bell_falls_back_where_a_context_was_never_seen():
    model = WittenBell("abacab", "abcd", order=2)

    assert model.probability("da", "b") == model.probability("a", "b")
    assert model.probability("dd", "b") == model.probability("", "b")
    # A character that was never seen gets its share of the uniform distribution alone.
    assert model.probability("", "d") == pytest.approx(3 / 4 / 9)


@pytest.mark.parametrize("kind", [AddOne, WittenBell])
@pytest.mark.parametrize("order", [0, 1, 2, 5])
@pytest.mark.parametrize("context", ["", "a", "ab", "abacaba", "zzz", "abz"])
def test_probabilities_sum_to_one(kind, order, context):
    alphabet = "abcdz"
    model = kind("abacabadabacaba", alphabet, order)

    assert math.fsum(model.probability(context, character) for character in alphabet) == pytest.approx(1)


def test_cross_entropy_is_the_mean_over_every_character_but_the_first():
    model = AddOne("abacab", "abc", order=1)

    # P(a | b) = 1/2, P(b | a) = 1/2, P(b | b) = 1/4.
    assert cross_entropy(model, "babb") == pytest.approx(math.log(2 * 2 * 4) / 3)


def test_cross_entropy_hands_over_as_much_context_as_the_order_says():
    class Recorder:
        order = 2
        asked: ClassVar = []

        def probability(self, context, character):
            self.asked.append((context, character))
            return 0.5

    assert cross_entropy(Recorder(), "wxyz") == pytest.approx(math.log(2))
    assert Recorder.asked == [("w", "x"), ("wx", "y"), ("xy", "z")]


def test_table_counts_on_the_first_nine_tenths_and_scores_the_rest():
    train, validation = "ab" * 90, "ba" * 10
    expected = cross_entropy(AddOne(train, "ab", order=1), validation)

    row = next(line for line in baselines_table(train + validation).splitlines() if line.startswith("| bigram"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]

    assert cells[2:5] == [f"{expected:.4f}", f"{expected / math.log(2):.4f}", f"{math.exp(expected):.2f}"]


def test_table_names_every_model_in_markdown():
    lines = baselines_table("to be or not to be, that is the question. " * 10).splitlines()

    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "unigram, add-one",
        "bigram, add-one",
        "order 4, interpolated Witten-Bell",
        "order 5, interpolated Witten-Bell",
    ]


def test_text_too_short_to_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"5 characters is too short .* at least 20"):
        baselines_table("short")


def test_command_prints_the_table_of_a_file(tmp_path, capsys):
    file = tmp_path / "input.txt"
    file.write_text("to be or not to be\n" * 20, encoding="utf-8")

    assert main(["--data", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| bigram, add-one | 1 |" in printed
    assert "first 342 characters" in printed


def test_missing_file_is_one_sentence_and_status_one(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "none.txt")]) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
