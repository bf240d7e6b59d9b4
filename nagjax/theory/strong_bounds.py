"""Worst cases and guarantees of methods on smooth strongly convex functions.

L is the smoothness, mu the strong convexity, q = mu / L, kappa = L / mu, R the initial distance from the minimizer and
N the number of gradients taken.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class GeneralScheme(NamedTuple):
    """Nesterov's constant-step scheme: alphas solve its recursion, momenta[k] forms y_k, factors[k] is lambda_k."""

    alphas: NDArray[np.float64]
    momenta: NDArray[np.float64]
    factors: NDArray[np.float64]


def general_scheme(iterations: int, inverse_condition: float, first_alpha: float) -> GeneralScheme:
    """The sequences of Nesterov's constant-step scheme.

    Args:
        iterations: N.
        inverse_condition: Q in [0, 1).
        first_alpha: Alpha_0 in (0, 1); sqrt(q) makes the momentum constant.

    Returns:
        alpha_0, ..., alpha_N; the momenta that form y_0 (0), ..., y_N; lambda_0 = 1, ..., lambda_N.

    Source:
        Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, scheme (2.2.8).
    """
    q = inverse_condition
    alphas = np.empty(iterations + 1)
    alphas[0] = first_alpha
    for k in range(iterations):
        square = alphas[k] ** 2
        # The positive root of alpha^2 + (square - q) alpha - square.
        alphas[k + 1] = (q - square + np.sqrt((square - q) ** 2 + 4 * square)) / 2
    old, new = alphas[:-1], alphas[1:]
    momenta = np.concatenate([[0.0], old * (1 - old) / (old**2 + new)])
    factors = np.concatenate([[1.0], np.cumprod(1 - old)])
    return GeneralScheme(alphas, momenta, factors)


def estimate_start(smoothness: float, strong_convexity: float, first_alpha: float) -> float:
    """gamma_0, the curvature of the first estimate function that belongs to alpha_0.

    Args:
        smoothness: L.
        strong_convexity: Mu.
        first_alpha: Alpha_0 in (0, 1).

    Returns:
        alpha_0 (alpha_0 L - mu) / (1 - alpha_0).
    """
    return first_alpha * (first_alpha * smoothness - strong_convexity) / (1 - first_alpha)


def first_alpha(smoothness: float, strong_convexity: float, estimate_curvature: float) -> float:
    """alpha_0 that belongs to gamma_0: the positive root of L alpha^2 = (1 - alpha) gamma_0 + alpha mu.

    Args:
        smoothness: L.
        strong_convexity: Mu.
        estimate_curvature: Gamma_0 of at least mu, positive.

    Returns:
        alpha_0.
    """
    middle = estimate_curvature - strong_convexity
    root = np.sqrt(middle**2 + 4 * smoothness * estimate_curvature)
    return float((root - middle) / (2 * smoothness))


def general_guarantee(factor: float, initial_gap: float, estimate_curvature: float, radius: float = 1.0) -> float:
    """The guarantee of Nesterov's scheme for f(x_k) - f*.

    Args:
        factor: Lambda_k of `general_scheme`.
        initial_gap: F(x_0) - f*.
        estimate_curvature: Gamma_0 of at least mu.
        radius: R.

    Returns:
        lambda_k (f(x_0) - f* + gamma_0 R^2 / 2).

    Source:
        Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, Theorem 2.2.1.
    """
    return factor * (initial_gap + estimate_curvature * radius**2 / 2)


def general_factor_bound(
    iterations: int, smoothness: float, strong_convexity: float, estimate_curvature: float
) -> float:
    """An upper bound of lambda_k in closed form.

    Args:
        iterations: K.
        smoothness: L.
        strong_convexity: Mu.
        estimate_curvature: Gamma_0 of at least mu.

    Returns:
        min((1 - sqrt(q))^k, 4 L / (2 sqrt(L) + k sqrt(gamma_0))^2).

    Source:
        Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, Lemma 2.2.4.
    """
    linear = (1 - np.sqrt(strong_convexity / smoothness)) ** iterations
    sublinear = 4 * smoothness / (2 * np.sqrt(smoothness) + iterations * np.sqrt(estimate_curvature)) ** 2
    return float(min(linear, sublinear))


def nesterov_guarantee(
    iterations: int, smoothness: float, strong_convexity: float, initial_gap: float, radius: float = 1.0
) -> float:
    """The guarantee for f(x_N) - f* with the constant momentum (1 - sqrt(q)) / (1 + sqrt(q)); it is not tight.

    Args:
        iterations: N.
        smoothness: L.
        strong_convexity: Mu.
        initial_gap: F(x_0) - f*.
        radius: R.

    Returns:
        (1 - sqrt(q))^N (f(x_0) - f* + mu R^2 / 2).

    Source:
        Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, Theorem 2.2.3.
    """
    rate = 1 - np.sqrt(strong_convexity / smoothness)
    return float(rate**iterations * (initial_gap + strong_convexity * radius**2 / 2))


def nesterov_on_huber(iterations: int, smoothness: float, strong_convexity: float, threshold: float) -> float:
    """f(x_N) - f* on mu x^2 / 2 plus a Huber function of smoothness L - mu, relative to f(x_0) - f* + mu R^2 / 2.

    Args:
        iterations: N.
        smoothness: L.
        strong_convexity: Mu.
        threshold: The kink tau in [0, 1], in units of R, which the query points must not cross.

    Returns:
        The relative value at x_N = (1 + c/mu) (1 - sqrt(q))^N (1 + N sqrt(q)) - c/mu with c = (L - mu) tau and R = 1;
        -inf where x_N would lie below the kink, so that the formula does not hold.
    """
    slope = (smoothness - strong_convexity) * threshold
    root = np.sqrt(strong_convexity / smoothness)
    shift = slope / strong_convexity
    point = (1 + shift) * (1 - root) ** iterations * (1 + iterations * root) - shift
    if point < threshold:
        return float("-inf")
    value = strong_convexity * point**2 / 2 + slope * point - slope * threshold / 2
    return float(value / (strong_convexity + slope - slope * threshold / 2))


