"""The figures of `large_scale`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from experiments import plots
from experiments.large_scale_methods import LABELS, Clip, RateSetter

if TYPE_CHECKING:
    from experiments.large_scale import Config
    from experiments.large_scale_cost import Cost
    from experiments.large_scale_report import Clipping, Entry
    from experiments.large_scale_stream import Stream
    from experiments.large_scale_training import Task, Trainer

LOOKS: dict[str, tuple[str, Any]] = {
    "nesterov": (plots.BLUE, "-"),
    "adam": (plots.ORANGE, (0, (6, 1.5))),
    "sgd": (plots.GREEN, (0, (3, 1.2))),
    "lbfgs": (plots.RED, (0, (5, 1.2, 1.2, 1.2))),
}
POINTS = 200
WORST = 3.0  # losses above it are drawn at it


def training(
    path: Path,
    task: Task,
    setter: RateSetter,
    entries: Sequence[Entry],
    trainers: Mapping[str, Trainer],
    budget: float,
) -> None:
    """Draws test loss and error against the seconds of training, and the rates."""
    figure, axes = plots.panels(1, 3, size=(13.2, 4.2))
    for entry in entries:
        color, style = LOOKS[entry.name]
        end = min(float(curve.seconds[-1]) for curve in entry.curves)
        # The first epoch stands at the left edge of the logarithmic axis.
        grid = np.linspace(min(curve.seconds[1] for curve in entry.curves), end, POINTS)
        for panel, values in ((axes[0, 0], "losses"), (axes[0, 1], "accuracies")):
            rows = np.array([np.interp(grid, curve.seconds, getattr(curve, values)) for curve in entry.curves])
            rows = np.minimum(np.nan_to_num(rows, nan=WORST), WORST) if values == "losses" else 100 * (1 - rows)
            middle = np.median(rows, axis=0)
            panel.plot(grid, middle, color=color, linestyle=style, label=entry.label)
            panel.plot(grid[-1], middle[-1], "o", color=color, markersize=4)
            if len(rows) > 1:
                panel.fill_between(grid, rows.min(axis=0), rows.max(axis=0), color=color, alpha=0.13, linewidth=0)
        if entry.name in trainers:
            total = int(entry.last("steps")[0])
            steps = np.arange(total)
            rates = np.array(setter.rate(steps, entry.rate, total))
            axes[0, 2].plot(100 * (steps + 1) / total, rates, color=color, linestyle=style, label=entry.label)
    for panel in axes[0, :2]:
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.axvline(budget, color=plots.BLACK, linewidth=0.8, linestyle=":")
        _plain(panel.xaxis)
        _plain(panel.yaxis)
    axes[0, 2].set_yscale("log")
    for bound in (setter.lowest, setter.highest):
        axes[0, 2].axhline(bound, color=plots.BLACK, linewidth=0.8, linestyle=":")
    seconds = "seconds of training (dotted: the budget)"
    plots.label(axes[0, 0], "Test loss", seconds, "mean cross-entropy")
    plots.label(axes[0, 1], "Test error", seconds, "error (%)")
    plots.label(axes[0, 2], "Learning-rate setter", "share of the steps (%)", "rate (dotted: bounds)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    seeds = len(entries[0].curves)
    spread = f"median and range of {seeds} seeds" if seeds > 1 else "one seed"
    figure.suptitle(f"{task.title}, CNN 64-64-512, equal time, {spread}")
    plots.save(figure, path)


def clipping(path: Path, config: Config, rate: float, clips: Sequence[Clipping]) -> None:
    """Draws test loss and the share that is clipped against K."""
    figure, axes = plots.panels(2, 2, size=(9.6, 6.4), sharex="col")
    looks = ((plots.BLUE, "o", "-"), (plots.RED, "s", (0, (5, 1.5))))
    for factor, (color, marker, style) in zip(sorted({clip.factor for clip in clips}), looks, strict=False):
        here = [clip for clip in clips if clip.factor == factor]
        (plain,) = [clip for clip in here if clip.clip == Clip()]
        label = f"rate {factor * rate:.3g}" + ("" if factor == 1 else f" ({factor:g} x tuned)")
        for column, kind in enumerate(("value", "norm")):
            some = [clip for clip in here if getattr(clip.clip, kind) < np.inf]
            bounds = [getattr(clip.clip, kind) for clip in some]
            losses = np.array([np.minimum(np.nan_to_num(clip.losses, nan=WORST), WORST) for clip in some])
            panel = axes[0, column]
            if some:
                means = losses.mean(axis=1)
                sides = np.abs(np.array([losses.min(axis=1), losses.max(axis=1)]) - means)
                panel.errorbar(
                    bounds, means, sides, color=color, marker=marker, linestyle=style, capsize=3, label=label
                )
            bare = np.minimum(np.nan_to_num(plain.losses, nan=WORST), WORST).mean()
            panel.axhline(bare, color=color, linewidth=1.0, linestyle=":", label=f"{label}, no clipping")
            quantity = "clipped_elements" if kind == "value" else "clipped_steps"
            shares = [100 * clip.share(quantity) for clip in some]
            axes[1, column].plot(bounds, shares, color=color, marker=marker, linestyle=style, label=label)
    for column in range(2):
        axes[0, column].set_xscale("log")
        axes[0, column].set_yscale("log")
        _plain(axes[0, column].yaxis)
        axes[1, column].set_ylim(-4, 104)
    plots.label(axes[0, 0], "Clipping to [-K, K] by value", "", "test loss, mean and range")
    plots.label(axes[0, 1], "Clipping by norm", "", "test loss, mean and range")
    plots.label(axes[1, 0], "", "K", "elements clipped (%)")
    plots.label(axes[1, 1], "", "K", "steps clipped (%)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    figure.suptitle(
        f"Nesterov, {config.tuning_epochs} epochs, seeds: {config.seeds} (losses above {WORST:g} drawn at it)"
    )
    plots.save(figure, path)


def growth(path: Path, costs: Sequence[Cost] | None, stream: Stream | None) -> None:
    """Draws step time and memory against the number of parameters, and memory along the stream."""
    count = (2 if costs else 0) + (1 if stream else 0)
    figure, axes = plots.panels(1, count, size=(4.5 * count, 4.2))
    panels = list(axes[0])
    if costs:
        times, memory = panels[:2]
        for name in dict.fromkeys(cost.name for cost in costs):
            own = [cost for cost in costs if cost.name == name]
            color, style = LOOKS[name]
            look = {"color": color, "linestyle": style, "marker": "o", "markersize": 4, "label": LABELS[name]}
            sizes = [cost.parameters for cost in own]
            times.plot(sizes, [1e3 * cost.step_seconds for cost in own], **look)
            memory.plot(sizes, [cost.planned_bytes / 1e6 for cost in own], **look)
        bare = [cost for cost in costs if cost.name == "nesterov"]
        sizes = [cost.parameters for cost in bare]
        gray = {"color": plots.GRAY, "linewidth": 1.0, "linestyle": ":"}
        times.plot(sizes, [1e3 * cost.batch_seconds for cost in bare], label="gradient alone", **gray)
        expected = [cost.expected_bytes / 1e6 for cost in bare]
        memory.plot(sizes, expected, label="12 bytes a parameter", **gray)
        for panel in (times, memory):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.legend(loc="lower right")
        plots.label(times, "Time of a step, batch 16", "parameters", "milliseconds")
        plots.label(memory, "Memory of a step, as XLA plans it", "parameters", "MB")
    if stream:
        _stream(panels[-1], stream)
    plots.save(figure, path)


def _stream(panel: Axes, stream: Stream) -> None:
    rows = [tenth["share"] * stream.file_mb for tenth in stream.tenths]
    held = [tenth["anonymous_mb"] for tenth in stream.tenths]
    panel.plot(rows, held, color=plots.BLUE, marker="o", markersize=4, label="anonymous memory")
    panel.axhline(stream.limit_mb, color=plots.RED, linestyle=(0, (5, 1.5)), label=f"limit, {stream.limit_mb} MB")
    panel.axvline(stream.file_mb, color=plots.GRAY, linestyle=":", label=f"file, {stream.file_mb:.0f} MB")
    panel.set_ylim(0, 1.35 * stream.limit_mb)
    panel.legend(loc="upper left")
    plots.label(panel, "Streamed data larger than memory", "read so far (MB)", "MB")


def _plain(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
