"""What the tokenizer's two doors cost on a corpus, beside the loops that one would write by hand.

    python -m benchmarks.tokenizer
    python -m benchmarks.tokenizer --data input.txt

Every side's result is checked against the others' before it is timed.
"""

import argparse
import random
import string
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.side_by_side import alternate, markdown_table, ratio
from minigpt.tokenization import MiniGPTTokenizer

CHARACTERS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase
SYNTHETIC_LENGTH = 1_100_000


def dict_loop(stoi: dict[str, int], text: str) -> list[int]:
    """Encodes as a beginner's loop does."""
    ids = []
    for character in text:
        ids.append(stoi[character])
    return ids


def seconds(run: Callable[[], Any]) -> float:
    """Returns how long one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(title: str, figures: Mapping[str, Sequence[float]], sides: Sequence[str]) -> str:
    """Returns a Markdown table of each side's median and its ratio to the first side's."""
    rows = [
        [f"`{side}`", f"{1e3 * median(figures[side]):.1f}", f"{ratio(figures, side, sides[0]):.1f}"] for side in sides
    ]
    return markdown_table([title, "ms", "ratio"], rows)


def main(argv: list[str] | None = None) -> None:
    """Measures and prints both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenizer", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="a UTF-8 text (default: 1.1 M random characters)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of (default: 5)")
    arguments = parser.parse_args(argv)

    if arguments.data is None:
        text = "".join(random.Random(0).choices(CHARACTERS, k=SYNTHETIC_LENGTH))
    else:
        text = arguments.data.read_bytes().decode("utf-8")
    tokenizer = MiniGPTTokenizer.from_text(text)
    stoi, itos = tokenizer.stoi, tokenizer.itos
    array = tokenizer.encode_array(text)
    ids = array.tolist()
    encoders: dict[str, Callable[[], Any]] = {
        "encode_array(text)": lambda: tokenizer.encode_array(text),
        "[stoi[c] for c in text]": lambda: [stoi[character] for character in text],
        "for c in text: ids.append(stoi[c])": lambda: dict_loop(stoi, text),
        "tokenizer(text)": lambda: tokenizer(text)["input_ids"],
    }
    decoders: dict[str, Callable[[], Any]] = {
        "decode_array(array)": lambda: tokenizer.decode_array(array),
        '"".join([itos[i] for i in ids])': lambda: "".join([itos[index] for index in ids]),
        "tokenizer.decode(ids)": lambda: tokenizer.decode(ids),
    }
    for name, run in encoders.items():
        if not np.array_equal(run(), array):
            raise SystemExit(f"{name} gives other ids than encode_array")
    for name, run in decoders.items():
        if run() != text:
            raise SystemExit(f"{name} does not give the text back")

    sides = {name: partial(seconds, run) for name, run in (encoders | decoders).items()}
    figures = alternate(sides, arguments.rounds)
    print(f"{len(text):,} characters, vocabulary of {len(tokenizer)}, median of {arguments.rounds} rounds\n")
    print(table("encode", figures, list(encoders)))
    print()
    print(table("decode", figures, list(decoders)))


if __name__ == "__main__":
    main()
