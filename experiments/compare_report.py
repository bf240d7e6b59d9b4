"""The tables of `compare`, and what they say in words."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.compare_optimizers import OPTIMIZERS, REFERENCE
from experiments.compare_scores import Difference, Score, half, paired
from experiments.compare_sweep import Amount
from experiments.compare_training import Workload

WIDTH = 132


def show(workload: Workload, amount: Amount, target: float, scores: Sequence[Score]) -> None:
    """Prints both tables, their captions and the findings."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    name = OPTIMIZERS[REFERENCE].label
    console.print(_results(workload, scores))
    plan = workload.plan
    caption = (
        f"Target: {workload.loss_label} {target:.4g}, the median over seeds of what tuned {name} ends at after "
        f"{plan.steps} updates of {plan.batch}. Every optimizer had {amount.trials} trials on "
        f"{len(amount.tuning_seeds)} seeds and is reported on {len(amount.seeds)} other seeds: best is the setting of "
        "the lowest mean loss at the end of tuning, median that of the middle one. Loss and accuracy (test data): "
        "mean ± standard deviation over seeds; difference: the loss minus that of "
        f"{name}, paired by seed, ± half of the 95 % interval of Student's t (* where it leaves out 0; not corrected "
        "for the number of comparisons). Steps to target: by when half of the seeds have been measured (every "
        f"{plan.every} updates) at or below it, in brackets how many ever are. Diverged: share of the "
        "runs of tuning that end above their start. Range: decades of the rate around the best in which the loss stays "
        f"within {workload.near:g} times the lowest. Time: of one update with its share of the measurements."
    )
    console.print(textwrap.fill(caption, WIDTH) + "\n")
    console.print(_settings(scores))
    for line in findings(workload, target, scores):
        console.print(textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  "))


def _results(workload: Workload, scores: Sequence[Score]) -> Table:
    table = _table(workload.title)
    table.add_column("optimizer", no_wrap=True)
    for header in ("loss, best", "difference", "test %", "steps to\ntarget", "loss,\nmedian", "steps,\nmedian",
                   "diverged", "range", "µs a\nstep"):  # fmt: skip
        table.add_column(header, justify="right", no_wrap=True)
    for score in scores:
        table.add_row(
            score.result.optimizer.label,
            f"{score.result.best.mean:.4f} ± {_deviation(score.result.best.final):.4f}",
            "" if score.result.name == REFERENCE else _difference(score.loss),
            f"{score.test_accuracy.mean():.2f} ± {_deviation(score.test_accuracy):.2f}",
            _reached(score.steps),
            f"{score.result.median.mean:.4f}",
            _reached(score.median_steps),
            f"{100 * score.diverged:.0f} %",
            f"{score.rate_range:.1f}",
            f"{1e6 * score.step_seconds:.0f}",
        )
    return table


def _settings(scores: Sequence[Score]) -> Table:
    table = _table(
        "Settings (b: momentum; edge: within 5 % of the end of the range, where a wider one might do better)"
    )
    table.add_column("optimizer", no_wrap=True)
    table.add_column("rate", no_wrap=True)
    table.add_column("best")
    table.add_column("median of tuning")
    for score in scores:
        result = score.result
        best = ", ".join(
            f"{_short(name)} {value:.3g}{' (edge)' if name in result.at_edge else ''}"
            for name, value in result.best.setting.items()
        )
        median = ", ".join(f"{_short(name)} {value:.3g}" for name, value in result.median.setting.items())
        table.add_row(result.optimizer.label, result.optimizer.schedule, best, median)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _short(name: str) -> str:
    return {"learning_rate": "rate", "weight_decay": "decay", "momentum": "b"}.get(name, name)


def _deviation(values: NDArray[np.float64]) -> float:
    if not np.isfinite(values).all():
        return math.nan
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _difference(difference: Difference) -> str:
    if not math.isfinite(difference.half_width):
        return f"{difference.mean:+.2g}"
    return f"{difference.mean:+.2g} ± {difference.half_width:.2g}{'*' if difference.clear else ' '}"


def _reached(steps: NDArray[np.float64]) -> str:
    count, middle = int(np.isfinite(steps).sum()), half(steps)
    return f"{middle:.0f} ({count}/{len(steps)})" if math.isfinite(middle) else f"- ({count}/{len(steps)})"


def findings(workload: Workload, target: float, scores: Sequence[Score]) -> list[str]:
    """Returns sentences that follow from the numbers, those where Nesterov loses included."""
    named = {score.result.name: score for score in scores}
    reference = named[REFERENCE]
    label = reference.result.optimizer.label
    lines = [_fastest(workload, target, scores, reference)]
    if len(reference.steps) > 1:
        lines.append(_clear(scores, label))
    lines += _nesterov(named)
    finite = [one for one in scores if math.isfinite(one.result.median.mean) and math.isfinite(one.result.best.mean)]
    if len(finite) > 1:
        close = sorted(finite, key=lambda score: score.result.median.mean / score.result.best.mean)
        lines.append(
            "Easiest to tune (final loss with the median trial over that with the best): "
            + "; ".join(f"{_name(one)} {one.result.median.mean / one.result.best.mean:.2f}" for one in close[:3])
            + f". Hardest: {_name(close[-1])} {close[-1].result.median.mean / close[-1].result.best.mean:.2f}."
        )
        wide = sorted(scores, key=lambda score: -score.rate_range)
        lines.append(
            f"Least sensitive to the rate (decades within {workload.near:g} times the lowest loss): "
            + "; ".join(f"{_name(one)} {one.rate_range:.1f}" for one in wide[:3])
            + f". Most sensitive: {_name(wide[-1])} {wide[-1].rate_range:.1f}."
        )
    edged = [f"{_name(one)} ({', '.join(map(_short, one.result.at_edge))})" for one in scores if one.result.at_edge]
    if edged:
        lines.append(f"Tuned to an edge of the range, where a wider one might do better: {'; '.join(edged)}.")
    return lines


def _name(score: Score) -> str:
    return score.result.optimizer.label


def _fastest(workload: Workload, target: float, scores: Sequence[Score], reference: Score) -> str:
    most = {id(score): half(score.steps) for score in scores}
    reached = sorted((score for score in scores if math.isfinite(most[id(score)])), key=lambda score: most[id(score)])
    own = most[id(reference)]
    sooner = [f"{_name(score)} {most[id(score)]:.0f}" for score in reached if most[id(score)] < own]
    never = [_name(score) for score in scores if not np.isfinite(score.steps).any()]
    line = f"{_name(reference)} reaches the target of {target:.4g} in {own:.0f} of {workload.plan.steps} updates "
    line += "(half of the seeds)."
    line += f" Sooner: {'; '.join(sooner)}." if sooner else " No other optimizer does so sooner."
    return line + (f" With no seed: {', '.join(never)}." if never else "")


def _clear(scores: Sequence[Score], label: str) -> str:
    clear = [score for score in scores if score.result.name != REFERENCE and score.loss.clear]
    better = [_name(score) for score in clear if score.loss.mean < 0]
    worse = [_name(score) for score in clear if score.loss.mean > 0]
    unclear = len(scores) - 1 - len(clear)
    return (
        f"Final loss against {label}, outside the 95 % interval: lower with {', '.join(better) or 'none'}; higher with "
        f"{', '.join(worse) or 'none'}; {unclear} of {len(scores) - 1} cannot be told apart on these seeds."
    )


def _nesterov(named: dict[str, Score]) -> list[str]:
    if "nesterov" not in named:
        return []
    own = named["nesterov"]
    parts: list[str] = []
    for name in ("sgd", "heavy_ball", "sutskever", "demon", "srsgd", "one_cycle", "adamw", "nadamw"):
        if name not in named:
            continue
        gap = paired(own.result.best.final, named[name].result.best.final)
        if not math.isfinite(gap.mean):
            parts.append(f"{_name(named[name])} cannot be compared (a run diverges)")
            continue
        verdict = "" if not math.isfinite(gap.half_width) else f" ({_verdict(gap)})"
        parts.append(f"{_name(named[name])} {_difference(gap).rstrip(' *')}{verdict}")
    return [f"Nesterov's final loss minus that of others, paired by seed, 95 %: {'; '.join(parts)}."] if parts else []


def _verdict(gap: Difference) -> str:
    return "~" if not gap.clear else "lower" if gap.mean < 0 else "higher"
