"""What stands between a gradient and `accelerate`: clipping, the learning rate and coupled weight decay.

They are `optax.clip_by_global_norm`, `optax.scale_by_learning_rate` and `optax.add_decayed_weights` with two
differences: products are computed in at least 32 bits, and updates keep their dtype also where a hyper-parameter is an
array of another one (as `optax.inject_hyperparams` makes them).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName
from nagjax.reductions import squared_norm
from nagjax.scalars import Schedule, as_scalar, evaluate, increment
from nagjax.types import PyTree


def clip_by_global_norm(max_norm: ArrayLike, axis_name: AxisName | None = None) -> optax.GradientTransformation:
    """Scale gradients whose norm, over all leaves, is above `max_norm` down to it.

    Args:
        max_norm: The largest norm, positive, in the unit of the gradient.
        axis_name: The mapped axis, or axes, over which parameters are sharded inside `shard_map` or `pmap`, where the
            norm of a shard is not the norm. None under `jit`, and where every device has the whole gradient.

    Returns:
        A transformation without state. A gradient with NaN stays as it is; with an infinity it becomes NaN.

    Raises:
        ValueError: `max_norm` is not positive.

    Example:
        >>> import jax.numpy as jnp, nagjax
        >>> clip = nagjax.clip_by_global_norm(1.0)
        >>> clipped, _ = clip.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, clip.init({}))
        >>> [round(float(leaf[0]), 6) for leaf in clipped.values()]
        [0.6, 0.8]

    Source:
        R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", 2013,
        Algorithm 1.
    """
    checks.positive("clip_by_global_norm", "max_norm", max_norm, "1.0 is usual")

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, optax.OptState]:
        del params
        updates = trees.as_arrays(updates)
        norm, most = jnp.sqrt(squared_norm(updates, axis_name)), as_scalar(max_norm)
        factor = jnp.where(norm > most, most / norm, 1)

        def scale(g: jax.Array) -> jax.Array:
            return trees.scaled(factor, g.astype(trees.compute_dtype(g.dtype))).astype(g.dtype)

        return trees.map_present(scale, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


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
