"""Reference loops of Adam with Nesterov momentum and of Adan, as papers and released codes print them.

They know nothing of the pair of numbers that tells the conventions of `nagjax.adaptive` apart. Row k of what they
return is the state after k updates. Weight decay is a number, or an array with one entry for each coordinate.
"""

import numpy as np
from numpy.typing import ArrayLike

from nagjax.theory.convex_loops import Gradient, Vector


def nadamw_dozat(
    gradient: Gradient,
    start: ArrayLike,
    rates: ArrayLike,
    momenta: ArrayLike = 0.9,
    b2: float = 0.999,
    *,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> Vector:
    """Nadam with a schedule of momenta, and decoupled weight decay.

    Args:
        gradient: The gradient of f.
        start: theta_0, shape (dimension,).
        rates: One for each update.
        momenta: mu_1, ..., mu_{N+1}, or a number.
        b2: The decay of the second moment.
        eps: Added to the root.
        eps_root: Added under the root.
        weight_decay: Multiplied by the rate and by the parameters before the update.

    Returns:
        theta_k, shape (N + 1, dimension).

    Source:
        T. Dozat, "Incorporating Nesterov momentum into Adam", 2016, Algorithm 2, without the factor b2 before the
        second moment that is printed there and in no implementation.
    """
    rates, decay = np.asarray(rates, np.float64), np.asarray(weight_decay, np.float64)
    mu = np.broadcast_to(np.asarray(momenta, np.float64), len(rates) + 1)
    points = [np.asarray(start, np.float64)]
    m, n = np.zeros_like(points[0]), np.zeros_like(points[0])
    for t, rate in enumerate(rates, start=1):
        theta, g = points[-1], gradient(points[-1])
        g_hat = g / (1 - np.prod(mu[:t]))
        m = mu[t - 1] * m + (1 - mu[t - 1]) * g
        m_hat = m / (1 - np.prod(mu[: t + 1]))
        n = b2 * n + (1 - b2) * g**2
        n_hat = n / (1 - b2**t)
        m_bar = (1 - mu[t - 1]) * g_hat + mu[t] * m_hat
        points.append(theta - rate * (m_bar / (np.sqrt(n_hat + eps_root) + eps) + decay * theta))
    return np.array(points)


def nadamw_algoperf(
    gradient: Gradient,
    start: ArrayLike,
    rates: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    *,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> Vector:
    """NAdamW as the baseline of the AlgoPerf benchmark runs it: one bias correction for gradient and average.

    Args:
        gradient: The gradient of f.
        start: theta_0, shape (dimension,).
        rates: One for each update.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root.
        eps_root: Added under the root.
        weight_decay: Multiplied by the rate and by the parameters before the update.

    Returns:
        theta_k, shape (N + 1, dimension).

    Source:
        G. Dahl et al., "Benchmarking neural network training algorithms", 2023, the NAdamW baseline and its released
        code.
    """
    decay = np.asarray(weight_decay, np.float64)
    points = [np.asarray(start, np.float64)]
    mu, nu = np.zeros_like(points[0]), np.zeros_like(points[0])
    for count, rate in enumerate(np.asarray(rates, np.float64)):
        theta, g = points[-1], gradient(points[-1])
        mu = (1 - b1) * g + b1 * mu
        nu = (1 - b2) * g**2 + b2 * nu
        mu_hat = ((1 - b1) * g + b1 * mu) / (1 - b1 ** (count + 1))
        nu_hat = nu / (1 - b2 ** (count + 1))
        update = mu_hat / (np.sqrt(nu_hat + eps_root) + eps) + decay * theta
        points.append(theta - rate * update)
    return np.array(points)


def pytorch_nadam(
    gradient: Gradient,
    start: ArrayLike,
    rates: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    *,
    eps: float = 1e-8,
    weight_decay: ArrayLike = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Vector:
    """`torch.optim.NAdam`, step for step.

    Args:
        gradient: The gradient of f.
        start: theta_0, shape (dimension,).
        rates: One for each update.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root.
        weight_decay: Added to the gradient, or taken from the parameters before the update.
        momentum_decay: psi.
        decoupled_weight_decay: Which of the two.
        maximize: Whether to ascend.

    Returns:
        theta_k, shape (N + 1, dimension).

    Source:
        PyTorch's documentation of `torch.optim.NAdam`.
    """
    decay = np.asarray(weight_decay, np.float64)
    points = [np.asarray(start, np.float64)]
    m, v = np.zeros_like(points[0]), np.zeros_like(points[0])
    mu_product = 1.0
    for t, rate in enumerate(np.asarray(rates, np.float64), start=1):
        theta = points[-1]
        g = -gradient(theta) if maximize else gradient(theta)
        if decoupled_weight_decay:
            theta = theta - rate * decay * theta
        else:
            g = g + decay * theta
        mu = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        mu_product = mu_product * mu
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = mu_next * m / (1 - mu_product * mu_next) + (1 - mu) * g / (1 - mu_product)
        v_hat = v / (1 - b2**t)
        points.append(theta - rate * m_hat / (np.sqrt(v_hat) + eps))
    return np.array(points)


def adan(
    gradient: Gradient,
    start: ArrayLike,
    rates: ArrayLike,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    *,
    eps: float = 1e-8,
    weight_decay: ArrayLike = 0.0,
    no_prox: bool = False,
    period: int | None = None,
) -> Vector:
    """Adan as the authors' code runs it, with keep-rates b_i (the paper's beta_i are 1 - b_i).

    Args:
        gradient: The gradient of f.
        start: theta_0, shape (dimension,).
        rates: One for each update.
        b1: The decay of the average of gradients.
        b2: The decay of the average of their differences, and the weight of these.
        b3: The decay of the second moment.
        eps: Added to the root.
        weight_decay: lambda.
        no_prox: Whether to decay before the step; otherwise parameters are divided by 1 + rate * lambda after it.
        period: Updates after which everything but the parameters starts again, or None.

    Returns:
        theta_k, shape (N + 1, dimension).

    Source:
        X. Xie, P. Zhou, H. Li, Z. Lin and S. Yan, "Adan: adaptive Nesterov momentum algorithm for faster optimizing
        deep models", 2022, Algorithm 1, with the bias corrections and the first difference of the released code.
    """
    decay = np.asarray(weight_decay, np.float64)
    points = [np.asarray(start, np.float64)]
    t, zero = 0, np.zeros_like(points[0])
    exp_avg = exp_avg_diff = exp_avg_sq = previous = zero
    for rate in np.asarray(rates, np.float64):
        t += 1
        theta, g = points[-1], gradient(points[-1])
        diff = g - (g if t == 1 else previous)
        exp_avg = b1 * exp_avg + (1 - b1) * g
        exp_avg_diff = b2 * exp_avg_diff + (1 - b2) * diff
        exp_avg_sq = b3 * exp_avg_sq + (1 - b3) * (g + b2 * diff) ** 2
        denominator = np.sqrt(exp_avg_sq) / np.sqrt(1 - b3**t) + eps
        step = (rate / (1 - b1**t)) * exp_avg / denominator
        step = step + (rate * b2 / (1 - b2**t)) * exp_avg_diff / denominator
        points.append(theta * (1 - rate * decay) - step if no_prox else (theta - step) / (1 + rate * decay))
        previous = g
        if t == period:
            t, exp_avg, exp_avg_diff, exp_avg_sq = 0, zero, zero, zero
    return np.array(points)
