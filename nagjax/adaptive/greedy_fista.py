"""Greedy FISTA: momentum 1, steps longer than 1/L, restarts and a safeguard."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName
from nagjax.proximal.prox import Prox
from nagjax.reductions import inner_product, squared_norm
from nagjax.scalars import as_scalar, increment, number, scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.storage import where
from nagjax.transform import subtract_velocity
from nagjax.types import PyTree


class GreedyFistaState(NamedTuple):
    """State of `greedy_fista`; scalars in float32 or float64."""

    velocity: PyTree  # w, the structure of the parameters, at least 32 bits
    readout: jax.Array  # of the last update: 1, or 0 after a restart
    age: jax.Array  # updates since the last restart, int32 scalar
    step_size: jax.Array  # gamma of the last update, 0 before the first
    following: jax.Array  # gamma of the next update
    first_move: jax.Array  # |x_1 - x_0|, infinite before the first update

    def answer(self, params: PyTree) -> PyTree:
        """x = params - readout * w."""
        return subtract_velocity(params, self.velocity, self.readout)

    def buffers(self) -> PyTree:
        """w, in at least 32 bits."""
        return self.velocity

    def reset(self) -> "GreedyFistaState":
        """Zero velocity, readout and age; the step size stays."""
        zero = jnp.zeros_like(self.readout)
        return self._replace(velocity=where(self.velocity, False), readout=zero, age=jnp.zeros_like(self.age))


def greedy_fista(
    smoothness: ArrayLike,
    prox: Prox | None = None,
    *,
    relaxation: ArrayLike = 1.3,
    safeguard: ArrayLike = 1.0,
    shrink: ArrayLike = 0.96,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """FISTA with momentum 1 and steps longer than 1/L, which a restart test and a safeguard keep in bounds.

    With gamma = c/L, x_{k+1} = prox_{gamma h}(y_k - gamma grad f(y_k)) and y_{k+1} = 2 x_{k+1} - x_k, but y_{k+1} =
    x_{k+1} where <y_k - x_{k+1}, x_{k+1} - x_k> >= 0. Where |x_{k+1} - x_k| > S |x_1 - x_0|, gamma <- max(1/L,
    xi gamma).

    Args:
        smoothness: L of f, positive.
        prox: h of f + h, from `nagjax.proximal`; the gradient passed to `update` is that of f.
        relaxation: c, in [1, 2).
        safeguard: S, positive.
        shrink: xi, positive and less than 1.
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A gradient transformation that needs `params`. Memory: one buffer (4 bytes a parameter of at most 32 bits) and
        five scalars. Cost: one gradient a step.

    Guarantee:
        None; heuristic.

    Raises:
        TypeError: `prox` is not a `Prox`, or a number is none.
        ValueError: A number is out of its range; `update` got no `params`.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax, optax
        >>> from nagjax import adaptive
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2) / 2
        >>> tx, params = adaptive.greedy_fista(100.0), jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(300):
        ...     updates, state = tx.update(jax.grad(f)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(nagjax.eval_params(params, state)) < 1e-6)
        True

    Source:
        J. Liang, T. Luo and C.-B. Schoenlieb, "Improving 'fast iterative shrinkage-thresholding algorithm': faster,
        smarter, and greedier", 2022, the greedy scheme.
    """
    name = "adaptive.greedy_fista"
    checks.positive(name, "smoothness", smoothness, "give the largest curvature L of f")
    checks.scalar(name, "relaxation", relaxation, "in [1, 2)", lambda v: 1 <= v < 2, "the paper uses 1.3")
    checks.positive(name, "safeguard", safeguard, "the paper uses 1")
    checks.scalar(name, "shrink", shrink, "between 0 and 1", lambda v: 0 < v < 1, "the paper uses 0.96")
    pairs.check_optional_prox(name, prox)
    shortest = 1 / number(smoothness)

    def init(params: PyTree) -> GreedyFistaState:
        dtype = scalar_dtype()
        return GreedyFistaState(
            velocity=pairs.zero_buffer(name, params),
            readout=jnp.zeros((), dtype),
            age=jnp.zeros((), jnp.int32),
            step_size=jnp.zeros((), dtype),
            following=as_scalar(relaxation) * as_scalar(shortest),
            first_move=jnp.full((), jnp.inf, dtype),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, GreedyFistaState]:
        del extra
        params, updates = pairs.required_params(name, params), trees.as_arrays(updates)
        s = state.following
        step = pairs.step_of(prox, trees.wide(updates, params), updates, s)
        velocity = trees.add(step, pairs.read(name, state.velocity, updates))
        product = inner_product(step, velocity, axis_name)
        keep = jnp.where((product <= 0) & jnp.isfinite(product), 0, jnp.ones_like(s))

        move = jnp.sqrt(squared_norm(velocity, axis_name))
        fresh = state.step_size == 0
        first_move = jnp.where(fresh, move, state.first_move)
        shorter = jnp.maximum(as_scalar(shortest), as_scalar(shrink) * s)
        kept = trees.combine((keep, velocity))
        new_state = GreedyFistaState(
            velocity=pairs.write(kept, state.velocity),
            readout=keep,
            age=jnp.where(keep > 0, increment(state.age), 0),
            step_size=s,
            following=jnp.where(move > as_scalar(safeguard) * first_move, shorter, s),
            first_move=first_move,
        )
        return trees.like(updates, trees.add(step, kept)), new_state

    return optax.GradientTransformationExtraArgs(init, update)
