"""The look of all figures: a palette that color-blind readers can tell apart, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008), without its yellow, which is too faint for lines on white.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, GRAY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8A8A8A",
)  # fmt: skip

STYLE = {
    "figure.dpi": 100,
    "figure.titlesize": 11,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
}
plt.rcParams.update(STYLE)


def panels(rows: int, columns: int, *, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """Returns a figure in the common style and its axes as an array of `rows` times `columns`."""
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG and forgets the figure."""
    figure.savefig(path)
    plt.close(figure)


def label(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    """Sets the title and both axis labels."""
    axes.set_title(title)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
