"""Closed-form trajectories of constant-momentum methods on one eigen-direction of a quadratic.

The gradient at a point theta is `curvature * theta - linear`, so that the minimizer is `linear / curvature`. Errors are
relative to the initial error. Constant gradients and gradient streams are in `responses`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Above this ratio of the roots, 1 - ratio**t is computed without cancellation.
_CLOSE_ROOTS = 0.5


def characteristic_roots(trace: float, determinant: float) -> NDArray[np.complex128]:
    """The roots of r^2 - trace r + determinant, the larger in modulus first.

    Args:
        trace: the sum of the roots; (1 + beta)(1 - alpha lambda) for Nesterov, 1 + beta - alpha lambda for heavy ball.
        determinant: the product of the roots; beta (1 - alpha lambda) for Nesterov, beta for heavy ball.

    Returns:
        Both roots, complex128.
    """
    half = trace / 2
    discriminant = half * half - determinant
    if discriminant < 0:
        imaginary = np.sqrt(-discriminant)
        return np.array([complex(half, imaginary), complex(half, -imaginary)])
    larger = half + np.copysign(np.sqrt(discriminant), half)
    return np.array([larger, determinant / larger if larger else 0.0], dtype=np.complex128)


def lucas(t: ArrayLike, trace: float, determinant: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two solutions of e_{t+1} = trace e_t - determinant e_{t-1} that span all others, in every root regime.

    With the characteristic roots r_1, r_2 they are (r_1^t - r_2^t) / (r_1 - r_2), which starts 0, 1, and
    (r_1^t + r_2^t) / 2, which starts 1, trace / 2. Both are polynomials in trace and determinant, so nothing special
    happens where the roots meet; the quotient is evaluated there without its cancellation.

    Args:
        t: step numbers, integers of at least 0.
        trace: the sum of the roots.
        determinant: the product of the roots.

    Returns:
        Both solutions at `t`.

    Source:
        E. Lucas, "Theorie des fonctions numeriques simplement periodiques", American Journal of Mathematics 1, 1878.
    """
    t = np.asarray(t)
    before = np.maximum(t - 1, 0)
    # The roots of (-trace, determinant) are the negatives; a positive trace keeps the angle away from pi.
    half = abs(trace) / 2
    discriminant = half * half - determinant
    root = float(np.sqrt(abs(discriminant)))
    if discriminant < 0:
        modulus = float(np.sqrt(determinant))
        angle = np.arctan2(root, half)
        difference = modulus**before * np.sin(t * angle) / np.sin(angle)
        mean = modulus**t * np.cos(t * angle)
    elif root == 0:
        difference = t * half**before
        mean = half**t
    else:
        larger = half + root
        ratio = determinant / larger**2
        if ratio > _CLOSE_ROOTS:
            gap = 2 * root / larger
            shrink = np.expm1(t * np.log1p(-gap))
        else:
            gap = 1 - ratio
            shrink = ratio**t - 1
        difference = larger**before * -shrink / gap
        mean = larger**t * (1 + shrink / 2)
    sign = 1.0 if trace >= 0 else -1.0
    return sign**before * difference, sign**t * mean


def nesterov_queries(t: ArrayLike, rate: float, momentum: float, curvature: float) -> NDArray[np.float64]:
    """Relative errors of the query points y_t of Nesterov's method, which Optax, PyTorch and Keras call parameters.

    Args:
        t: numbers of updates made, integers of at least 0.
        rate: alpha, constant.
        momentum: beta in [0, 1), constant.
        curvature: lambda, the eigenvalue.

    Returns:
        (y_t - minimizer) / (y_0 - minimizer), the shape of `t`.

    Source:
        Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983.
    """
    return _nesterov(t, rate, momentum, curvature, 1 - (1 + momentum) * rate * curvature)


def nesterov_answers(t: ArrayLike, rate: float, momentum: float, curvature: float) -> NDArray[np.float64]:
    """Relative errors of the answers x_t of Nesterov's method: the same recursion as the query points, another start.

    Args:
        t: numbers of updates made, integers of at least 0.
        rate: alpha, constant.
        momentum: beta in [0, 1), constant.
        curvature: lambda, the eigenvalue.

    Returns:
        (x_t - minimizer) / (x_0 - minimizer), the shape of `t`.

    Source:
        Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983.
    """
    return _nesterov(t, rate, momentum, curvature, 1 - rate * curvature)


