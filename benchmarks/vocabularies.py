"""What a vocabulary is worth: one model learns one text as characters and as subwords, at the same compute.

    python -m benchmarks.vocabularies [--data tiny_shakespeare] [--folder runs/vocabularies]
    python -m benchmarks.vocabularies --data plays --part 0.01                a hundredth of the compute

The compute is that of preset `nano-cpu`. Each side makes as many steps as it can pay for, and its learning rate comes
down with its own last step. Losses compare in bits a character, over the whole validation split.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig

from benchmarks.side_by_side import markdown_table
from minigpt.training.data.corpus import Corpus, load_text
from minigpt.training.data.vocabulary import Vocabulary
from minigpt.training.presets import MODEL_CLASSES, get_preset
from minigpt.training.train import Run, train

PRESET = "nano-cpu"
DATA = "tiny_shakespeare"
ROWS = (
    "different tokens",
    "characters a token",
    "characters in a block",
    "parameters",
    "steps",
    "tokens seen",
    "characters seen",
    "training FLOPs",
    "nats a token",
    "bits a character",
    "CPU seconds",
)


@dataclass(frozen=True)
class Side:
    """One column of the table.

    Attributes:
        name: What heads it.
        vocabulary: What its tokens are.
        stretch: How many times the preset's block its own is; a step has that many times fewer of them.
    """

    name: str
    vocabulary: Vocabulary
    stretch: int = 1


SIDES = (
    Side("characters", Vocabulary()),
    Side("BPE 512", Vocabulary("bpe", 512)),
    Side("BPE 2048", Vocabulary("bpe", 2048)),
    Side("SentencePiece 512", Vocabulary("sentencepiece", 512)),
    Side("characters, two blocks long", Vocabulary(), stretch=2),
)


def training_flops(config: PreTrainedConfig) -> int:
    """The floating-point operations that one token of a full block takes in training: those of matrix products.

    n multiplications and additions are 2n operations forward and, for two gradients, 4n backward. Attention counts
    whole, by convention, though half of its scores are masked.
    """
    with torch.device("meta"):
        model = MODEL_CLASSES[config.model_type](config)
    # The output head is among them, whether it shares the embedding's weights or not.
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    width = config.num_attention_heads * config.head_dim
    attention = 2 * config.num_hidden_layers * config.max_position_embeddings * width  # the scores, and the sums
    return 6 * (weights + attention)


def compare(data: str, part: float, folder: Path, sides: Sequence[Side] = SIDES) -> str:
    """Trains every side, and returns the table with a line on what it was measured on.

    Args:
        data: The text, as `minigpt train --data` takes it.
        part: How much of the preset's compute each side may spend.
        folder: Where the models go.
        sides: The columns; the first is the one whose compute is everyone's.
    """
    corpus = load_text(data)
    budget, columns, device = 0.0, [], ""
    for index, side in enumerate(sides):
        column, spent, device = _measure(side, corpus, data, part, budget, folder / str(index))
        budget = budget or spent
        columns.append(column)
    rows = [[name, *(column[name] for column in columns)] for name in ROWS]
    table = markdown_table([corpus.name, *(side.name for side in sides)], rows)
    where = f"Preset `{PRESET}`, one run each, on one thread of {device}."
    return f"{table}\n\n{where} The CPU seconds are of a whole run, and vary with what else the machine does."


def _measure(
    side: Side, corpus: Corpus, data: str, part: float, budget: float, folder: Path
) -> tuple[dict[str, str], float, str]:
    """One column, what it spent, and the machine; a budget of 0 stands for the part of the preset's own steps."""
    preset = get_preset(PRESET)
    block = side.stretch * preset.model["max_position_embeddings"]
    batch = preset.training["per_device_train_batch_size"] // side.stretch
    vocab_size = len(side.vocabulary.learn(corpus))
    flops = batch * block * training_flops(preset.build_config(vocab_size=vocab_size, max_position_embeddings=block))
    steps = round(budget / flops if budget else part * preset.training["max_steps"])
    training = {
        "output_dir": str(folder),
        "max_steps": steps,
        "warmup_steps": round(part * preset.training["warmup_steps"]),
        "per_device_train_batch_size": batch,
        # What is measured is learning: looked at before and after, and not on the way.
        "eval_interval": steps,
        "eval_iters": 1,
        "save_strategy": "no",
    }
    start = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        run = train(
            PRESET, data, vocabulary=side.vocabulary, model={"max_position_embeddings": block}, training=training
        )
    seconds = time.process_time() - start
    return _column(run, block, steps * flops, seconds), steps * flops, run.report["hardware"]["name"]


def _column(run: Run, block: int, flops: float, seconds: float) -> dict[str, str]:
    tokens, characters_per_token = run.report["training"]["tokens"], run.validation.characters / run.validation.targets
    return {
        "different tokens": f"{len(run.tokenizer):,}",
        "characters a token": f"{characters_per_token:.2f}",
        "characters in a block": f"{block * characters_per_token:.0f}",
        "parameters": f"{run.report['model']['parameters']:,}",
        "steps": f"{run.report['training']['steps']:,}",
        "tokens seen": f"{tokens / 1e6:.2f} M",
        "characters seen": f"{tokens * characters_per_token / 1e6:.2f} M",
        "training FLOPs": f"{flops / 1e12:.2f} T",
        "nats a token": f"{run.validation.loss:.3f}",
        "bits a character": f"{run.validation.bits_per_character:.3f}",
        "CPU seconds": f"{seconds:.0f}",
    }


def main(argv: list[str] | None = None) -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vocabularies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default=DATA, metavar="TEXT", help=f"what to learn (default: {DATA})")
    parser.add_argument("--part", type=float, default=1.0, metavar="X", help="of the preset's compute (default: 1)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to leave the models (default: nowhere)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # so that the seconds are those of the work, whatever else the machine does
    with tempfile.TemporaryDirectory() as temporary:
        print(compare(arguments.data, arguments.part, arguments.folder or Path(temporary)))


if __name__ == "__main__":
    main()