def nesterov_worst_threshold(iterations: int, smoothness: float, strong_convexity: float) -> float:
    """The kink for which `nesterov_on_huber` is largest.

    Args:
        iterations: N, at least 1.
        smoothness: L.
        strong_convexity: mu in (0, L).

    Returns:
        tau in [0, 1], in units of R, to about 1e-8: the value is flat there, or ends where the formula does.
    """
    low, high, threshold = 0.0, 1.0, 0.0
    # Each round keeps the two cells beside the best point of the grid, a sixteenth of the interval: 13 end at rounding.
    for _ in range(13):
        grid = np.linspace(low, high, 33)
        values = [nesterov_on_huber(iterations, smoothness, strong_convexity, float(tau)) for tau in grid]
        best = int(np.argmax(values))
        threshold = float(grid[best])
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 32)])
    return threshold


def nesterov_worst_case(iterations: int, smoothness: float, strong_convexity: float) -> float:
    """The worst value of `nesterov_on_huber` over the kink.

    At q = 0.1 and N up to 10 semidefinite performance estimation finds no worse function at all.

    Args:
        iterations: N, at least 1.
        smoothness: L.
        strong_convexity: mu in (0, L).

    Returns:
        max over tau of (f(x_N) - f*) / (f(x_0) - f* + mu R^2 / 2).
    """
    threshold = nesterov_worst_threshold(iterations, smoothness, strong_convexity)
    return nesterov_on_huber(iterations, smoothness, strong_convexity, threshold)


class TripleMomentum(NamedTuple):
    """The constants of the triple momentum method: the rate rho and its four parameters."""

    rho: float
    alpha: float
    beta: float
    gamma: float
    delta: float


def triple_momentum_constants(smoothness: float, strong_convexity: float) -> TripleMomentum:
    """The constants of the triple momentum method.

    Args:
        smoothness: L.
        strong_convexity: Mu in (0, L].

    Returns:
        rho = 1 - 1/sqrt(kappa) and (alpha, beta, gamma, delta).

    Source:
        B. Van Scoy, R. Freeman and K. Lynch, "The fastest known globally convergent first-order method for minimizing
        strongly convex functions", 2018.
    """
    rho = float(1 - np.sqrt(strong_convexity / smoothness))
    return TripleMomentum(
        rho=rho,
        alpha=(1 + rho) / smoothness,
        beta=rho**2 / (2 - rho),
        gamma=rho**2 / ((1 + rho) * (2 - rho)),
        delta=rho**2 / (1 - rho**2),
    )


def triple_momentum_worst_case(
    iterations: int, smoothness: float, strong_convexity: float, radius: float = 1.0
) -> float:
    """The exact worst case of f(x_N) - f* under the triple momentum method, attained by L x^2 / 2.

    Args:
        iterations: N, at least 1.
        smoothness: L.
        strong_convexity: Mu.
        radius: R.

    Returns:
        L kappa rho^(2 N) R^2 / 2.

    Source:
        B. Van Scoy, R. Freeman and K. Lynch, "The fastest known globally convergent first-order method for minimizing
        strongly convex functions", 2018 (the rate; the constant is the one that the quadratic attains).
    """
    rho = triple_momentum_constants(smoothness, strong_convexity).rho
    return smoothness**2 / strong_convexity * rho ** (2 * iterations) * radius**2 / 2


class Item(NamedTuple):
    """The sequences of the information-theoretic exact method: A_0, ..., A_N, and beta_k, delta_k for k < N."""

    a: NDArray[np.float64]
    beta: NDArray[np.float64]
    delta: NDArray[np.float64]


def item_sequences(iterations: int, inverse_condition: float) -> Item:
    """The sequences of the information-theoretic exact method.

    Args:
        iterations: N.
        inverse_condition: Q in [0, 1).

    Returns:
        A_k, beta_k and delta_k.

    Source:
        A. Taylor and Y. Drori, "An optimal gradient method for smooth strongly convex minimization", 2023, Algorithm 1.
    """
    q = inverse_condition
    a = np.zeros(iterations + 1)
    for k in range(iterations):
        a[k + 1] = ((1 + q) * a[k] + 2 * (1 + np.sqrt((1 + a[k]) * (1 + q * a[k])))) / (1 - q) ** 2
    old, new = a[:-1], a[1:]
    beta = old / ((1 - q) * new)
    delta = ((1 - q) ** 2 * new - (1 + q) * old) / (2 * (1 + q + q * old))
    return Item(a, beta, delta)


def item_worst_case(iterations: int, inverse_condition: float, radius: float = 1.0) -> float:
    """The exact worst case of the squared distance of z_N from the minimizer, attained by mu x^2 / 2 and L x^2 / 2.

    No first-order method does better in large dimension.

    Args:
        iterations: N.
        inverse_condition: Q in [0, 1).
        radius: R.

    Returns:
        R^2 / (1 + q A_N).

    Source:
        A. Taylor and Y. Drori, "An optimal gradient method for smooth strongly convex minimization", 2023, Theorem 3.
    """
    return float(radius**2 / (1 + inverse_condition * item_sequences(iterations, inverse_condition).a[-1]))
