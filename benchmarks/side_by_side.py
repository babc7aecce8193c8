"""Measuring sides against each other on a machine with other things to do: by turns, in medians, as ratios."""

import gc
from collections.abc import Callable, Mapping, Sequence
from statistics import median


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True) -> dict[str, list[float]]:
    """Runs every side once a round, so that a slow minute of the machine falls on all of them.

    Args:
        sides: What to measure, each returning its own figure (seconds, tokens a second, ...).
        rounds: How many times each runs.
        warm_up: Whether one more round goes before them and is thrown away.

    Returns:
        Each side's figures, one a round.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + warm_up):
        for name, measure in sides.items():
            gc.collect()
            figure = measure()
            if turn >= warm_up:
                figures[name].append(figure)
    return figures


def ratio(figures: Mapping[str, Sequence[float]], side: str, peer: str) -> float:
    """The median over the rounds of one side's figure over its peer's in the same round."""
    return median(ours / theirs for ours, theirs in zip(figures[side], figures[peer], strict=True))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the figures to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
