"""The figures of `nagd`: lines are closed forms, markers are iterates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments import plots
from experiments.nagd_runs import HESSIAN, MINIMIZER, START, Array, Trajectory, TutorialUpdate, excess

COLORS = {"gradient descent": plots.ORANGE, "Nesterov": plots.BLUE}


def trajectories(path: Path, runs: Sequence[Trajectory], alpha: float, beta: float) -> None:
    """Draws the runs of fixed length in weight space, one row a length, one column of W a panel."""
    rules = [rule for rule in dict.fromkeys(run.rule for run in runs) if "iterations" in rule]
    figure, axes = plots.panels(len(rules), 2, size=(9.6, 4.3 * len(rules)))
    for row, rule in zip(axes, rules, strict=True):
        chosen = [run for run in runs if run.rule == rule]
        for column, panel in enumerate(row):
            every = max(1, chosen[0].updates // 50)
            for run in chosen:
                color = COLORS[run.method]
                if run.method == "Nesterov":
                    _path(panel, run.closed_queries, run.queries, column, plots.SKY, every, "Nesterov, query y", "s")
                name = "Nesterov, answer x" if run.method == "Nesterov" else run.method
                _path(panel, run.closed_answers, run.answers, column, color, every, name, "o")
            panel.plot(*START[:, column], "D", color=plots.BLACK, markersize=6, label="start")
            _minimizer(panel, column)
            _contours(panel, column)
            title = f"{rule}: column {column + 1} of W"
            plots.label(panel, title, f"weight W[1,{column + 1}]", f"weight W[2,{column + 1}]")
    axes[0, 0].legend(loc="best", handlelength=1.6)
    figure.suptitle(f"Iterates (markers) on their closed form (lines), alpha = {alpha:g}, beta = {beta:g}")
    plots.save(figure, path)


def errors(path: Path, runs: Sequence[Trajectory], alpha: float, beta: float) -> None:
    """Draws the excess loss and the difference from the closed form of the runs that stop by the gradient."""
    figure, axes = plots.panels(1, 2, size=(10.4, 4.2))
    loss, difference = axes[0]
    for run in runs:
        if "iterations" in run.rule:
            continue
        t = np.arange(run.updates + 1)
        sparse = np.unique(np.geomspace(1, run.updates, 30).astype(int))
        series = [(run.method, run.answers, run.closed_answers, COLORS[run.method], "o")]
        if run.method == "Nesterov":
            series = [
                ("Nesterov, query y", run.queries, run.closed_queries, plots.SKY, "s"),
                ("Nesterov, answer x", run.answers, run.closed_answers, plots.BLUE, "o"),
            ]
        for name, found, exact, color, marker in series:
            loss.semilogy(t[1:], excess(exact)[1:], color=color, linewidth=1.2)
            loss.semilogy(sparse, excess(found)[sparse], marker, color=color, markersize=4, label=name)
            gap = np.abs(found - exact).max(axis=(1, 2))
            difference.semilogy(t[1:], np.maximum(gap[1:], 1e-18), color=color, linewidth=0.9, label=name)
    loss.set_xscale("log")
    difference.set_xscale("log")
    difference.axhline(1e-12, color=plots.BLACK, linestyle="--", linewidth=1)
    difference.text(1.1, 1.5e-12, "1e-12", fontsize=9)
    difference.set_ylim(1e-18, 1e-11)
    plots.label(loss, "Excess loss: iterates on closed form", "iteration t", "f - f*")
    plots.label(difference, "Largest difference from the closed form", "iteration t", "weight units")
    loss.legend(loc="lower left")
    difference.legend(loc="upper right")
    figure.suptitle(f"Until the stopping rule, alpha = {alpha:g}, beta = {beta:g}, float64")
    plots.save(figure, path)


def tutorial(path: Path, updates: Sequence[TutorialUpdate], alpha: float) -> None:
    """Draws where theta <- theta - alpha g + beta theta goes instead of to the minimizer."""
    figure, axes = plots.panels(1, 2, size=(10.4, 4.2))
    diverging, converging = updates
    left, right = axes[0]
    t = np.arange(len(diverging.iterates))
    left.semilogy(t, _distance(diverging.closed), color=plots.RED, label="closed form")
    left.semilogy(t, _distance(diverging.iterates), "o", color=plots.RED, markersize=4, label="iterates")
    plots.label(left, f"beta = {diverging.beta:g}: diverges", "iteration t", "distance from the minimizer")
    left.legend(loc="upper left")
    left.set_xticks(t[::5])
    every = max(1, len(converging.iterates) // 60)
    _path(right, converging.closed, converging.iterates, 0, plots.RED, every, "iterates", "o")
    right.plot(*START[:, 0], "D", color=plots.BLACK, markersize=6, label="start")
    _minimizer(right, 0)
    right.plot(*converging.fixed_point[:, 0], "X", color=plots.RED, markersize=10, label="its fixed point")
    _contours(right, 0)
    plots.label(right, f"beta = {converging.beta:g}: ends elsewhere", "weight W[1,1]", "weight W[2,1]")
    right.legend(loc="best")
    figure.suptitle(f"The update theta - alpha g + beta theta is not Nesterov's (alpha = {alpha:g})")
    plots.save(figure, path)


def _distance(weights: Array) -> Array:
    return np.linalg.norm(weights - MINIMIZER, axis=(1, 2))


def _path(
    panel: Axes, closed: Array, found: Array, column: int, color: str, every: int, name: str, marker: str
) -> None:
    panel.plot(closed[:, 0, column], closed[:, 1, column], color=color, linewidth=1.1, zorder=2)
    points = found[::every, :, column]
    panel.plot(points[:, 0], points[:, 1], marker, color=color, markersize=3.6, label=name, zorder=3)


def _minimizer(panel: Axes, column: int) -> None:
    panel.plot(*MINIMIZER[:, column], "*", color=plots.BLACK, markersize=14, mec="white", zorder=5, label="minimizer")


def _contours(panel: Axes, column: int) -> None:
    """Adds level sets of one column's part of the loss, within the limits that the paths have set."""
    panel.margins(0.12)
    (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
    first, second = np.meshgrid(np.linspace(left, right, 200), np.linspace(low, high, 200))
    error = np.stack([first - MINIMIZER[0, column], second - MINIMIZER[1, column]], axis=-1)
    value = np.einsum("...i,ij,...j->...", error, HESSIAN, error) / 2
    levels = np.geomspace(max(value.min(), value.max() * 1e-4), value.max(), 9)
    panel.contour(first, second, value, levels=levels, colors=plots.GRAY, linewidths=0.6, alpha=0.7, zorder=1)
    panel.set_xlim(left, right)
    panel.set_ylim(low, high)
