"""Reference loops of methods with adaptive step sizes, as their papers print them, in NumPy.

Row k of what they return is the state after k updates.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nagjax.theory.convex_loops import Gradient, Trajectory, Vector
from nagjax.theory.proximal_loops import Composite

ACFGM_BETA = 1 - np.sqrt(6) / 3


class AdaptiveTrajectory(NamedTuple):
    """A trajectory with the step sizes, shape (steps,), and what else the theorem of the method speaks of."""

    queries: Vector
    answers: Vector
    step_sizes: NDArray[np.float64]
    numbers: NDArray[np.float64]


def acfgm(
    problem: Composite, start: ArrayLike, first_step: float, steps: int, alpha: float = 0.1, beta: float = ACFGM_BETA
) -> AdaptiveTrajectory:
    """The auto-conditioned fast gradient method, with the step size rule of the paper's experiments.

    Where L = 0 the two other bounds on the step apply.

    Args:
        problem: F, whose f is used through its values and gradients.
        start: x_0, shape (dimension,).
        first_step: eta_1, 1 / (2.5 L_1).
        steps: N.
        alpha: In [0, 1].
        beta: At most 1 - sqrt(6)/3.

    Returns:
        x_0, ..., x_N, twice; eta_1, ..., eta_N; tau_1, ..., tau_N.

    Source:
        T. Li and G. Lan, "A simple uniformly optimal method without line search for convex optimization", 2023.
    """
    x = y = np.asarray(start, np.float64)
    eta, tau, last_tau = first_step, 0.0, 0.0
    value, slope, last_x = problem.value(x), problem.gradient(x), x
    points, etas, taus = [x], list[float](), list[float]()
    for t in range(1, steps + 1):
        if t > 1:
            new_value, new_slope = problem.value(x), problem.gradient(x)
            turned, moved = new_slope - slope, x - last_x
            bregman = value - new_value - new_slope @ (last_x - x)
            rounding = 64 * np.finfo(float).eps * (abs(value) + abs(new_value) + abs(new_slope @ moved))
            if not np.any(turned):
                smoothness = 0.0
            elif t == 2 or bregman <= rounding:
                smoothness = float(np.linalg.norm(turned) / np.linalg.norm(moved))
            else:
                smoothness = float(turned @ turned / (2 * bregman))
            value, slope, last_x = new_value, new_slope, x
            if t == 2:
                eta, last_tau, tau = (1 - beta) * eta, 0.0, 1.0
                bounds = [eta]
            else:
                bounds = [2 * (1 - beta) ** 2 * eta, (last_tau + 1) / tau * eta]
            if smoothness > 0:
                bounds.append(tau / (4 * smoothness))
            eta = min(bounds)
            last_tau, tau = tau, tau + alpha / 2 + 2 * (1 - alpha) * eta * smoothness / tau
        z = problem.prox(y - eta * slope, eta)
        weight = 0.0 if t == 1 else beta
        y = (1 - weight) * y + weight * z
        x = (z + tau * x) / (1 + tau)
        points.append(x)
        etas.append(eta)
        taus.append(tau)
    return AdaptiveTrajectory(np.array(points), np.array(points), np.array(etas), np.array(taus))


def adgd(gradient: Gradient, start: ArrayLike, first_step: float, steps: int) -> AdaptiveTrajectory:
    """Adaptive gradient descent.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        first_step: lambda_0.
        steps: N.

    Returns:
        x_0, ..., x_N, twice; lambda_0, ..., lambda_{N-1}; theta_0 (infinite), ..., theta_{N-1}.

    Source:
        Y. Malitsky and K. Mishchenko, "Adaptive gradient descent without descent", 2020, Algorithm 1.
    """
    x = np.asarray(start, np.float64)
    slope, step, theta = gradient(x), first_step, np.inf
    points, steps_taken, thetas = [x, x - step * slope], [step], [theta]
    for _ in range(steps - 1):
        last, last_slope, x = x, slope, points[-1]
        slope = gradient(x)
        turned = np.linalg.norm(slope - last_slope)
        cap = np.linalg.norm(x - last) / (2 * turned) if turned > 0 else np.inf
        new = min(np.sqrt(1 + theta) * step, cap)
        step, theta = new, new / step
        points.append(x - step * slope)
        steps_taken.append(step)
        thetas.append(theta)
    return AdaptiveTrajectory(np.array(points), np.array(points), np.array(steps_taken), np.array(thetas))


def adgd_accelerated(
    gradient: Gradient, start: ArrayLike, first_step: float, steps: int, growth: float = 0.5, fraction: float = 0.5
) -> AdaptiveTrajectory:
    """Adaptive gradient descent with momentum, a heuristic.

    Args:
        gradient: The gradient of f.
        start: x_0 = y_0, shape (dimension,).
        first_step: lambda_0; mu_0 is its inverse.
        steps: N.
        growth: a.
        fraction: b.

    Returns:
        y_k as queries, x_k as answers; lambda_0, ..., lambda_{N-1}; m_0 (0), ..., m_{N-1}.

    Source:
        Y. Malitsky and K. Mishchenko, "Adaptive gradient descent without descent", 2020, section on heuristics.
    """
    y = x_before = np.asarray(start, np.float64)
    slope, step, mu, theta, capital_theta = gradient(y), first_step, 1 / first_step, np.inf, np.inf
    last, y = y, y - step * slope
    queries, answers, lambdas, momenta = [last, y], [last, y], [step], [0.0]
    for _ in range(steps - 1):
        last_slope, slope = slope, gradient(y)
        local = np.linalg.norm(slope - last_slope) / np.linalg.norm(y - last)
        new_step = min(np.sqrt(1 + growth * theta) * step, fraction / local)
        new_mu = min(np.sqrt(1 + growth * capital_theta) * mu, fraction * local)
        theta, capital_theta, step, mu = new_step / step, new_mu / mu, new_step, new_mu
        momentum = (1 - np.sqrt(step * mu)) / (1 + np.sqrt(step * mu))
        x = y - step * slope
        last, y = y, x + momentum * (x - x_before)
        x_before = x
        queries.append(y)
        answers.append(x)
        lambdas.append(step)
        momenta.append(momentum)
    return AdaptiveTrajectory(np.array(queries), np.array(answers), np.array(lambdas), np.array(momenta))


def adaptive_proximal_gradient(
    problem: Composite, start: ArrayLike, first_step: float, steps: int, version: int
) -> AdaptiveTrajectory:
    """The adaptive proximal gradient method.

    Args:
        problem: F.
        start: x_0, shape (dimension,).
        first_step: alpha_0.
        steps: N.
        version: 1 or 2.

    Returns:
        x_0, ..., x_N, twice; alpha_0, ..., alpha_{N-1}; theta_0 (1/3), ..., theta_{N-1}.

    Source:
        Y. Malitsky and K. Mishchenko, "Adaptive proximal gradient method for convex optimization", 2024, Algorithms 1
        and 3.
    """
    x = np.asarray(start, np.float64)
    slope, step, theta = problem.gradient(x), first_step, 1 / 3
    points, steps_taken, thetas = [x, problem.prox(x - step * slope, step)], [step], [theta]
    for _ in range(steps - 1):
        last, last_slope, x = x, slope, points[-1]
        slope = problem.gradient(x)
        local = np.linalg.norm(slope - last_slope) / np.linalg.norm(x - last)
        if version == 1:
            new = min(np.sqrt(1 + theta) * step, 1 / (np.sqrt(2) * local) if local > 0 else np.inf)
        else:
            excess = max(2 * step**2 * local**2 - 1, 0.0)
            new = min(np.sqrt(2 / 3 + theta) * step, step / np.sqrt(excess) if excess > 0 else np.inf)
        step, theta = new, new / step
        points.append(problem.prox(x - step * slope, step))
        steps_taken.append(step)
        thetas.append(theta)
    return AdaptiveTrajectory(np.array(points), np.array(points), np.array(steps_taken), np.array(thetas))


def greedy_fista(
    problem: Composite,
    start: ArrayLike,
    smoothness: float,
    steps: int,
    relaxation: float = 1.3,
    safeguard: float = 1.0,
    shrink: float = 0.96,
) -> Trajectory:
    """Greedy FISTA, a heuristic.

    Args:
        problem: F.
        start: x_0 = y_0, shape (dimension,).
        smoothness: L of f.
        steps: N.
        relaxation: c.
        safeguard: S.
        shrink: xi.

    Returns:
        y_k as queries, x_k as answers.

    Source:
        J. Liang, T. Luo and C.-B. Schoenlieb, "Improving 'fast iterative shrinkage-thresholding algorithm': faster,
        smarter, and greedier", 2022.
    """
    x = y = np.asarray(start, np.float64)
    gamma = relaxation / smoothness
    first_move = None
    queries, answers = [y], [x]
    for _ in range(steps):
        new = problem.forward_backward(y, gamma)
        restarts = (y - new) @ (new - x) >= 0
        move = np.linalg.norm(new - x)
        first_move = move if first_move is None else first_move
        if move > safeguard * first_move:
            gamma = max(1 / smoothness, shrink * gamma)
        y = new if restarts else new + (new - x)
        x = new
        queries.append(y)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))
