"""What data costs: reading and encoding a text, a batch of it, and the peak memory for 1 GB of text.

python -m benchmarks.data                                      # the bundled plays, and 1 GB made by repeating them
python -m benchmarks.data --data input.txt --gigabytes 0       # another text, and no big file
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigpt.training.data.tokens import TokenStream

SHAPES = ((16, 32), (12, 64), (64, 256))  # (batch, block) of the presets


def time_of(call: Callable[[], object], repeats: int) -> float:
    """Returns the median time of `repeats` calls, in seconds, after three that do not count."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times[3:])


def report(data: str) -> None:
    """Prints what it takes to read a text, to encode it and to open it again, and then a batch of each kind."""
    from minigpt.training.data.batches import blocks
    from minigpt.training.data.corpus import load_text
    from minigpt.training.data.tokens import TokenStream, tokenize_corpus

    corpus = load_text(data)
    print(f"{corpus.name}: {corpus.num_characters:,} characters\n")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        unused = (Path(folder) / str(number) for number in range(100))
        splits = tokenize_corpus(corpus, cache_dir=folder)
        train, validation = TokenStream(splits["train"]), TokenStream(splits["validation"])
        short_rows = TokenStream(tokenize_corpus(corpus, cache_dir=folder, row_tokens=4096)["train"])
        for name, call in {
            "load_text": lambda: load_text(data),
            "tokenize_corpus, the first time": lambda: tokenize_corpus(corpus, cache_dir=next(unused)),
            "tokenize_corpus, from its cache": lambda: tokenize_corpus(corpus, cache_dir=folder),
            "blocks": lambda: blocks(train, 256),
        }.items():
            print(f"{name:<36}{time_of(call, 5) * 1e3:>10.1f} ms")

        print(
            f"\n{'microseconds for a batch of':<36}" + "".join(f"{f'{batch} x {block}':>12}" for batch, block in SHAPES)
        )
        columns = [ways_to_a_batch(train, short_rows, validation, *shape) for shape in SHAPES]
        for name in columns[0]:
            print(f"{name:<36}" + "".join(f"{time_of(column[name], 300) * 1e6:>12.0f}" for column in columns))


def ways_to_a_batch(
    train: "TokenStream", short_rows: "TokenStream", validation: "TokenStream", batch: int, block: int
) -> dict[str, Callable[[], object]]:
    """Returns each way to a batch of this shape, by name."""
    from torch.utils.data import DataLoader

    from minigpt.training.data.batches import RandomCrops, Windows, collate, get_batch

    indices = range(batch)
    crops = RandomCrops(train, block, length=10**6)
    crops_of_short_rows = RandomCrops(short_rows, block)
    windows = Windows(validation, block)
    loader = iter(DataLoader(crops, batch, collate_fn=collate))
    return {
        "RandomCrops": lambda: crops.__getitems__(indices),
        "RandomCrops, rows of 4096 tokens": lambda: crops_of_short_rows.__getitems__(indices),
        "RandomCrops, collate": lambda: collate(crops.__getitems__(indices)),
        "RandomCrops, collate, DataLoader": lambda: next(loader),
        "Windows, collate": lambda: collate(windows.__getitems__(indices)),
        "get_batch": lambda: get_batch(train, batch, block),
    }


def report_peak_memory(gigabytes: float) -> None:
    """Makes a file of that size, lets a process of its own load, encode and crop it, and prints that process's peak."""
    from minigpt.training.data.corpus import load_text

    try:
        import resource  # noqa: F401
    except ImportError:
        print("\npeak memory: not measured, this system has no getrusage")
        return
    plays = load_text("plays").text.encode()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "big.txt"
        with file.open("wb") as big:
            for _ in range(max(1, round(gigabytes * 1e9 / len(plays)))):
                big.write(plays)
        size = file.stat().st_size
        command = [sys.executable, "-m", "benchmarks.data", "--measure", str(file)]
        steps = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"\n{f'a file of {size / 1e9:.2f} GB':<36}{'seconds':>10}{'peak MB':>10}{'own MB':>10}")
    for name, seconds, peak, own in steps:
        print(f"{name:<36}{seconds:>10.1f}{peak / 1e6:>10.0f}" + (f"{own / 1e6:>10.0f}" if own else f"{'?':>10}"))
    print("peak: resident so far, pages of mapped files included, which the system takes back when it needs them")
    print("own: resident at this step's end without them")


def measure(file: str) -> None:
    """Prints, as JSON, the time of each step with this file and the peak memory of this process until its end."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    steps = []
    start = time.perf_counter()

    def done(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        steps.append((name, now - start, peak, own_memory()))
        start = time.perf_counter()

    from minigpt.training.data.batches import RandomCrops
    from minigpt.training.data.corpus import load_text
    from minigpt.training.data.tokens import TokenStream, tokenize_corpus

    done("imports alone")
    corpus = load_text(file)
    done("load_text")
    with tempfile.TemporaryDirectory(dir=Path(file).parent, ignore_cleanup_errors=True) as folder:
        splits = tokenize_corpus(corpus, cache_dir=folder)
        done("tokenize_corpus")
        crops = RandomCrops(TokenStream(splits["train"]), 256)
        for step in range(1000):
            crops.__getitems__(range(step * 64, step * 64 + 64))
        done("1000 batches of 64 x 256")
    print(json.dumps(steps))


def own_memory() -> int | None:
    """Returns the resident bytes of this process that no file backs, or None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else None


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="plays", help="a text, as `minigpt train --data` takes it (default: plays)")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the big file; 0 for none (default: 1)")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    report(arguments.data)
    if arguments.gigabytes:
        report_peak_memory(arguments.gigabytes)


if __name__ == "__main__":
    main()
