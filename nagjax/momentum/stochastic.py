"""Accelerated rules for stochastic gradients.

The theorems of `agnes`, `mass` and `accsgd` are for noise that vanishes with the gradient; that of `nag_gs` is the
stability of long steps without noise. Plain Nesterov momentum diverges in both at steps that these rules bear; the
tests show it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks
from nagjax.momentum.classical import fixed
from nagjax.scalars import Schedule, as_scalar, increment, number, scalar_dtype, value_at
from nagjax.types import Coefficients, Momentum

Parameter = ArrayLike | Schedule


class _ScheduledCarry(NamedTuple):
    step: jax.Array  # k, int32 scalar
    last: jax.Array  # a number of update k - 1, scalar


def agnes(eta: Parameter, alpha: Parameter, rho: Parameter) -> Momentum:
    """AGNES; expects the step u = -g, without a learning rate. The answer is the point x.

    decay = rho_{k-1}, direct = eta_k, gain = readout = alpha_{k+1} rho_k. With alpha = eta = s it is Nesterov's method
    with momentum rho and step s.

    Args:
        eta: The correction step, at least 0, or a schedule.
        alpha: The step along the velocity, at least 0, or a schedule; less than eta where gradients are noisy.
        rho: Momentum, in [0, 1), or a schedule.

    Returns:
        A rule with two scalars of state. `nagjax.agnes` is the optimizer with the parameters of the theorem.

    Raises:
        TypeError: An argument is neither a number nor a function.
        ValueError: A number is out of its range.

    Guarantee:
        As in `nagjax.agnes`, for its parameters.

    Example:
        >>> import nagjax, optax
        >>> rule = nagjax.momentum.agnes(eta=0.1, alpha=0.001, rho=0.99)  # the authors' defaults
        >>> optimizer = optax.chain(optax.scale(-1.0), nagjax.accelerate(rule))
        >>> bool(optimizer.update(1.0, optimizer.init(0.0))[0] < -0.1)
        True

    Source:
        K. Gupta, J. Siegel and S. Wojtowytsch, "Nesterov acceleration despite very noisy gradients", 2024
        (arXiv 2302.05515), algorithm AGNES.
    """
    name = "momentum.agnes"
    _check_at_least_zero(name, eta=eta, alpha=alpha)
    if not callable(rho):
        checks.fraction(name, "rho", rho, "the authors use 0.99")

    def following(carry: _ScheduledCarry, **_: Any) -> tuple[Coefficients, _ScheduledCarry]:
        after = increment(carry.step)
        direct, ahead, momentum = (
            value_at(name, eta, carry.step),
            value_at(name, alpha, after),
            value_at(name, rho, carry.step),
        )
        gain = ahead * momentum
        return Coefficients(carry.last, direct, gain, gain), _ScheduledCarry(after, momentum)

    return Momentum(_start, following)


def mass(eta_1: Parameter, eta_2: Parameter, gamma: Parameter) -> Momentum:
    """MaSS, Nesterov's method with a compensation; expects the step u = -g, without a learning rate.

    With c_k = gamma_k eta_1 - eta_2: decay = gamma_k c_{k-1}/c_k, direct = eta_1, gain = readout = c_k. With
    eta_2 = 0 it is Nesterov's method with momentum gamma and step eta_1; with c_k = 0 throughout it is gradient
    descent, and an update with c_k = 0 among others forgets the velocity.

    Args:
        eta_1: The step, at least 0, or a schedule.
        eta_2: The compensation, at least 0, or a schedule; of numbers, at most gamma eta_1.
        gamma: Momentum, in [0, 1), or a schedule.

    Returns:
        A rule with two scalars of state. `nagjax.mass` is the optimizer with the parameters of the theorem.

    Raises:
        TypeError: An argument is neither a number nor a function.
        ValueError: A number is out of its range.

    Guarantee:
        As in `nagjax.mass`, for its parameters.

    Source:
        C. Liu and M. Belkin, "Accelerating SGD with momentum for over-parameterized learning", 2020 (arXiv
        1810.13395), equation (4).
    """
    name = "momentum.mass"
    _check_at_least_zero(name, eta_1=eta_1, eta_2=eta_2)
    if not callable(gamma):
        checks.fraction(name, "gamma", gamma, "the authors' default is 0.905")

    if not (callable(eta_1) or callable(eta_2) or callable(gamma)):
        remedy = "a larger one would look back instead of ahead"
        checks.at_most(name, "eta_2", eta_2, "gamma eta_1", number(gamma) * number(eta_1), remedy)

    def following(carry: _ScheduledCarry, **_: Any) -> tuple[Coefficients, _ScheduledCarry]:
        direct, momentum = value_at(name, eta_1, carry.step), value_at(name, gamma, carry.step)
        gain = momentum * direct - value_at(name, eta_2, carry.step)
        # Where there is no gain the velocity is never used, but for the next update it must be finite.
        decay = jnp.where(gain == 0, 0, momentum * carry.last / jnp.where(gain == 0, 1, gain))
        return Coefficients(decay, direct, gain, gain), _ScheduledCarry(increment(carry.step), gain)

    return Momentum(_start, following)


def accsgd(condition_number: ArrayLike = 1000.0, xi: ArrayLike = 10.0, c: ArrayLike = 0.7) -> Momentum:
    """Accelerated SGD for least squares; expects the step u = -learning_rate g. The answer is `params`.

    With B = c^2 xi/kappa and z = c/(c + B): decay = (1 - B) z, direct = 1, gain = (1 - z)(c xi - 1), readout = 0.

    Args:
        condition_number: kappa, the ratio of the long to the short step, positive.
        xi: The statistical advantage, positive (the papers: at most sqrt(kappa)); c xi = 1 is SGD.
        c: In (0, 1].

    Returns:
        A rule without state.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range.

    Guarantee:
        For least squares that interpolates, streamed one example at a time, a rate of the order 1/sqrt(kappa k~) where
        SGD has 1/kappa; k~ is the statistical condition number (see `nagjax.mass`).

    Source:
        P. Jain, S. Kakade, R. Kidambi, P. Netrapalli and A. Sidford, "Accelerating stochastic gradient descent for
        least squares regression", 2018; in the form of R. Kidambi, P. Netrapalli, P. Jain and S. Kakade, "On the
        insufficiency of existing momentum schemes for stochastic optimization", 2018, Algorithm 3.
    """
    name = "momentum.accsgd"
    checks.positive(name, "condition_number", condition_number, "the authors' default is 1000")
    checks.positive(name, "xi", xi, "the authors' default is 10")
    checks.scalar(name, "c", c, "in (0, 1]", lambda v: 0 < v <= 1, "the authors use 0.7")
    kappa, xi, c = number(condition_number), number(xi), number(c)
    b = c**2 * xi / kappa
    z = c / (c + b)
    return fixed(Coefficients(decay=(1 - b) * z, direct=1.0, gain=(1 - z) * (c * xi - 1), readout=0.0))


class _NagGsCarry(NamedTuple):
    step: jax.Array  # k, int32 scalar
    gamma: jax.Array  # gamma_k, scalar
    last: jax.Array  # (1 - a_{k-1}) K_{k-1}, scalar


def nag_gs(
    alpha: Parameter = 0.05, mu: ArrayLike = 1.0, gamma: ArrayLike = 1.5, *, fixed_gamma: bool = False
) -> Momentum:
    """NAG-GS, a semi-implicit discretization; expects the step u = -g, without a learning rate.

    With K_k = alpha_k/(alpha_k mu + gamma_k) and a_k = alpha_k/(1 + alpha_k): decay = (1 - mu K_k)(1 - a_{k-1})
    K_{k-1}/K_k, direct = 0, gain = a_k K_k, readout = 0, and gamma_{k+1} = (gamma_k + alpha_k mu)/(1 + alpha_k). In the
    order of the paper the first update is zero. An update with alpha_k = 0 moves nothing and forgets the velocity, so
    that warm-ups from 0 and decays to 0 are exact. The answer is `params`.

    Args:
        alpha: The step of time, a positive number or a schedule with values of at least 0.
        mu: Positive; the strong convexity, or a guess of it.
        gamma: gamma_0, positive.
        fixed_gamma: Whether gamma stays and the first update moves (NAG4 of the authors' code); with a constant alpha
            it is the heavy ball with momentum gamma/((alpha mu + gamma)(1 + alpha)) and the rate
            alpha^2/((1 + alpha)(alpha mu + gamma)).

    Returns:
        A rule with three scalars of state.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is not positive and finite.

    Guarantee:
        With a fixed gamma on a curvature l, stable if and only if alpha^2 l < 2 ((1 + alpha)(alpha mu + gamma) +
        gamma).

    Source:
        V. Leplat, D. Merkulov, A. Katrutsa, D. Bershatsky, O. Tsymboi and I. Oseledets, "NAG-GS: semi-implicit,
        accelerated and robust stochastic optimizer", 2022 (arXiv 2209.14937), Algorithm 1.
    """
    name = "momentum.nag_gs"
    if not callable(alpha):
        checks.positive(name, "alpha", alpha, "the authors' default is 0.05")
    checks.positive(name, "mu", mu, "the authors' default is 1")
    checks.positive(name, "gamma", gamma, "the authors' default is 1.5")

    def init() -> _NagGsCarry:
        return _NagGsCarry(jnp.zeros((), jnp.int32), as_scalar(gamma), jnp.zeros((), scalar_dtype()))

    def following(carry: _NagGsCarry, **_: Any) -> tuple[Coefficients, _NagGsCarry]:
        time, convexity = value_at(name, alpha, carry.step), as_scalar(mu)
        gain, share = time / (time * convexity + carry.gamma), time / (1 + time)
        moves = jnp.asarray(True) if fixed_gamma else carry.step > 0
        coefficients = Coefficients(
            # Where there is no gain the velocity is never used, but for the next update it must be finite.
            decay=jnp.where(gain == 0, 0, (1 - convexity * gain) * carry.last / jnp.where(gain == 0, 1, gain)),
            direct=0.0,
            gain=jnp.where(moves, share * gain, 0),
            readout=0.0,
        )
        new_gamma = carry.gamma if fixed_gamma else (carry.gamma + time * convexity) / (1 + time)
        last = jnp.where(moves, (1 - share) * gain, 0)
        return coefficients, _NagGsCarry(increment(carry.step), new_gamma, last)

    return Momentum(init, following)


def _start() -> _ScheduledCarry:
    return _ScheduledCarry(jnp.zeros((), jnp.int32), jnp.zeros((), scalar_dtype()))


def _check_at_least_zero(function: str, **parameters: Parameter) -> None:
    for argument, value in parameters.items():
        if not callable(value):
            checks.nonnegative(function, argument, value, "it is a step size, in units of 1 / smoothness")
