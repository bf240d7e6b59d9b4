"""AcceleGrad's momentum, for steps that find their own size."""

from typing import Any

import jax
import jax.numpy as jnp

from nagjax.scalars import increment, scalar_dtype
from nagjax.types import Coefficients, Momentum


def weight(count: jax.Array) -> jax.Array:
    """AcceleGrad's weight a_t = max(1, (t + 1)/4) of update t, which is 1 up to t = 3."""
    return jnp.maximum((count.astype(scalar_dtype()) + 1) / 4, 1)


def accelegrad() -> Momentum:
    """AcceleGrad's momentum on the whole space: Nesterov's with b_{t+1} = (a_t - 1)/a_{t+1}, a_t = max(1, (t + 1)/4).

    decay = (a_{t-1} - 1)/a_t, direct = 1, gain = readout = (a_t - 1)/a_{t+1}: the first four updates are plain steps,
    and b_k = (k - 4)/(k + 1) after them. The answer is the paper's y. The step sizes that belong to it are those of
    `adaptive.accelegrad`.

    Returns:
        A rule with one int32 counter of state.

    Source:
        K. Levy, A. Yurtsever and V. Cevher, "Online adaptive methods, universality and acceleration", 2018,
        AcceleGrad without a set, where the coupling of three sequences is a momentum.
    """

    def init() -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def following(t: jax.Array, **_: Any) -> tuple[Coefficients, jax.Array]:
        after = increment(t)
        now = weight(t)
        gain = (now - 1) / weight(after)
        return Coefficients((weight(t - 1) - 1) / now, 1.0, gain, gain), after

    return Momentum(init, following, nesterov=True)
