"""The figure of `bench_training`: how many times as fast as the usual loop each loop is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments import plots

TITLES = {
    "digits": "Digits, {arrays} arrays",
    "cnn": "CNN, {arrays} arrays",
    "transformer100": "Transformer, {arrays} arrays",
    "transformer388": "Transformer, {arrays} arrays",
}
COLORS = {
    "nnx loop": plots.GRAY,
    "packed, one step a call": plots.SKY,
    "torch": plots.ORANGE,
    "torch, 1 thread": plots.ORANGE,
}


def draw(path: Path, cases: dict[str, Any]) -> None:
    """Draws a panel a case; bars are medians, lines on them quartiles. The case metrics has no panel."""
    shown = [case for case in cases if case in TITLES]
    if not shown:
        return
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plots.panels(rows, columns, size=(5.6 * columns, 0.6 + 2.7 * rows))
    for panel in axes.flat[len(shown) :]:
        panel.set_visible(False)
    for panel, case in zip(axes.flat, shown, strict=False):
        measured = cases[case]
        rows_shown = {name: row for name, row in measured["rows"].items() if not name.endswith(" again")}
        values = [row["ratio"] for row in rows_shown.values()]
        errors = [
            [max(0.0, row["ratio"] - row["quartiles"][0]) for row in rows_shown.values()],
            [max(0.0, row["quartiles"][1] - row["ratio"]) for row in rows_shown.values()],
        ]
        colors = [COLORS.get(name, plots.BLUE) for name in rows_shown]
        bars = panel.barh(
            list(rows_shown), values, color=colors, height=0.65, xerr=errors, error_kw={"linewidth": 1, "capsize": 2}
        )
        panel.bar_label(bars, [f"{value:.3g}" for value in values], padding=6)
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.set_xlim(min(0.5, 0.6 * min(values)), 2.2 * max(values))
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.axvline(1, color=plots.BLACK, linewidth=0.8, linestyle=":")
        panel.grid(axis="y", visible=False)
        plots.label(panel, TITLES[case].format(**measured), "times as fast as the nnx loop", "")
    figure.suptitle("Time of training: gray the usual Flax loop, blue nagjax (light: a variant), orange PyTorch")
    plots.save(figure, path)
