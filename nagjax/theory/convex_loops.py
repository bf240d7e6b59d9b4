"""Reference loops of methods with convergence theorems, as their papers print them, for NumPy gradient functions.

They know nothing of the one-buffer form of `nagjax.accelerate`. Row k of what they return is the state after k updates.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nagjax.theory.sequences import fista_momenta, fista_t
from nagjax.theory.strong_bounds import general_scheme, item_sequences, triple_momentum_constants

Vector = NDArray[np.float64]
Gradient = Callable[[Vector], Vector]


class Trajectory(NamedTuple):
    """Query points, where gradients are taken, and answers, both of shape (steps + 1, dimension)."""

    queries: Vector
    answers: Vector


def gradient_descent(gradient: Gradient, start: ArrayLike, step_sizes: ArrayLike) -> Trajectory:
    """Gradient descent.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        step_sizes: One for each update.

    Returns:
        The iterates, twice.
    """
    points = [np.asarray(start, np.float64)]
    for step_size in np.asarray(step_sizes, np.float64):
        points.append(points[-1] - step_size * gradient(points[-1]))
    return Trajectory(np.array(points), np.array(points))


def nesterov(gradient: Gradient, start: ArrayLike, step_sizes: ArrayLike, momenta: ArrayLike) -> Trajectory:
    """Nesterov's method with two sequences, for any step sizes and momenta.

    x_{k+1} = y_k - s_k grad f(y_k); y_{k+1} = x_{k+1} + b_{k+1} (x_{k+1} - x_k).

    Args:
        gradient: The gradient of f.
        start: x_0 = y_0, shape (dimension,).
        step_sizes: s_0, ..., s_{N-1}.
        momenta: b_0, ..., b_N; b_k forms y_k, b_0 is not used.

    Returns:
        y_k as queries, x_k as answers.

    Source:
        Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983.
    """
    step_sizes, momenta = np.asarray(step_sizes, np.float64), np.asarray(momenta, np.float64)
    x = y = np.asarray(start, np.float64)
    queries, answers = [y], [x]
    for k, step_size in enumerate(step_sizes):
        previous, x = x, y - step_size * gradient(y)
        y = x + momenta[k + 1] * (x - previous)
        queries.append(y)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def fista(gradient: Gradient, start: ArrayLike, step_size: float, steps: int) -> Trajectory:
    """FISTA without a proximal part.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        step_size: s, at most 1/L.
        steps: N.

    Returns:
        y_{k+1} of the paper, which counts query points from 1, as queries; x_k as answers.

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems",
        2009, (4.1) to (4.3).
    """
    return nesterov(gradient, start, np.full(steps, step_size), fista_momenta(steps))


def polynomial(gradient: Gradient, start: ArrayLike, step_size: float, steps: int, a: float = 2.0) -> Trajectory:
    """Nesterov's method with the momentum (k-1)/(k+a).

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        step_size: s, at most 1/L.
        steps: N.
        a: The parameter of the sequence.

    Returns:
        y_k as queries, x_k as answers.

    Source:
        A. Chambolle and C. Dossal, "On the convergence of the iterates of the fast iterative shrinkage/thresholding
        algorithm", 2015.
    """
    k = np.arange(steps + 1)
    return nesterov(gradient, start, np.full(steps, step_size), (k - 1) / (k + a))


def chebyshev(
    gradient: Gradient, start: ArrayLike, smoothness: float, strong_convexity: float, steps: int
) -> Trajectory:
    """Chebyshev's semi-iteration for quadratics with spectrum in [mu, L].

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        smoothness: L.
        strong_convexity: mu in (0, L).
        steps: N.

    Returns:
        The iterates, twice.

    Source:
        G. Golub and R. Varga, "Chebyshev semi-iterative methods", 1961.
    """
    sigma = (smoothness + strong_convexity) / (smoothness - strong_convexity)
    step_size, weight = 2 / (smoothness + strong_convexity), 1.0
    points = [np.asarray(start, np.float64)]
    for k in range(steps):
        forward = points[-1] - step_size * gradient(points[-1])
        if k == 1:
            weight = 2 * sigma**2 / (2 * sigma**2 - 1)
        elif k > 1:
            weight = 1 / (1 - weight / (4 * sigma**2))
        points.append(forward if k == 0 else weight * forward + (1 - weight) * points[-2])
    return Trajectory(np.array(points), np.array(points))


def ogm(gradient: Gradient, start: ArrayLike, smoothness: float, steps: int) -> Trajectory:
    """The optimized gradient method OGM2.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        smoothness: L.
        steps: The longest horizon.

    Returns:
        x_0, ..., x_{N-1} and the next query point as queries; answers[k] is x_k of the method with horizon k, whose
        last theta differs.

    Source:
        D. Kim and J. Fessler, "Optimized first-order methods for smooth convex minimization", 2016, algorithm OGM2.
    """
    theta = fista_t(steps + 1)[1:]
    x = y = np.asarray(start, np.float64)
    queries, answers = [x], [x]
    for i in range(steps):
        new = x - gradient(x) / smoothness
        last = (1 + np.sqrt(1 + 8 * theta[i] ** 2)) / 2
        answers.append(new + (theta[i] - 1) / last * (new - y) + theta[i] / last * (new - x))
        x = new + (theta[i] - 1) / theta[i + 1] * (new - y) + theta[i] / theta[i + 1] * (new - x)
        y = new
        queries.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def ogm_gradient(gradient: Gradient, start: ArrayLike, smoothness: float, theta: ArrayLike) -> Vector:
    """OGM-G, which makes the gradient of its last iterate small.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        smoothness: L.
        theta: theta_0, ..., theta_N from `sequences.ogm_gradient_theta(horizon)`.

    Returns:
        x_0, ..., x_N, shape (horizon + 1, dimension).

    Source:
        D. Kim and J. Fessler, "Optimizing the efficiency of first-order methods for decreasing the gradient of smooth
        convex functions", 2021, algorithm OGM-G.
    """
    theta = np.asarray(theta, np.float64)
    x = y = np.asarray(start, np.float64)
    points = [x]
    for now, after in itertools.pairwise(theta):
        new = x - gradient(x) / smoothness
        inertia = (now - 1) * (2 * after - 1) / (now * (2 * now - 1))
        x = new + inertia * (new - y) + (2 * after - 1) / (2 * now - 1) * (new - x)
        y = new
        points.append(x)
    return np.array(points)


def general_nesterov(
    gradient: Gradient, start: ArrayLike, smoothness: float, strong_convexity: float, first_alpha: float, steps: int
) -> Trajectory:
    """Nesterov's constant-step scheme for smooth, possibly strongly convex functions.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        smoothness: L.
        strong_convexity: mu in [0, L).
        first_alpha: alpha_0 in (0, 1).
        steps: N.

    Returns:
        y_k as queries, x_k as answers.

    Source:
        Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, scheme (2.2.8).
    """
    scheme = general_scheme(steps, strong_convexity / smoothness, first_alpha)
    return nesterov(gradient, start, np.full(steps, 1 / smoothness), scheme.momenta)


def triple_momentum(
    gradient: Gradient, start: ArrayLike, smoothness: float, strong_convexity: float, steps: int
) -> Trajectory:
    """The triple momentum method, with its three sequences.

    Args:
        gradient: The gradient of f.
        start: xi_0 = xi_{-1}, shape (dimension,).
        smoothness: L.
        strong_convexity: mu in (0, L).
        steps: N.

    Returns:
        y_k as queries, the outputs x_k as answers.

    Source:
        B. Van Scoy, R. Freeman and K. Lynch, "The fastest known globally convergent first-order method for minimizing
        strongly convex functions", 2018.
    """
    constants = triple_momentum_constants(smoothness, strong_convexity)
    xi = previous = np.asarray(start, np.float64)
    queries, answers = [xi], [xi]
    for _ in range(steps):
        forward = (1 + constants.beta) * xi - constants.beta * previous
        previous, xi = xi, forward - constants.alpha * gradient(queries[-1])
        queries.append((1 + constants.gamma) * xi - constants.gamma * previous)
        answers.append((1 + constants.delta) * xi - constants.delta * previous)
    return Trajectory(np.array(queries), np.array(answers))


def item(gradient: Gradient, start: ArrayLike, smoothness: float, strong_convexity: float, steps: int) -> Trajectory:
    """The information-theoretic exact method.

    Args:
        gradient: The gradient of f.
        start: x_0 = z_0, shape (dimension,).
        smoothness: L.
        strong_convexity: mu in [0, L).
        steps: N.

    Returns:
        y_k as queries, z_k as answers.

    Source:
        A. Taylor and Y. Drori, "An optimal gradient method for smooth strongly convex minimization", 2023,
        Algorithm ITEM.
    """
    q = strong_convexity / smoothness
    sequences = item_sequences(steps + 1, q)
    x = z = y = np.asarray(start, np.float64)
    queries, answers = [y], [z]
    for k in range(steps):
        delta, g = sequences.delta[k], gradient(y)
        x = y - g / smoothness
        z = (1 - q * delta) * z + q * delta * y - delta / smoothness * g
        y = (1 - sequences.beta[k + 1]) * z + sequences.beta[k + 1] * x
        queries.append(y)
        answers.append(z)
    return Trajectory(np.array(queries), np.array(answers))
