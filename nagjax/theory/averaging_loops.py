"""Reference loops of averaging methods, as papers and the authors' code print them, for NumPy gradient functions.

`gradient` may be any direction of ascent, one that remembers (Adam's) included: it is called once a step, in order.
Row k of what they return is the state after k updates.
"""

import numpy as np
from numpy.typing import ArrayLike

from nagjax.theory.convex_loops import Gradient, Trajectory


def schedule_free(
    gradient: Gradient,
    start: ArrayLike,
    rate: float,
    steps: int,
    *,
    momentum: float = 0.9,
    warm_up: int = 0,
    count_power: float = 0.0,
    weight_power: float = 2.0,
    weight_decay: float = 0.0,
) -> Trajectory:
    """Schedule-Free SGD as the authors' code runs it, in place on y and z.

    Args:
        gradient: The gradient of f.
        start: y_0 = z_0, shape (dimension,).
        rate: gamma, after the warm-up.
        steps: N.
        momentum: beta.
        warm_up: W; the rate of update t is gamma (t + 1) / W below it.
        count_power: r.
        weight_power: p.
        weight_decay: Added to the gradient at y.

    Returns:
        y_k as queries; as answers x_k = (y_k - (1 - beta) z_k) / beta, from its own recursion.

    Source:
        A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled and A. Cutkosky, "The road less scheduled", 2024, and
        the authors' released optimizer.
    """
    x = y = z = np.asarray(start, np.float64)
    weight_sum, largest_rate = 0.0, 0.0
    queries, answers = [y], [x]
    for t in range(steps):
        now = rate * (t + 1) / warm_up if t < warm_up else rate
        largest_rate = max(largest_rate, now)
        weight = (t + 1) ** count_power * largest_rate**weight_power
        weight_sum += weight
        c = weight / weight_sum if weight_sum else 0.0
        g = gradient(y) + weight_decay * y
        y = y + c * (z - y) + now * (momentum * (1 - c) - 1) * g
        z = z - now * g
        x = (1 - c) * x + c * z
        queries.append(y)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def primal_averaging(
    gradient: Gradient, start: ArrayLike, rates: ArrayLike, average: ArrayLike, interpolation: ArrayLike
) -> Trajectory:
    """Generalized primal averaging (GPA) over gradient steps, with its three sequences.

    y = mu_y x + (1 - mu_y) z; z' = z - a_k grad f(y); x' = mu_x x + (1 - mu_x) z'.

    Args:
        gradient: The gradient of f.
        start: x_0 = z_0, shape (dimension,).
        rates: a_0, ..., a_{N-1}.
        average: mu_x at updates 0, ..., N, or a number; the last is not used.
        interpolation: mu_y at updates 0, ..., N, or a number.

    Returns:
        y_k as queries, x_k as answers.

    Source:
        A. Defazio et al., "Generalized primal averaging", 2025 (arXiv 2512.17131).
    """
    rates = np.asarray(rates, np.float64)
    mu_x = np.broadcast_to(np.asarray(average, np.float64), len(rates) + 1)
    mu_y = np.broadcast_to(np.asarray(interpolation, np.float64), len(rates) + 1)
    x = y = z = np.asarray(start, np.float64)
    queries, answers = [y], [x]
    for k, rate in enumerate(rates):
        z = z - rate * gradient(y)
        x = mu_x[k] * x + (1 - mu_x[k]) * z
        y = mu_y[k + 1] * x + (1 - mu_y[k + 1]) * z
        queries.append(y)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def primal_averaging_in_place(
    gradient: Gradient,
    start: ArrayLike,
    rates: ArrayLike,
    mu_x: float,
    mu_y: float,
    *,
    weight_decay: float = 0.0,
    decay_query: bool = False,
) -> Trajectory:
    """Generalized primal averaging as the authors' code runs it, in place on y and z.

    Without `decay_query` z shrinks before the step and y stays: z = (1 - a_k weight_decay) z. With it the direction is
    d + weight_decay y. Then y += (1 - mu_x) (z - y) - a_k (1 - mu_x mu_y) d; z -= a_k d.

    Args:
        gradient: The direction d of ascent.
        start: y_0 = z_0, shape (dimension,).
        rates: a_0, ..., a_{N-1}.
        mu_x: Decay of the average.
        mu_y: Interpolation, positive.
        weight_decay: Of z, or of y.
        decay_query: Which of the two.

    Returns:
        y_k as queries; as answers x_k = y_k + (1 - 1 / mu_y) (z_k - y_k).

    Source:
        A. Defazio et al., "Generalized primal averaging", 2025 (arXiv 2512.17131), and the authors' released optimizer.
    """
    y = z = np.asarray(start, np.float64)
    queries, answers = [y], [y]
    for rate in np.asarray(rates, np.float64):
        d = gradient(y)
        if decay_query:
            d = d + weight_decay * y
        else:
            z = (1 - rate * weight_decay) * z
        y = y + (1 - mu_x) * (z - y) - rate * (1 - mu_x * mu_y) * d
        z = z - rate * d
        queries.append(y)
        answers.append(y + (1 - 1 / mu_y) * (z - y))
    return Trajectory(np.array(queries), np.array(answers))
