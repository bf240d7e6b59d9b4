"""What workers exchange at a synchronization: the mean of their displacements, plain, weighted or compressed."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName, differs_over
from nagjax.outer.wire import Wire, compressed_sum
from nagjax.scalars import as_scalar
from nagjax.types import PyTree


def mean(
    tree: PyTree, residual: PyTree, weight: ArrayLike | None, axis_name: AxisName | None, wire: Wire | None
) -> tuple[PyTree, PyTree, jax.Array | None]:
    """The mean over workers: the only communication of updates.

    Args:
        tree: The displacement of this worker.
        residual: What compression has left out so far, in the structure of the parameters; unused without `wire`.
        weight: This worker's weight, or None for equal ones.
        axis_name: The mapped axis, or axes, of workers; None for one worker.
        wire: How displacements travel; None in their own dtype.

    Returns:
        The mean, equal on all workers, the next residual, and the sum of weights where there are any.
    """
    if weight is None:
        if axis_name is None:
            return tree, residual, None
        if wire is None:
            return jax.lax.pmean(tree, axis_name), residual, None
        share, total = as_scalar(1 / jax.lax.axis_size(axis_name)), None
    else:
        share, total = _share(weight, axis_name)

    def weighted(leaf: jax.Array) -> jax.Array:
        return jnp.where(share > 0, trees.scaled(share, leaf), 0)

    tree = trees.map_present(weighted, tree)
    if axis_name is None:
        return tree, residual, total
    if wire is None:
        return cast("PyTree", jax.lax.psum(tree, axis_name)), residual, total
    summed, residual = compressed_sum(tree, residual, wire, axis_name)
    return summed, residual, total


def check_weight(function: str, weight: ArrayLike | None) -> None:
    """Check the weight of a worker, where it is known."""
    if weight is not None:
        remedy = "give the number of examples or tokens of this worker's round, 0 to leave it out"
        checks.nonnegative(function, "weight", weight, remedy)


def _share(weight: ArrayLike, axis_name: AxisName | None) -> tuple[jax.Array, jax.Array]:
    """This worker's part of the sum of weights, 0 where all are 0, and that sum."""
    own = as_scalar(weight)
    own = jnp.where(own > 0, own, 0)
    total = own if axis_name is None else cast("jax.Array", jax.lax.psum(own, axis_name))
    return own / jnp.where(total > 0, total, 1), total


def shared(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """The first worker's `tree` on all of them, where `shard_map` says that they may have different ones."""
    names = cast("tuple[Any, ...]", axis_name if isinstance(axis_name, tuple) else (axis_name,))

    def share(leaf: jax.Array) -> jax.Array:
        axes = tuple(name for name in names if name in differs_over(leaf))
        if not axes:
            return leaf
        # Not the mean, which rounds: s would not start at `params`.
        return cast("jax.Array", jax.lax.psum(jnp.where(jax.lax.axis_index(axes) == 0, leaf, 0), axes))

    return trees.map_present(share, tree)
