"""AdGD with Nesterov's momentum from two adaptive estimates, of the step size and of strong convexity."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName
from nagjax.scalars import as_scalar, increment, scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.step_sizes.curvature import PROBE_GROWTH, first_step
from nagjax.step_sizes.pairs import Memory
from nagjax.storage import where
from nagjax.transform import subtract_velocity
from nagjax.types import PyTree


class AdgdAcceleratedState(NamedTuple):
    """State of `adgd_accelerated`; scalars in float32 or float64."""

    velocity: PyTree  # w, the structure of the parameters, at least 32 bits
    readout: jax.Array  # of the last update, m_k
    age: jax.Array  # updates since the last reset, int32 scalar
    step_size: jax.Array  # lambda of the last update, 0 before the first
    ratio: jax.Array  # theta = lambda_k / lambda_{k-1}, infinite before the first curvature
    inverse: jax.Array  # mu of the last update
    inverse_ratio: jax.Array  # Theta = mu_k / mu_{k-1}, infinite before the first curvature
    memory: Memory  # the last query point and its gradient

    def answer(self, params: PyTree) -> PyTree:
        """x = params - readout * w."""
        return subtract_velocity(params, self.velocity, self.readout)

    def buffers(self) -> PyTree:
        """w, in at least 32 bits."""
        return self.velocity

    def reset(self) -> "AdgdAcceleratedState":
        """Zero velocity, readout and age; what is known of the curvature stays."""
        zero = jnp.zeros_like(self.readout)
        return self._replace(velocity=where(self.velocity, False), readout=zero, age=jnp.zeros_like(self.age))


def adgd_accelerated(
    *,
    initial: ArrayLike | None = None,
    growth: ArrayLike = 0.5,
    fraction: ArrayLike = 0.5,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Nesterov's method with adaptive step and momentum: nothing to tune, no function values.

    With L_k = |g_k - g_{k-1}| / |y_k - y_{k-1}|, a = `growth` and b = `fraction`::

        lambda_k = min(sqrt(1 + a theta_{k-1}) lambda_{k-1}, b / L_k),  theta_k = lambda_k / lambda_{k-1}
        mu_k     = min(sqrt(1 + a Theta_{k-1}) mu_{k-1}, b L_k),        Theta_k = mu_k / mu_{k-1}
        m_k      = (1 - sqrt(lambda_k mu_k)) / (1 + sqrt(lambda_k mu_k))

    and x_{k+1} = y_k - lambda_k g_k, y_{k+1} = x_{k+1} + m_k (x_{k+1} - x_k). The first step, of which only the
    curvature matters, grows tenfold while it meets none.

    Args:
        initial: lambda_0, positive; by default a step of length 1e-3 (1 + |x_0|).
        growth: a, at least 0. The paper uses 1/2, its second code 1.
        fraction: b, positive. The paper uses 1/2.
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A gradient transformation that needs `params`. Memory: three buffers (12 bytes a parameter of at most 32 bits)
        and six scalars. Cost: one gradient a step.

    Guarantee:
        None; heuristic.

    Raises:
        TypeError: A number is none.
        ValueError: A number is out of its range; `update` got no `params`.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax, optax
        >>> from nagjax import adaptive
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2) / 2
        >>> tx, params = adaptive.adgd_accelerated(), jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(200):
        ...     updates, state = tx.update(jax.grad(f)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(nagjax.eval_params(params, state)) < 1e-6)
        True

    Source:
        Y. Malitsky and K. Mishchenko, "Adaptive gradient descent without descent", 2020, section on heuristics.
    """
    name = "adaptive.adgd_accelerated"
    pairs.check_optional_step(name, initial)
    checks.nonnegative(name, "growth", growth, "the paper uses 0.5")
    checks.positive(name, "fraction", fraction, "the paper uses 0.5")

    def init(params: PyTree) -> AdgdAcceleratedState:
        dtype = scalar_dtype()
        return AdgdAcceleratedState(
            velocity=pairs.zero_buffer(name, params),
            readout=jnp.zeros((), dtype),
            age=jnp.zeros((), jnp.int32),
            step_size=jnp.zeros((), dtype),
            ratio=jnp.full((), jnp.inf, dtype),
            inverse=jnp.zeros((), dtype),
            inverse_ratio=jnp.full((), jnp.inf, dtype),
            memory=pairs.no_memory(name, params),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdgdAcceleratedState]:
        del extra
        params, updates = pairs.required_params(name, params), trees.as_arrays(updates)
        pair, memory = pairs.measure(name, state.memory, params, updates, axis_name)
        a, b = as_scalar(growth), as_scalar(fraction)
        fresh = state.step_size == 0
        last = jnp.where(fresh, first_step(initial, updates, params, pair, axis_name), state.step_size)
        last_inverse = jnp.where(fresh, 1 / last, state.inverse)
        lipschitz = jnp.where(fresh, 0, pair.lipschitz(pairs.rounding_unit((updates, params))))
        seen, active, probing = lipschitz > 0, pair.moved() & ~fresh, jnp.isinf(state.ratio)
        size = jnp.where(seen, lipschitz, 1)

        def risen(ratio: jax.Array, value: jax.Array) -> jax.Array:
            return jnp.where(probing, jnp.inf, jnp.sqrt(1 + a * jnp.where(probing, 0, ratio)) * value)

        rise, inverse_rise = risen(state.ratio, last), risen(state.inverse_ratio, last_inverse)
        unseen = jnp.where(active, jnp.where(probing, PROBE_GROWTH * last, rise), last)
        s = pairs.limited(jnp.where(seen, jnp.minimum(rise, b / size), unseen))
        # A flat piece says nothing about strong convexity elsewhere; the printed min(., b L) would make mu 0 for ever.
        inverse = jnp.where(seen, jnp.minimum(inverse_rise, b * size), jnp.where(probing, 1 / s, last_inverse))

        root = jnp.sqrt(s * inverse)
        momentum = jnp.where(state.age == 0, 0, (1 - root) / (1 + root))
        # x_1 is not stored: the first difference that enters momentum is x_2 - x_0.
        decay = jnp.where(state.age == 1, 1, state.readout)
        step = pairs.step_of(None, params, updates, s)
        one = jnp.ones_like(s)
        velocity = trees.combine((decay, pairs.read(name, state.velocity, updates)), (one, step))
        known = active & (seen | ~probing)
        new_state = AdgdAcceleratedState(
            velocity=pairs.write(velocity, state.velocity),
            readout=momentum,
            age=increment(state.age),
            step_size=s,
            ratio=jnp.where(known, s / last, state.ratio),
            inverse=inverse,
            inverse_ratio=jnp.where(known, inverse / last_inverse, state.inverse_ratio),
            memory=memory,
        )
        return trees.like(updates, trees.combine((one, step), (momentum, velocity))), new_state

    return optax.GradientTransformationExtraArgs(init, update)
