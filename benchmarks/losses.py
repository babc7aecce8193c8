"""What each preset reaches on Tiny Shakespeare, and how long it took: trains them all.

    python -m benchmarks.losses [--presets bigram seed nano-cpu] [--data tiny_shakespeare] [--folder runs]

Preset `nano` is left out unless it is named: without a GPU it takes hours.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from benchmarks.side_by_side import markdown_table
from minigpt.training.train import train


def main(argv: list[str] | None = None) -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description="What each preset reaches.")
    parser.add_argument("--presets", nargs="+", default=["bigram", "seed", "nano-cpu"])
    parser.add_argument("--data", default="tiny_shakespeare")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    arguments = parser.parse_args(argv)
    rows, device = [], ""
    for name in arguments.presets:
        folder = arguments.folder / name
        with contextlib.redirect_stdout(sys.stderr):
            report = train(name, arguments.data, overwrite=True, training={"output_dir": str(folder)}).report
        validation, training = report["losses"]["validation"], report["training"]
        device = report["hardware"]["name"]
        rows.append(
            [
                f"`{name}`",
                f"{report['model']['parameters']:,}",
                f"{training['steps']:,}",
                f"{validation['loss']:.3f}",
                f"{validation['bits_per_character']:.3f}",
                f"{validation['perplexity']:.2f}",
                f"{training['seconds']:.0f} s",
            ]
        )
    header = ["preset", "parameters", "steps", "validation loss", "bits a character", "perplexity", "training took"]
    print(markdown_table(header, rows))
    print(f"\nOn {device}; estimates, samples and checkpoints on the way are in the time.")


if __name__ == "__main__":
    main()
