"""What is known of arrays inside `shard_map`, `pmap` and `vmap`: over which mapped axes they differ.

`shard_map` keeps track of that in the types of arrays, unless it is told `check_vma=False`; the others do not.
"""

from collections.abc import Hashable
from typing import Any, cast

import jax
import jax.numpy as jnp

from nagjax import trees
from nagjax.types import PyTree

AxisName = Hashable | tuple[Hashable, ...]


def differs_over(leaf: Any) -> frozenset[Any]:
    """The axes over which an array is known to differ."""
    return frozenset(jax.typeof(leaf).mat.varying)


def tracked(axis_name: AxisName | None) -> frozenset[Any]:
    """Those of the named axes for which it is known whether arrays differ over them."""
    return frozenset[Any]() if axis_name is None else differs_over(jax.lax.axis_index(cast("Any", axis_name)))


def varying(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """The tree, marked as different over the named axes where that is known at all."""
    axes = tracked(axis_name)

    def mark(leaf: jax.Array) -> jax.Array:
        return _marked(leaf, axes)

    return trees.map_present(mark, tree) if axes else tree


def varying_like(tree: PyTree, reference: PyTree) -> PyTree:
    """The tree, each array marked as different over the axes of its counterpart: types of branches must agree."""

    def mark(leaf: jax.Array, other: jax.Array) -> jax.Array:
        return _marked(leaf, differs_over(other))

    return trees.map_present(mark, tree, reference)


def everywhere(flag: jax.Array) -> jax.Array:
    """Whether a flag is true on all devices of `shard_map` or `pmap` on which it may differ.

    A conditional that decides otherwise on one device waits for ever where its branches communicate.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    unequal = tuple(axis for axis in axes if not tracked(axis) or axis in differs_over(flag))
    return jax.lax.pmin(flag.astype(jnp.int32), unequal) == 1 if unequal else flag


def _marked(leaf: jax.Array, axes: frozenset[Any]) -> jax.Array:
    missing = tuple(sorted(axes - differs_over(leaf)))
    return cast("jax.Array", jax.lax.pcast(leaf, missing, to="varying")) if missing else leaf
