"""The figure of `scaling`: times on shared cores, bytes, and the cost model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from experiments import plots
from experiments.scaling_cost import (
    DCN,
    ETHERNET10,
    ETHERNET100,
    H100,
    INFINIBAND,
    JOBS,
    SHARE,
    TPU_V5P,
    WIRES,
    slowdown,
)
from experiments.scaling_rows import LAYOUTS

if TYPE_CHECKING:
    from experiments.scaling_runs import Measured

COLORS = dict(zip(LAYOUTS, (plots.BLUE, plots.ORANGE, plots.GREEN), strict=True))
JOB = JOBS[1]
LINKS = (
    (H100, ETHERNET10, plots.RED, "Ethernet 10 Gb/s a site"),
    (H100, ETHERNET100, plots.ORANGE, "Ethernet 100 Gb/s a site"),
    (TPU_V5P, DCN, plots.GREEN, "TPU DCN 50 Gb/s a chip"),
    (H100, INFINIBAND, plots.BLUE, "InfiniBand 400 Gb/s a GPU"),
)


def draw(path: Path, measured: Measured) -> None:
    """Draws the three panels."""
    figure, axes = plots.panels(1, 3, size=(13.6, 4.3), width_ratios=(1.0, 1.0, 1.05))
    _times(axes[0, 0], measured)
    _bytes(axes[0, 1], measured)
    _model(axes[0, 2])
    plots.save(figure, path)


def _times(panel: Axes, measured: Measured) -> None:
    for layout in LAYOUTS:
        _line(panel, measured, "strong", layout, color=COLORS[layout], marker="o", label=f"{layout}, batch fixed")
    _line(
        panel, measured, "weak", LAYOUTS[0], color=plots.SKY, marker="s", linestyle="--",
        label=f"{LAYOUTS[0]}, batch a device fixed",
    )  # fmt: skip
    several = [row for row in measured.times if row.scaling == "processes"]
    for place, row in enumerate(several):
        # Side by side around their number of devices.
        at = row.devices * 1.14 ** (place - (len(several) - 1) / 2)
        panel.plot(at, row.ratio, marker="D", linestyle="", color=plots.BLACK, markersize=5)
        panel.annotate(f"{row.processes}", (at, row.ratio), xytext=(0, 6), textcoords="offset points", ha="center")
    if several:
        counts = ", ".join(str(row.processes) for row in several)
        label = f"{several[0].devices} devices of {counts} processes (gloo)"
        panel.plot([], [], marker="D", linestyle="", color=plots.BLACK, markersize=5, label=label)
    panel.axhline(1, color=plots.BLACK, linewidth=0.9, linestyle=":", label="ideal on shared cores")
    counts = sorted({row.devices for row in measured.times})
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(counts))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
    panel.set_yscale("log")
    panel.set_ylim(0.6, 10 * max(row.ratio for row in measured.times))
    panel.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.legend(loc="upper left", fontsize=8, ncols=1)
    plots.label(
        panel, "Cost of cutting: all devices share the same cores", "virtual devices",
        "time a unit of work / that of one device",
    )  # fmt: skip


def _line(panel: Axes, measured: Measured, scaling: str, layout: str, **style: object) -> None:
    rows = sorted(
        (row for row in measured.times if row.scaling == scaling and row.layout == layout), key=lambda row: row.devices
    )
    panel.plot([row.devices for row in rows], [row.ratio for row in rows], markersize=4.5, **style)


def _bytes(panel: Axes, measured: Measured) -> None:
    most = max(program.devices for program in measured.programs)
    programs = {program.layout: program for program in measured.programs if program.devices == most}
    groups = ("sent in a step", "parameters", "optimizer state")
    for number, layout in enumerate(LAYOUTS):
        program = programs[layout]
        heights = np.array([program.sent, program.parameters, program.optimizer]) / 1e6
        places = np.arange(3) + 0.27 * (number - 1)
        bars = panel.bar(places, heights, width=0.25, color=COLORS[layout], label=layout)
        panel.bar_label(bars, [f"{height:.2f}" for height in heights], padding=4, fontsize=8)
        for height, style in ((program.formula.sent, "-"), (program.formula.best, ":")):
            panel.plot(
                places[0] + np.array([-0.125, 0.125]), [height / 1e6] * 2, color=plots.BLACK, linewidth=1.6,
                linestyle=style,
            )  # fmt: skip
    panel.plot([], [], color=plots.BLACK, linewidth=1.6, label="formula of rings")
    panel.plot([], [], color=plots.BLACK, linewidth=1.6, linestyle=":", label="with reduce-scatter")
    panel.set_xticks(range(3), groups)
    panel.set_ylim(0, 1.2 * max(max(one.sent, one.parameters) for one in programs.values()) / 1e6)
    panel.grid(axis="x", visible=False)
    panel.legend(loc="upper right", fontsize=8)
    plots.label(panel, f"Bytes of one of {most} devices", "", "MB")


def _model(panel: Axes) -> None:
    periods = np.geomspace(1, 1000, 50)
    for chip, link, color, name in LINKS:
        for wire, style in (("bf16", "-"), ("int8", "--")):
            extra = [100 * (slowdown(JOB, chip, link, period, WIRES[wire]) - 1) for period in periods]
            panel.plot(periods, extra, style, color=color, label=name if wire == "bf16" else None)
    panel.plot([], [], "--", color=plots.GRAY, label="with int8 on the wire")
    limit = 100 * SHARE / (1 - SHARE)
    panel.axhline(limit, color=plots.BLACK, linewidth=0.9, linestyle=":", label=f"{SHARE:.0%} of a step's time")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(0.08, 2e5)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_locator(FixedLocator([0.1, 1, 10, 100, 1000]))
    panel.legend(loc="upper right", fontsize=8)
    plots.label(
        panel, f"On paper: {JOB.parameters / 1e9:g} B parameters, {JOB.pods} pods of {JOB.devices}",
        "period H in steps (1 is data parallel)", "time added by the link between pods (%)",
    )  # fmt: skip
