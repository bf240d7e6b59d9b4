"""The methods with optimal worst cases: OGM for convex functions, triple momentum and ITEM for strongly convex ones."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks
from nagjax.momentum.classical import check_condition_number, fixed, next_t
from nagjax.scalars import number, scalar_dtype
from nagjax.types import Coefficients, Momentum

# A_k grows geometrically without limit; beyond this, b_k and d_k equal their limits to rounding in float32 and float64.
_LARGEST_A = 1e20


class _OgmCarry(NamedTuple):
    t: jax.Array  # t_k, scalar
    gain: jax.Array  # c_{k-1}, scalar


def ogm() -> Momentum:
    """The optimized gradient method; expects the step u = -g/L.

    With t_0 = 1, t_{k+1} = (1 + sqrt(1 + 4 t_k^2))/2, B_k = (t_k - 1)/t_{k+1}, G_k = t_k/t_{k+1} and c_k = B_k + G_k:
    decay = B_k c_{k-1}/c_k, direct = 1, gain = c_k, readout = (1 - t_{k+1}/s_k) c_k, s_k = (1 + sqrt(1 + 8 t_k^2))/2.
    The method's special last step is in the readout, so that every answer is a last iterate and no horizon is needed.

    Returns:
        A rule with two scalars of state.

    Guarantee:
        For convex, L-smooth f, f(x_N) - f* <= L R^2 / (2 s_{N-1}^2) at the answer; no first-order method has a better
        worst case.

    Source:
        D. Kim and J. Fessler, "Optimized first-order methods for smooth convex minimization", 2016, algorithm OGM2
        and Theorem 2; optimality: Y. Drori, "The exact information-based complexity of smooth convex minimization",
        2017.
    """

    def init() -> _OgmCarry:
        dtype = scalar_dtype()
        return _OgmCarry(t=jnp.ones((), dtype), gain=jnp.ones((), dtype))

    def following(carry: _OgmCarry, **_: Any) -> tuple[Coefficients, _OgmCarry]:
        t, last_gain = carry
        t_next = next_t(t)
        gain = (2 * t - 1) / t_next
        decay = (t - 1) / t_next * last_gain / gain
        t_last = (1 + jnp.sqrt(1 + 8 * t**2)) / 2
        return Coefficients(decay, 1.0, gain, (1 - t_next / t_last) * gain), _OgmCarry(t_next, gain)

    return Momentum(init, following)


def triple_momentum(condition_number: ArrayLike) -> Momentum:
    """The triple momentum method; expects the step u = -(1 + rho) g/L, rho = 1 - 1/sqrt(kappa).

    With b = rho^2/(2 - rho), c = rho^2/((1 + rho)(2 - rho)) and d = rho^2/(1 - rho^2): decay = b,
    direct = 1/(1 + rho), gain = 1 + c - direct, readout = c - d.

    Args:
        condition_number: kappa = L/mu, at least 1.

    Returns:
        A rule without state.

    Raises:
        TypeError: `condition_number` is not a number.
        ValueError: `condition_number` is less than 1 or not finite.

    Guarantee:
        For L-smooth, mu-strongly convex f, f(x_N) - f* <= kappa rho^(2N) L R^2 / 2 at the answer, which may move away
        from the minimizer at first.

    Source:
        B. Van Scoy, R. Freeman and K. Lynch, "The fastest known globally convergent first-order method for minimizing
        strongly convex functions", 2018.
    """
    check_condition_number("momentum.triple_momentum", condition_number)
    rho = contraction(condition_number)
    direct = 1 / (1 + rho)
    decay = rho**2 / (2 - rho)
    gamma = decay * direct
    return fixed(Coefficients(decay, direct, 1 + gamma - direct, gamma - rho**2 / (1 - rho**2)))


def contraction(condition_number: ArrayLike) -> Any:
    """Triple momentum's rate rho = 1 - 1/sqrt(kappa)."""
    return 1 - number(condition_number) ** -0.5


class _ItemCarry(NamedTuple):
    a: jax.Array  # A_k, scalar
    gain: jax.Array  # c_{k-1}, scalar


def item(condition_number: ArrayLike) -> Momentum:
    """The information-theoretic exact method; expects the step u = -g/L. The answer is the point z.

    With q = 1/kappa, A_0 = 0, A_{k+1} = [(1 + q) A_k + 2 (1 + sqrt((1 + A_k)(1 + q A_k)))]/(1 - q)^2,
    b_k = A_k/((1 - q) A_{k+1}), d_k = (1 + sqrt((1 + A_k)(1 + q A_k)))/(1 + q + q A_k), c_k = (1 - b_{k+1})(d_k - 1):
    decay = (1 - b_{k+1})(1 - q d_k) b_k/(1 - b_k) c_{k-1}/c_k, direct = 1, gain = c_k, readout = -b_{k+1} (d_k - 1).

    Args:
        condition_number: kappa = L/mu, more than 1.

    Returns:
        A rule with two scalars of state.

    Raises:
        TypeError: `condition_number` is not a number.
        ValueError: `condition_number` is not more than 1 or not finite.

    Guarantee:
        For L-smooth, mu-strongly convex f, |z_N - x*|^2 <= R^2 / (1 + q A_N) at the answer; no first-order method has
        a better worst case.

    Source:
        A. Taylor and Y. Drori, "An optimal gradient method for smooth strongly convex minimization", 2023,
        Algorithm ITEM and Theorem 3.
    """
    checks.scalar(
        "momentum.item",
        "condition_number",
        condition_number,
        "more than 1 and finite",
        lambda v: 1 < v < float("inf"),
        "at L = mu one gradient step solves the problem",
    )
    q = 1 / number(condition_number)

    def root(a: jax.Array) -> jax.Array:
        return 1 + jnp.sqrt(1 + a) * jnp.sqrt(1 + q * a)

    def grow(a: jax.Array) -> jax.Array:
        return ((1 + q) * a + 2 * root(a)) / (1 - q) ** 2

    def weight(a: jax.Array) -> jax.Array:
        return a / ((1 - q) * grow(a))

    def init() -> _ItemCarry:
        dtype = scalar_dtype()
        return _ItemCarry(a=jnp.zeros((), dtype), gain=jnp.ones((), dtype))

    def following(carry: _ItemCarry, **_: Any) -> tuple[Coefficients, _ItemCarry]:
        a, last_gain = carry
        a_next = jnp.minimum(grow(a), _LARGEST_A)
        b, b_next = weight(a), weight(a_next)
        d = root(a) / (1 + q + q * a)
        gain = (1 - b_next) * (d - 1)
        decay = (1 - b_next) * (1 - q * d) * b / (1 - b) * last_gain / gain
        return Coefficients(decay, 1.0, gain, -b_next * (d - 1)), _ItemCarry(a_next, gain)

    return Momentum(init, following)
