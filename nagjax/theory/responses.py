"""Closed-form responses of constant-momentum methods to gradients that do not depend on the parameters.

They test a transformation without any function: a constant gradient (a linear function), a single gradient (the
impulse response), and any stream of gradients.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def constant_gradient_updates(
    t: ArrayLike, rates: ArrayLike, momentum: float, gradient: float, *, nesterov: bool = True
) -> NDArray[np.float64]:
    """Updates number t (from 0) of the gradient-unit form under a constant gradient.

    Args:
        t: Numbers of the updates, integers of at least 0.
        rates: Alpha_t of those updates, the shape of `t` or a scalar.
        momentum: Beta in [0, 1).
        gradient: G.
        nesterov: Nesterov's method, or the heavy ball where false.

    Returns:
        -alpha_t g (1 - beta^(t+2)) / (1 - beta), with the exponent t + 1 for heavy ball.
    """
    exponent = np.asarray(t) + (2 if nesterov else 1)
    return -np.asarray(rates, np.float64) * gradient * (1 - momentum**exponent) / (1 - momentum)


def constant_gradient_displacement(
    steps: ArrayLike, rate: float, momentum: float, gradient: float, *, nesterov: bool = True
) -> NDArray[np.float64]:
    """How far a constant gradient has moved the parameters under a constant rate.

    Args:
        steps: T, numbers of updates made.
        rate: Alpha, constant.
        momentum: Beta in [0, 1).
        gradient: G.
        nesterov: Nesterov's method, or the heavy ball where false.

    Returns:
        -(alpha g / (1 - beta)) (T - beta^2 (1 - beta^T) / (1 - beta)), with beta for beta^2 for heavy ball.
    """
    steps = np.asarray(steps)
    lost = (momentum**2 if nesterov else momentum) * (1 - momentum**steps) / (1 - momentum)
    return -rate * gradient / (1 - momentum) * (steps - lost)


def warm_up_displacement(steps: ArrayLike, rate: float, momentum: float, gradient: float) -> NDArray[np.float64]:
    """How far Nesterov's gradient-unit form has moved under a constant gradient and the warm-up alpha_t = (t + 1) rate.

    Args:
        steps: T, numbers of updates made.
        rate: The rate of the first update.
        momentum: Beta in [0, 1).
        gradient: G.

    Returns:
        -(rate g / (1 - beta)) (T (T+1) / 2 - beta S), where S is the sum of j beta^j for j up to T.
    """
    steps = np.asarray(steps)
    geometric = momentum * (1 - (steps + 1) * momentum**steps + steps * momentum ** (steps + 1)) / (1 - momentum) ** 2
    return -rate * gradient / (1 - momentum) * (steps * (steps + 1) / 2 - momentum * geometric)


def impulse_response(count: int, momentum: float, *, nesterov: bool = True) -> NDArray[np.float64]:
    """The weights with which a gradient enters its own update and those that follow.

    Args:
        count: How many weights.
        momentum: Beta in [0, 1).
        nesterov: Nesterov's method, or the heavy ball where false.

    Returns:
        1 + beta, beta^2, beta^3, ...; for heavy ball 1, beta, beta^2, ...; shape (count,).
    """
    powers = momentum ** np.arange(count, dtype=np.float64)
    if not nesterov:
        return powers
    return momentum * powers + (np.arange(count) == 0)


def stream_updates(
    gradients: ArrayLike, rates: ArrayLike, momentum: float, *, nesterov: bool = True
) -> NDArray[np.float64]:
    """The updates of the gradient-unit form for any stream of gradients, as a convolution.

    Args:
        gradients: G_t, shape (steps,).
        rates: Alpha_t, shape (steps,) or a scalar.
        momentum: Beta in [0, 1).
        nesterov: Nesterov's method, or the heavy ball where false.

    Returns:
        -alpha_t times the sum of w_{t-j} g_j over j <= t, with the weights of `impulse_response`; shape (steps,).
    """
    gradients = np.asarray(gradients, np.float64)
    weights = impulse_response(len(gradients), momentum, nesterov=nesterov)
    return -np.asarray(rates, np.float64) * np.convolve(weights, gradients)[: len(gradients)]


def stream_displacement(gradients: ArrayLike, rate: float, momentum: float) -> float:
    """How far Nesterov's method has moved after a stream of gradients under a constant rate.

    Args:
        gradients: G_t, shape (steps,).
        rate: Alpha, constant.
        momentum: Beta in [0, 1).

    Returns:
        -alpha times the sum of g_j (1 - beta^(T-j+1)) / (1 - beta) over j < T.
    """
    gradients = np.asarray(gradients, np.float64)
    left = len(gradients) - np.arange(len(gradients))
    return float(-rate * gradients @ ((1 - momentum ** (left + 1)) / (1 - momentum)))
