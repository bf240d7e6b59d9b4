"""A velocity in 8 bits, in blocks that share a scale, rounded at random."""

import math
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nagjax import checks, noise, trees
from nagjax.mapped import AxisName
from nagjax.storage import plain
from nagjax.types import PyTree, Storage

_FRACTION_BITS = 12  # of the noise: coarse enough that rescaling leaves representable values alone
_UNITS = 127 * 2**_FRACTION_BITS  # of the fixed-point numbers that are rounded; so many make the scale of a block
_MAGIC = 1.5 * 2.0**23  # x + _MAGIC holds round(x) in the low bits of its float32 pattern, for |x| < 2**22
_TINY = 2.0**-100  # the least scale, so that reciprocals are finite


class Int8State(NamedTuple):
    """A velocity in 8 bits, in blocks that share a scale; the two shapes of a leaf say where its blocks lie."""

    values: PyTree  # the leaves' shapes (complex: a trailing axis of 2), int8 in [-127, 127]
    scales: PyTree  # the largest |w| of a block, w = scale * value / 127: the rank of values, float32
    step: jax.Array  # counter of the noise, uint32 scalar; never reset

    def decode(self, like: PyTree | None = None) -> PyTree:
        """The velocity as a tree; complex leaves need `like`, else they are pairs in a trailing axis of 2."""
        return plain.decode_arrays(trees.map_present(_dequantize, self.values, self.scales), like)

    def where(self, keep: ArrayLike) -> "Int8State":
        """Itself where the scalar `keep` is true, zero velocity elsewhere."""
        return self._replace(scales=plain.select(keep, self.scales))

    def scaled(self, factors: list[jax.Array]) -> "Int8State":
        """Itself times one scalar a leaf, without rounding."""
        return self._replace(scales=plain.scale_arrays(self.scales, factors))


def int8(block_size: int = 256, *, seed: int = 0, axis_name: AxisName | None = None) -> Storage:
    """The velocity in 8 bits with one float32 scale a block, rounded at random without bias.

    The values of a block are multiples of its largest magnitude divided by 127, and the error is less than one such
    step. Blocks run along the last axis; where it is shorter than a block, trailing axes are merged, but never the
    first axis of a leaf with two or more: sharded over it, a velocity is rounded without communication. Blocks are
    equally long, at least half of `block_size`, where such a length divides the axis (multiples of 8 are fastest);
    elsewhere the last block is filled up. Real and imaginary parts of a complex leaf share a block. A block with a
    NaN or an infinity decodes to no finite value; magnitudes far below 2^-100 are lost. Velocities of float64 leaves
    have the range of float32.

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

    Example:
        >>> import jax.numpy as jnp
        >>> import nagjax
        >>> kept = nagjax.storage.int8()
        >>> velocity = jnp.linspace(-1.0, 1.0, 1024)
        >>> stored = kept.encode(velocity, kept.init(velocity))
        >>> bool(abs(kept.decode(stored, velocity) - velocity).max() < 1 / 127)
        True

    Source:
        T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", 2022
        (block-wise scales; here the values are linear and the rounding is stochastic).
    """
    checks.whole("int8", "block_size", block_size, 1, "256 costs 1.02 bytes a parameter")
    checks.whole("int8", "seed", seed, 0, "pass a Python integer")

    def scale(leaf: jax.Array) -> jax.Array:
        shape = _scales_shape(leaf.shape, jnp.iscomplexobj(leaf), block_size)
        return jnp.zeros_like(leaf, dtype=jnp.float32, shape=shape)

    def init(params: PyTree) -> Int8State:
        return Int8State(plain.zeros(params, jnp.int8), trees.map_present(scale, params), jnp.zeros((), jnp.uint32))

    def encode(velocity: PyTree, stored: Int8State) -> Int8State:
        keys = noise.keys(seed, stored.step, len(trees.leaves(velocity)), axis_name)

        def round_leaf(number: int, new: jax.Array, _: jax.Array, scales: jax.Array) -> tuple[jax.Array, jax.Array]:
            real = trees.as_pairs(new).astype(jnp.float32)
            return cast("tuple[jax.Array, jax.Array]", _quantize(real, keys[number], scales.shape))

        values, scales = plain.encode_leaves(round_leaf, velocity, stored.values, stored.scales)
        return Int8State(values, scales, stored.step + np.uint32(1))

    return Storage(init, plain.decode, encode)


def _scales_shape(shape: tuple[int, ...], pairs: bool, block_size: int) -> tuple[int, ...]:
    tail = (1,) * pairs
    if not shape:
        return tail
    first, row = len(shape) - 1, shape[-1]
    while row < block_size and first > 1:
        first -= 1
        row *= shape[first]
    merged = (1,) * (len(shape) - 1 - first)
    return (*shape[:first], *merged, _blocks_in(row, block_size), *tail)


