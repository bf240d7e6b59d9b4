"""Reference loops of rules for stochastic gradients, as the authors' code or papers run them, and their exact moments.

The loops know nothing of the one-buffer form of `nagjax.accelerate`, and the moments follow from its four numbers
alone: the first hold the coefficients to the publication, the second to the theorem.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nagjax.theory.convex_loops import Gradient, Trajectory, Vector

Matrix = NDArray[np.float64]


def agnes(gradient: Gradient, start: ArrayLike, eta: ArrayLike, alpha: ArrayLike, rho: ArrayLike) -> Trajectory:
    """AGNES: x' = x + a v at which g is taken; x = x' - h g; v = r (v - g).

    Args:
        gradient: The (stochastic) gradient.
        start: x_0, shape (dimension,).
        eta: h_0, ..., h_{N-1}.
        alpha: a_0, ..., a_N; a_0 multiplies zero.
        rho: r_0, ..., r_{N-1}.

    Returns:
        x' as queries, x as answers.

    Source:
        K. Gupta, J. Siegel and S. Wojtowytsch, "Nesterov acceleration despite very noisy gradients", 2024.
    """
    x = np.asarray(start, np.float64)
    v = np.zeros_like(x)
    queries, answers = [x], [x]
    alpha = np.asarray(alpha, np.float64)
    for k, (h, r) in enumerate(zip(np.asarray(eta, np.float64), np.asarray(rho, np.float64), strict=True)):
        ahead = x + alpha[k] * v
        g = gradient(ahead)
        x = ahead - h * g
        v = r * (v - g)
        queries.append(x + alpha[k + 1] * v)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def mass(gradient: Gradient, start: ArrayLike, eta_1: ArrayLike, eta_2: ArrayLike, gamma: ArrayLike) -> Trajectory:
    """MaSS: w' = u - eta_1 g(u); u' = (1 + gamma) w' - gamma w + eta_2 g(u).

    Args:
        gradient: The (stochastic) gradient.
        start: w_0 = u_0, shape (dimension,).
        eta_1: One for each update.
        eta_2: One for each update.
        gamma: One for each update.

    Returns:
        u as queries, w as answers.

    Source:
        C. Liu and M. Belkin, "Accelerating SGD with momentum for over-parameterized learning", 2020, equation (4).
    """
    w = u = np.asarray(start, np.float64)
    queries, answers = [u], [w]
    rows = zip(*(np.asarray(value, np.float64) for value in (eta_1, eta_2, gamma)), strict=True)
    for first, second, b in rows:
        g = gradient(u)
        last, w = w, u - first * g
        u = (1 + b) * w - b * last + second * g
        queries.append(u)
        answers.append(w)
    return Trajectory(np.array(queries), np.array(answers))


def mass_released(gradient: Gradient, start: ArrayLike, rate: float, alpha: float, kappa: float, steps: int) -> Vector:
    """MaSS as the authors' code runs it, with a third sequence v.

    w = u - h g; v = (1 - a) v + a u - h/(a kappa) g; u = (a v + w)/(1 + a).

    Args:
        gradient: The (stochastic) gradient.
        start: u_0, shape (dimension,).
        rate: h.
        alpha: a.
        kappa: The statistical condition number.
        steps: N.

    Returns:
        u_k, shape (N + 1, dimension).

    Source:
        C. Liu and M. Belkin, the released optimizer of "Accelerating SGD with momentum", 2020.
    """
    u = v = np.asarray(start, np.float64)
    points = [u]
    for _ in range(steps):
        g = gradient(u)
        w = u - rate * g
        v = (1 - alpha) * v + alpha * u - rate / (alpha * kappa) * g
        u = (alpha * v + w) / (1 + alpha)
        points.append(u)
    return np.array(points)


def accsgd(gradient: Gradient, start: ArrayLike, rates: ArrayLike, kappa: float, xi: float, c: float) -> Vector:
    """Accelerated SGD: b = (1 - B) b + B (p - (a kappa/c) g); p = z (p - a g) + (1 - z) b.

    Args:
        gradient: The (stochastic) gradient.
        start: p_0 = b_0, shape (dimension,).
        rates: a, one for each update; the recursion is the published one for a constant.
        kappa: Ratio of the long to the short step.
        xi: Statistical advantage.
        c: The constant 0.7 of the authors.

    Returns:
        p_k, shape (N + 1, dimension).

    Source:
        R. Kidambi, P. Netrapalli, P. Jain and S. Kakade, "On the insufficiency of existing momentum schemes for
        stochastic optimization", 2018, and their released optimizer.
    """
    share = c**2 * xi / kappa
    z = c / (c + share)
    p = b = np.asarray(start, np.float64)
    points = [p]
    for rate in np.asarray(rates, np.float64):
        g = gradient(p)
        b = (1 - share) * b + share * (p - rate * kappa / c * g)
        p = z * (p - rate * g) + (1 - z) * b
        points.append(p)
    return np.array(points)


def nag_gs(
    gradient: Gradient, start: ArrayLike, alpha: ArrayLike, mu: float, gamma: float, *, fixed_gamma: bool = False
) -> Vector:
    """NAG-GS: v = (gamma v + a mu x - a g)/(a mu + gamma); x = (x + a v)/(1 + a); gamma = (gamma + a mu)/(1 + a).

    Args:
        gradient: The (stochastic) gradient.
        start: x_0 = v_0, shape (dimension,).
        alpha: a, one for each update.
        mu: The strong convexity.
        gamma: gamma_0.
        fixed_gamma: Keep gamma; without it v stays in the first update, the order of the paper.

    Returns:
        x_k, shape (N + 1, dimension).

    Source:
        V. Leplat et al., "NAG-GS: semi-implicit, accelerated and robust stochastic optimizer", 2022, Algorithm 1, and
        the authors' `nag_gs` and `nag4`.
    """
    x = v = np.asarray(start, np.float64)
    points = [x]
    for k, a in enumerate(np.asarray(alpha, np.float64)):
        if fixed_gamma or k:
            v = (gamma * v + a * mu * x - a * gradient(x)) / (a * mu + gamma)
        if not fixed_gamma:
            gamma = (gamma + a * mu) / (1 + a)
        x = (x + a * v) / (1 + a)
        points.append(x)
    return np.array(points)


def multiplicative_moments(coefficients: Sequence[float], curvature: float, noise: float) -> Matrix:
    """How an update maps second moments on f = curvature y^2/2 with gradients curvature y (1 + sqrt(noise) xi).

    With the state s = (y, w), the update is s' = (A + sqrt(noise) xi B) s, so E[s' s'^T] = A S A^T + noise B S B^T.

    Args:
        coefficients: decay, direct, gain, readout, for the step u = -g.
        curvature: lambda.
        noise: sigma^2; xi has mean 0 and variance 1.

    Returns:
        The map of vec(S), shape (4, 4).
    """
    decay, direct, gain, _ = coefficients
    exact = np.array([[1 - curvature * (direct + gain), gain * decay], [-curvature, decay]])
    random = np.array([[-curvature * (direct + gain), 0], [-curvature, 0]])
    return np.asarray(np.kron(exact, exact) + noise * np.kron(random, random), np.float64)


def gaussian_moments(coefficients: Sequence[float], curvatures: ArrayLike) -> Matrix:
    """How an update maps second moments in least squares that interpolates, one Gaussian example an update.

    Examples x ~ N(0, diag(curvatures)), gradients x x^T e. Since E[g_i^2] = 2 l_i^2 E e_i^2 + l_i sum_j l_j E e_j^2 and
    E[g_i s] = l_i E[e_i s], the diagonal moments E(e_i e_i, e_i w_i, w_i w_i) close.

    Args:
        coefficients: decay, direct, gain, readout, for the step u = -g.
        curvatures: l_i, shape (d,).

    Returns:
        The map of the moments, mode after mode, shape (3 d, 3 d).
    """
    decay, direct, gain, _ = coefficients
    curvatures = np.asarray(curvatures, np.float64)
    size, total = 3 * len(curvatures), direct + gain
    rows: list[Matrix] = []
    for i, curvature in enumerate(curvatures):
        ee, ew, ww = np.eye(size)[3 * i : 3 * i + 3]
        gg = 2 * curvature**2 * ee
        gg[0::3] += curvature * curvatures
        ge, gw = curvature * ee, curvature * ew
        # w' = decay w - g and e' = e - total g + gain decay w.
        rows.append(
            ee + total**2 * gg + (gain * decay) ** 2 * ww - 2 * total * ge + 2 * gain * decay * (ew - total * gw)
        )
        rows.append(decay * ew - ge - total * decay * gw + total * gg + gain * decay * (decay * ww - gw))
        rows.append(decay**2 * ww - 2 * decay * gw + gg)
    return np.array(rows)


def spectral_radius(matrix: Matrix) -> float:
    """The largest magnitude of an eigenvalue: the factor of a step, in the long run."""
    return float(np.max(np.abs(np.linalg.eigvals(matrix))))
