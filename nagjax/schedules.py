"""Schedules of momentum that go with a schedule of the learning rate, for `nesterov(learning_rate, momentum)`.

Both are functions of the update count, as Optax's are. `nagjax.momentum` has the schedules that stand alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks
from nagjax.scalars import Schedule, as_scalar, evaluate


class OneCycle(NamedTuple):
    """The two schedules of the 1cycle policy."""

    learning_rate: Schedule
    momentum: Schedule


def one_cycle(
    total_steps: int,
    peak: ArrayLike,
    *,
    warm_up: float = 0.3,
    start_divisor: ArrayLike = 25.0,
    end_divisor: ArrayLike = 1e4,
    low: ArrayLike = 0.85,
    high: ArrayLike = 0.95,
) -> OneCycle:
    """The 1cycle policy: the rate rises to its peak and falls to almost nothing, the momentum opposite to it.

    Both move along half cosines, as in torch's OneCycleLR: the rate from peak/start_divisor to peak in the first part
    and to peak/start_divisor/end_divisor in the second; the momentum from high to low and back.

    Args:
        total_steps: N, updates of the run, at least 2.
        peak: Largest learning rate, positive.
        warm_up: Share of the rising part, in (0, 1); it ends after update warm_up * N - 1.
        start_divisor: Positive.
        end_divisor: Positive.
        low: Momentum at the peak, in [0, 1), at most `high`.
        high: Momentum at both ends, in [0, 1).

    Returns:
        `(learning_rate, momentum)`; after update N - 1 both stay.

    Raises:
        TypeError: An argument is not a number, or `total_steps` not an integer.
        ValueError: An argument is out of its range.

    Example:
        >>> import nagjax
        >>> cycle = nagjax.schedules.one_cycle(100, 0.5)
        >>> optimizer = nagjax.nesterov(cycle.learning_rate, cycle.momentum)
        >>> bool(abs(cycle.momentum(29) - 0.85) < 1e-6)
        True

    Source:
        L. Smith, "A disciplined approach to neural network hyper-parameters: part 1", 2018; with the shape and the
        defaults of PyTorch's documentation of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    name = "schedules.one_cycle"
    checks.whole(name, "total_steps", total_steps, 2, "give the number of updates of the run")
    checks.positive(name, "peak", peak, "give the largest learning rate")
    checks.scalar(name, "warm_up", warm_up, "in (0, 1)", lambda v: 0 < v < 1, "0.3 is usual")
    checks.positive(name, "start_divisor", start_divisor, "25 is usual")
    checks.positive(name, "end_divisor", end_divisor, "1e4 is usual")
    _check_momenta(name, low, high)
    turn, end = warm_up * total_steps - 1.0, total_steps - 1.0

    def through(start: jax.Array, middle: jax.Array, last: jax.Array, count: ArrayLike) -> jax.Array:
        step = jnp.minimum(as_scalar(count), end)
        rising = step / max(turn, 1e-30)
        falling = (step - turn) / (end - turn)
        first = step <= turn
        share = (1 + jnp.cos(jnp.pi * jnp.where(first, rising, falling))) / 2
        return jnp.where(first, middle + (start - middle) * share, last + (middle - last) * share)

    def learning_rate(count: ArrayLike) -> jax.Array:
        start = as_scalar(peak) / as_scalar(start_divisor)
        return through(start, as_scalar(peak), start / as_scalar(end_divisor), count)

    def momentum(count: ArrayLike) -> jax.Array:
        return through(as_scalar(high), as_scalar(low), as_scalar(high), count)

    return OneCycle(learning_rate, momentum)


def opposite(learning_rate: Schedule, peak: ArrayLike, low: ArrayLike = 0.85, high: ArrayLike = 0.95) -> Schedule:
    """A momentum that falls where the learning rate rises: high - (high - low) * learning_rate(k)/peak.

    For cyclical rates, warm-ups and decays of any shape, such as Optax's schedules.

    Args:
        learning_rate: A schedule with values from 0 to `peak`; larger ones count as `peak`.
        peak: Its largest value, positive.
        low: Momentum at the peak, in [0, 1), at most `high`.
        high: Momentum at the rate 0, in [0, 1).

    Returns:
        A schedule of the momentum.

    Raises:
        TypeError: `learning_rate` is not a function, or another argument not a number.
        ValueError: An argument is out of its range.

    Example:
        >>> import nagjax, optax
        >>> rate = optax.cosine_decay_schedule(0.5, 100)
        >>> optimizer = nagjax.nesterov(rate, nagjax.schedules.opposite(rate, 0.5))
        >>> bool(abs(nagjax.schedules.opposite(rate, 0.5)(100) - 0.95) < 1e-6)
        True

    Source:
        L. Smith, "A disciplined approach to neural network hyper-parameters: part 1", 2018, section 4.3.
    """
    name = "schedules.opposite"
    if not callable(learning_rate):
        remedy = "a constant rate has no opposite: give the momentum as a number"
        checks.reject(name, "learning_rate", "a function of the count", learning_rate, remedy, TypeError)
    checks.positive(name, "peak", peak, "give the largest learning rate")
    _check_momenta(name, low, high)

    def momentum(count: ArrayLike) -> jax.Array:
        share = evaluate(name, learning_rate, jnp.asarray(count)) / as_scalar(peak)
        return as_scalar(high) - (as_scalar(high) - as_scalar(low)) * jnp.clip(share, 0, 1)

    return momentum


def _check_momenta(function: str, low: ArrayLike, high: ArrayLike) -> None:
    checks.fraction(function, "low", low, "0.85 is usual")
    checks.fraction(function, "high", high, "0.95 is usual")
    checks.at_most(function, "low", low, "high", high, "the momentum is low where the rate is high")
