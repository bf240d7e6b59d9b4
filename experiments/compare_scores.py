"""What the runs of `compare` come to: target, steps to it, paired differences and performance profiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from experiments.compare_optimizers import REFERENCE
from experiments.compare_sweep import Result, Trial
from experiments.compare_training import Workload
from experiments.output import UsageError

Array = NDArray[np.float64]


def target_of(reference: Trial) -> float:
    """The loss to reach: the median over seeds of what the tuned reference ends at.

    Source:
        G. Dahl et al., "Benchmarking neural network training algorithms", 2023, which sets targets in this manner.

    Raises:
        UsageError: The reference diverges on half of the seeds.
    """
    target = float(np.median(np.where(np.isfinite(reference.final), reference.final, np.inf)))
    if not math.isfinite(target):
        raise UsageError("compare: the tuned reference diverges, so there is no target; raise --budget.")
    return target


def steps_to_target(losses: Array, measured: NDArray[np.int64], target: float) -> Array:
    """Updates until the loss is first at or below the target, one a row; infinite where it never is.

    Args:
        losses: Shape (seeds, measurements).
        measured: The updates after which losses were measured, shape (measurements,).
        target: A loss.
    """
    reached = losses <= target
    return np.where(reached.any(axis=1), measured[reached.argmax(axis=1)].astype(np.float64), np.inf)


def half(steps: Array) -> float:
    """The steps by which half of the seeds have reached the target: the lower median, infinite for more than half."""
    return float(np.sort(steps)[(len(steps) - 1) // 2])


def profiles(steps: Mapping[str, Array], factors: Array) -> dict[str, Array]:
    """The share of workloads that each optimizer solves within each factor of the fastest one's steps.

    A workload that no optimizer solves counts as unsolved by all.

    Args:
        steps: For each optimizer the steps to the target, infinite where it is not reached, shape (workloads,).
        factors: At least 1, shape (factors,).

    Source:
        E. Dolan and J. More, "Benchmarking optimization software with performance profiles", 2002.
    """
    rows = zip(steps, _ratios(steps), strict=True)
    return {name: (row[:, None] <= factors * (1 + 1e-12)).mean(axis=0) for name, row in rows}


def largest_factor(steps: Mapping[str, Array]) -> float:
    """The factor at which the profiles have reached their last values, at least 1.5."""
    ratios = _ratios(steps)
    return float(ratios[np.isfinite(ratios)].max(initial=1.5))


def _ratios(steps: Mapping[str, Array]) -> Array:
    table = np.stack(list(steps.values()))
    fastest = table.min(axis=0)
    # A start at the target would need 0 steps; where no optimizer gets there all stay infinite.
    return table / np.maximum(np.where(np.isfinite(fastest), fastest, 1), 1)


@dataclass(frozen=True)
class Difference:
    """A mean difference paired by seed, and half of its 95 % interval of Student's t; NaN where there is none."""

    mean: float
    half_width: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half_width


def paired(values: Array, reference: Array) -> Difference:
    """The difference of two methods on the same seeds; infinite where a run is not finite."""
    if not (np.isfinite(values).all() and np.isfinite(reference).all()):
        return Difference(math.inf, math.nan)
    gaps = values - reference
    if len(gaps) < 2:
        return Difference(float(gaps.mean()), math.nan)
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return Difference(float(gaps.mean()), float(student_t.ppf(0.975, len(gaps) - 1)) * error)


def rate_range(rates: Sequence[float], losses: Sequence[float], factor: float) -> float:
    """How many decades of rates around the best have a loss of at most `factor` times the lowest.

    Every rate stands for its interval of the grid, which is even in the logarithm, and counts where the rates between
    it and the best count too.
    """
    values = np.where(np.isfinite(losses), losses, np.inf)
    best = int(values.argmin())
    if len(rates) < 2 or not math.isfinite(values[best]):
        return 0.0
    near = values <= factor * values[best]
    below = next((gap for gap in range(best + 1) if not near[best - gap]), best + 1)
    above = next((gap for gap in range(len(near) - best) if not near[best + gap]), len(near) - best)
    return float((below + above - 1) * math.log10(rates[-1] / rates[0]) / (len(rates) - 1))


@dataclass(frozen=True)
class Score:
    """One optimizer on one workload; arrays have one value a seed."""

    result: Result
    steps: Array  # to the target with the best setting
    median_steps: Array  # to the target with the median setting of tuning
    loss: Difference  # from the reference, best settings
    accuracy: Difference  # from the reference, test accuracy in points
    diverged: float  # share of all runs of tuning
    rate_range: float  # decades
    step_seconds: float  # median over seeds, measurements included

    @property
    def test_accuracy(self) -> Array:
        """Test accuracy of the best setting in percent."""
        return test_accuracy(self.result.best)

    def record(self) -> dict[str, Any]:
        """Returns what results.json keeps."""
        result = self.result
        return {
            "name": result.name,
            "label": result.optimizer.label,
            "schedule": result.optimizer.schedule,
            "space": {name: str(span) for name, span in result.optimizer.space.items()},
            "best": result.best.setting,
            "at_edge": result.at_edge,
            "median": result.median.setting,
            "final_loss": result.best.final,
            "median_final_loss": result.median.final,
            "test_accuracy": self.test_accuracy,
            "steps_to_target": self.steps,
            "median_steps_to_target": self.median_steps,
            "loss_difference": self.loss,
            "accuracy_difference": self.accuracy,
            "diverged_share": self.diverged,
            "rate_range_decades": self.rate_range,
            "sensitivity": [[trial.setting[result.swept], trial.mean] for trial in result.sensitivity],
            "tuning": [[trial.setting, trial.mean] for trial in result.tuning],
            "step_seconds": self.step_seconds,
            "compile_seconds": result.compile_seconds,
            "traces": result.traces,
        }


def test_accuracy(trial: Trial) -> Array:
    """Test accuracy in percent, one value a seed."""
    return np.array([100 * record.test_accuracy for record in trial.records])


def scores(workload: Workload, results: Sequence[Result]) -> tuple[float, list[Score]]:
    """Returns the target and every optimizer's scores, the lowest final loss first."""
    measured = workload.plan.measured
    reference = next(result for result in results if result.name == REFERENCE).best
    target = target_of(reference)
    found = [
        Score(
            result=result,
            steps=steps_to_target(result.best.losses, measured, target),
            median_steps=steps_to_target(result.median.losses, measured, target),
            loss=paired(result.best.final, reference.final),
            accuracy=paired(test_accuracy(result.best), test_accuracy(reference)),
            diverged=float(np.mean([trial.diverged for trial in result.tuning])),
            rate_range=rate_range(
                [trial.setting[result.swept] for trial in result.sensitivity],
                [trial.mean for trial in result.sensitivity],
                workload.near,
            ),
            step_seconds=float(np.median([record.seconds for record in result.best.records])) / int(measured[-1]),
        )
        for result in results
    ]
    return target, sorted(found, key=lambda score: score.result.best.mean)
