"""Reference loops of methods in two levels, as papers print them, for NumPy maps of inner steps.

An inner step is a function from the fast weights and the count of inner updates (from 0) to the next fast weights; it
may keep a state of its own. There is one for each worker.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nagjax.theory.convex_loops import Vector

InnerStep = Callable[[Vector, int], Vector]
OuterStep = Callable[[Vector, Vector, int], tuple[Vector, Vector]]


class Rounds(NamedTuple):
    """Both levels after 0, 1, ... inner updates; an update that synchronizes ends with the outer step."""

    fast: NDArray[np.float64]  # the weights of the workers, shape (updates + 1, workers, dimension)
    slow: NDArray[np.float64]  # the slow weights, shape (updates + 1, dimension)
    answers: NDArray[np.float64]  # the outer method's answer, shape (updates + 1, dimension)


def lookahead(inner: Sequence[InnerStep], start: ArrayLike, period: int, rates: ArrayLike) -> Rounds:
    """Lookahead: theta from phi, k inner steps, phi' = phi + a_t (theta - phi).

    Args:
        inner: The inner step of each worker.
        start: phi_0, shape (dimension,).
        period: k.
        rates: a_0, ..., a_{T-1}, for T outer steps.

    Returns:
        theta, phi, and phi as answers. With several workers theta is their mean at an outer step.

    Source:
        M. Zhang, J. Lucas, G. Hinton and J. Ba, "Lookahead optimizer: k steps forward, 1 step back", 2019, Algorithm 1.
    """
    rates = np.asarray(rates, np.float64)

    def outer(phi: Vector, theta: Vector, t: int) -> tuple[Vector, Vector]:
        phi = phi + rates[t] * (theta - phi)
        return phi, phi

    return _nested(inner, start, period, len(rates), outer)


def snoo(
    inner: Sequence[InnerStep], start: ArrayLike, period: int, rounds: int, *, rate: float, momentum: float
) -> Rounds:
    """SNOO, and over several workers DiLoCo: d = s - mean theta, b = mu b + d, s' = s - lr (d + mu b).

    Args:
        inner: The inner step of each worker.
        start: s_0, shape (dimension,).
        period: K.
        rounds: Outer steps.
        rate: lr.
        momentum: mu.

    Returns:
        theta, s, and as answers s - lr d, where the outer gradient step alone would go.

    Source:
        A. Douillard et al., "DiLoCo: distributed low-communication training of language models", 2023, Algorithm 1;
        D. Kallusky, V. Rao, V. Nandavanam and H.-J. Shi, "SNOO: Step-K Nesterov Outer Optimizer", 2025.
    """
    b = np.zeros_like(np.asarray(start, np.float64))

    def outer(s: Vector, theta: Vector, t: int) -> tuple[Vector, Vector]:
        nonlocal b
        d = s - theta
        b = momentum * b + d
        return s - rate * (d + momentum * b), s - rate * d

    return _nested(inner, start, period, rounds, outer)


def nesterov_rounds(
    inner: Sequence[InnerStep], start: ArrayLike, period: int, rates: ArrayLike, momenta: ArrayLike
) -> Rounds:
    """Nesterov's textbook scheme outside: x' = s - a_t (s - mean theta), s' = x' + b_{t+1} (x' - x).

    Args:
        inner: The inner step of each worker.
        start: x_0 = s_0, shape (dimension,).
        period: K.
        rates: a_0, ..., a_{T-1}.
        momenta: b_0, ..., b_T.

    Returns:
        theta, s, and x as answers.

    Source:
        Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983, with
        the pseudo-gradient of DiLoCo.
    """
    rates, momenta = np.asarray(rates, np.float64), np.asarray(momenta, np.float64)
    x = np.asarray(start, np.float64)

    def outer(s: Vector, theta: Vector, t: int) -> tuple[Vector, Vector]:
        nonlocal x
        previous, x = x, s - rates[t] * (s - theta)
        return x + momenta[t + 1] * (x - previous), x

    return _nested(inner, start, period, len(rates), outer)


def slowmo(
    inner: Sequence[InnerStep], start: ArrayLike, period: int, inner_rates: ArrayLike, *, rate: float, momentum: float
) -> Rounds:
    """SlowMo: u' = b u + (x - mean theta) / g_t, x' = x - a g_t u'.

    Args:
        inner: The inner step of each worker.
        start: x_0, shape (dimension,).
        period: tau.
        inner_rates: g_0, ..., g_{T-1}, the inner learning rate in each of T rounds.
        rate: a.
        momentum: b.

    Returns:
        theta, x, and x as answers.

    Source:
        J. Wang, V. Tantia, N. Ballas and M. Rabbat, "SlowMo: improving communication-efficient distributed SGD with
        slow momentum", 2019, Algorithm 1.
    """
    inner_rates = np.asarray(inner_rates, np.float64)
    u = np.zeros_like(np.asarray(start, np.float64))

    def outer(x: Vector, theta: Vector, t: int) -> tuple[Vector, Vector]:
        nonlocal u
        u = momentum * u + (x - theta) / inner_rates[t]
        x = x - rate * inner_rates[t] * u
        return x, x

    return _nested(inner, start, period, len(inner_rates), outer)


def snoo_with_a_counter(
    inner: InnerStep, start: ArrayLike, period: int, updates: int, *, rate: float, momentum: float
) -> Rounds:
    """SNOO as a hook after every inner step, whose counter is tested before it is incremented.

    The first outer step comes after the first inner step, the others `period` inner steps apart.

    Args:
        inner: The inner step.
        start: s_0, shape (dimension,).
        period: K.
        updates: Inner updates.
        rate: lr.
        momentum: mu.

    Returns:
        theta, s, and s as answers.

    Source:
        The released code of SNOO, on the public speed-run of small GPT models, 2025.
    """
    theta = s = np.asarray(start, np.float64)
    b = np.zeros_like(s)
    fast, slow = [theta], [s]
    for counter in range(updates):
        theta = inner(theta, counter)
        if counter % period == 0:
            d = s - theta
            b = momentum * b + d
            theta = s = s - rate * (d + momentum * b)
        fast.append(theta)
        slow.append(s)
    return Rounds(np.array(fast)[:, None], np.array(slow), np.array(slow))


def contraction(rate: float, eigenvalues: ArrayLike, period: int) -> NDArray[np.float64]:
    """The curvatures that an outer method sees over gradient descent on a quadratic.

    Args:
        rate: a, the inner step size.
        eigenvalues: l.
        period: K.

    Returns:
        1 - (1 - a l)^K: after K steps theta - x* = (1 - a l)^K (s - x*), so s - theta is this times s - x*.
    """
    return 1 - (1 - rate * np.asarray(eigenvalues, np.float64)) ** period


def _nested(inner: Sequence[InnerStep], start: ArrayLike, period: int, rounds: int, outer: OuterStep) -> Rounds:
    """Both loops; `outer` takes the slow weights, the mean of the fast ones and the count of outer steps."""
    s = np.asarray(start, np.float64)
    thetas, answer = [s] * len(inner), s
    fast, slow, answers = [np.array(thetas)], [s], [answer]
    for t in range(rounds):
        for k in range(period):
            thetas = [step(theta, t * period + k) for step, theta in zip(inner, thetas, strict=True)]
            if k == period - 1:
                s, answer = outer(s, np.mean(thetas, axis=0), t)
                thetas = [s] * len(inner)
            fast.append(np.array(thetas))
            slow.append(s)
            answers.append(answer)
    return Rounds(np.array(fast), np.array(slow), np.array(answers))
