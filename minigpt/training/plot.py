"""The picture of a run: how the losses came down, drawn to be shown to somebody."""

import math
from bisect import bisect_left
from pathlib import Path, PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

COLOURS = {"train": "#7d8ca3", "validation": "#c8501e"}
INK, FAINT, HAIR = "#1f2328", "#6b7280", "#e5e7eb"
LEFT, RIGHT = 0.026, 0.974
DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib
TITLE_WIDTH = 1300  # in pixels; the loss is beside it
TITLE: dict[str, Any] = {"color": INK, "fontsize": 15, "fontweight": "bold"}
CAPTION: dict[str, Any] = {"color": FAINT, "fontsize": 9.5}
# Two labels at the right end keep at least this much of the picture's height between them.
LABEL_DISTANCE = 0.055


def draw_losses(report: dict[str, Any], path: Path) -> None:
    """Draws a run into a PNG file of 1600 x 900 pixels.

    Args:
        report: What `run.json` holds.
        path: The file to write.
    """
    loss_figure(report).savefig(path)


def loss_figure(report: dict[str, Any]) -> Figure:
    """Both curves of a run, its lowest estimate, and its loss over the whole validation split in figures.

    Estimates that are not finite, as a run that diverged has them, are left out; without any there are only the words.
    """
    figure = Figure(figsize=(8, 4.5), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.062, 0.115, 0.77, 0.625))
    curves = [point for point in report["losses"]["curves"] if all(math.isfinite(point[name]) for name in COLOURS)]
    if curves:
        _draw_curves(axes, curves)
        _mark_lowest(axes, curves)
    _frame(axes)
    _write_title(figure, report)
    return figure


def _draw_curves(axes: Axes, curves: list[dict[str, float]]) -> None:
    steps = [point["step"] for point in curves]
    lowest, highest = _visible_losses(curves)
    axes.set_xlim(0, max(steps[-1], 1))
    axes.set_ylim(lowest, highest)
    for name, colour in COLOURS.items():
        losses = [point[name] for point in curves]
        axes.plot(steps, losses, color=colour, linewidth=2.2, solid_capstyle="round", clip_on=len(curves) > 1)
    ends = {name: (curves[-1][name] - lowest) / (highest - lowest) for name in COLOURS}
    for name, height in _kept_apart(ends).items():
        axes.text(
            1.018,
            height,
            f"{curves[-1][name]:.3f} {name}",
            transform=axes.transAxes,
            color=COLOURS[name],
            fontsize=9.5,
            verticalalignment="center",
        )
    before, after = curves[0], curves[min(1, len(curves) - 1)]
    if before["validation"] > highest:
        fallen = (before["validation"] - highest) / (before["validation"] - after["validation"])
        axes.annotate(
            f"from {before['validation']:.2f}",
            (before["step"] + fallen * (after["step"] - before["step"]), highest),
            xytext=(7, -3),
            textcoords="offset points",
            color=FAINT,
            fontsize=9,
            verticalalignment="top",
        )


def _visible_losses(curves: list[dict[str, float]]) -> tuple[float, float]:
    """The range to show: all of it, or without the first fall where that would leave no room for the rest."""
    lowest = min(point[name] for point in curves for name in COLOURS)
    highest = max(point[name] for point in curves for name in COLOURS)
    if len(curves) > 5:
        later = max(point[name] for point in curves[1:] for name in COLOURS)
        if highest - lowest > 2 * (later - lowest):
            highest = later + 0.12 * (later - lowest)
    margin = 0.08 * (highest - lowest) or 0.1
    return lowest - margin, highest + (margin if highest == lowest else 0)


def _kept_apart(heights: dict[str, float]) -> dict[str, float]:
    """Moves two labels apart that would lie on each other."""
    (low, low_height), (high, high_height) = sorted(heights.items(), key=lambda item: item[1])
    missing = LABEL_DISTANCE - (high_height - low_height)
    if missing > 0:
        low_height, high_height = low_height - missing / 2, high_height + missing / 2
    return {low: low_height, high: high_height}


