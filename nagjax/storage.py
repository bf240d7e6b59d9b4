"""Storage of the velocity in the parameters' own precision, 16 bits or 8 bits.

Every form is read by `decode` and cleared by `where`, which need the stored tree alone. `int8` and
`stochastic_rounding` round without bias: a value between two representable ones goes up with a probability
proportional to its distance from the lower. Rounding to nearest loses every step smaller than half a unit of the
velocity, which shifts the point that a run with decay near 1 converges to; rounding at random does not.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks, noise, trees
from nagjax.types import PyTree, Storage, StoredBuffer

_FRACTION_BITS = 12  # of the noise for 8 bits: coarse enough that rescaling leaves representable values alone
_MAGIC = 1.5 * 2.0**23  # x + _MAGIC holds round(x) in the low bits of its float32 pattern, for |x| < 2**22
_TINY = 2.0**-100  # blocks that lie below it are stored as zero, so that no reciprocal overflows


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
        dtype: a real floating dtype, such as `jnp.bfloat16`.

    Returns:
        A `Storage` of as many bytes a parameter as the dtype has; complex leaves become pairs.
    """
    target = _floating("cast", dtype)

    def init(params: PyTree) -> PyTree:
        return _zeros(params, jax.dtypes.canonicalize_dtype(target))

    return Storage(init, decode, _encode_plain)


class StochasticState(NamedTuple):
    """A velocity in 16 bits, rounded at random."""

    values: PyTree  # w: the leaves' shapes (complex: a trailing axis of 2), bfloat16 or float16
    step: jax.Array  # counter of the noise, uint32 scalar; never reset

    def decode(self, like: PyTree | None = None) -> PyTree:
        """The velocity as a tree; complex leaves need `like`, else they are pairs in a trailing axis of 2."""
        return _decode_plain(self.values, like)

    def where(self, keep: ArrayLike) -> "StochasticState":
        """Itself where the scalar `keep` is true, zero velocity elsewhere."""
        return self._replace(values=_select(keep, self.values))


def stochastic_rounding(dtype: DTypeLike, *, seed: int = 0, axis_name: Hashable | None = None) -> Storage:
    """The velocity rounded at random, without bias, to bfloat16 or float16.

    Values beyond the largest finite one round to it or to infinity in the same way. Infinities and NaN stay.

    Args:
        dtype: `jnp.bfloat16` or `jnp.float16`.
        seed: of the rounding noise.
        axis_name: axis of `shard_map` or `pmap` over which the parameters are sharded, so that shards get noise of
            their own; leave it out for replicated parameters, whose replicas must round alike.

    Returns:
        A `Storage` of 2 bytes a parameter.
    """
    target = _floating("stochastic_rounding", dtype)
    if target not in (jnp.bfloat16, jnp.float16):
        remedy = "use cast() for other dtypes or int8()"
        checks.reject("stochastic_rounding", "dtype", "bfloat16 or float16", target.name, remedy)
    checks.whole("stochastic_rounding", "seed", seed, 0, "pass a Python integer")

    def init(params: PyTree) -> StochasticState:
        return StochasticState(_zeros(params, target), jnp.zeros((), jnp.uint32))

    def encode(velocity: PyTree, stored: StochasticState) -> StochasticState:
        key = noise.key(seed, stored.step, axis_name)

        def round_leaf(number: int, new: jax.Array, old: jax.Array) -> tuple[jax.Array]:
            real = trees.as_pairs(new).astype(jnp.float32)
            return (_round_at_random(real, noise.bits(key, number, real.shape), old.dtype),)

        (values,) = _encode_leaves(round_leaf, velocity, stored.values)
        return StochasticState(values, stored.step + jnp.uint32(1))

    return Storage(init, decode, encode)


class Int8State(NamedTuple):
    """A velocity in 8 bits, in blocks that share a scale; the two shapes of a leaf say where its blocks lie."""

    values: PyTree  # the leaves' shapes (complex: a trailing axis of 2), int8 in [-127, 127]
    scales: PyTree  # w = scale * value: the rank of values, float32
    step: jax.Array  # counter of the noise, uint32 scalar; never reset

    def decode(self, like: PyTree | None = None) -> PyTree:
        """The velocity as a tree; complex leaves need `like`, else they are pairs in a trailing axis of 2."""
        if like is None:
            return trees.map_present(_dequantize, self.values, self.scales)
        return trees.map_present(lambda leaf, *own: _like(_dequantize(*own), leaf), like, self.values, self.scales)

    def where(self, keep: ArrayLike) -> "Int8State":
        """Itself where the scalar `keep` is true, zero velocity elsewhere."""
        return self._replace(scales=_select(keep, self.scales))


