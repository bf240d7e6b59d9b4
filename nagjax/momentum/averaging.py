"""Schedule-Free and primal averaging: the gradient is taken between a fast sequence and its average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks
from nagjax.scalars import Schedule, as_scalar, increment, scalar_dtype, value_at
from nagjax.types import Coefficients, Momentum


class _ScheduleFreeCarry(NamedTuple):
    step: jax.Array  # k, int32 scalar
    weight_sum: jax.Array  # sum of w_i up to k - 1 over (largest learning rate so far)^weight_power, scalar
    largest_rate: jax.Array  # largest learning rate so far, scalar
    average: jax.Array  # c_k, scalar


def schedule_free(
    b: ArrayLike = 0.9,
    learning_rate: ArrayLike | Schedule = 1.0,
    *,
    weight_power: ArrayLike = 2.0,
    count_power: ArrayLike = 0.0,
) -> Momentum:
    """Schedule-Free averaging over any base step; the answer is the weighted average x.

    With the weights w_k = (k + 1)^count_power * (largest learning rate up to k)^weight_power and
    c_{k+1} = w_k / (w_0 + ... + w_k): decay = 1 - c_k, direct = 1 - b, gain = b c_{k+1},
    readout = (1 - b)(1 - c_{k+1}).

    Args:
        b: Interpolation between the fast point z (0) and the average x (1), in [0, 1].
        learning_rate: The rate that scales the base step, a number or a schedule: it sets the weights, here, and must
            also scale the step, earlier in the chain. A constant needs no repetition. The rule reads a schedule at
            its own count, which `reset_momentum` and restarts set to 0; the count of what scales the step goes on.
            From there the two rates differ, unless the chain starts again with a new `init`.
        weight_power: The power p of the rate in the weights, at least 0.
        count_power: The power r of the count in the weights, at least 0.

    Returns:
        A rule with four scalars of state.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range.

    Guarantee:
        For convex f with bounded gradients and a constant rate, the answer has the optimal rate O(1/sqrt(N)) of
        averaged stochastic gradients, for every b.

    Source:
        A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled and A. Cutkosky, "The road less scheduled", 2024,
        equations (3) to (5) and Algorithm 1.
    """
    name = "momentum.schedule_free"
    checks.scalar(name, "b", b, "in [0, 1]", lambda v: 0 <= v <= 1, "the paper uses 0.9 to 0.98")
    if not callable(learning_rate):
        checks.nonnegative(name, "learning_rate", learning_rate, "give the rate that scales the step")
    checks.nonnegative(name, "weight_power", weight_power, "the authors use 2")
    checks.nonnegative(name, "count_power", count_power, "the authors use 0")

    def init() -> _ScheduleFreeCarry:
        # An array of its own for each field: donated buffers must differ.
        weight_sum, largest_rate, average = (jnp.zeros((), scalar_dtype()) for _ in range(3))
        return _ScheduleFreeCarry(jnp.zeros((), jnp.int32), weight_sum, largest_rate, average)

    def following(carry: _ScheduleFreeCarry, **_: Any) -> tuple[Coefficients, _ScheduleFreeCarry]:
        rate = value_at(name, learning_rate, carry.step)
        largest = jnp.maximum(carry.largest_rate, rate)
        count = increment(carry.step)
        # In units of the newest weight of a rate, so that no power of a rate underflows.
        moves = largest > 0
        ratio = jnp.where(moves, carry.largest_rate / jnp.where(moves, largest, 1), 1)
        power = as_scalar(weight_power)
        weight = count.astype(largest.dtype) ** as_scalar(count_power) * moves.astype(largest.dtype) ** power
        total = carry.weight_sum * ratio**power + weight
        average = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)
        interpolation = as_scalar(b)
        coefficients = Coefficients(
            decay=1 - carry.average,
            direct=1 - interpolation,
            gain=interpolation * average,
            readout=(1 - interpolation) * (1 - average),
        )
        return coefficients, _ScheduleFreeCarry(count, total, largest, average)

    return Momentum(init, following)


class _PrimalAveragingCarry(NamedTuple):
    step: jax.Array  # k, int32 scalar
    decay: jax.Array  # mu_x at k - 1, scalar


def primal_averaging(mu_x: ArrayLike | Schedule = 0.9967, mu_y: ArrayLike | Schedule = 0.7) -> Momentum:
    """Generalized primal averaging (GPA) over any base step; the answer is the moving average x.

    decay = mu_x at k - 1, direct = 1 - mu_y(k), gain = mu_y(k) - mu_y(k + 1) mu_x(k),
    readout = (1 - mu_y(k + 1)) mu_x(k). With mu_x = mu_y = m and the step s/(1 - m) it is Nesterov's method with
    momentum m and step s.

    Args:
        mu_x: Decay of the moving average, in [0, 1), or a schedule of the count.
        mu_y: Interpolation between the fast point z (0) and the average x (1), in [0, 1], or a schedule.

    Returns:
        A rule with two scalars of state.

    Raises:
        TypeError: An argument is neither a number nor a function.
        ValueError: An argument is out of its range.

    Source:
        A. Defazio et al., generalized primal averaging, 2025 (arXiv 2512.17131).
    """
    name = "momentum.primal_averaging"
    if not callable(mu_x):
        checks.fraction(name, "mu_x", mu_x, "the paper uses 0.9 to 0.9992")
    if not callable(mu_y):
        checks.scalar(name, "mu_y", mu_y, "in [0, 1]", lambda v: 0 <= v <= 1, "the paper uses 0.7")

    def init() -> _PrimalAveragingCarry:
        return _PrimalAveragingCarry(jnp.zeros((), jnp.int32), jnp.zeros((), scalar_dtype()))

    def following(carry: _PrimalAveragingCarry, **_: Any) -> tuple[Coefficients, _PrimalAveragingCarry]:
        after = increment(carry.step)
        x, y, y_next = (value_at(name, *pair) for pair in ((mu_x, carry.step), (mu_y, carry.step), (mu_y, after)))
        coefficients = Coefficients(decay=carry.decay, direct=1 - y, gain=y - y_next * x, readout=(1 - y_next) * x)
        return coefficients, _PrimalAveragingCarry(after, x)

    return Momentum(init, following)
