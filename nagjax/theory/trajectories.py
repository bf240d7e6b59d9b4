"""Closed-form trajectories of constant-momentum methods on one eigen-direction of a quadratic.

Errors are relative to the initial error, momentum starts at zero. Weight decay, drift and other starts are in
`state_space`, gradients that do not depend on the point in `responses`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Above this ratio of the roots, 1 - ratio**t is computed without cancellation.
_CLOSE_ROOTS = 0.5


def characteristic_roots(trace: float, determinant: float) -> NDArray[np.complex128]:
    """The roots of r^2 - trace r + determinant, the larger in modulus first.

    Args:
        trace: The sum of the roots; (1 + beta)(1 - alpha lambda) for Nesterov, 1 + beta - alpha lambda for heavy ball.
        determinant: The product of the roots; beta (1 - alpha lambda) for Nesterov, beta for heavy ball.

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


def lucas(
    t: ArrayLike, trace: float, determinant: float, discriminant: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two solutions of e_{t+1} = trace e_t - determinant e_{t-1} that span all others, in every root regime.

    With the characteristic roots r_1, r_2 they are (r_1^t - r_2^t) / (r_1 - r_2), which starts 0, 1, and
    (r_1^t + r_2^t) / 2, which starts 1, trace / 2. Both are polynomials in trace and determinant, so nothing special
    happens where the roots meet; the quotient is evaluated there without its cancellation.

    Args:
        t: Step numbers, integers of at least 0.
        trace: The sum of the roots.
        determinant: The product of the roots.
        discriminant: trace^2 / 4 - determinant, if it is known with more digits than that difference has.

    Returns:
        Both solutions at `t`.

    Source:
        E. Lucas, "Theorie des fonctions numeriques simplement periodiques", American Journal of Mathematics 1, 1878.
    """
    t = np.asarray(t)
    before = np.maximum(t - 1, 0)
    # The roots of (-trace, determinant) are the negatives; a positive trace keeps the angle away from pi.
    half = abs(trace) / 2
    discriminant = half * half - determinant if discriminant is None else discriminant
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
        t: Numbers of updates made, integers of at least 0.
        rate: Alpha, constant.
        momentum: Beta in [0, 1), constant.
        curvature: Lambda, the eigenvalue.

    Returns:
        (y_t - minimizer) / (y_0 - minimizer), the shape of `t`.

    Source:
        Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983.
    """
    return _nesterov(t, rate, momentum, curvature, 1 - (1 + momentum) * rate * curvature)


def nesterov_answers(t: ArrayLike, rate: float, momentum: float, curvature: float) -> NDArray[np.float64]:
    """Relative errors of the answers x_t of Nesterov's method: the same recursion as the query points, another start.

    Args:
        t: Numbers of updates made, integers of at least 0.
        rate: Alpha, constant.
        momentum: Beta in [0, 1), constant.
        curvature: Lambda, the eigenvalue.

    Returns:
        (x_t - minimizer) / (x_0 - minimizer), the shape of `t`.

    Source:
        Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983.
    """
    return _nesterov(t, rate, momentum, curvature, 1 - rate * curvature)


def heavy_ball(t: ArrayLike, rate: float, momentum: float, curvature: float) -> NDArray[np.float64]:
    """Relative errors of Polyak's heavy ball, started with zero momentum.

    Args:
        t: Numbers of updates made, integers of at least 0.
        rate: Alpha, constant.
        momentum: Beta in [0, 1), constant.
        curvature: Lambda, the eigenvalue.

    Returns:
        (theta_t - minimizer) / (theta_0 - minimizer), the shape of `t`.

    Source:
        B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    scaled = rate * curvature
    root = np.sqrt(momentum)
    discriminant = ((1 - root) ** 2 - scaled) * ((1 + root) ** 2 - scaled) / 4
    return _solve(t, 1 - scaled, 1 + momentum - scaled, momentum, float(discriminant))


def largest_stable_rate(momentum: float, curvature: float, *, nesterov: bool = True) -> float:
    """The rate at which a root reaches the unit circle.

    Args:
        momentum: Beta in [0, 1).
        curvature: Lambda, the largest eigenvalue.
        nesterov: Nesterov's method, or Polyak's heavy ball where false.

    Returns:
        2 (1 + beta) / ((1 + 2 beta) lambda), or 2 (1 + beta) / lambda for heavy ball.
    """
    return 2 * (1 + momentum) / (curvature * ((1 + 2 * momentum) if nesterov else 1.0))


def strongly_convex_tuning(smoothness: float, strong_convexity: float) -> tuple[float, float]:
    """Rate 1 / L and the momentum that damps the smallest curvature critically.

    Args:
        smoothness: L.
        strong_convexity: Mu in (0, L].

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
        strong_convexity: Mu in (0, L].

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
        t: Numbers of updates made, integers of at least 0.
        condition_number: Kappa, at least 1.

    Returns:
        r^t (1 + t / sqrt(kappa)) with the double root r = 1 - 1 / sqrt(kappa).
    """
    t = np.asarray(t)
    inverse = 1 / np.sqrt(condition_number)
    return (1 - inverse) ** t * (1 + t * inverse)


def _nesterov(t: ArrayLike, rate: float, momentum: float, curvature: float, first: float) -> NDArray[np.float64]:
    scaled = rate * curvature
    contraction = 1 - scaled
    # For a small curvature trace^2 / 4 - determinant is a difference of numbers near 1; this factored form is not.
    discriminant = contraction * ((1 - momentum) ** 2 - (1 + momentum) ** 2 * scaled) / 4
    return _solve(t, first, (1 + momentum) * contraction, momentum * contraction, discriminant)


def _solve(t: ArrayLike, first: float, trace: float, determinant: float, discriminant: float) -> NDArray[np.float64]:
    difference, mean = lucas(t, trace, determinant, discriminant)
    return mean + (first - trace / 2) * difference
