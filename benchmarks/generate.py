"""Tokens a second of one stream: MiniGPT's `generate()`, stock GPT-2's, and the textbook loop.

    python -m benchmarks.generate [--rounds 7] [--presets seed nano-cpu nano] [--long 10000] [--profile]

Same shapes and a vocabulary of 68; untrained weights, which take as long as trained ones. Inside the block the text
fills it from a single token; past the block it goes on from a full one, which stock GPT-2 cannot do.
"""

import argparse
import cProfile
import pstats
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from time import perf_counter

import torch
from transformers import GenerationMixin
from transformers.generation import BaseStreamer

from benchmarks.peers import stock_gpt2
from benchmarks.side_by_side import alternate, markdown_table, ratio
from minigpt import MiniGPTConfig, MiniGPTForCausalLM, TextbookGPT
from minigpt.training.presets import get_preset

VOCAB_SIZE = 68
OURS, GPT2, TEXTBOOK = "MiniGPT generate()", "GPT-2 generate()", "textbook loop"


def lecture_shaped(preset_name: str) -> MiniGPTForCausalLM:
    """A model of the preset's sizes in the lecture's shape, which the textbook can load."""
    model = get_preset(preset_name).model
    sizes = {name: model[name] for name in model if name in SIZES}
    return MiniGPTForCausalLM(MiniGPTConfig(vocab_size=VOCAB_SIZE, **sizes)).eval()


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def tokens_per_second(write: Callable[[], object], tokens: int, repeats: int) -> Callable[[], float]:
    """A side for `alternate`: writes `tokens` tokens `repeats` times over."""

    def measure() -> float:
        start = perf_counter()
        for _ in range(repeats):
            write()
        return tokens * repeats / (perf_counter() - start)

    return measure


def writer(model: GenerationMixin, prompt: torch.Tensor, tokens: int) -> Callable[[], object]:
    """Samples through `generate()` as the lecture does, from the whole distribution."""
    mask = torch.ones_like(prompt)
    return lambda: model.generate(prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=True, top_k=0)


def compare(preset_name: str, rounds: int) -> list[list[str]]:
    """The table's rows for one preset: inside the block, then past it."""
    ours = lecture_shaped(preset_name)
    textbook = TextbookGPT.from_minigpt(ours).eval()
    gpt2 = stock_gpt2(ours.config).eval()
    block = ours.config.max_position_embeddings
    start, full = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, block, dtype=torch.long)
    inside, repeats = block - 1, max(1, 256 // block)
    past = 64 if block <= 64 else 16

    within = alternate(
        {
            OURS: tokens_per_second(writer(ours, start, inside), inside, repeats),
            GPT2: tokens_per_second(writer(gpt2, start, inside), inside, repeats),
            TEXTBOOK: tokens_per_second(lambda: textbook.generate(start, inside), inside, repeats),
        },
        rounds,
    )
    beyond = alternate(
        {
            OURS: tokens_per_second(writer(ours, full, past), past, 1),
            TEXTBOOK: tokens_per_second(lambda: textbook.generate(full, past), past, 1),
        },
        rounds,
    )
    return [
        [
            f"`{preset_name}`, inside the block of {block}",
            *(f"{median(within[side]):.0f}" for side in (OURS, GPT2, TEXTBOOK)),
            f"{ratio(within, OURS, GPT2):.2f} x",
            f"{ratio(within, OURS, TEXTBOOK):.2f} x",
        ],
        [
            f"`{preset_name}`, past it",
            f"{median(beyond[OURS]):.0f}",
            "-",
            f"{median(beyond[TEXTBOOK]):.0f}",
            "-",
            f"{ratio(beyond, OURS, TEXTBOOK):.2f} x",
        ],
    ]


class Clock(BaseStreamer):
    """Remembers when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Looks at the clock."""
        self.times.append(perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def growth(model: MiniGPTForCausalLM, tokens: int) -> float:
    """How much longer the last tenth of a long text takes than the tenth that begins past the first block."""
    clock, prompt = Clock(), torch.zeros(1, 1, dtype=torch.long)
    mask = torch.ones_like(prompt)
    model.generate(prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=True, top_k=0, streamer=clock)
    steps = [after - before for before, after in pairwise(clock.times)]
    block, tenth = model.config.max_position_embeddings, tokens // 10
    return median(steps[-tenth:]) / median(steps[block : block + tenth])


def long_texts(tokens: int) -> str:
    """One line for each way past the block: cropping, and a rotary model's rolling cache."""
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    models = {
        "cropped to the last block (`seed`)": MiniGPTConfig(**sizes),
        "a rolling window (rotary)": MiniGPTConfig(**sizes, position_embedding_type="rope", sliding_window=32),
    }
    lines = [f"- {name}: {growth(MiniGPTForCausalLM(config).eval(), tokens):.2f}" for name, config in models.items()]
    return "\n".join(
        [f"{tokens:,} tokens in one call: time per token at the end over that past the first block", *lines]
    )


def profile(preset_name: str) -> None:
    """Prints where the time of one text inside the block goes."""
    ours = lecture_shaped(preset_name)
    block = ours.config.max_position_embeddings
    write = writer(ours, torch.zeros(1, 1, dtype=torch.long), block - 1)
    write()
    with cProfile.Profile() as profiler:
        write()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(20)


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Tokens a second of one stream.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--presets", nargs="+", default=["seed", "nano-cpu", "nano"])
    parser.add_argument("--long", type=int, default=10_000, metavar="TOKENS", help="of the long texts; 0 for none")
    parser.add_argument("--profile", action="store_true", help="print where the time goes as well")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    rows = [row for name in arguments.presets for row in compare(name, arguments.rounds)]
    header = ["tokens a second", OURS, GPT2, TEXTBOOK, "MiniGPT / GPT-2", "MiniGPT / textbook"]
    print(markdown_table(header, rows))
    if arguments.long:
        print(f"\n{long_texts(arguments.long)}")
    if arguments.profile:
        for name in arguments.presets:
            profile(name)


if __name__ == "__main__":
    main()
