"""Reference optima: the lowest objective that long runs of several methods find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.convex_curves import CHUNK, Curve, Stepper, long_curve
from experiments.convex_problems import Problem


@dataclass(frozen=True)
class Reference:
    """F*, and what suboptimality is divided by."""

    minimum: float
    scale: float  # F*, or F_0 - F* where F* is not positive
    agreement: float  # distance of the two lowest runs relative to the scale; 0 with a closed form
    progress: float  # by how much the lowest run still fell in its last chunk, relative to the scale

    @property
    def floor(self) -> float:
        """The least gap that means something: ten times what the lowest run still gained."""
        return 10 * self.progress


def reference(
    problem: Problem, steppers: Sequence[Stepper], *, limit: int, seconds: float = np.inf, chunk: int = CHUNK
) -> tuple[Reference, list[Curve]]:
    """Runs every method until it stalls.

    Args:
        problem: The problem.
        steppers: Methods, best first.
        limit: Most steps of each.
        seconds: Most wall time of each.
        chunk: Steps a compiled program takes.

    Returns:
        The reference and the curves of the methods, which need not run again.
    """
    curves = [long_curve(stepper, problem, limit=limit, seconds=seconds, chunk=chunk) for stepper in steppers]
    ranked = sorted(curves, key=lambda curve: float(np.nanmin(curve.values)))
    lowest = [float(np.nanmin(curve.values)) for curve in ranked]
    start = float(curves[0].values[0])
    minimum = lowest[0] if problem.minimum is None else problem.minimum
    scale = minimum if minimum > 0 else start - minimum
    agreement = (lowest[1] - lowest[0]) / scale if problem.minimum is None and len(lowest) > 1 else 0.0
    before = ranked[0].values[:-chunk]
    progress = (float(np.nanmin(before)) - lowest[0]) / scale if problem.minimum is None else 0.0
    return Reference(minimum, scale, agreement, progress), curves
