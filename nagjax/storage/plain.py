"""A velocity as a tree of arrays, in the parameters' own precision or another; and what all storages share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks, trees
from nagjax.types import PyTree, Storage, StoredBuffer


def full() -> Storage:
    """The velocity as it is: float32 for 16-bit parameters, else the parameters' own dtype.

    Returns:
        A `Storage` of 4 bytes a parameter (8 for float64 and complex64, 16 for complex128).
    """

    def zero(leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf, dtype=trees.compute_dtype(leaf.dtype))

    def init(params: PyTree) -> PyTree:
        return trees.map_present(zero, params)

    return Storage(init, decode, _encode)


def cast(dtype: DTypeLike) -> Storage:
    """The velocity rounded to the nearest value of a floating dtype.

    Args:
        dtype: A real floating dtype, such as `jnp.bfloat16`.

    Returns:
        A `Storage` of as many bytes a parameter as the dtype has; complex leaves become pairs.

    Raises:
        TypeError: `dtype` names no dtype.
        ValueError: `dtype` is not a real floating dtype.
    """
    target = floating("cast", dtype)

    def init(params: PyTree) -> PyTree:
        return zeros(params, jax.dtypes.canonicalize_dtype(target))

    return Storage(init, decode, _encode)


def decode(stored: PyTree, like: PyTree | None = None) -> PyTree:
    """The velocity in a stored form, as a tree of leaves of at least 32 bits.

    Args:
        stored: What `Storage.init` or `Storage.encode` returned.
        like: Tree of the parameters' structure and dtypes, such as the updates; its absent leaves stay absent.
            Without it complex leaves that are not stored in full are pairs in a trailing axis of 2.

    Returns:
        A tree with the structure of `like`, or of the parameters.
    """
    return stored.decode(like) if isinstance(stored, StoredBuffer) else decode_arrays(stored, like)


def where(stored: PyTree, keep: ArrayLike) -> PyTree:
    """A stored form as it is where the scalar `keep` is true, zero velocity elsewhere; counters of noise go on."""
    return stored.where(keep) if isinstance(stored, StoredBuffer) else select(keep, stored)


def scaled(stored: PyTree, factors: list[jax.Array]) -> PyTree:
    """A stored form of the velocity times one scalar a leaf, in flattened order; exactly zero where that is 0."""
    return stored.scaled(factors) if isinstance(stored, StoredBuffer) else scale_arrays(stored, factors)


def bytes_per_parameter(stored: PyTree, params: PyTree) -> float:
    """The memory of a stored form, scales and counters included, divided by the number of parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> params = jnp.zeros((512, 1024))
        >>> bool(bytes_per_parameter(cast(jnp.bfloat16).init(params), params) == 2)
        True
    """
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored)]
    return sum(sizes) / sum(leaf.size for leaf in jax.tree.leaves(params))


def floating(function: str, dtype: DTypeLike | None, argument: str = "dtype") -> jnp.dtype:
    """The real floating dtype that an argument names."""
    remedy = "use jnp.bfloat16, or int8() for 8-bit integers with scales" if argument == "dtype" else "use jnp.bfloat16"
    try:
        if dtype is None:  # which NumPy reads as float64
            raise TypeError
        target = jnp.dtype(dtype)
    except TypeError:
        checks.reject(function, argument, "a real floating dtype", dtype, remedy, TypeError)
    if not jnp.issubdtype(target, jnp.floating):
        checks.reject(function, argument, "a real floating dtype", target.name, remedy)
    return target


def zeros(params: PyTree, dtype: DTypeLike) -> PyTree:
    """Zeros of a real dtype in the shapes of `params`, with a trailing axis of 2 for complex leaves."""

    def zero(leaf: jax.Array) -> jax.Array:
        # Made from the leaf, so that it lies on the leaf's devices and varies over its axes of `shard_map`.
        return (
            trees.as_pairs(jnp.zeros_like(leaf)).astype(dtype)
            if jnp.iscomplexobj(leaf)
            else jnp.zeros_like(leaf, dtype)
        )

    return trees.map_present(zero, params)


def select(keep: ArrayLike, tree: PyTree) -> PyTree:
    """`tree` where the scalar `keep` is true, zeros elsewhere."""

    def choose(leaf: jax.Array) -> jax.Array:
        return jnp.where(keep, leaf, jnp.zeros_like(leaf))

    return trees.map_present(choose, tree)


def scale_arrays(tree: PyTree, factors: list[jax.Array]) -> PyTree:
    """`scaled` for a tree of arrays."""

    def scale(leaf: jax.Array, factor: jax.Array) -> jax.Array:
        wide = trees.scaled(factor, leaf.astype(trees.compute_dtype(leaf.dtype)))
        # Not 0 times what may be infinite.
        return jnp.where(factor == 0, jnp.zeros_like(leaf), wide.astype(leaf.dtype))

    leaves = zip(trees.leaves(tree), factors, strict=True)
    return trees.rebuild(tree, [x if trees.is_absent(x) else scale(x, factor) for x, factor in leaves])


def decode_arrays(stored: PyTree, like: PyTree | None) -> PyTree:
    """`decode` for a tree of arrays."""

    def widen(own: jax.Array) -> jax.Array:
        return own.astype(trees.compute_dtype(own.dtype))

    def convert(leaf: jax.Array, own: jax.Array) -> jax.Array:
        dtype = trees.compute_dtype(leaf.dtype)
        if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.iscomplexobj(own):
            return trees.as_complex(own.astype(jnp.float64 if dtype == jnp.complex128 else jnp.float32))
        # Never narrower than it is stored; a complex one stays complex.
        return own.astype(np.promote_types(dtype, trees.compute_dtype(own.dtype)))

    return trees.map_present(widen, stored) if like is None else trees.map_present(convert, like, stored)


def encode_leaves(function: Callable[..., Any], velocity: PyTree, *stored: PyTree) -> list[PyTree]:
    """Map `function(number, new, *old) -> leaves of the stored trees`; absent velocities keep the old leaves."""
    rows = zip(trees.leaves(velocity), *map(trees.leaves, stored), strict=True)
    results = [old if trees.is_absent(new) else function(i, new, *old) for i, (new, *old) in enumerate(rows)]
    return [trees.rebuild(tree, [result[i] for result in results]) for i, tree in enumerate(stored)]


def _encode(velocity: PyTree, stored: PyTree) -> PyTree:
    def convert(_: int, new: jax.Array, old: jax.Array) -> tuple[jax.Array]:
        return ((new if jnp.iscomplexobj(old) else trees.as_pairs(new)).astype(old.dtype),)

    return encode_leaves(convert, velocity, stored)[0]
