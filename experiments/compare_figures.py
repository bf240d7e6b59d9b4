"""The figures of `compare`: a panel for each family of optimizers, with the reference in gray in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from experiments import plots
from experiments.compare_optimizers import FAMILIES, OPTIMIZERS, REFERENCE
from experiments.compare_scores import Score
from experiments.compare_training import Workload

LOOKS: tuple[tuple[str, Any], ...] = (
    (plots.BLUE, "-"),
    (plots.ORANGE, (0, (6, 1.5))),
    (plots.GREEN, (0, (3, 1.2))),
    (plots.RED, (0, (5, 1.2, 1.2, 1.2))),
    (plots.PURPLE, (0, (1.4, 1.0))),
)
Draw = Callable[[Axes, Score, str, Any, str], None]


def learning_curves(path: Path, workload: Workload, target: float, scores: Sequence[Score]) -> None:
    """Draws the losses of the best settings: the median over seeds, and their range."""
    measured = workload.plan.measured

    def draw(panel: Axes, score: Score, color: str, style: Any, label: str) -> None:
        losses = score.result.best.losses
        panel.plot(measured, np.median(losses, axis=0), color=color, linestyle=style, label=label)
        panel.fill_between(measured, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.13, linewidth=0)

    def finish(panel: Axes) -> None:
        panel.axhline(target, color=plots.BLACK, linewidth=0.8, linestyle=":")
        _log_losses(panel)

    seeds = len(scores[0].result.best.records)
    title = f"{workload.title}: best settings, median and range of {seeds} seeds; dotted: the target"
    _families(path, title, scores, draw, finish, "updates", workload.loss_label)


def sensitivity(path: Path, workload: Workload, target: float, scores: Sequence[Score]) -> None:
    """Draws the final loss over the range of rates; everything else is as tuned."""
    start = float(np.median([score.result.best.losses[:, 0].mean() for score in scores]))

    def draw(panel: Axes, score: Score, color: str, style: Any, label: str) -> None:
        rates = np.array([trial.setting[score.result.swept] for trial in score.result.sensitivity])
        losses = np.array([trial.mean for trial in score.result.sensitivity])
        bad = ~(losses <= start)
        panel.plot(rates, np.where(bad, np.nan, losses), color=color, linestyle=style, label=label, marker="o", ms=2.5)
        panel.plot(rates[bad], np.full(bad.sum(), start), "x", color=color, markersize=5)

    def finish(panel: Axes) -> None:
        panel.axhline(target, color=plots.BLACK, linewidth=0.8, linestyle=":")
        panel.set_xscale("log")
        _log_losses(panel)

    title = (
        f"{workload.title}: final loss over the learning rate, the rest as tuned, mean of "
        f"{len(scores[0].result.sensitivity[0].records)} seeds; x: ends above its start; dotted: the target"
    )
    results = [score.result for score in scores if score.result.swept != "learning_rate"]
    others = ", ".join(f"{result.optimizer.label}: {result.swept}" for result in results)
    horizontal = f"learning rate ({others})" if others else "learning rate"
    _families(path, title, scores, draw, finish, horizontal, workload.loss_label)


def performance_profiles(
    path: Path, title: str, labels: Mapping[str, Score], factors: NDArray[np.float64], shares: Mapping[str, Any]
) -> None:
    """Draws the share of workloads that are solved within a factor of the fastest optimizer's steps."""

    def draw(panel: Axes, score: Score, color: str, style: Any, label: str) -> None:
        values = shares[score.result.name]
        panel.step(factors, values, where="post", color=color, linestyle=style, label=label)

    def finish(panel: Axes) -> None:
        panel.set_ylim(-0.04, 1.04)

    _families(path, title, list(labels.values()), draw, finish, "factor of the fewest steps", "share of workloads")


def best_and_median(path: Path, workload: Workload, target: float, scores: Sequence[Score]) -> None:
    """Draws the final loss of the best and of the median setting of tuning as dots, a row for each optimizer."""
    figure, axes = plots.panels(1, 1, size=(8.6, 1.6 + 0.27 * len(scores)))
    panel = axes[0, 0]
    start = float(np.median([score.result.best.losses[:, 0].mean() for score in scores]))
    for row, score in enumerate(scores):
        color = plots.GRAY if score.result.name == REFERENCE else plots.BLUE
        best, median = (min(trial.mean, start) for trial in (score.result.best, score.result.median))
        panel.plot([best, median], [row, row], color=color, linewidth=1.0, alpha=0.6)
        finals = np.minimum(np.nan_to_num(score.result.best.final, nan=start, posinf=start), start)
        panel.plot(finals, np.full(len(finals), row), "|", color=color, markersize=7, alpha=0.7)
        panel.plot(best, row, "o", color=color, markersize=6)
        panel.plot(median, row, "o", color=color, markersize=6, markerfacecolor="white")
    panel.axvline(target, color=plots.BLACK, linewidth=0.8, linestyle=":")
    panel.set_yticks(range(len(scores)), [score.result.optimizer.label for score in scores])
    panel.set_ylim(len(scores) - 0.5, -0.5)
    panel.set_xscale("log")
    _plain_ticks(panel.xaxis)
    looks: list[dict[str, Any]] = [
        {"marker": "o"},
        {"marker": "o", "markerfacecolor": "white"},
        {"marker": "|"},
        {"linestyle": ":", "color": plots.BLACK},
    ]
    handles = [Line2D([], [], **{"color": plots.BLUE, "linestyle": "", **look}) for look in looks]
    names = ["best of tuning", "median of tuning", "seeds of the best", "target"]
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    plots.label(panel, "", workload.loss_label, "")
    figure.suptitle(f"{workload.title}:\nfinal {workload.loss_label}, mean over seeds")
    plots.save(figure, path)


def _families(
    path: Path,
    title: str,
    scores: Sequence[Score],
    draw: Draw,
    finish: Callable[[Axes], None],
    horizontal: str,
    vertical: str,
) -> None:
    """One panel for each family that has optimizers; all share their axes."""
    named = {score.result.name: score for score in scores}
    families = [name for name in FAMILIES if any(OPTIMIZERS[one].family == name for one in named)]
    columns = min(4, len(families))
    rows = -(-len(families) // columns)
    size = (3.5 * columns + 0.4, 3.3 * rows + 0.5)
    figure, axes = plots.panels(rows, columns, size=size, sharex=True, sharey=True)
    for position, panel in enumerate(axes.flat):
        if position >= len(families):
            panel.set_axis_off()
            continue
        family = families[position]
        label = OPTIMIZERS[REFERENCE].label
        own = [name for name in OPTIMIZERS if name in named and OPTIMIZERS[name].family == family]
        draw(panel, named[REFERENCE], plots.GRAY, "-", label if REFERENCE in own else f"{label} (reference)")
        for name, (color, style) in zip((name for name in own if name != REFERENCE), LOOKS, strict=False):
            draw(panel, named[name], color, style, OPTIMIZERS[name].label)
        finish(panel)
        last_row = position + columns >= len(families)
        plots.label(panel, family, horizontal if last_row else "", vertical if position % columns == 0 else "")
        panel.tick_params(labelbottom=last_row)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2 if last_row else -0.04), ncols=2, fontsize=8)
    figure.suptitle(title)
    plots.save(figure, path)


def _log_losses(panel: Axes) -> None:
    panel.set_yscale("log")
    _plain_ticks(panel.yaxis)


def _plain_ticks(axis: Any) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
