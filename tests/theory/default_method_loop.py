"""The default method of `nagjax.solve` as a NumPy loop, with the margin of each of its decisions."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

UNIT = float(np.finfo(np.float64).eps)


class Problem(NamedTuple):
    """f + h for real vectors."""

    value: Callable[[np.ndarray], float]  # f
    gradient: Callable[[np.ndarray], np.ndarray]
    nonsmooth: Callable[[np.ndarray], float]  # h
    prox: Callable[[np.ndarray, float], np.ndarray]


class Trace(NamedTuple):
    """One row a step."""

    answers: np.ndarray  # x after the step
    step_sizes: np.ndarray
    restarts: np.ndarray  # so far
    reverts: int
    margin: float  # the least relative distance of a decision from its threshold


def run(problem: Problem, start: np.ndarray, steps: int, step_size: float | None = None) -> Trace:
    """The recipe step by step: one value and one gradient at y, and nothing else."""
    x = y = reference = np.asarray(start, np.float64)
    y_before = g_before = None
    s, t, tau, taken = 0.0, 1.0, 10 * UNIT, 0.0
    window: list[float] = []
    reference_value, longest, restarts, reverts, margin = np.inf, np.inf, 0, 0, np.inf
    fresh, at_reference = True, False
    rows = []

    def above(a, b):
        """Whether a >= b, and how clearly."""
        nonlocal margin
        if np.isfinite(a) and np.isfinite(b):
            margin = min(margin, abs(a - b) / (abs(a) + abs(b) + 1e-300))
        return a >= b

    for k in range(steps):
        f, g = problem.value(y), problem.gradient(y)
        s_before = s
        if k == 0 and step_size is not None:
            s = s_before = step_size
        elif k == 0:
            s = s_before = 1e-3 * (1 + np.linalg.norm(start)) / np.linalg.norm(g)
        elif y_before is not None:
            s = _step_size(s, window, y - y_before, g - g_before, np.linalg.norm(g))
        s = min(s, longest)  # set by a revert, from which it grows until F at the start of a cycle falls

        model = f + g @ (x - y) + problem.nonsmooth(x)
        allowed = reference_value + tau * abs(reference_value)
        left_with, taken = taken, s if fresh or k <= 1 else taken
        if fresh and model <= reference_value:
            longest = np.inf if model < reference_value else 1.2 * longest
            reference, reference_value = x, model
        elif not model <= allowed and not at_reference:
            rows.append((reference, s, restarts))
            reverts += 1
            x = y = reference
            s, t, tau, fresh, at_reference, y_before = left_with / 2, 1.0, 10 * tau, True, True, None
            longest = s
            continue
        else:
            longest *= 1.2
            above(allowed, model)

        z = problem.prox(y - s * g, s)
        d = z - x
        t_next = (1 + np.sqrt(1 + 4 * (s_before / s) * t**2)) / 2
        spread = np.linalg.norm(y - z) * np.linalg.norm(d)
        if above((y - z) @ d + spread, spread):
            y_next, t_next, restarted = z, 1.0, True
        elif restarts == 0 and k <= 200:
            y_next, restarted = z + (t - 1) / t_next * d + 0.5 * t / t_next * (z - y), False
        else:
            y_next, restarted = z + d, False
        restarts += restarted
        y_before, g_before = y, g
        x, y, t, fresh, at_reference = z, y_next, t_next, restarted, False
        rows.append((x, s, restarts))
    answers, sizes, counts = zip(*rows, strict=True)
    return Trace(np.array(answers), np.array(sizes), np.array(counts), reverts, margin)


def _step_size(s: float, window: list[float], move: np.ndarray, change: np.ndarray, slope: float) -> float:
    """min(1.2 s, 1 / the larger of the last two samples); the first sample may lengthen the probe at will."""
    a, b, c = np.linalg.norm(move), np.linalg.norm(change), move @ change
    if not (a > 0 and np.isfinite(b) and b > 10 * UNIT * slope):
        return s
    first = not window
    window.append(min(b**2 / c, 10 * b / a) if c > 0 else b / a)
    inverse = 1 / max(window[-2:])
    return inverse if first else min(1.2 * s, inverse)
