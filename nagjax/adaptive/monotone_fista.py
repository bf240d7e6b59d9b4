"""MFISTA, the version of FISTA whose objective never rises."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.momentum.classical import next_t
from nagjax.proximal.prox import Prox
from nagjax.scalars import as_scalar, increment, scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.storage import where
from nagjax.transform import subtract_velocity
from nagjax.types import PyTree


class MonotoneFistaState(NamedTuple):
    """State of `monotone_fista`; scalars in float32 or float64."""

    displacement: PyTree  # y - x, the structure of the parameters, at least 32 bits
    age: jax.Array  # updates since the last reset, int32 scalar
    t: jax.Array  # t of the next update
    answer_value: jax.Array  # F(x), infinite before the first update
    step_size: jax.Array  # s of the last update, 0 before the first
    function_evaluations: jax.Array  # calls of value_fn so far, int32 scalar

    def answer(self, params: PyTree) -> PyTree:
        """x, from the query point y."""
        return subtract_velocity(params, self.displacement, jnp.ones_like(self.t))

    def buffers(self) -> PyTree:
        """y - x, in at least 32 bits."""
        return self.displacement

    def reset(self) -> "MonotoneFistaState":
        """Start again from the parameters."""
        return self._replace(displacement=where(self.displacement, False), age=jnp.zeros_like(self.age))


def monotone_fista(step_size: ArrayLike, prox: Prox | None = None) -> optax.GradientTransformationExtraArgs:
    """FISTA that keeps the better of the new and the last point, for f + h.

    With z_k = prox_{s h}(y_k - s grad f(y_k)), x_k is z_k where F(z_k) <= F(x_{k-1}) and x_{k-1} otherwise, and
    y_{k+1} = x_k + (t_k / t_{k+1}) (z_k - x_k) + ((t_k - 1) / t_{k+1}) (x_k - x_{k-1}).

    Args:
        step_size: s, positive, at most 1/L.
        prox: h, from `nagjax.proximal`; gradient, `value` and `value_fn` are those of f.

    Returns:
        A gradient transformation that needs `params`, `value` and `value_fn` in every update. Memory: one buffer (4
        bytes a parameter of at most 32 bits) and five scalars. Cost: one gradient and one function value a step.

    Guarantee:
        F(x_k) never rises (as far as it is computed exactly). For convex, L-smooth f and s <= 1/L, F(x_N) - F* <=
        2 R^2 / (s (N + 1)^2), R = |x_0 - x*|.

    Raises:
        TypeError: `step_size` is not a number, or `prox` not a `Prox`.
        ValueError: `step_size` is not positive; `update` got no `params`, `value` or `value_fn`.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax, optax
        >>> from nagjax import adaptive
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2) / 2
        >>> tx, params = adaptive.monotone_fista(0.01), jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(60):
        ...     value, gradient = jax.value_and_grad(f)(params)
        ...     updates, state = tx.update(gradient, state, params, value=value, value_fn=f)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(nagjax.eval_params(params, state)) < 2 * 100 * 2 / 61**2)
        True

    Source:
        A. Beck and M. Teboulle, "Fast gradient-based algorithms for constrained total variation image denoising and
        deblurring problems", 2009, MFISTA and Theorem 5.1.
    """
    name = "adaptive.monotone_fista"
    checks.positive(name, "step_size", step_size, "give 1 / L for an L-smooth function")
    pairs.check_optional_prox(name, prox)

    def init(params: PyTree) -> MonotoneFistaState:
        dtype = scalar_dtype()
        return MonotoneFistaState(
            displacement=pairs.zero_buffer(name, params),
            age=jnp.zeros((), jnp.int32),
            t=jnp.ones((), dtype),
            answer_value=jnp.full((), jnp.inf, dtype),
            step_size=jnp.zeros((), dtype),
            function_evaluations=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        value: Any = None,
        value_fn: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, MonotoneFistaState]:
        params, updates = pairs.required_params(name, params), trees.as_arrays(updates)
        present = as_scalar(pairs.required_value(name, value))
        function = pairs.required_function(name, value_fn, extra)
        fresh = state.age == 0
        t, s = jnp.where(fresh, 1, state.t), as_scalar(step_size)
        after = next_t(t)
        # The query point of a fresh state is its answer, and its value is at hand.
        last = jnp.where(fresh, present + pairs.penalty(prox, params), state.answer_value)

        displacement = pairs.read(name, state.displacement, updates)
        step = pairs.step_of(prox, trees.wide(updates, params), updates, s)  # z - y
        proposed = trees.merged(params, trees.like(params, trees.add(trees.wide(updates, params), step)))
        reached = as_scalar(function(proposed)) + pairs.penalty(prox, proposed)
        better = reached <= last
        taken = jnp.where(better, jnp.ones_like(s), 0)

        one = jnp.ones_like(s)
        total = trees.add(step, displacement)  # z_k - x_{k-1}
        weight = jnp.where(better, t - 1, t) / after
        ahead = trees.combine((weight, total))
        moved = trees.combine((taken, step), (taken - one, displacement), (one, ahead))
        new_state = MonotoneFistaState(
            displacement=pairs.write(ahead, state.displacement),
            age=increment(state.age),
            t=after,
            answer_value=jnp.where(better, reached, last),
            step_size=s,
            function_evaluations=increment(state.function_evaluations),
        )
        return trees.like(updates, moved), new_state

    return optax.GradientTransformationExtraArgs(init, update)