def int8(block_size: int = 256, *, seed: int = 0, axis_name: Hashable | None = None) -> Storage:
    """The velocity in 8 bits with one float32 scale a block, rounded at random without bias.

    A block's scale is its largest magnitude divided by 127, so the error is less than one scale. Blocks run along
    the last axis; where it is shorter than a block, trailing axes are merged, but never the first axis of a leaf
    with two or more: sharded over it, a velocity is rounded without communication. Real and imaginary parts of a
    complex leaf share a scale. A block with a NaN or an infinity decodes to no finite value; one whose largest
    magnitude is less than 2^-100 is stored as zero. Velocities of float64 leaves keep float32's range and precision.

    Args:
        block_size: largest number of elements that share a scale.
        seed: of the rounding noise.
        axis_name: axis of `shard_map` or `pmap` over which the parameters are sharded, so that shards get noise of
            their own; leave it out for replicated parameters, whose replicas must round alike.

    Returns:
        A `Storage` of 1 + 4 / block bytes a parameter: about 1.02 where axes are long, see `bytes_per_parameter`.

    Source:
        T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", 2022
        (block-wise scales; here the values are linear and the rounding is stochastic).
    """
    checks.whole("int8", "block_size", block_size, 1, "256 costs 1.02 bytes a parameter")
    checks.whole("int8", "seed", seed, 0, "pass a Python integer")

    def init(params: PyTree) -> Int8State:
        def scales(leaf: jax.Array) -> jax.Array:
            # Like the leaf, so that inside shard_map they vary over the same axes.
            shape = _scales_shape(leaf.shape, jnp.iscomplexobj(leaf), block_size)
            return jnp.zeros_like(leaf, dtype=jnp.float32, shape=shape)

        return Int8State(_zeros(params, jnp.int8), trees.map_present(scales, params), jnp.zeros((), jnp.uint32))

    def encode(velocity: PyTree, stored: Int8State) -> Int8State:
        key = noise.key(seed, stored.step, axis_name)

        def round_leaf(number: int, new: jax.Array, values: jax.Array, scales: jax.Array) -> tuple[jax.Array, ...]:
            del values
            return _quantize(trees.as_pairs(new).astype(jnp.float32), scales.shape, key, number)

        values, scales = _encode_leaves(round_leaf, velocity, stored.values, stored.scales)
        return Int8State(values, scales, stored.step + jnp.uint32(1))

    return Storage(init, decode, encode)


def decode(stored: PyTree, like: PyTree | None = None) -> PyTree:
    """The velocity in a stored form, as a tree of leaves of at least 32 bits.

    Args:
        stored: what `Storage.init` or `Storage.encode` returned.
        like: tree of the parameters' structure and dtypes, such as the updates; its absent leaves stay absent.
            Without it complex leaves that are not stored in full are pairs in a trailing axis of 2.

    Returns:
        A tree with the structure of `like`, or of the parameters.
    """
    return stored.decode(like) if isinstance(stored, StoredBuffer) else _decode_plain(stored, like)


def where(stored: PyTree, keep: ArrayLike) -> PyTree:
    """A stored form as it is where the scalar `keep` is true, zero velocity elsewhere; counters of noise go on."""
    return stored.where(keep) if isinstance(stored, StoredBuffer) else _select(keep, stored)


def bytes_per_parameter(stored: PyTree, params: PyTree) -> float:
    """The memory of a stored form, scales and counters included, divided by the number of parameters."""
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored)]
    return sum(sizes) / sum(leaf.size for leaf in jax.tree.leaves(params))


def _floating(function: str, dtype: DTypeLike) -> jnp.dtype:
    remedy = "use jnp.bfloat16, or int8() for 8-bit integers with scales"
    try:
        target = jnp.dtype(dtype)
    except TypeError:
        checks.reject(function, "dtype", "a floating dtype", dtype, remedy, TypeError)
    if not jnp.issubdtype(target, jnp.floating):
        checks.reject(function, "dtype", "a floating dtype", target.name, remedy)
    return target


def _zeros(params: PyTree, dtype: DTypeLike) -> PyTree:
    def zeros(leaf: jax.Array) -> jax.Array:
        return trees.as_pairs(jnp.zeros_like(leaf)).astype(dtype)

    return trees.map_present(zeros, params)


