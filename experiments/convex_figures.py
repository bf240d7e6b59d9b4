"""The figures of `convex`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from experiments import convex_deblurring, plots
from experiments.convex_report import LABELS
from experiments.convex_runs import Comparison

LOOKS: dict[str, tuple[str, Any]] = {
    "default": (plots.BLUE, "-"),
    "boosted": (plots.BLUE, (0, (4, 1.2))),
    "fista": (plots.GRAY, "-"),
    "fista_restart": (plots.ORANGE, "-"),
    "acfgm": (plots.PURPLE, "-"),
    "jaxopt": (plots.RED, "-"),
    "optax_lbfgs": (plots.GREEN, "-"),
    "scipy_lbfgs": (plots.GREEN, (0, (4, 1.2))),
    "scikit-learn": (plots.BLACK, "o"),
    "skglm": (plots.BLACK, "s"),
    "celer": (plots.BLACK, "^"),
    "scipy.nnls": (plots.BLACK, "D"),
}
COLUMNS = 3


def convergence(path: Path, found: Sequence[Comparison]) -> None:
    """Draws suboptimality against evaluations, with FISTA's theorem."""

    def draw(panel: Axes, entry: Comparison) -> None:
        for name, curve in entry.curves.items():
            _line(panel, name, curve.costs, entry)
        steps = np.arange(1, len(entry.bound) + 1)
        if np.isfinite(entry.bound).all():
            panel.plot(2 * steps, entry.bound, color=plots.BLACK, linewidth=1, linestyle=":")
        furthest = max(_end(entry, name) for name in entry.curves)
        panel.set_xlim(left=2, right=1.15 * furthest)

    note = "FISTA's bound 2LR²/(N+1)²"
    title = "Suboptimality against evaluations (a value counts 1, a gradient 2)"
    _grid(path, found, draw, "evaluations", title, note)


def seconds(path: Path, found: Sequence[Comparison]) -> None:
    """Draws suboptimality against seconds; each marker is a whole run of a solver that shows only its result."""

    def draw(panel: Axes, entry: Comparison) -> None:
        for name, curve in entry.curves.items():
            if curve.seconds is not None:
                _line(panel, name, curve.seconds, entry)
        for name, runs in entry.endpoints.items():
            color, marker = LOOKS[name]
            times, gaps = np.array([run.seconds for run in runs]), np.maximum(entry.gaps(name), entry.last)
            order = np.argsort(times)
            panel.plot(
                times[order], np.minimum.accumulate(gaps[order]), color=color, marker=marker, markersize=4.5,
                linewidth=0.7, linestyle=(0, (1, 2)), markerfacecolor="white",
            )  # fmt: skip

    _grid(path, found, draw, "seconds", "Suboptimality against seconds, compilation not included", None)


def _line(panel: Axes, name: str, horizontal: Any, entry: Comparison) -> None:
    color, style = LOOKS[name]
    # The start is at no cost, which a logarithmic axis does not show.
    gaps = np.minimum.accumulate(entry.gaps(name)[1:])
    end = np.flatnonzero(gaps <= entry.last)
    last = int(end[0]) + 1 if len(end) else len(gaps)
    panel.plot(
        horizontal[1 : last + 1], np.maximum(gaps[:last], entry.last), color=color, linestyle=style,
        linewidth=2.2 if name == "default" else 1.5, zorder=3 if name in ("default", "boosted") else 2,
    )  # fmt: skip


def _end(entry: Comparison, name: str) -> float:
    gaps, costs = entry.gaps(name), entry.curves[name].costs
    reached = np.flatnonzero(gaps <= entry.last)
    return float(costs[reached[0]] if len(reached) else costs[-1])


def _grid(
    path: Path,
    found: Sequence[Comparison],
    draw: Callable[[Axes, Comparison], None],
    unit: str,
    title: str,
    note: str | None,
) -> None:
    columns = min(COLUMNS if len(found) <= 2 * COLUMNS else COLUMNS + 1, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plots.panels(rows, columns, size=(max(4.1 * columns, 8.0), 3.3 * rows + 1.5))
    for panel, entry in zip(axes.flat, found, strict=False):
        draw(panel, entry)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylim(entry.last, 10 * max(1.0, float(entry.gaps("default")[0]) ** 0.5))
        relative = "(F - F*) / F*" if entry.reference.scale == entry.reference.minimum else "(F - F*) / (F₀ - F*)"
        plots.label(panel, entry.problem.title, unit, relative)
    for panel in list(axes.flat)[len(found) :]:
        panel.set_visible(False)
    drawn = {name for entry in found for name in (entry.names if unit == "seconds" else entry.curves)}
    handles = [_handle(name) for name in LABELS if name in drawn]
    if note:
        handles.append(Line2D([], [], color=plots.BLACK, linewidth=1, linestyle=":", label=note))
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if columns > 2 else 3)
    figure.suptitle(title)
    plots.save(figure, path)


def _handle(name: str) -> Line2D:
    color, style = LOOKS[name]
    if isinstance(style, str) and style != "-":
        return Line2D([], [], color=color, marker=style, linestyle="none", markerfacecolor="white", label=LABELS[name])
    return Line2D([], [], color=color, linestyle=style, label=LABELS[name])


def deblurring(path: Path, entry: Comparison) -> None:
    """Draws the photograph, what was observed and what the default restored, with a detail of each."""
    original, observed = entry.problem.facts["original"], entry.problem.facts["observed"]
    restored = np.asarray(convex_deblurring.synthesize(entry.curves["default"].answer))
    size = len(original)
    low, high = 3 * size // 8, 5 * size // 8
    figure, axes = plots.panels(2, 3, size=(10.2, 7.4))
    noise, ratio = convex_deblurring.NOISE, convex_deblurring.peak_signal_to_noise
    titles = (
        "Original",
        f"Blurred, noise {noise:g}: {ratio(observed, original):.2f} dB",
        f"Restored: {ratio(restored, original):.2f} dB",
    )
    for column, (image, title) in enumerate(zip((original, observed, restored), titles, strict=True)):
        for row, part in enumerate((image, image[low:high, low:high])):
            panel = axes[row, column]
            panel.imshow(part, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.set_axis_off()
        axes[0, column].set_title(title)
        frame = np.array([[low, low], [high, low], [high, high], [low, high], [low, low]]) - 0.5
        axes[0, column].plot(frame[:, 0], frame[:, 1], color=plots.ORANGE, linewidth=1.2)
    axes[1, 0].set_title("The framed detail")
    figure.suptitle(
        f"Deblurring {size} x {size}: Gaussian blur of {convex_deblurring.BLUR:g} pixels, wavelet l1, nagjax default; "
        "PSNR against the original"
    )
    plots.save(figure, path)
