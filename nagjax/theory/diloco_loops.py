"""Reference loops of DiLoCo and its streaming variant, as papers print them, for NumPy maps of inner steps."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from nagjax.theory.convex_loops import Vector
from nagjax.theory.outer_loops import InnerStep, Rounds


def diloco(
    inner: Sequence[InnerStep],
    start: ArrayLike,
    period: int,
    weights: ArrayLike,
    *,
    rate: float,
    momentum: float,
    restart: bool = False,
) -> Rounds:
    """DiLoCo with workers of unequal weights: Delta = sum w_i (s - theta_i) / sum w_i, b = mu b + Delta, then s.

    Args:
        inner: The inner step of each worker.
        start: s_0, shape (dimension,).
        period: H.
        weights: w_i of each of T rounds, shape (T, workers). A round whose weights are all 0 has no outer step.
        rate: lr of s' = s - lr (Delta + mu b).
        momentum: mu.
        restart: Whether the gradient test <Delta, b> < 0 forgets b, with s' = s - lr Delta.

    Returns:
        theta, s, and as answers s - lr Delta.

    Source:
        A. Douillard et al., "DiLoCo: distributed low-communication training of language models", 2023, Algorithm 1
        and its weighted average of outer gradients; the test of B. O'Donoghue and E. Candes, 2015.
    """
    weights = np.asarray(weights, np.float64)
    s = answer = np.asarray(start, np.float64)
    b, thetas = np.zeros_like(s), [s] * len(inner)
    fast, slow, answers = [np.array(thetas)], [s], [s]
    for t, w in enumerate(weights):
        for h in range(period):
            thetas = [step(theta, t * period + h) for step, theta in zip(inner, thetas, strict=True)]
            if h == period - 1:
                if w.sum() > 0:
                    delta = sum(w[i] * (s - theta) for i, theta in enumerate(thetas) if w[i] > 0) / w.sum()
                    b = momentum * b + delta
                    if restart and delta @ b < 0:
                        b = np.zeros_like(b)
                    answer = s - rate * delta
                    s = answer - rate * momentum * b
                thetas = [s] * len(inner)
            fast.append(np.array(thetas))
            slow.append(s)
            answers.append(answer)
    return Rounds(np.array(fast), np.array(slow), np.array(answers))


def streaming_diloco(
    inner: Sequence[InnerStep],
    start: ArrayLike,
    period: int,
    updates: int,
    fragments: Sequence[Sequence[int]],
    *,
    delay: int,
    mixing: float,
    rate: float,
    momentum: float,
    weights: ArrayLike | None = None,
) -> Rounds:
    """Streaming DiLoCo: fragment p of s is taken at t = t_p mod H, and has its outer step `delay` inner steps later.

    With t_p = floor((p + 1) H / P), and the fast weights theta_i of the worker i, on the coordinates of a fragment::

        at t = t_p mod H:          Delta = sum w_i (s - theta_i) / sum w_i is sent
        at t = t_p + delay mod H:  b = mu b + Delta, s = s - lr (Delta + mu b), theta_i = a theta_i + (1 - a) s

    Args:
        inner: The inner step of each worker.
        start: s_0, shape (dimension,).
        period: H.
        updates: Inner updates.
        fragments: The coordinates of each fragment.
        delay: tau.
        mixing: a.
        rate: lr.
        momentum: mu.
        weights: w_i at each update, shape (updates, workers), read where Delta is formed; equal if left out.

    Returns:
        theta, s, and s - lr Delta of the last outer steps as answers.

    Source:
        A. Douillard et al., "Streaming DiLoCo with overlapping communication: towards a distributed free lunch", 2025,
        Algorithm 2, with Delta taken from the shared weights.
    """
    w = np.ones((updates, len(inner))) if weights is None else np.asarray(weights, np.float64)
    s = np.asarray(start, np.float64).copy()
    answer, b, thetas = s.copy(), np.zeros_like(s), np.tile(s, (len(inner), 1))
    sent: dict[int, Vector] = {}
    fast, slow, answers = [thetas.copy()], [s.copy()], [s.copy()]
    for t in range(1, updates + 1):
        thetas = np.array([step(theta, t - 1) for step, theta in zip(inner, thetas, strict=True)])
        for p, at in enumerate(fragments):
            offset, at = (p + 1) * period // len(fragments), list(at)
            if t >= offset and (t - offset) % period == 0:
                sent[p] = w[t - 1] @ (s[at] - thetas[:, at]) / w[t - 1].sum()
            if t >= offset + delay and (t - offset - delay) % period == 0:
                delta = sent[p]
                b[at] = momentum * b[at] + delta
                answer[at] = s[at] - rate * delta
                s[at] = s[at] - rate * (delta + momentum * b[at])
                thetas[:, at] = mixing * thetas[:, at] + (1 - mixing) * s[at]
        fast.append(thetas.copy())
        slow.append(s.copy())
        answers.append(answer.copy())
    return Rounds(np.array(fast), np.array(slow), np.array(answers))
