"""Momentum methods on one eigen-direction of a quadratic as linear updates of two numbers, in closed form.

The gradient at a point theta is curvature * theta - linear, so that the minimizer is linear / curvature. This form
covers what `trajectories` does not: any initial momentum, weight decay, a drifting minimizer, a rate that changes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nagjax.theory.trajectories import lucas


class Step(NamedTuple):
    """One update z_{t+1} = matrix z_t + forcing + t drift of a state of two numbers: the parameter and its momentum."""

    matrix: NDArray[np.float64]
    forcing: NDArray[np.float64]
    drift: NDArray[np.float64]


def gradient_unit_nesterov(
    rate: float,
    momentum: float,
    curvature: float,
    *,
    linear: float = 0.0,
    linear_drift: float = 0.0,
    decoupled_decay: float = 0.0,
) -> Step:
    """Nesterov's method as Optax and PyTorch keep it: the momentum is a sum of gradients.

    Args:
        rate: Alpha.
        momentum: Beta.
        curvature: Lambda; coupled weight decay is added to it.
        linear: The gradient is lambda theta - linear at t = 0.
        linear_drift: What `linear` grows by at every step.
        decoupled_decay: The weight that multiplies theta after the momentum.

    Returns:
        The update of (theta, m).
    """
    matrix = np.array(
        [
            [1 - rate * (1 + momentum) * curvature - rate * decoupled_decay, -rate * momentum**2],
            [curvature, momentum],
        ]
    )
    return _step(matrix, np.array([rate * (1 + momentum), -1.0]), linear, linear_drift)


def gradient_unit_heavy_ball(
    rate: float,
    momentum: float,
    curvature: float,
    *,
    linear: float = 0.0,
    linear_drift: float = 0.0,
    decoupled_decay: float = 0.0,
    dampening: float = 0.0,
) -> Step:
    """The heavy ball as Optax and PyTorch keep it: the momentum is a sum of gradients.

    PyTorch does not dampen its first gradient: start from the momentum of `undamped_start`.

    Args:
        rate: Alpha.
        momentum: Beta.
        curvature: Lambda; coupled weight decay is added to it.
        linear: The gradient is lambda theta - linear at t = 0.
        linear_drift: What `linear` grows by at every step.
        decoupled_decay: The weight that multiplies theta after the momentum.
        dampening: Tau; gradients enter the momentum with the factor 1 - tau.

    Returns:
        The update of (theta, m).
    """
    kept = 1 - dampening
    matrix = np.array(
        [
            [1 - rate * kept * curvature - rate * decoupled_decay, -rate * momentum],
            [kept * curvature, momentum],
        ]
    )
    return _step(matrix, np.array([rate * kept, -kept]), linear, linear_drift)


def undamped_start(first_gradient: float, momentum: float, dampening: float) -> float:
    """The momentum before the first update that makes PyTorch's undamped first gradient a damped one.

    Args:
        first_gradient: The gradient at the initial point.
        momentum: Beta in (0, 1).
        dampening: Tau.

    Returns:
        tau g_0 / beta.
    """
    return dampening * first_gradient / momentum


def step_unit(
    rate: float,
    momentum: float,
    curvature: float,
    *,
    linear: float = 0.0,
    linear_drift: float = 0.0,
    nesterov: bool = True,
) -> Step:
    """The methods as Keras and Sutskever keep them: the velocity is a sum of steps.

    Args:
        rate: Alpha.
        momentum: Beta.
        curvature: Lambda.
        linear: The gradient is lambda theta - linear at t = 0.
        linear_drift: What `linear` grows by at every step.
        nesterov: Nesterov's method, or the heavy ball where false.

    Returns:
        The update of (theta, v).
    """
    direct, gain = (1 + momentum, momentum) if nesterov else (1.0, 1.0)
    matrix = np.array([[1 - rate * direct * curvature, gain * momentum], [-rate * curvature, momentum]])
    return _step(matrix, np.array([rate * direct, rate]), linear, linear_drift)


def orbit(t: ArrayLike, step: Step, initial: ArrayLike) -> NDArray[np.float64]:
    """The states that a constant update reaches, by the theorem of Cayley and Hamilton.

    Args:
        t: Numbers of updates made, integers of at least 0.
        step: The update; 1 must not be an eigenvalue of its matrix.
        initial: Z_0, two numbers.

    Returns:
        z_t = P + t Q + M^t (z_0 - P) with P = (I - M)^-1 (forcing - Q) and Q = (I - M)^-1 drift; shape (*t, 2).
    """
    t = np.asarray(t)
    matrix = step.matrix
    trace = float(matrix[0, 0] + matrix[1, 1])
    determinant = float(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0])
    difference, mean = lucas(t, trace, determinant)
    slope = np.linalg.solve(np.eye(2) - matrix, step.drift)
    offset = np.linalg.solve(np.eye(2) - matrix, step.forcing - slope)
    start = np.asarray(initial, np.float64) - offset
    turned = matrix @ start - trace / 2 * start
    return offset + t[..., None] * slope + mean[..., None] * start + difference[..., None] * turned


def piecewise_orbit(segments: Sequence[tuple[int, Step]], initial: ArrayLike) -> NDArray[np.float64]:
    """The last state after updates that are constant over stretches of steps, such as a rate that changes once.

    Args:
        segments: Pairs of a number of updates and the update made in them.
        initial: Z_0, two numbers.

    Returns:
        The state after all segments, shape (2,).
    """
    state = np.asarray(initial, np.float64)
    past = 0
    for count, step in segments:
        state = orbit(count, step._replace(forcing=step.forcing + past * step.drift), state)
        past += count
    return state


def _step(matrix: NDArray[np.float64], response: NDArray[np.float64], linear: float, linear_drift: float) -> Step:
    return Step(matrix, linear * response, linear_drift * response)
