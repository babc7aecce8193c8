"""What counting alone achieves on a text: the losses that a model's loss is judged against.

    python -m benchmarks.baselines --data input.txt

Each model is counted on the first 90 % of the characters and scored on every next character of the rest.
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol


class CountModel(Protocol):
    """A distribution over the next character, given the characters before it."""

    order: int

    def probability(self, context: str, character: str) -> float:
        """Returns P(character | context), reading at most the last `order` characters of the context."""


class AddOne:
    """Counts in which every character was seen once more than it was (Laplace).

    Args:
        text: The text to count in.
        alphabet: All characters that may follow, seen in the text or not.
        order: Characters of context: 0 for a unigram, 1 for a bigram.
    """

    def __init__(self, text: str, alphabet: Sequence[str], order: int):
        self.order = order
        self.size = len(alphabet)
        self.count = count_grams(text, order + 1)
        self.total: dict[str, int] = {}
        for gram, count in self.count.items():
            self.total[gram[:-1]] = self.total.get(gram[:-1], 0) + count

    def probability(self, context: str, character: str) -> float:
        """Returns P(character | context)."""
        context = last(context, self.order)
        return (self.count.get(context + character, 0) + 1) / (self.total.get(context, 0) + self.size)


class WittenBell:
    """Counts for contexts of every length, each trusted the more, the fewer different characters have followed it.

    With n the number of times a context was seen and t that of the different characters that followed,
    P(c | context) = (count(context + c) + t * P(c | context without its first character)) / (n + t),
    down to the uniform distribution below the empty context (interpolated Witten-Bell).

    Args:
        text: The text to count in.
        alphabet: All characters that may follow, seen in the text or not.
        order: Characters of the longest context.
    """

    def __init__(self, text: str, alphabet: Sequence[str], order: int):
        self.order = order
        self.size = len(alphabet)
        self.count: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self.followers: dict[str, int] = {}
        for length in range(order + 1):
            grams = count_grams(text, length + 1)
            self.count.update(grams)
            for gram, count in grams.items():
                self.total[gram[:-1]] = self.total.get(gram[:-1], 0) + count
                self.followers[gram[:-1]] = self.followers.get(gram[:-1], 0) + 1

    def probability(self, context: str, character: str) -> float:
        """Returns P(character | context)."""
        context = last(context, self.order)
        probability = 1 / self.size
        for length in range(len(context) + 1):
            seen = last(context, length)
            if seen not in self.total:  # Nor can a longer context have been seen.
                break
            n, t = self.total[seen], self.followers[seen]
            probability = (self.count.get(seen + character, 0) + t * probability) / (n + t)
        return probability


def count_grams(text: str, length: int) -> dict[str, int]:
    """Counts the pieces of `length` characters in a text."""
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))


def last(text: str, length: int) -> str:
    """Returns the last `length` characters, or the whole text if it has no more."""
    return text[max(len(text) - length, 0) :]


def cross_entropy(model: CountModel, text: str) -> float:
    """Scores every next character of a text, from the second to the last.

    Args:
        model: What predicts.
        text: At least two characters, all of them in the model's alphabet.

    Returns:
        The mean of -ln P, in nats per character.
    """
    contexts = (text[max(i - model.order, 0) : i] for i in range(1, len(text)))
    log_probabilities = (math.log(model.probability(*pair)) for pair in zip(contexts, text[1:], strict=True))
    return -math.fsum(log_probabilities) / (len(text) - 1)


def baselines_table(text: str) -> str:
    """Fits and scores the count models on the two parts of a text.

    Args:
        text: At least 20 characters, so that the second part holds a next character.

    Returns:
        A Markdown table, one line a model.

    Raises:
        ValueError: If the text is too short to be cut in two.
    """
    if len(text) < 20:
        raise ValueError(f"A text of {len(text)} characters is too short to be cut in two; give at least 20.")
    cut = int(0.9 * len(text))
    train, validation = text[:cut], text[cut:]
    alphabet = sorted(set(text))
    lines = [
        "| count model | context | nats/char | bits/char | perplexity | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, kind, order in (
        ("unigram, add-one", AddOne, 0),
        ("bigram, add-one", AddOne, 1),
        ("order 4, interpolated Witten-Bell", WittenBell, 4),
        ("order 5, interpolated Witten-Bell", WittenBell, 5),
    ):
        start = time.perf_counter()
        nats = cross_entropy(kind(train, alphabet, order), validation)
        seconds = time.perf_counter() - start
        bits, perplexity = nats / math.log(2), math.exp(nats)
        lines.append(f"| {name} | {order} | {nats:.4f} | {bits:.4f} | {perplexity:.2f} | {seconds:.1f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table for the text that `--data` names, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a text file, a folder or a dataset's name, as for training (default: the same)")
    arguments = parser.parse_args(argv)

    from minigpt.training.data.corpus import load_text

    try:
        corpus = load_text(arguments.data)
        text = corpus.text
        table = baselines_table(text)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    cut = int(0.9 * len(text))
    print(f"{corpus.name}: counted on the first {cut:,} characters, scored on the other {len(text) - cut:,}.\n")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
