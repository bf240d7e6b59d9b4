"""The proximal gradient method whose step follows the local curvature."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName
from nagjax.proximal.prox import Prox
from nagjax.scalars import scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.step_sizes.curvature import PROBE_GROWTH, first_step
from nagjax.step_sizes.pairs import Memory
from nagjax.types import PyTree

_FIRST_RATIO = 1 / 3  # theta_0


class AdaptiveProximalGradientState(NamedTuple):
    """State of `adaptive_proximal_gradient`."""

    step_size: jax.Array  # alpha of the last update, 0 before the first; scalar, float32 or float64
    ratio: jax.Array  # theta = alpha_k / alpha_{k-1}, infinite before the method has started; scalar
    memory: Memory  # the last query point and its gradient

    def answer(self, params: PyTree) -> PyTree:
        """The parameters themselves."""
        return params


def adaptive_proximal_gradient(
    prox: Prox | None = None,
    *,
    version: int = 1,
    initial: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The adaptive proximal gradient method: no step size to tune, no function values, no momentum.

    x_{k+1} = prox_{alpha_k h}(x_k - alpha_k g_k), L_k = |g_k - g_{k-1}| / |x_k - x_{k-1}|, theta_k = alpha_k /
    alpha_{k-1}, theta_0 = 1/3; the step alpha_k is alpha_{k-1} times at most

    - version 1: sqrt(1 + theta_{k-1}), and at most 1 / (sqrt(2) L_k);
    - version 2: sqrt(2/3 + theta_{k-1}), and 1 / sqrt(max(2 alpha_{k-1}^2 L_k^2 - 1, 0)).

    Args:
        prox: h of f + h, from `nagjax.proximal`; the gradient passed to `update` is that of f.
        version: 1 or 2.
        initial: alpha_0, positive; the paper asks for alpha_0 L_1 between 1/sqrt(2) and 2. By default a probe of
            length 1e-3 (1 + |x_0|), which grows tenfold while it meets no curvature, comes first, and the method
            starts with alpha_0 = 1 / L from where it has led.
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A gradient transformation that needs `params`. Memory: two buffers (8 bytes a parameter of at most 32 bits) and
        two scalars. Cost: one gradient a step.

    Guarantee:
        For convex F with locally Lipschitz grad f, the best of F(x_1) - F*, ..., F(x_k) - F* is O(1 / sum alpha_i),
        and for L-smooth f the sum of the first k steps is at least k / (sqrt(2) L) in version 1 and k / L in version
        2 (with alpha_0 = 1 / L). Not accelerated.

    Raises:
        TypeError: `prox` is not a `Prox`, or `initial` is not a number.
        ValueError: `version` is neither 1 nor 2, `initial` is not positive; `update` got no `params`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from nagjax import adaptive
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 10.0]) * x**2) / 2
        >>> tx, params = adaptive.adaptive_proximal_gradient(), jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     updates, state = tx.update(jax.grad(f)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(params) < 1e-10)
        True

    Source:
        Y. Malitsky and K. Mishchenko, "Adaptive proximal gradient method for convex optimization", 2024, Algorithms 1
        and 3.
    """
    name = "adaptive.adaptive_proximal_gradient"
    pairs.check_optional_prox(name, prox)
    pairs.check_optional_step(name, initial)
    if version not in (1, 2):
        checks.reject(name, "version", "1 or 2", version, "2 takes longer steps")

    def init(params: PyTree) -> AdaptiveProximalGradientState:
        dtype = scalar_dtype()
        ratio = jnp.full((), jnp.inf if initial is None else _FIRST_RATIO, dtype)
        return AdaptiveProximalGradientState(jnp.zeros((), dtype), ratio, pairs.no_memory(name, params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdaptiveProximalGradientState]:
        del extra
        params, updates = pairs.required_params(name, params), trees.as_arrays(updates)
        pair, memory = pairs.measure(name, state.memory, params, updates, axis_name)
        fresh = state.step_size == 0
        last = jnp.where(fresh, first_step(initial, updates, params, pair, axis_name), state.step_size)
        lipschitz = jnp.where(fresh, 0, pair.lipschitz(pairs.rounding_unit((updates, params))))
        seen, active, probing = lipschitz > 0, pair.moved() & ~fresh, jnp.isinf(state.ratio)

        size = jnp.where(seen, lipschitz, 1)
        ratio = jnp.where(probing, _FIRST_RATIO, state.ratio)
        if version == 1:
            growth, limit = jnp.sqrt(1 + ratio), 1 / (2**0.5 * size)
        else:
            growth, excess = jnp.sqrt(2 / 3 + ratio), 2 * (last * size) ** 2 - 1
            limit = jnp.where(excess > 0, last / jnp.sqrt(jnp.where(excess > 0, excess, 1)), jnp.inf)
        later = jnp.where(seen, jnp.minimum(growth * last, limit), growth * last)
        start = jnp.where(seen, 1 / size, PROBE_GROWTH * last)
        s = pairs.limited(jnp.where(active, jnp.where(probing, start, later), last))
        following = jnp.where(probing, jnp.where(seen, _FIRST_RATIO, jnp.inf), s / last)

        step = trees.like(updates, pairs.step_of(prox, trees.wide(updates, params), updates, s))
        return step, AdaptiveProximalGradientState(s, jnp.where(active, following, state.ratio), memory)

    return optax.GradientTransformationExtraArgs(init, update)