def _like(stored: jax.Array, leaf: jax.Array) -> jax.Array:
    dtype = trees.compute_dtype(leaf.dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.iscomplexobj(stored):
        parts = stored.astype(jnp.finfo(dtype).dtype)
        return jax.lax.complex(parts[..., 0], parts[..., 1])
    return stored.astype(dtype)


def _select(keep: ArrayLike, tree: PyTree) -> PyTree:
    return trees.map_present(lambda leaf: jnp.where(keep, leaf, jnp.zeros_like(leaf)), tree)


def _decode_plain(stored: PyTree, like: PyTree | None) -> PyTree:
    if like is None:
        return trees.map_present(lambda leaf: leaf.astype(trees.compute_dtype(leaf.dtype)), stored)
    return trees.map_present(lambda leaf, own: _like(own, leaf), like, stored)


def _encode_plain(velocity: PyTree, stored: PyTree) -> PyTree:
    def convert(number: int, new: jax.Array, old: jax.Array) -> tuple[jax.Array]:
        del number
        return ((new if jnp.iscomplexobj(old) else trees.as_pairs(new)).astype(old.dtype),)

    return _encode_leaves(convert, velocity, stored)[0]


def _encode_leaves(function: Callable[..., Any], velocity: PyTree, *stored: PyTree) -> list[PyTree]:
    """Map `function(number, new, *old) -> leaves of the stored trees`; absent velocities keep the old leaves."""
    rows = zip(trees.leaves(velocity), *map(trees.leaves, stored), strict=True)
    results = [old if trees.is_absent(new) else function(i, new, *old) for i, (new, *old) in enumerate(rows)]
    structure = jax.tree.structure(stored[0], is_leaf=trees.is_absent)
    return [structure.unflatten([result[i] for result in results]) for i in range(len(stored))]


def _round_at_random(real: jax.Array, bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Add noise below the bits that `dtype` keeps of a float32, and cut them off."""
    info = jnp.finfo(dtype)
    cut = jnp.uint32(23 - info.nmant)
    magnitude = jnp.abs(real)
    # The subnormal numbers of float16 are equidistant, like the numbers of the first normal binade: shift them there.
    first = jnp.float32(info.smallest_normal)
    shift = jnp.where(magnitude < first, first, jnp.float32(0)) if dtype == jnp.float16 else jnp.float32(0)
    pattern = jax.lax.bitcast_convert_type(magnitude + shift, jnp.uint32)
    pattern = ((pattern + (bits >> (jnp.uint32(32) - cut))) >> cut) << cut
    rounded = jnp.copysign(jax.lax.bitcast_convert_type(pattern, jnp.float32) - shift, real)
    return jnp.where(jnp.isfinite(real), rounded, real).astype(dtype)


def _scales_shape(shape: tuple[int, ...], pairs: bool, block_size: int) -> tuple[int, ...]:
    tail = (1,) * pairs
    if not shape:
        return tail
    first, row = len(shape) - 1, shape[-1]
    while row < block_size and first > 1:
        first -= 1
        row *= shape[first]
    merged = (1,) * (len(shape) - 1 - first)
    return (*shape[:first], *merged, max(1, -(-row // block_size)), *tail)


def _layout(values: tuple[int, ...], scales: tuple[int, ...]) -> tuple[tuple[int, ...], int, int, int]:
    """The leading axes, the blocks in a row, the elements in a block and in a row."""
    last = len(scales) - 1
    if last < 0:
        return (), 1, 1, 1
    if last > 0 and scales[last] == 1 and scales[last - 1] != values[last - 1]:
        last -= 1  # the trailing axis holds pairs
    first = last
    while first > 1 and scales[first - 1] == 1:
        first -= 1
    unit = math.prod(values[last + 1 :])
    row = math.prod(values[first:])
    return values[:first], scales[last], unit * -(-row // (unit * scales[last])), row


def _blocks(leaf: jax.Array, scales: tuple[int, ...]) -> jax.Array:
    lead, count, length, row = _layout(leaf.shape, scales)
    rows = leaf.reshape(*lead, row)
    if row < count * length:
        rows = jnp.pad(rows, [(0, 0)] * len(lead) + [(0, count * length - row)])
    return rows.reshape(*lead, count, length)


def _unblocks(blocks: jax.Array, shape: tuple[int, ...], scales: tuple[int, ...]) -> jax.Array:
    lead, count, length, row = _layout(shape, scales)
    rows = blocks.reshape(*lead, count * length)
    return rows[..., :row].reshape(shape)


def _dequantize(values: jax.Array, scales: jax.Array) -> jax.Array:
    if not values.size:
        return values.astype(jnp.float32)
    blocks = _blocks(values, scales.shape).astype(jnp.float32)
    return _unblocks(blocks * scales.reshape(*blocks.shape[:-1], 1), values.shape, scales.shape)


def _quantize(real: jax.Array, scales: tuple[int, ...], key: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    if not real.size:
        return jnp.zeros(real.shape, jnp.int8), jnp.zeros(scales, jnp.float32)
    blocks = _blocks(real, scales)
    # Patterns of nonnegative floats are ordered like the floats, NaN last; and XLA vectorizes an integer maximum.
    pattern = jax.lax.bitcast_convert_type(jnp.abs(blocks), jnp.int32)
    largest = jax.lax.bitcast_convert_type(jnp.max(pattern, axis=-1, keepdims=True), jnp.float32)
    empty = largest < jnp.float32(_TINY)
    scale = jnp.where(empty, jnp.float32(0), largest / jnp.float32(127))
    steps = 127 * 2.0**_FRACTION_BITS
    inverse = jnp.where(empty, jnp.float32(0), jnp.float32(steps) / jnp.where(empty, jnp.float32(1), largest))
    shifted = jax.lax.bitcast_convert_type(blocks * inverse + jnp.float32(_MAGIC), jnp.int32)
    magic = jax.lax.bitcast_convert_type(jnp.float32(_MAGIC), jnp.int32)
    fraction = noise.bits(key, number, blocks.shape) >> jnp.uint32(32 - _FRACTION_BITS)
    rounded = (shifted - magic + fraction.astype(jnp.int32)) >> jnp.int32(_FRACTION_BITS)
    return _unblocks(rounded.astype(jnp.int8), real.shape, scales), scale.reshape(scales)
