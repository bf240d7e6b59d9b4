"""A velocity as a tree of arrays, in the parameters' own precision or in another, and what all storages share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks, trees
from nagjax.types import PyTree, Storage, StoredBuffer


def full() -> Storage:
    """The velocity as it is: float32 for 16-bit parameters, else the parameters' own dtype.

    Returns:
        A `Storage` of 4 bytes a parameter (8 for float64 and complex64, 16 for complex128).
    """

    def init(params: PyTree) -> PyTree:
        return trees.map_present(lambda leaf: jnp.zeros_like(leaf, dtype=trees.compute_dtype(leaf.dtype)), params)

    return Storage(init, decode, _encode_plain)


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

    return Storage(init, decode, _encode_plain)


def decode(self, like: PyTree | None = None) -> PyTree:
    """The velocity as a tree; complex leaves need `like`, else they are pairs in a trailing axis of 2."""
    return decode_plain(self.values, like)


def where(self, keep: ArrayLike) -> "StochasticState":
    """Itself where the scalar `keep` is true, zero velocity elsewhere."""
    return self._replace(values=select(keep, self.values))


def stochastic_rounding(dtype: DTypeLike, *, seed: int = 0, axis_name: AxisName | None = None) -> Storage:
    """The velocity rounded at random, without bias, to bfloat16 or float16.

    Values beyond the largest finite one round to it or to infinity in the same way. Infinities and NaN stay.

    Args:
        dtype: `jnp.bfloat16` or `jnp.float16`.
        seed: Of the rounding noise.
        axis_name: Axis (or axes) of `shard_map` or `pmap` over which the parameters are sharded, so that shards get
            noise of their own; leave it out for replicated parameters, whose replicas must round alike.

    Returns:
        A `Storage` of 2 bytes a parameter.

    Raises:
        TypeError: `dtype` names no dtype, or `seed` is not an integer.
        ValueError: `dtype` is another dtype, or `seed` is negative.
    """
    target = floating("stochastic_rounding", dtype)
    if target not in (jnp.bfloat16, jnp.float16):
        remedy = "use cast() for other dtypes or int8()"
        checks.reject("stochastic_rounding", "dtype", "bfloat16 or float16", target.name, remedy)
    checks.whole("stochastic_rounding", "seed", seed, 0, "pass a Python integer")

    def init(params: PyTree) -> StochasticState:
        return StochasticState(zeros(params, target), jnp.zeros((), jnp.uint32))

    def encode(velocity: PyTree, stored: StochasticState) -> StochasticState:
        keys = noise.keys(seed, stored.step, len(trees.leaves(velocity)), axis_name)

        def round_leaf(number: int, new: jax.Array, old: jax.Array) -> tuple[jax.Array]:
            return (_round_at_random(trees.as_pairs(new).astype(jnp.float32), keys[number], old.dtype),)

        (values,) = encode_leaves(round_leaf, velocity, stored.values)
        return StochasticState(values, stored.step + jnp.uint32(1))

    return Storage(init, decode, encode)


class Int8State(NamedTuple):
    """A velocity in 8 bits, in blocks that share a scale; the two shapes of a leaf say where its blocks lie."""

    values: PyTree  # the leaves' shapes (complex: a trailing axis of 2), int8 in [-127, 127]
    scales: PyTree  # the largest |w| of a block, w = scale * value / 127: the rank of values, float32
    step: jax.Array  # counter of the noise, uint32 scalar; never reset

    def decode(self, like: PyTree | None = None) -> PyTree:
        """The velocity as a tree; complex leaves need `like`, else they are pairs in a trailing axis of 2."""
        if like is None:
            return trees.map_present(_dequantize, self.values, self.scales)
        return trees.map_present(lambda leaf, *own: as_like(_dequantize(*own), leaf), like, self.values, self.scales)

    def where(self, keep: ArrayLike) -> "Int8State":
        """Itself where the scalar `keep` is true, zero velocity elsewhere."""
        return self._replace(scales=select(keep, self.scales))


def int8(block_size: int = 256, *, seed: int = 0, axis_name: AxisName | None = None) -> Storage:
    """The velocity in 8 bits with one float32 scale a block, rounded at random without bias.

    The values of a block are multiples of its largest magnitude divided by 127, and the error is less than one such
    step. Blocks run along the last axis; where it is shorter than a block, trailing axes are merged, but never the
    first axis of a leaf with two or more: sharded over it, a velocity is rounded without communication. Blocks have
    equal lengths of at least half of `block_size` where the axis has such a divisor (multiples of 8 are fastest), and
    the last is filled up where not. Real and imaginary parts of a complex leaf share a block. A block with a NaN or
    an infinity decodes to no finite value; magnitudes far below 2^-100 are lost. Velocities of float64 leaves have
    the range of float32.

    Args:
        block_size: Largest number of elements that share a scale.
        seed: Of the rounding noise.
        axis_name: Axis (or axes) of `shard_map` or `pmap` over which the parameters are sharded, so that shards get
            noise of their own; leave it out for replicated parameters, whose replicas must round alike.

    Returns:
        A `Storage` of 1 + 4 / block bytes a parameter: about 1.02 where axes are long, see `bytes_per_parameter`.

    Raises:
        TypeError: `block_size` or `seed` is not an integer.
        ValueError: `block_size` is less than 1, or `seed` is negative.

    Source:
        T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", 2022
        (block-wise scales; here the values are linear and the rounding is stochastic).
    """
    checks.whole("int8", "block_size", block_size, 1, "256 costs 1.02 bytes a parameter")
    checks.whole("int8", "seed", seed, 0, "pass a Python integer")

    def init(params: PyTree) -> Int8State:
        def scales(leaf: jax.Array) -> jax.Array:
            return jnp.zeros(_scales_shape(leaf.shape, jnp.iscomplexobj(leaf), block_size), jnp.float32)

        return Int8State(zeros(params, jnp.int8), trees.map_present(scales, params), jnp.zeros((), jnp.uint32))

    def encode(velocity: PyTree, stored: Int8State) -> Int8State:
        keys = noise.keys(seed, stored.step, len(trees.leaves(velocity)), axis_name)

        def round_leaf(number: int, new: jax.Array, _: jax.Array, scales: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _quantize(trees.as_pairs(new).astype(jnp.float32), keys[number], scales.shape)

        values, scales = encode_leaves(round_leaf, velocity, stored.values, stored.scales)
        return Int8State(values, scales, stored.step + jnp.uint32(1))

    return Storage(init, decode, encode)


def decode(stored: PyTree, like: PyTree | None = None) -> PyTree:
    """The velocity in a stored form, as a tree of leaves of at least 32 bits.

    Args:
        stored: What `Storage.init` or `Storage.encode` returned.
        like: Tree of the parameters' structure and dtypes, such as the updates; its absent leaves stay absent.
            Without it complex leaves that are not stored in full are pairs in a trailing axis of 2.

    Returns:
        A tree with the structure of `like`, or of the parameters.
    """
    return stored.decode(like) if isinstance(stored, StoredBuffer) else decode_plain(stored, like)


def where(stored: PyTree, keep: ArrayLike) -> PyTree:
    """A stored form as it is where the scalar `keep` is true, zero velocity elsewhere; counters of noise go on."""
    return stored.where(keep) if isinstance(stored, StoredBuffer) else select(keep, stored)


def bytes_per_parameter(stored: PyTree, params: PyTree) -> float:
    """The memory of a stored form, scales and counters included, divided by the number of parameters."""
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored)]
    return sum(sizes) / sum(leaf.size for leaf in jax.tree.leaves(params))


def floating(function: str, dtype: DTypeLike) -> jnp.dtype:
    remedy = "use jnp.bfloat16, or int8() for 8-bit integers with scales"
    try:
        target = jnp.dtype(dtype)
    except TypeError:
        checks.reject(function, "dtype", "a floating dtype", dtype, remedy, TypeError)
    if not jnp.issubdtype(target, jnp.floating):
        checks.reject(function, "dtype", "a floating dtype", target.name, remedy)
    return target


def zeros(params: PyTree, dtype: DTypeLike) -> PyTree:
    def zeros(leaf: jax.Array) -> jax.Array:
        return jnp.zeros((*leaf.shape, 2), dtype) if jnp.iscomplexobj(leaf) else jnp.zeros_like(leaf, dtype=dtype)

    return trees.map_present(zeros, params)


def as_like(stored: jax.Array, leaf: jax.Array) -> jax.Array:
    dtype = trees.compute_dtype(leaf.dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.iscomplexobj(stored):
        return trees.as_complex(stored.astype(jnp.finfo(dtype).dtype))
    return stored.astype(dtype)


def select(keep: ArrayLike, tree: PyTree) -> PyTree:
    return trees.map_present(lambda leaf: jnp.where(keep, leaf, jnp.zeros_like(leaf)), tree)


def decode_plain(stored: PyTree, like: PyTree | None) -> PyTree:
    if like is None:
        return trees.map_present(lambda leaf: leaf.astype(trees.compute_dtype(leaf.dtype)), stored)
    return trees.map_present(lambda leaf, own: as_like(own, leaf), like, stored)


def _encode_plain(velocity: PyTree, stored: PyTree) -> PyTree:
    def convert(_: int, new: jax.Array, old: jax.Array) -> tuple[jax.Array]:
        return ((new if jnp.iscomplexobj(old) else trees.as_pairs(new)).astype(old.dtype),)

    return encode_leaves(convert, velocity, stored)[0]


def encode_leaves(function: Callable[..., Any], velocity: PyTree, *stored: PyTree) -> list[PyTree]:
    """Map `function(number, new, *old) -> leaves of the stored trees`; absent velocities keep the old leaves."""
    rows = zip(trees.leaves(velocity), *map(trees.leaves, stored), strict=True)
    results = [old if trees.is_absent(new) else function(i, new, *old) for i, (new, *old) in enumerate(rows)]
    return [trees.rebuild(tree, [result[i] for result in results]) for i, tree in enumerate(stored)]
