"""Reference loops of methods of deep learning, as papers and frameworks print them, for NumPy gradient functions.

They know nothing of the one-buffer form of `nagjax.accelerate`. Row k of what they return is the state after k updates.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nagjax.theory.convex_loops import Gradient, Trajectory, Vector


def sutskever_momenta(count: int, max_momentum: float) -> NDArray[np.float64]:
    """The momenta min(1 - 2^(-1 - log2(floor(t / 250) + 1)), max_momentum).

    Args:
        count: How many.
        max_momentum: The limit, in [0, 1).

    Returns:
        The momenta for t = 0, ..., count - 1.

    Source:
        I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and momentum in deep
        learning", 2013, equation (5).
    """
    stage = np.floor(np.arange(count) / 250) + 1
    return np.minimum(1 - 2.0 ** (-1 - np.log2(stage)), max_momentum)


def demon_momenta(count: int, momentum: float, total_steps: int) -> NDArray[np.float64]:
    """The decaying momenta of Demon.

    Args:
        count: How many.
        momentum: beta_0 in [0, 1).
        total_steps: T, when the momentum reaches 0.

    Returns:
        beta_0 r / ((1 - beta_0) + beta_0 r) with r = 1 - t / T, for t = 0, ..., count - 1, and 0 after T.

    Source:
        J. Chen, C. Wolfe, Z. Li and A. Kyrillidis, "Demon: improved neural network training with momentum decay", 2019.
    """
    left = np.maximum(1 - np.arange(count) / total_steps, 0)
    return momentum * left / ((1 - momentum) + momentum * left)


def sutskever(gradient: Gradient, start: ArrayLike, rates: ArrayLike, momenta: ArrayLike) -> Trajectory:
    """Nesterov's method with a velocity: v' = b_k v - a_k grad f(x + b_k v), x' = x + v'.

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        rates: a_0, ..., a_{N-1}.
        momenta: b_0, ..., b_N.

    Returns:
        x_k + b_k v_k as queries, x_k as answers.

    Source:
        I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and momentum in deep
        learning", 2013, equations (3) and (4).
    """
    rates, momenta = np.asarray(rates, np.float64), np.asarray(momenta, np.float64)
    x = np.asarray(start, np.float64)
    v = np.zeros_like(x)
    queries, answers = [x], [x]
    for k, rate in enumerate(rates):
        v = momenta[k] * v - rate * gradient(queries[-1])
        x = x + v
        queries.append(x + momenta[k + 1] * v)
        answers.append(x)
    return Trajectory(np.array(queries), np.array(answers))


def heavy_ball(gradient: Gradient, start: ArrayLike, rates: ArrayLike, momentum: float) -> Vector:
    """Polyak's heavy ball: x_{k+1} = x_k - a_k grad f(x_k) + b (x_k - x_{k-1}).

    Args:
        gradient: The gradient of f.
        start: x_0, shape (dimension,).
        rates: a_0, ..., a_{N-1}.
        momentum: b.

    Returns:
        x_k, shape (N + 1, dimension).

    Source:
        B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    points = [np.asarray(start, np.float64)] * 2
    for rate in np.asarray(rates, np.float64):
        points.append(points[-1] - rate * gradient(points[-1]) + momentum * (points[-1] - points[-2]))
    return np.array(points[1:])


def quasi_hyperbolic(gradient: Gradient, start: ArrayLike, rates: ArrayLike, momentum: float, nu: float) -> Vector:
    """Quasi-hyperbolic momentum: d = b d + (1 - b) g, theta -= a_k ((1 - nu) g + nu d).

    Args:
        gradient: The gradient of f.
        start: theta_0, shape (dimension,).
        rates: a_0, ..., a_{N-1}.
        momentum: b.
        nu: The weight of the average.

    Returns:
        theta_k, shape (N + 1, dimension). Under a varying rate d is an average of gradients, not of steps.

    Source:
        J. Ma and D. Yarats, "Quasi-hyperbolic momentum and Adam for deep learning", 2019, equations (3) and (4).
    """
    points = [np.asarray(start, np.float64)]
    average = np.zeros_like(points[0])
    for rate in np.asarray(rates, np.float64):
        g = gradient(points[-1])
        average = momentum * average + (1 - momentum) * g
        points.append(points[-1] - rate * ((1 - nu) * g + nu * average))
    return np.array(points)


def srsgd(gradient: Gradient, start: ArrayLike, rates: ArrayLike, periods: ArrayLike) -> Trajectory:
    """Scheduled-restart SGD: v' = p - a_k grad f(p), p' = v' + m_k (v' - v), m_k = n/(n + 3).

    n counts up from 0, and starts again where it would reach the period.

    Args:
        gradient: The gradient of f.
        start: p_0 = v_0, shape (dimension,).
        rates: a_0, ..., a_{N-1}.
        periods: F, a number or one for every update.

    Returns:
        p_k as queries, v_k as answers.

    Source:
        B. Wang, T. Nguyen, T. Sun, A. Bertozzi, R. Baraniuk and S. Osher, "Scheduled restart momentum for accelerated
        stochastic gradient descent", 2020, equation (8). The released code has the period F - 1.
    """
    v = p = np.asarray(start, np.float64)
    queries, answers, n = [p], [v], 0
    rates = np.asarray(rates, np.float64)
    for rate, period in zip(rates, np.broadcast_to(periods, len(rates)), strict=True):
        previous, v = v, p - rate * gradient(p)
        p = v + n / (n + 3) * (v - previous)
        n = n + 1 if n + 1 < period else 0
        queries.append(p)
        answers.append(v)
    return Trajectory(np.array(queries), np.array(answers))


def pytorch_sgd(
    gradient: Gradient,
    start: ArrayLike,
    rates: ArrayLike,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> Vector:
    """`torch.optim.SGD`, step for step.

    Args:
        gradient: The gradient of f.
        start: theta_0, shape (dimension,).
        rates: One for each update.
        momentum: mu.
        dampening: tau; the first gradient enters undamped.
        weight_decay: Coupled decay.
        nesterov: Whether to look ahead.
        maximize: Whether to ascend.

    Returns:
        theta_k, shape (steps + 1, dimension).

    Source:
        PyTorch's documentation of `torch.optim.SGD`.
    """
    points = [np.asarray(start, np.float64)]
    buffer = None
    for rate in np.asarray(rates, np.float64):
        g = gradient(points[-1])
        g = -g if maximize else g
        if weight_decay != 0:
            g = g + weight_decay * points[-1]
        if momentum != 0:
            buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
            g = g + momentum * buffer if nesterov else buffer
        points.append(points[-1] - rate * g)
    return np.array(points)


def keras_sgd(
    gradient: Gradient, start: ArrayLike, rates: ArrayLike, *, momentum: float = 0.0, nesterov: bool = False
) -> Vector:
    """`keras.optimizers.SGD`, step for step.

    Args:
        gradient: The gradient of f.
        start: w_0, shape (dimension,).
        rates: One for each update.
        momentum: The decay of the velocity.
        nesterov: Whether to look ahead.

    Returns:
        w_k, shape (steps + 1, dimension).

    Source:
        Keras's documentation of `keras.optimizers.SGD`.
    """
    points = [np.asarray(start, np.float64)]
    velocity = np.zeros_like(points[0])
    for rate in np.asarray(rates, np.float64):
        g = gradient(points[-1])
        velocity = momentum * velocity - rate * g
        points.append(points[-1] + (momentum * velocity - rate * g if nesterov else velocity))
    return np.array(points)