def heavy_ball(t: ArrayLike, rate: float, momentum: float, curvature: float) -> NDArray[np.float64]:
    """Relative errors of Polyak's heavy ball, started with zero momentum.

    Args:
        t: numbers of updates made, integers of at least 0.
        rate: alpha, constant.
        momentum: beta in [0, 1), constant.
        curvature: lambda, the eigenvalue.

    Returns:
        (theta_t - minimizer) / (theta_0 - minimizer), the shape of `t`.

    Source:
        B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    return _solve(t, 1 - rate * curvature, 1 + momentum - rate * curvature, momentum)


def largest_stable_rate(momentum: float, curvature: float, *, nesterov: bool = True) -> float:
    """The rate at which a root reaches the unit circle.

    Args:
        momentum: beta in [0, 1).
        curvature: lambda, the largest eigenvalue.
        nesterov: Nesterov's method, or Polyak's heavy ball where false.

    Returns:
        2 (1 + beta) / ((1 + 2 beta) lambda), or 2 (1 + beta) / lambda for heavy ball.
    """
    return 2 * (1 + momentum) / (curvature * ((1 + 2 * momentum) if nesterov else 1.0))


def strongly_convex_tuning(smoothness: float, strong_convexity: float) -> tuple[float, float]:
    """Rate 1 / L and the momentum that damps the smallest curvature critically.

    Args:
        smoothness: L.
        strong_convexity: mu in (0, L].

    Returns:
        The rate and beta = (sqrt(kappa) - 1) / (sqrt(kappa) + 1).

    Source:
        Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, scheme (2.2.11).
    """
    root = np.sqrt(strong_convexity / smoothness)
    return 1 / smoothness, float((1 - root) / (1 + root))


def polyak_tuning(smoothness: float, strong_convexity: float) -> tuple[float, float]:
    """Rate and momentum of the heavy ball that damp the smallest and the largest curvature critically.

    Args:
        smoothness: L.
        strong_convexity: mu in (0, L].

    Returns:
        The rate 4 / (sqrt(L) + sqrt(mu))^2 and beta = ((sqrt(kappa) - 1) / (sqrt(kappa) + 1))^2.

    Source:
        B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    total = np.sqrt(smoothness) + np.sqrt(strong_convexity)
    return float(4 / total**2), float(((np.sqrt(smoothness) - np.sqrt(strong_convexity)) / total) ** 2)


def critical_answers(t: ArrayLike, condition_number: float) -> NDArray[np.float64]:
    """Relative errors of the answers x_t along the smallest curvature under `strongly_convex_tuning`.

    The query point is y_t = x_{t+1} / (1 - 1 / kappa).

    Args:
        t: numbers of updates made, integers of at least 0.
        condition_number: kappa, at least 1.

    Returns:
        r^t (1 + t / sqrt(kappa)) with the double root r = 1 - 1 / sqrt(kappa).
    """
    t = np.asarray(t)
    inverse = 1 / np.sqrt(condition_number)
    return (1 - inverse) ** t * (1 + t * inverse)


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
        rate: alpha.
        momentum: beta.
        curvature: lambda; coupled weight decay is added to it.
        linear: the gradient is lambda theta - linear at t = 0.
        linear_drift: what `linear` grows by at every step.
        decoupled_decay: the weight that multiplies theta after the momentum.

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
        rate: alpha.
        momentum: beta.
        curvature: lambda; coupled weight decay is added to it.
        linear: the gradient is lambda theta - linear at t = 0.
        linear_drift: what `linear` grows by at every step.
        decoupled_decay: the weight that multiplies theta after the momentum.
        dampening: tau; gradients enter the momentum with the factor 1 - tau.

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
        first_gradient: the gradient at the initial point.
        momentum: beta in (0, 1).
        dampening: tau.

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
        rate: alpha.
        momentum: beta.
        curvature: lambda.
        linear: the gradient is lambda theta - linear at t = 0.
        linear_drift: what `linear` grows by at every step.
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
        t: numbers of updates made, integers of at least 0.
        step: the update; 1 must not be an eigenvalue of its matrix.
        initial: z_0, two numbers.

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
        segments: pairs of a number of updates and the update made in them.
        initial: z_0, two numbers.

    Returns:
        The state after all segments, shape (2,).
    """
    state = np.asarray(initial, np.float64)
    past = 0
    for count, step in segments:
        state = orbit(count, step._replace(forcing=step.forcing + past * step.drift), state)
        past += count
    return state


def _nesterov(t: ArrayLike, rate: float, momentum: float, curvature: float, first: float) -> NDArray[np.float64]:
    contraction = 1 - rate * curvature
    return _solve(t, first, (1 + momentum) * contraction, momentum * contraction)


def _solve(t: ArrayLike, first: float, trace: float, determinant: float) -> NDArray[np.float64]:
    difference, mean = lucas(t, trace, determinant)
    return mean + (first - trace / 2) * difference


def _step(matrix: NDArray[np.float64], response: NDArray[np.float64], linear: float, linear_drift: float) -> Step:
    return Step(matrix, linear * response, linear_drift * response)
