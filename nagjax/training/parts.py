"""A batch in parts, over which gradients are accumulated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nagjax import checks, trees
from nagjax.mapped import AxisName, varying
from nagjax.training.convolutions import slow_in_loops
from nagjax.types import PyTree

Function = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # (rest, batch) -> (result, rest)


class Parts:
    """A batch in a number of equal parts: examples k, k + count, k + 2 count, ... for part k.

    So each part lies on all devices over which the batch is cut.
    """

    def __init__(self, batch: PyTree, count: int, axis_name: AxisName | None) -> None:
        self._count, self._axis = count, axis_name
        self._batch: PyTree = batch if count == 1 else jax.tree.map(self._split, batch)

    def mean(self, function: Function, rest: PyTree) -> tuple[PyTree, PyTree]:
        """The mean of what a function returns for the parts, and the last rest."""
        if self._count == 1:
            return function(rest, self._batch)

        def zero(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.zeros(leaf.shape, trees.compute_dtype(leaf.dtype))

        def plus(total: jax.Array, leaf: jax.Array) -> jax.Array:
            return total + leaf.astype(total.dtype)

        def mean(total: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            return (total / self._count).astype(leaf.dtype)

        def add(carry: tuple[PyTree, PyTree], part: PyTree) -> tuple[tuple[PyTree, PyTree], None]:
            total, rest = carry
            result, rest = function(rest, part)
            return (jax.tree.map(plus, total, result), rest), None

        def first(leaf: jax.Array) -> jax.Array:
            return leaf[0]

        trace: Any = jax.make_jaxpr(function, return_shape=True)
        jaxpr, (shapes, _) = trace(rest, jax.tree.map(first, self._batch))
        start = varying(jax.tree.map(zero, shapes), self._axis)
        (total, rest), _ = jax.lax.scan(add, (start, rest), self._batch, unroll=slow_in_loops(jaxpr))
        return jax.tree.map(mean, total, shapes), rest

    def _split(self, leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0 or leaf.shape[0] % self._count:
            remedy = "choose a batch size that it divides"
            condition = f"a divisor of the batch, whose first axis has shape {leaf.shape[:1]}"
            checks.reject("TrainStep", "accumulate", condition, self._count, remedy)
        return jnp.swapaxes(leaf.reshape(leaf.shape[0] // self._count, self._count, *leaf.shape[1:]), 0, 1)