def _mark_lowest(axes: Axes, curves: list[dict[str, float]]) -> None:
    point = min(curves, key=lambda point: point["validation"])
    style: dict[str, Any] = {
        "color": COLOURS["validation"],
        "markeredgecolor": "white",
        "markeredgewidth": 1.5,
        "clip_on": False,
    }
    axes.plot(point["step"], point["validation"], marker="o", markersize=8.5, zorder=5, **style)
    if point is not curves[-1]:
        along = point["step"] / curves[-1]["step"]
        axes.annotate(
            f"lowest {point['validation']:.3f}\nstep {point['step']:,}",
            (point["step"], point["validation"]),
            xytext=(0, 12),
            textcoords="offset points",
            color=INK,
            fontsize=9,
            horizontalalignment="left" if along < 0.1 else "right" if along > 0.9 else "center",
            verticalalignment="bottom",
        )


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", colors=FAINT, labelsize=9.5, length=0, pad=6)
    axes.tick_params(axis="x", length=3)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("step", labelpad=4, **CAPTION)


def _write_title(figure: Figure, report: dict[str, Any]) -> None:
    model, training, validation = report["model"], report["training"], report["losses"]["validation"]
    in_millions = model["parameters"] >= 1e5
    trained = f"{_counted(model['parameters'], in_millions=in_millions)} parameters"
    if adapter := report.get("adapter"):
        trained = f"LoRA, {_counted(adapter['trainable'], in_millions=in_millions)} of {trained} trained"
    step = f"at step {model['step']:,}, " if model["chosen_on_validation"] else ""
    words, font = _drawable(f"{_origin(report)} on {report['data']['name']}")
    # A name may hold "$", which is no mathematics.
    title = figure.text(LEFT, 0.935, words, verticalalignment="center", parse_math=False, **TITLE | font)
    _shorten(title, TITLE_WIDTH)
    for x, y, words, style in (
        (LEFT, 0.87, f"{trained}, {training['steps']:,} steps in {_duration(training['seconds'])}", CAPTION),
        (LEFT, 0.785, "loss", CAPTION),
        (RIGHT, 0.935, f"{validation['loss']:.3f}", TITLE | {"color": COLOURS["validation"]}),
        (RIGHT, 0.87, f"nats a token {step}over the whole validation split", CAPTION),
    ):
        side = "left" if x == LEFT else "right"
        figure.text(x, y, words, horizontalalignment=side, verticalalignment="center", **style)


def _drawable(text: str) -> tuple[str, dict[str, Any]]:
    """Spells what no installed font can draw in ASCII.

    Returns:
        The text, and the style of its font: regular where other families than matplotlib's own are needed, for few of
        them have a bold.
    """
    families, characters = [DEFAULT_FAMILY], _characters_of(findfont(DEFAULT_FAMILY))
    wanted = {ord(character) for character in text if character.isprintable()}
    for font in fontManager.ttflist:
        if not wanted - characters:
            break
        # "Last Resort" draws every character as a box.
        is_regular = font.weight == 400 and font.style == "normal" and not font.name.startswith("Last Resort")
        if is_regular and (added := (wanted - characters) & _characters_of(font.fname)):
            families.append(font.name)
            characters = characters | added
    drawn = [one if ord(one) in wanted & characters else one.encode("unicode_escape").decode() for one in text]
    return "".join(drawn), {"family": families} | ({"fontweight": "regular"} if len(families) > 1 else {})


def _characters_of(file: str) -> set[int]:
    font = get_font(file)
    return set(font.get_charmap()) if font.scalable else set()  # emoji of one size cannot be drawn


def _shorten(text: Text, width: float) -> None:
    """Leaves out the middle of a text that is wider than so many pixels."""
    words = text.get_text()

    def fits(left_out: int) -> bool:
        start = (len(words) - left_out) // 2
        text.set_text(f"{words[:start]}…{words[start + left_out :]}" if left_out else words)
        return bool(text.get_window_extent().width <= width)

    fits(bisect_left(range(len(words)), True, key=fits))


def _counted(number: int, *, in_millions: bool) -> str:
    return f"{number / 1e6:.3g} M" if in_millions else f"{number:,}"


def _origin(report: dict[str, Any]) -> str:
    return str(report["preset"]) if "preset" in report else PurePath(report["base"]["name"]).name


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
