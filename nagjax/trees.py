"""Trees whose leaves may be absent, and the dtype in which a leaf is computed."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from nagjax.types import PyTree


def is_absent(leaf: object) -> bool:
    """Whether a place in a tree holds nothing to update: None, or Optax's mark of a masked leaf."""
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def leaves(tree: PyTree) -> list[Any]:
    """The leaves in flattened order, absent ones included."""
    return jax.tree.leaves(tree, is_leaf=is_absent)


def map_present(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` that leaves the absent places of `tree` as they are."""

    def apply(leaf: Any, *others: Any) -> Any:
        return leaf if is_absent(leaf) else function(leaf, *others)

    return jax.tree.map(apply, tree, *rest, is_leaf=is_absent)


def structure(tree: PyTree) -> Any:
    """The `PyTreeDef` in which absent leaves are leaves."""
    return cast("Any", jax.tree.structure(tree, is_leaf=is_absent))


def as_arrays(tree: PyTree) -> PyTree:
    """The tree with Python numbers made arrays."""

    def convert(leaf: Any) -> Any:
        return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)

    return map_present(convert, tree)


def rebuild(tree: PyTree, new_leaves: list[Any]) -> PyTree:
    """A tree of the structure of `tree` from leaves in flattened order."""
    return structure(tree).unflatten(new_leaves)


def zeros(tree: PyTree) -> PyTree:
    """Zeros of the shapes and dtypes of `tree`."""

    def zero(leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf)

    return jax.tree.map(zero, tree)


def ones(tree: PyTree) -> PyTree:
    """Ones of the shapes and dtypes of `tree`."""

    def one(leaf: jax.Array) -> jax.Array:
        return jnp.ones_like(leaf)

    return jax.tree.map(one, tree)


def compute_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype in which a velocity is computed: float32 for 8- and 16-bit leaves, else the leaf's own."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype


def scaled(factor: jax.Array, leaf: jax.Array) -> jax.Array:
    """A real factor times a real or complex leaf, in the dtype of the leaf."""
    if jnp.iscomplexobj(leaf):
        factor = factor.astype(leaf.real.dtype)
        return jax.lax.complex(factor * leaf.real, factor * leaf.imag)
    return factor.astype(leaf.dtype) * leaf


def combine(*terms: tuple[jax.Array, PyTree]) -> PyTree:
    """The sum of scalar * tree over all terms, in the dtypes of the first tree."""

    def leaf(*arrays: jax.Array) -> jax.Array:
        dtype = arrays[0].dtype
        parts = [scaled(scalar, x.astype(dtype)) for (scalar, _), x in zip(terms, arrays, strict=True)]
        return functools.reduce(jnp.add, parts)

    return map_present(leaf, *(tree for _, tree in terms))


def add(a: PyTree, b: PyTree) -> PyTree:
    """a + b, in the dtypes of a."""

    def leaf(left: jax.Array, right: jax.Array) -> jax.Array:
        return left + right.astype(left.dtype)

    return map_present(leaf, a, b)


def difference(a: PyTree, b: PyTree) -> PyTree:
    """a - b, in the dtypes of a."""

    def leaf(left: jax.Array, right: jax.Array) -> jax.Array:
        return left - right.astype(left.dtype)

    return map_present(leaf, a, b)


def wide(places: PyTree, tree: PyTree) -> PyTree:
    """`tree` in its dtypes of computation, at the places where `places` is present."""

    def widen(place: Any, leaf: Any) -> jax.Array:
        del place
        leaf = jnp.asarray(leaf)
        return leaf.astype(compute_dtype(leaf.dtype))

    return map_present(widen, places, tree)


def like(reference: PyTree, tree: PyTree) -> PyTree:
    """`tree` in the dtypes of `reference`."""

    def leaf(x: jax.Array, own: Any) -> jax.Array:
        return x.astype(jnp.asarray(own).dtype)

    return map_present(leaf, tree, reference)


def merged(tree: PyTree, changed: PyTree) -> PyTree:
    """`changed`, and `tree` at the places where it is absent."""

    def choose(old: Any, new: Any) -> Any:
        return old if is_absent(new) else new

    return map_present(choose, tree, changed)


def select(flag: jax.Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """One of two trees of the same structure, by a scalar."""

    def leaf(true: jax.Array, false: jax.Array) -> jax.Array:
        return jnp.where(flag, true, false)

    return map_present(leaf, if_true, if_false)


def as_pairs(leaf: jax.Array) -> jax.Array:
    """A complex array as real and imaginary parts in a trailing axis of 2; a real one as it is."""
    return jnp.stack([leaf.real, leaf.imag], axis=-1) if jnp.iscomplexobj(leaf) else leaf


def as_complex(leaf: jax.Array) -> jax.Array:
    """The inverse of `as_pairs` for complex arrays; a complex array as it is."""
    return leaf if jnp.iscomplexobj(leaf) else jax.lax.complex(leaf[..., 0], leaf[..., 1])


def joined(parts: list[jax.Array]) -> jax.Array:
    """Vectors end to end in their common dtype."""
    if not parts:
        return jnp.zeros((0,))
    dtype = jnp.dtype(np.result_type(*(part.dtype for part in parts)))
    return jnp.concatenate([part.astype(dtype) for part in parts]) if len(parts) > 1 else parts[0]


def split(reference: PyTree, vector: jax.Array) -> PyTree:
    """Consecutive parts of a vector, in the structure, shapes and dtypes of `reference`."""
    parts: list[jax.Array] = []
    start = 0
    for leaf in jax.tree.leaves(reference):
        x = jnp.asarray(leaf)
        part = vector[start : start + x.size].reshape(x.shape)
        parts.append((part if jnp.iscomplexobj(x) else part.real).astype(x.dtype))
        start += x.size
    return cast("Any", jax.tree.structure(reference)).unflatten(parts)


def ravel(tree: PyTree) -> jax.Array:
    """All leaves as one real vector, complex ones as pairs."""
    return joined([as_pairs(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


def unravel(reference: PyTree, vector: jax.Array) -> PyTree:
    """The inverse of `ravel`, in the structure, shapes and dtypes of `reference`."""

    def leaf(own: jax.Array, part: jax.Array) -> jax.Array:
        return as_complex(part) if jnp.iscomplexobj(own) else part

    return jax.tree.map(leaf, reference, split(jax.tree.map(as_pairs, reference), vector))
