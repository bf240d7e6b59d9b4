"""Momentum sequences of accelerated methods, and their travel.

The travel H_N is how far the answer of a method moves under a constant gradient g, in units of g / L.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def fista_t(iterations: int) -> NDArray[np.float64]:
    """The sequence t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2 from t_0 = 0, so that t_1 = 1.

    Args:
        iterations: The last index.

    Returns:
        t_0, ..., t_N.

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm", 2009, (4.2).
    """
    sequence = np.zeros(iterations + 1)
    for k in range(iterations):
        sequence[k + 1] = (1 + np.sqrt(1 + 4 * sequence[k] ** 2)) / 2
    return sequence


def fista_momenta(iterations: int) -> NDArray[np.float64]:
    """The momenta b_k = (t_k - 1) / t_{k+1} that form y_k, with b_0 = 0.

    Args:
        iterations: The last index.

    Returns:
        b_0, ..., b_N.

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm", 2009, (4.3).
    """
    t = fista_t(iterations + 1)
    return np.maximum(t[:-1] - 1, 0) / t[1:]


def ogm_theta(horizon: int) -> NDArray[np.float64]:
    """The sequence of the optimized gradient method, whose last member differs.

    Args:
        horizon: N, at least 1.

    Returns:
        theta_0, ..., theta_N with theta_N = (1 + sqrt(1 + 8 theta_{N-1}^2)) / 2.

    Source:
        D. Kim and J. Fessler, "Optimized first-order methods for smooth convex minimization", 2016, (6.13).
    """
    theta = fista_t(horizon + 1)[1:]
    theta[-1] = (1 + np.sqrt(1 + 8 * theta[-2] ** 2)) / 2
    return theta


def ogm_gradient_theta(horizon: int) -> NDArray[np.float64]:
    """The sequence of OGM-G, which makes the gradient small: OGM's, backwards.

    Args:
        horizon: N, at least 1.

    Returns:
        theta_0, ..., theta_N with theta_N = 1 and theta_0 = (1 + sqrt(1 + 8 theta_1^2)) / 2.

    Source:
        D. Kim and J. Fessler, "Optimizing the efficiency of first-order methods for decreasing the gradient of smooth
        convex functions", 2021, (6.1).
    """
    return ogm_theta(horizon)[::-1]


def momentum_travel(momenta: ArrayLike) -> float:
    """H_N of Nesterov's method with any momenta: the sum of Delta_{k+1} = 1 + b_k Delta_k, from Delta_1 = 1.

    Args:
        momenta: B_0, ..., b_N; b_k forms y_k, so b_0 and b_N play no part.

    Returns:
        H_N, by which the answer x_N moves under a constant gradient, in units of g / L.
    """
    momenta = np.asarray(momenta, np.float64)
    velocity, total = 0.0, 0.0
    for momentum in momenta[:-1]:
        velocity = 1 + momentum * velocity
        total += velocity
    return float(total)


def polynomial_travel(iterations: int, a: float = 2.0) -> float:
    """H_N of the momentum (k-1)/(k+a).

    Args:
        iterations: N, at least 1.
        a: The parameter of the sequence.

    Returns:
        (N (N+1) / 2 + a N + 1) / (a + 2).
    """
    return (iterations * (iterations + 1) / 2 + a * iterations + 1) / (a + 2)


def shifted_travel(iterations: int, b: float = 3.0) -> float:
    """H_N of the momentum k/(k+b).

    Args:
        iterations: N, at least 1.
        b: The parameter of the sequence.

    Returns:
        (N (N+1) / 2 + b N) / (b + 1).
    """
    return (iterations * (iterations + 1) / 2 + b * iterations) / (b + 1)


def ogm_primary_travel(iterations: int) -> float:
    """H_N of the primary sequence y_N of OGM, theta_N not modified.

    Args:
        iterations: N, at least 1.

    Returns:
        H_N by running the method on the constant gradient -1 with L = 1.
    """
    theta = fista_t(iterations + 1)[1:]
    point, primary = 0.0, 0.0
    for i in range(iterations):
        new = point + 1
        point = new + (theta[i] - 1) / theta[i + 1] * (new - primary) + theta[i] / theta[i + 1] * (new - point)
        primary = new
    return float(primary)
