"""AcceleGrad as its paper prints it, with three sequences, and bounds that hold at every iterate; the search for D.

Row k of what the loops return is the state after k updates.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nagjax.theory.convex_loops import Gradient, Vector

Projection = Callable[[Vector], Vector]


class Universal(NamedTuple):
    """A run of AcceleGrad; sequences have shape (steps + 1, dimension)."""

    queries: Vector  # x, where gradients are taken; row 0 is x_1 of the paper
    answers: Vector  # y
    averages: Vector  # of y with the weights a_t; row 0 is the start
    fast: Vector  # z
    step_sizes: NDArray[np.float64]  # eta_t, shape (steps,)


class Opened(NamedTuple):
    """A search for the distance to start from."""

    points: Vector  # where gradients were taken, x_0 first and the accepted point last
    distance: float  # r of the first step of the method
    covered: float  # |x_0 - p|, p the accepted point


def weights(count: int) -> NDArray[np.float64]:
    """AcceleGrad's weights: 1 for t <= 2, (t + 1)/4 after it.

    Args:
        count: How many.

    Returns:
        a_0, ..., a_{count - 1}.

    Source:
        K. Levy, A. Yurtsever and V. Cevher, "Online adaptive methods, universality and acceleration", 2018.
    """
    return np.array([1.0 if t <= 2 else (t + 1) / 4 for t in range(count)])


def accelegrad(
    gradient: Gradient,
    start: ArrayLike,
    steps: int,
    distance: float,
    gradient_bound: float = 0.0,
    project: Projection | None = None,
) -> Universal:
    """AcceleGrad: linear coupling of z and y, and a step size from the gradients so far.

    Args:
        gradient: The gradient, or a subgradient, of f.
        start: z_0 = y_0, shape (dimension,).
        steps: Updates.
        distance: D, the diameter of the set.
        gradient_bound: G.
        project: The projection on the set, which z is kept in; None is the whole space.

    Returns:
        The run.

    Source:
        K. Levy, A. Yurtsever and V. Cevher, "Online adaptive methods, universality and acceleration", 2018, AcceleGrad.
    """
    z = y = np.asarray(start, np.float64)
    a = weights(steps + 1)
    total, weighted = gradient_bound**2, np.zeros_like(y)
    queries: list[Vector] = []
    step_sizes: list[float] = []
    answers, averages, fast = [y], [y], [z]
    for t in range(steps):
        tau = 1 / a[t]
        x = tau * z + (1 - tau) * y
        g = gradient(x)
        total += a[t] ** 2 * float(g @ g)
        eta = 2 * distance / np.sqrt(total)
        z = z - a[t] * eta * g
        z = z if project is None else project(z)
        y = x - eta * g
        weighted = weighted + a[t] * y
        queries.append(x)
        answers.append(y)
        averages.append(weighted / np.sum(a[: t + 1]))
        fast.append(z)
        step_sizes.append(float(eta))
    tau = 1 / a[steps]
    queries.append(tau * z + (1 - tau) * y)
    return Universal(*(np.array(rows) for rows in (queries, answers, averages, fast, step_sizes)))


def smooth_bound(smoothness: float, distance: float, first_gradient: float, reach: float | None = None) -> float:
    """A bound of a_{T-1}^2 (f(y_T) - f*) for AcceleGrad with G = 0 on a convex, L-smooth f.

    It is 4 L D^2 (log(4 L D / (c |g_0|)) - 1/2), c = 1 - (reach / (2 D))^2. The average of y with the weights a_t is
    within 2 / (a_0 + ... + a_{T-1}) times the same number.

    Args:
        smoothness: L.
        distance: D.
        first_gradient: |g_0|, positive.
        reach: The largest |z_t - x*|, less than 2 D; D itself, as on a set of diameter D, by default.

    Returns:
        The bound.

    Source:
        The analysis of K. Levy, A. Yurtsever and V. Cevher, "Online adaptive methods, universality and acceleration",
        2018, with the constants kept; the derivation is in BUILD_NOTES.md.
    """
    c = 1 - ((distance if reach is None else reach) / (2 * distance)) ** 2
    return 4 * smoothness * distance**2 * (np.log(4 * smoothness * distance / (c * first_gradient)) - 0.5)


def lipschitz_bound(
    steps: int, lipschitz: float, distance: float, first_gradient: float, reach: float | None = None
) -> float:
    """A bound of a_{T-1}^2 (f(y_T) - f*) for AcceleGrad with G = 0 on a convex f with gradients of at most M.

    It is D M sqrt(Q) (2 + (reach / D)^2 / 4 + 2 sqrt(1 + log(M^2 Q / |g_0|^2))), Q = a_0^2 + ... + a_{T-1}^2. The
    average of y is within 2 / (a_0 + ... + a_{T-1}) times the same number.

    Args:
        steps: T, at least 1.
        lipschitz: M.
        distance: D.
        first_gradient: |g_0|, positive.
        reach: The largest |z_t - x*|; D by default.

    Returns:
        The bound, O(T^(3/2) sqrt(log T)).

    Source:
        As for `smooth_bound`.
    """
    squares = float(np.sum(weights(steps) ** 2))
    share = 1.0 if reach is None else (reach / distance) ** 2
    logarithm = np.log(lipschitz**2 * squares / first_gradient**2)
    return distance * lipschitz * np.sqrt(squares) * (2 + share / 4 + 2 * np.sqrt(1 + logarithm))


def opening(gradient: Gradient, start: ArrayLike, first: float, most: int = 40) -> Opened:
    """The search of `adaptive.accelegrad` for a distance r at which between 0.5 and 0.9 of the first slope is left.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        first: The first r.
        most: Points after x_0.

    Returns:
        The points, r and the distance covered.
    """
    origin = np.asarray(start, np.float64)
    downhill = -gradient(origin)
    size = float(np.linalg.norm(downhill))
    near: list[float] = []
    far: list[float] = []
    points, r = [origin], first
    while len(points) <= most:
        points.append(origin + r * downhill / size)
        left = -float(gradient(points[-1]) @ downhill) / size**2
        if left >= 0.5:
            near.append(r)
            if left <= 0.9 or (far and far[-1] <= 1.1 * r):
                return Opened(np.array(points), min(r, far[-1] - r) if far else r, r)
        else:
            far.append(r)
        guess = 0.3 / (1 - left) if left < 1 else np.inf
        if not far:
            r *= float(np.clip(guess, 1.5, 100))
        elif not near:
            r *= min(guess, 0.1)
        else:
            low, high = near[-1], far[-1]
            r = np.sqrt(low * high) if high > 8 * low else (low + high) / 2
    return Opened(np.array(points), first, r)


def self_tuning(gradient: Gradient, start: ArrayLike, first: float, steps: int) -> Universal:
    """AcceleGrad after an opening, with r for 2 D, at least the distance of every query point from where it starts.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        first: The first distance of the opening.
        steps: Updates after the opening.

    Returns:
        The run from the accepted point on; averages are left empty.
    """
    opened = opening(gradient, start, first)
    z = y = origin = opened.points[-1]
    a = weights(steps + 1)
    distance, total = opened.distance, 0.0
    queries, answers, fast = [y], [y], [z]
    step_sizes: list[float] = []
    for t in range(steps):
        x = queries[-1]
        g = gradient(x)
        total += a[t] ** 2 * float(g @ g)
        distance = max(distance, float(np.linalg.norm(x - origin)))
        eta = distance / np.sqrt(total)
        z, y = z - a[t] * eta * g, x - eta * g
        queries.append(z / a[t + 1] + (1 - 1 / a[t + 1]) * y)
        answers.append(y)
        fast.append(z)
        step_sizes.append(float(eta))
    return Universal(np.array(queries), np.array(answers), np.zeros(0), np.array(fast), np.array(step_sizes))
