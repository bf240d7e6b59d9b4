"""The figures of `digits`: lines are means over seeds (of losses geometric), bands their standard error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments import plots
from experiments.digits_runs import Entry

LOOKS: dict[str, tuple[str, Any]] = {
    "sgd": (plots.GRAY, "-"),
    "heavy_ball": (plots.ORANGE, "-"),
    "nesterov": (plots.BLUE, "-"),
    "sutskever": (plots.SKY, (0, (5, 1.5))),
    "demon": (plots.GREEN, "-"),
    "restart": (plots.PURPLE, (0, (5, 1.5))),
    "adam": (plots.RED, "-"),
    "nadam": (plots.BLACK, (0, (2, 1.2))),
    "float32": (plots.BLUE, "-"),
    "bfloat16": (plots.ORANGE, (0, (5, 1.5))),
    "int8": (plots.GREEN, (0, (2, 1.2))),
}


def learning_curves(path: Path, entries: Sequence[Entry]) -> None:
    """Draws losses and accuracy by epoch, and the test accuracy of every seed."""
    figure, axes = plots.panels(2, 2, size=(10.6, 7.6))
    _curves(axes[0, 0], entries, "train_loss", "Training loss (geometric mean)", "cross-entropy (nats)")
    _curves(axes[0, 1], entries, "validation_loss", "Validation loss (geometric mean)", "cross-entropy (nats)")
    _curves(axes[1, 0], entries, "validation_accuracy", "Validation accuracy", "accuracy (%)")
    _accuracies(axes[1, 1], entries)
    axes[0, 0].legend(ncols=2, loc="upper right")
    seeds, epochs = np.shape(entries[0].history.train_loss)
    figure.suptitle(
        f"Digits, 64-128-10 network, {epochs} epochs, equal tuning budgets: means of {seeds} seeds ± standard error"
    )
    plots.save(figure, path)


def storage(path: Path, entries: Sequence[Entry]) -> None:
    """Draws the curves of each storage of the velocity, and its size."""
    figure, axes = plots.panels(1, 3, size=(11.6, 3.9))
    loss, accuracy, size = axes[0]
    _curves(loss, entries, "train_loss", "Training loss (geometric mean)", "cross-entropy (nats)")
    _curves(accuracy, entries, "validation_accuracy", "Validation accuracy", "accuracy (%)")
    loss.legend(loc="upper right")
    values = [entry.state_bytes / entry.parameters for entry in entries]
    names = [entry.name for entry in entries]
    bars = size.bar(names, values, color=[LOOKS[name][0] for name in names], width=0.6)
    size.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    size.margins(y=0.1)
    size.grid(axis="x", visible=False)
    plots.label(size, "Optimizer state", "storage of the velocity", "bytes a parameter")
    figure.suptitle(
        f"Nesterov, momentum {entries[0].second:g}, rate {entries[0].rate:g}, the velocity in 32, 16 and 8 bits: "
        f"means of {len(entries[0].run_seconds)} seeds ± standard error"
    )
    plots.save(figure, path)


def _curves(panel: Axes, entries: Sequence[Entry], metric: str, title: str, unit: str) -> None:
    accuracy = metric.endswith("accuracy")
    names = {"float32": "float32"}
    for entry in entries:
        color, style = LOOKS[entry.name]
        values = np.asarray(getattr(entry.history, metric), np.float64)
        values = 100 * values if accuracy else np.log(values)
        epochs = np.arange(1, values.shape[1] + 1)
        mean = values.mean(axis=0)
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0 * mean
        low, middle, high = ((line if accuracy else np.exp(line)) for line in (mean - error, mean, mean + error))
        panel.plot(epochs, middle, color=color, linestyle=style, label=names.get(entry.name, entry.rival.label))
        panel.fill_between(epochs, low, high, color=color, alpha=0.13, linewidth=0)
    if accuracy:
        panel.axhline(95, color=plots.BLACK, linewidth=0.8, linestyle=":")
        panel.set_ylim(bottom=max(85.0, panel.get_ylim()[0]), top=100)
    else:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    plots.label(panel, title, "epoch", unit)


def _accuracies(panel: Axes, entries: Sequence[Entry]) -> None:
    for row, entry in enumerate(entries):
        color, _ = LOOKS[entry.name]
        values = 100 * entry.last("test_accuracy")
        panel.plot(values, np.full(len(values), row), "o", color=color, markersize=5, alpha=0.45, markeredgewidth=0)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        panel.errorbar(values.mean(), row, xerr=spread, fmt="D", color=color, markersize=6, capsize=3)
    panel.set_yticks(range(len(entries)), [entry.rival.label for entry in entries])
    panel.invert_yaxis()
    plots.label(panel, "Test accuracy: seeds, mean, standard deviation", "accuracy (%)", "")
