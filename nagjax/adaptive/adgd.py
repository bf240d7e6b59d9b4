"""AdGD, gradient descent whose step follows the local curvature."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import trees
from nagjax.mapped import AxisName
from nagjax.scalars import scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.step_sizes.curvature import PROBE_GROWTH, first_step
from nagjax.step_sizes.pairs import Memory
from nagjax.types import PyTree


class AdgdState(NamedTuple):
    """State of `adgd`."""

    step_size: jax.Array  # lambda of the last update, 0 before the first; scalar, float32 or float64
    ratio: jax.Array  # theta = lambda_k / lambda_{k-1}, infinite before the first curvature; scalar
    memory: Memory  # the last query point and its gradient

    def answer(self, params: PyTree) -> PyTree:
        """The parameters themselves."""
        return params


def adgd(
    *, initial: ArrayLike | None = None, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adaptive gradient descent without momentum: no step size to tune, no function values.

    lambda_k = min(sqrt(1 + theta_{k-1}) lambda_{k-1}, |x_k - x_{k-1}| / (2 |g_k - g_{k-1}|)), theta_k = lambda_k /
    lambda_{k-1}. The first step does not matter (theta_0 is infinite); while it meets no curvature it grows tenfold.

    Args:
        initial: lambda_0, positive; by default a step of length 1e-3 (1 + |x_0|).
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A gradient transformation that needs `params`. Memory: two buffers (8 bytes a parameter of at most 32 bits) and
        two scalars. Cost: one gradient a step.

    Guarantee:
        For convex f with a locally Lipschitz gradient, |x_{k+1} - x*|^2 + |x_{k+1} - x_k|^2 / 2 + 2 lambda_k
        (1 + theta_k) (f(x_k) - f*) does not increase from k = 1 on, and f(x_k) - f* = O(1/k) for the best iterate.
        Not accelerated.

    Raises:
        TypeError: `initial` is not a number.
        ValueError: `initial` is not positive; `update` got no `params`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from nagjax import adaptive
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 10.0]) * x**2) / 2
        >>> tx, params = adaptive.adgd(), jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     updates, state = tx.update(jax.grad(f)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(params) < 1e-10)
        True

    Source:
        Y. Malitsky and K. Mishchenko, "Adaptive gradient descent without descent", 2020, Algorithm 1 and Lemma 1.
    """
    name = "adaptive.adgd"
    pairs.check_optional_step(name, initial)

    def init(params: PyTree) -> AdgdState:
        dtype = scalar_dtype()
        return AdgdState(jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype), pairs.no_memory(name, params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, AdgdState]:
        del extra
        params, updates = pairs.required_params(name, params), trees.as_arrays(updates)
        pair, memory = pairs.measure(name, state.memory, params, updates, axis_name)
        fresh = state.step_size == 0
        last = jnp.where(fresh, first_step(initial, updates, params, pair, axis_name), state.step_size)
        lipschitz = jnp.where(fresh, 0, pair.lipschitz(pairs.rounding_unit((updates, params))))
        active = pair.moved() & ~fresh
        grown = jnp.where(active, jnp.sqrt(1 + state.ratio) * last, last)
        capped = jnp.minimum(grown, 1 / (2 * jnp.where(lipschitz > 0, lipschitz, 1)))
        s = pairs.limited(jnp.where(lipschitz > 0, capped, jnp.where(jnp.isinf(grown), PROBE_GROWTH * last, grown)))
        step = trees.like(updates, pairs.step_of(None, params, updates, s))
        known = jnp.isfinite(state.ratio) | (lipschitz > 0)
        return step, AdgdState(s, jnp.where(active & known, s / last, state.ratio), memory)

    return optax.GradientTransformationExtraArgs(init, update)
