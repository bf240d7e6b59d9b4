"""A training step whose parameters are one vector a dtype instead of a tree: a variant that `bench_training` measures.

One dispatch costs a microsecond or more for each array that it takes and gives; packed, there are a few instead of
hundreds. The program cuts the vector up, and joins the gradients again. It is not part of the library, because these
cuts multiply the time of compilation: a kernel that reads parameters is then compiled for each layer by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from nagjax import training

Vectors = dict[str, jax.Array]


class Packing:
    """The places of the leaves of a tree in one vector a dtype."""

    def __init__(self, tree: Any) -> None:
        leaves, self._structure = jax.tree.flatten(tree)
        self._leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        self._groups: dict[str, list[int]] = {}
        for place, leaf in enumerate(leaves):
            self._groups.setdefault(leaf.dtype.name, []).append(place)

    def pack(self, tree: Any) -> Vectors:
        """The vectors of a tree of this structure."""
        leaves = jax.tree.leaves(tree)
        return {
            name: jnp.concatenate([leaves[place].reshape(-1) for place in places])
            for name, places in self._groups.items()
        }

    def unpack(self, vectors: Vectors) -> Any:
        """The tree of vectors."""
        leaves: list[Any] = [None] * len(self._leaves)
        for name, places in self._groups.items():
            ends = list(itertools.accumulate(self._leaves[place].size for place in places))
            for place, end in zip(places, ends, strict=True):
                leaf = self._leaves[place]
                leaves[place] = vectors[name][end - leaf.size : end].reshape(leaf.shape)
        return jax.tree.unflatten(self._structure, leaves)


def packed_step(
    model: nnx.Module, loss_fn: Callable[[Any, Any], jax.Array], tx: optax.GradientTransformation
) -> training.TrainStep:
    """A step of a model without other variables than parameters; elementwise optimizers see vectors alike."""
    graph, state = nnx.split(model)
    params = nnx.as_pure(state)
    packing = Packing(params)

    @jax.custom_vjp
    def unpack(vectors: Vectors) -> Any:
        return packing.unpack(vectors)

    # The derivative of a cut would be a sum of one padded vector a leaf.
    unpack.defvjp(lambda vectors: (packing.unpack(vectors), None), lambda _, gradients: (packing.pack(gradients),))

    def loss(vectors: Vectors, batch: Any) -> jax.Array:
        return loss_fn(nnx.merge(graph, unpack(vectors), copy=True), batch)

    return training.TrainStep(packing.pack(params), loss, tx)
