"""Schedules of Nesterov's momentum for training: Sutskever's, Demon, and the scheduled restarts of SRSGD.

`nagjax.schedules` has those that go with a schedule of the learning rate.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks
from nagjax.momentum.classical import schedule
from nagjax.scalars import Schedule, as_scalar, increment, scalar_dtype, value_at
from nagjax.types import Coefficients, Momentum


def sutskever(max_momentum: ArrayLike = 0.99) -> Momentum:
    """Nesterov's method with b_k = min(1 - 1/(2 (floor(k/250) + 1)), max_momentum), which rises from 1/2.

    Args:
        max_momentum: Upper limit, in [0, 1). The paper uses 0.9 to 0.999.

    Returns:
        A rule with one int32 counter of state.

    Raises:
        TypeError: `max_momentum` is not a number.
        ValueError: `max_momentum` is outside [0, 1) or NaN.

    Source:
        I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and momentum in deep
        learning", 2013, equation (5).
    """
    checks.fraction("momentum.sutskever", "max_momentum", max_momentum, "the paper uses 0.9 to 0.999")

    def momentum(k: ArrayLike) -> jax.Array:
        stage = (jnp.asarray(k) // 250 + 1).astype(scalar_dtype())
        return jnp.minimum(1 - 1 / (2 * stage), as_scalar(max_momentum))

    return schedule(momentum)


def demon(b: ArrayLike, total_steps: int) -> Momentum:
    """Nesterov's method with decaying momentum b_k = b r/((1 - b) + b r), r = 1 - k/total_steps, and 0 afterwards.

    Args:
        b: Momentum at the start, in [0, 1).
        total_steps: Updates of the whole run, an integer of at least 1.

    Returns:
        A rule with one int32 counter of state.

    Raises:
        TypeError: `b` is not a number or `total_steps` not an integer.
        ValueError: `b` is outside [0, 1) or `total_steps` less than 1.

    Source:
        J. Chen, C. Wolfe, Z. Li and A. Kyrillidis, "Demon: improved neural network training with momentum decay",
        2019.
    """
    checks.fraction("momentum.demon", "b", b, "the paper uses 0.9")
    checks.whole("momentum.demon", "total_steps", total_steps, 1, "give the number of updates of the run")

    def momentum(k: ArrayLike) -> jax.Array:
        start = as_scalar(b)
        remaining = jnp.maximum(1 - jnp.asarray(k).astype(scalar_dtype()) / total_steps, 0)
        return start * remaining / ((1 - start) + start * remaining)

    return schedule(momentum)


class _SrsgdCarry(NamedTuple):
    step: jax.Array  # updates in all, int32 scalar
    phase: jax.Array  # n, updates since the momentum was 0, int32 scalar
    momentum: jax.Array  # b_k, scalar


def srsgd(period: int | Schedule) -> Momentum:
    """Nesterov's method with scheduled restarts: b_{k+1} = n/(n + 3), where n counts 0, ..., period - 1 over and over.

    Args:
        period: F, updates from one restart to the next, at least 1; or an Optax schedule of it, such as
            `optax.piecewise_constant_schedule(40, {2000: 2})`: the paper lets F grow when the learning rate falls. A
            change holds from the next restart on, or at once where the count has passed the new period.

    Returns:
        A rule with three scalars of state.

    Raises:
        TypeError: `period` is neither an integer nor a function.
        ValueError: `period` is less than 1.

    Source:
        B. Wang, T. Nguyen, T. Sun, A. Bertozzi, R. Baraniuk and S. Osher, "Scheduled restart momentum for accelerated
        stochastic gradient descent", 2020, equation (8). The released code has periods shorter by one.
    """
    if not callable(period):
        checks.whole("momentum.srsgd", "period", period, 1, "give the number of updates between restarts")

    def init() -> _SrsgdCarry:
        return _SrsgdCarry(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros((), scalar_dtype()))

    def following(carry: _SrsgdCarry, **_: Any) -> tuple[Coefficients, _SrsgdCarry]:
        length = value_at("momentum.srsgd", period, carry.step)
        count = carry.phase.astype(length.dtype)
        gain = count / (count + 3)
        phase = jnp.where(count + 1 >= length, 0, increment(carry.phase))
        return Coefficients(carry.momentum, 1.0, gain, gain), _SrsgdCarry(increment(carry.step), phase, gain)

    return Momentum(init, following, nesterov=True)