def _blocks_in(row: int, block_size: int) -> int:
    if row <= block_size:
        return 1
    lengths = [length for length in range(block_size, block_size // 2, -1) if row % length == 0]
    lengths = [length for length in lengths if length % 8 == 0] or lengths or [block_size]
    return -(-row // lengths[0])


def _layout(values: tuple[int, ...], scales: tuple[int, ...]) -> tuple[tuple[int, ...], int, int, int]:
    """The leading axes, the blocks in a row, the elements in a block and in a row."""
    if not scales:
        return (), 1, 1, 1
    last = first = len(scales) - 1  # the axis that counts blocks, and the first that is merged with it
    while first > 1 and scales[first - 1] == 1:
        first -= 1
    if scales[:first] != values[:first]:  # so the trailing axis holds pairs
        last = first = last - 1
        while first > 1 and scales[first - 1] == 1:
            first -= 1
    unit, row = math.prod(values[last + 1 :]), math.prod(values[first:])
    return values[:first], scales[last], unit * -(-row // (unit * scales[last])), row


def _blocks(leaf: jax.Array, scales: tuple[int, ...]) -> jax.Array:
    lead, count, length, row = _layout(leaf.shape, scales)
    if row < count * length:
        leaf = jnp.pad(leaf.reshape(*lead, row), [(0, 0)] * len(lead) + [(0, count * length - row)])
    return leaf.reshape(*lead, count, length)


def _unblocks(blocks: jax.Array, shape: tuple[int, ...], scales: tuple[int, ...]) -> jax.Array:
    lead, count, length, row = _layout(shape, scales)
    if row < count * length:
        blocks = blocks.reshape(*lead, count * length)[..., :row]
    return blocks.reshape(shape)


def _per_element(scales: jax.Array, blocks: jax.Array) -> jax.Array:
    return jax.lax.broadcast_in_dim(scales, blocks.shape, tuple(range(scales.ndim)))


@jax.jit
def _dequantize(values: jax.Array, scales: jax.Array) -> jax.Array:
    if not values.size:
        return values.astype(jnp.float32)
    blocks = _blocks(values, scales.shape).astype(jnp.float32)
    steps = (scales * np.float32(1 / 127)).reshape(blocks.shape[:-1])
    return _unblocks(blocks * _per_element(steps, blocks), values.shape, scales.shape)


# How `_quantize` is written decides how XLA's CPU backend compiles it (measurements in BUILD_NOTES.md): one pass over
# the operands for the scales, one for the values, and no array of 32 bits in memory. The last operation has two
# operands in the shape of the leaf; then whatever follows reads the values instead of computing them again.
@partial(jax.jit, static_argnames="scales")
def _quantize(real: jax.Array, key: jax.Array, scales: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    if not real.size:
        return jnp.zeros(real.shape, jnp.int8), jnp.zeros(scales, jnp.float32)
    blocks = _blocks(real, scales)
    largest = _largest(blocks)
    units = blocks * _per_element(np.float32(_UNITS) / largest, blocks) + np.float32(_MAGIC)
    units = _unblocks(_pattern(units), real.shape, scales)
    fraction = (noise.bits(key, real.shape) >> np.uint32(32 - _FRACTION_BITS)).astype(jnp.int32)
    carry = ((units & np.int32(2**_FRACTION_BITS - 1)) + fraction) >> np.int32(_FRACTION_BITS)
    floor = units >> np.int32(_FRACTION_BITS)  # in its low byte; _MAGIC adds a multiple of 256
    return floor.astype(jnp.int8) + carry.astype(jnp.int8), largest.reshape(scales)


def _largest(blocks: jax.Array) -> jax.Array:
    """The largest magnitude along the last axis, at least _TINY; NaN where there is one."""
    # Patterns are ordered like magnitudes, NaN last, and XLA vectorizes the maximum of integers but not of floats. It
    # cuts reductions of more than 32 elements in two and writes out their operands, so halves are compared before.
    patterns = _pattern(jnp.abs(blocks))
    while patterns.shape[-1] > 32:
        half = -(-patterns.shape[-1] // 2)
        patterns = jnp.maximum(patterns[..., :half], patterns[..., -half:])
    least = np.float32(_TINY).view(np.int32)
    return jax.lax.bitcast_convert_type(jax.lax.reduce(patterns, least, jax.lax.max, (blocks.ndim - 1,)), jnp.float32)


def _pattern(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)
