"""Reference loops of proximal methods, as their papers print them, for any composite function in NumPy.

Row k of what they return is the state after k updates.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nagjax.theory.convex_loops import Gradient, Trajectory, Vector
from nagjax.theory.restart_loops import Progress
from nagjax.theory.sequences import fista_momenta, ogm_theta

Value = Callable[[Vector], float]


class Composite(NamedTuple):
    """F = f + h: value and gradient of f, value of h, and prox(x, s) = argmin_z h(z) + |z - x|^2 / (2 s)."""

    value: Value
    gradient: Gradient
    penalty: Value
    prox: Callable[[Vector, float], Vector]

    def objective(self, x: Vector) -> float:
        """F(x)."""
        return self.value(x) + self.penalty(x)

    def forward_backward(self, y: Vector, step_size: float) -> Vector:
        """prox(y - s grad f(y), s)."""
        return self.prox(y - step_size * self.gradient(y), step_size)


class SearchTrajectory(NamedTuple):
    """A trajectory with the step sizes that a line search accepted, shape (steps,), and the numbers t_1, ..., t_N."""

    queries: Vector
    answers: Vector
    step_sizes: NDArray[np.float64]
    t: NDArray[np.float64]


def proximal_gradient(problem: Composite, start: ArrayLike, step_size: float, steps: int) -> Trajectory:
    """The proximal gradient method, ISTA.

    Args:
        problem: F.
        start: x_0, shape (dimension,).
        step_size: s, at most 1/L for the theorems.
        steps: N.

    Returns:
        The iterates, twice.
    """
    points = [np.asarray(start, np.float64)]
    for _ in range(steps):
        points.append(problem.forward_backward(points[-1], step_size))
    return Trajectory(np.array(points), np.array(points))


def proximal_nesterov(problem: Composite, start: ArrayLike, step_size: float, momenta: ArrayLike) -> Trajectory:
    """Nesterov's method with proximal steps and any momenta; FISTA with `sequences.fista_momenta`.

    x_{k+1} = prox(y_k - s grad f(y_k), s); y_{k+1} = x_{k+1} + b_{k+1} (x_{k+1} - x_k).

    Args:
        problem: F.
        start: x_0 = y_0, shape (dimension,).
        step_size: s.
        momenta: b_0, ..., b_N; b_0 is not used.

    Returns:
        y_k as queries, x_k as answers.

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems",
        2009, equations (4.1) to (4.3).
    """
    x = y = np.asarray(start, np.float64)
    queries, answers = [y], [x]
    for momentum in np.asarray(momenta, np.float64)[1:]:
        new = problem.forward_backward(y, step_size)
        y, x = new + momentum * (new - x), new
        queries.append(y)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def restarted_proximal_fista(
    problem: Composite, start: ArrayLike, step_size: float, steps: int, test: Callable[[Progress], bool]
) -> Trajectory:
    """FISTA with proximal steps that starts again from x_k whenever the test holds after x_k.

    Args:
        problem: F.
        start: x_0, shape (dimension,).
        step_size: s, at most 1/L.
        steps: N.
        test: One of the tests of `restart_loops`, of F where it takes a value.

    Returns:
        y_k as queries, x_k as answers; both are x_k where a restart took place.

    Source:
        B. O'Donoghue and E. Candes, "Adaptive restart for accelerated gradient schemes", 2015, section 3.2.
    """
    momenta = fista_momenta(steps)
    x = y = np.asarray(start, np.float64)
    last_query = earlier = None
    age = 0
    queries, answers = [y], [x]
    for _ in range(steps):
        new = problem.forward_backward(y, step_size)
        if test(Progress(age + 1, y, last_query, new, x, earlier)):
            last_query, earlier, age = None, None, 0
            y = new
        else:
            age += 1
            last_query, earlier = y, x
            y = new + momenta[age] * (new - x)
        x = new
        queries.append(y)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def monotone_fista(problem: Composite, start: ArrayLike, step_size: float, steps: int) -> Trajectory:
    """MFISTA.

    Args:
        problem: F.
        start: x_0, shape (dimension,).
        step_size: s, at most 1/L.
        steps: N.

    Returns:
        y_k as queries, x_k as answers.

    Source:
        A. Beck and M. Teboulle, "Fast gradient-based algorithms for constrained total variation image denoising and
        deblurring problems", 2009, MFISTA.
    """
    x = y = np.asarray(start, np.float64)
    t = 1.0
    queries, answers = [y], [x]
    for _ in range(steps):
        z = problem.forward_backward(y, step_size)
        new = z if problem.objective(z) <= problem.objective(x) else x
        following = (1 + np.sqrt(1 + 4 * t**2)) / 2
        y = new + (t / following) * (z - new) + ((t - 1) / following) * (new - x)
        x, t = new, following
        queries.append(y)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def backtracking_fista(
    problem: Composite, start: ArrayLike, smoothness: float, steps: int, factor: float, growth: float = 1.0
) -> SearchTrajectory:
    """FISTA with backtracking on L, and with steps that may grow again.

    With growth 1 this is the method of Beck and Teboulle. Otherwise the next search begins at L / growth where the
    accepted point would have passed the test with it, and y is formed with the theta that belongs to that trial; with
    a failed trial L is multiplied by `factor`, at the same y.

    Args:
        problem: F.
        start: x_0, shape (dimension,).
        smoothness: L_0, the first trial.
        steps: N.
        factor: eta, more than 1.
        growth: At least 1.

    Returns:
        y_k as queries, x_k as answers, the accepted steps 1/L_k, and t_k = 1/theta_k.

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems", 2009;
        S. Becker, E. Candes and M. Grant, "Templates for convex cone problems with applications to sparse signal
        recovery", 2011, for theta_{k+1} = 2 / (1 + sqrt(1 + 4 (L_{k+1} / L_k) / theta_k^2)).
    """
    x = y = np.asarray(start, np.float64)
    theta, trial = 1.0, smoothness
    queries, answers, accepted, thetas = [y], [x], list[float](), list[float]()
    for _ in range(steps):
        value, slope = problem.value(y), problem.gradient(y)
        while True:
            p = problem.prox(y - slope / trial, 1 / trial)
            bregman = problem.value(p) - value - slope @ (p - y)
            if bregman <= trial / 2 * (p - y) @ (p - y):
                break
            trial *= factor
        used = trial
        if np.any(p != y) and bregman <= trial / growth / 2 * (p - y) @ (p - y):
            trial /= growth
        thetas.append(theta)
        following = 2 / (1 + np.sqrt(1 + 4 * (trial / used) / theta**2))
        y = p + following * (1 / theta - 1) * (p - x)
        x, theta = p, following
        queries.append(y)
        answers.append(x)
        accepted.append(1 / used)
    return SearchTrajectory(np.array(queries), np.array(answers), np.array(accepted), 1 / np.array(thetas))


def pogm(problem: Composite, start: ArrayLike, smoothness: float, horizon: int) -> Trajectory:
    """The proximal optimized gradient method, for a number of iterations that is known before.

    Args:
        problem: F.
        start: x_0, shape (dimension,).
        smoothness: L of f.
        horizon: N, at least 1.

    Returns:
        x_0, ..., x_N, twice; the gradients are taken there, and the theorem is about x_N.

    Source:
        A. Taylor, J. Hendrickx and F. Glineur, "Exact worst-case performance of first-order methods for composite
        convex optimization", 2017; in the form of D. Kim and J. Fessler, "Adaptive restart of the optimized gradient
        method for convex optimization", 2018.
    """
    theta = ogm_theta(horizon)
    x = u = z = np.asarray(start, np.float64)
    zeta = 1.0
    points = [x]
    for k in range(1, horizon + 1):
        beta, gamma = (theta[k - 1] - 1) / theta[k], theta[k - 1] / theta[k]
        new = x - problem.gradient(x) / smoothness
        correction = beta / (smoothness * zeta) * (x - z)
        zeta = (1 + beta + gamma) / smoothness
        z = new + beta * (new - u) + gamma * (new - x) - correction
        u, x = new, problem.prox(z, zeta)
        points.append(x)
    return Trajectory(np.array(points), np.array(points))
