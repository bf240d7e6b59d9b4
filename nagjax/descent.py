"""What stands between a gradient and `accelerate`: the learning rate and coupled weight decay.

They are `optax.scale_by_learning_rate` and `optax.add_decayed_weights` with two differences: products are computed in
at least 32 bits, and updates keep their dtype also where a hyper-parameter is an array of another one (as
`optax.inject_hyperparams` makes them).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.scalars import Schedule, as_scalar, evaluate, increment
from nagjax.types import PyTree


def scale_by_learning_rate(learning_rate: ArrayLike | Schedule) -> optax.GradientTransformation:
    """Multiply by -learning_rate, a number or a schedule of the update count.

    Returns:
        A transformation whose state holds the count (int32 scalar) of a schedule, and nothing for a number.
    """

    def init(params: PyTree) -> optax.OptState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)) if callable(learning_rate) else optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, optax.OptState]:
        del params
        if callable(learning_rate):
            rate = evaluate("learning_rate", learning_rate, state.count)
            state = optax.ScaleByScheduleState(increment(state.count))
        else:
            rate = as_scalar(learning_rate)

        def scale(g: jax.Array) -> jax.Array:
            return trees.scaled(-rate, g.astype(trees.compute_dtype(g.dtype))).astype(g.dtype)

        return trees.map_present(scale, trees.as_arrays(updates)), state

    return optax.GradientTransformation(init, update)


def add_decayed_weights(
    weight_decay: ArrayLike, mask: PyTree | Callable[[PyTree], PyTree] | None = None
) -> optax.GradientTransformation:
    """Add weight_decay * params to the gradient, where `mask` is true.

    Returns:
        A transformation without state; the identity for a Python 0, which then needs no `params`.
    """
    if checks.is_python_zero(weight_decay):
        return optax.identity()

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, optax.OptState]:
        if params is None:
            remedy = "weight decay needs them: call `update(gradients, state, params)`"
            checks.reject("add_decayed_weights", "params", "passed to update", None, remedy)

        def decay(g: jax.Array, y: jax.Array) -> jax.Array:
            dtype = trees.compute_dtype(g.dtype)
            return (g.astype(dtype) + trees.scaled(as_scalar(weight_decay), y.astype(dtype))).astype(g.dtype)

        return trees.map_present(decay, trees.as_arrays(updates), trees.as_arrays(params)), state

    transformation = optax.GradientTransformation(optax.init_empty_state, update)
    return transformation if mask is None else optax.masked(transformation, mask)
