"""How displacements travel between workers in 16 or 8 bits, with the rounding error kept for the next round."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks, trees
from nagjax.mapped import AxisName, differs_over
from nagjax.types import PyTree

_SCALE_BYTES = 4  # a float32 for each block


class Wire(NamedTuple):
    """How vectors travel: `decode(encode(rows))` are rows rounded to the nearest.

    Both act on the last axis, whose length is a multiple of `multiple`.
    """

    encode: Callable[[jax.Array], jax.Array]  # real rows to integers of the width that travels
    decode: Callable[[jax.Array], jax.Array]  # back to float32
    multiple: int


def bfloat16() -> Wire:
    """The wire of 2 bytes an element: bfloat16, rounded to the nearest.

    Returns:
        A `Wire`. Values with 8 significant bits travel exactly.
    """

    def encode(rows: jax.Array) -> jax.Array:
        # As integers: XLA's CPU backend would widen collectives of bfloat16 to float32.
        return jax.lax.bitcast_convert_type(rows.astype(jnp.bfloat16), jnp.uint16)

    def decode(sent: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(sent, jnp.bfloat16).astype(jnp.float32)

    return Wire(encode, decode, 1)


def int8(block_size: int = 256) -> Wire:
    """The wire of 1 + 4 / block_size bytes an element: blocks of 8-bit integers that share a float32 scale.

    A block travels as multiples of its largest magnitude divided by 127, rounded to the nearest. A block with a NaN
    or an infinity arrives as NaN.

    Args:
        block_size: Elements that share a scale, at least 1.

    Returns:
        A `Wire`.

    Raises:
        TypeError: `block_size` is not an integer.
        ValueError: `block_size` is less than 1.
    """
    checks.whole("outer.wire.int8", "block_size", block_size, 1, "256 costs 1.02 bytes an element")

    def encode(rows: jax.Array) -> jax.Array:
        blocks = rows.reshape(*rows.shape[:-1], -1, block_size)
        scales = (jnp.max(jnp.abs(blocks), axis=-1) / 127).astype(jnp.float32)
        units = jnp.where(scales > 0, scales, 1)[..., None].astype(rows.dtype)
        values = jnp.clip(jnp.round(blocks / units), -127, 127).astype(jnp.int8)
        # Behind its values, so that one collective moves both.
        return jnp.concatenate([values, jax.lax.bitcast_convert_type(scales, jnp.int8)], axis=-1).reshape(
            *rows.shape[:-1], -1
        )

    def decode(sent: jax.Array) -> jax.Array:
        blocks = sent.reshape(*sent.shape[:-1], -1, block_size + _SCALE_BYTES)
        values, scales = blocks[..., :block_size], blocks[..., block_size:]
        steps = jax.lax.bitcast_convert_type(scales, jnp.float32)[..., None]
        return (values.astype(jnp.float32) * steps).reshape(*sent.shape[:-1], -1)

    return Wire(encode, decode, block_size)


def compressed_sum(tree: PyTree, residual: PyTree, wire: Wire, axis_name: AxisName) -> tuple[PyTree, PyTree]:
    """The sum of `tree + residual` over workers through a wire, and the next residual of this worker.

    A reduce-scatter and an all-gather by hand: every worker owns a part of all elements, receives it compressed from
    the others, sums it in full precision, and sends the sum compressed. A worker receives 2 (M - 1) / M compressed
    elements for each of its own, as in a ring all-reduce. What the two roundings leave out is kept: each worker its
    own, and the owner of a part that of the sum too, for it to send again in its next contribution::

        sum over rounds of what this returns + sum over workers of the residuals = sum of all contributions

    Args:
        tree: What this worker contributes, leaves real or complex of at least 32 bits, or absent.
        residual: In the structure of the parameters, as this function returned it; zeros at first.
        wire: How rows travel.
        axis_name: The mapped axis, or axes, of workers.

    Returns:
        The sum, equal in every bit on all workers, and the residual.

    Source:
        H. Tang, X. Lian, C. Yu, T. Zhang and J. Liu, "DoubleSqueeze: parallel stochastic gradient descent with
        double-pass error-compensated compression", 2019, Algorithm 1; with many owners in place of one server, and
        the server's error in the owner's next contribution.
    """
    owed = trees.add(tree, residual)
    vector = trees.ravel(owed)
    if not vector.size:  # nothing travels, and what is returned is the same on all workers
        return trees.map_present(_empty, owed), residual
    workers = jax.lax.axis_size(axis_name)
    length = -(-vector.size // (workers * wire.multiple)) * wire.multiple
    rows = jnp.pad(vector, (0, workers * length - vector.size)).reshape(workers, length)
    dtype = rows.dtype

    sent = wire.encode(rows)
    received = cast("jax.Array", jax.lax.all_to_all(sent, axis_name, split_axis=0, concat_axis=0))
    part = jnp.sum(wire.decode(received).astype(dtype), axis=0)
    returned = wire.encode(part)
    summed = wire.decode(_gathered(returned, axis_name)).astype(dtype).reshape(-1)[: vector.size]

    own = np.arange(workers, dtype=np.int32)[:, None] == jax.lax.axis_index(axis_name)
    late = jnp.where(own, (part - wire.decode(returned).astype(dtype))[None], 0)
    error = (rows - wire.decode(sent).astype(dtype) + late).reshape(-1)[: vector.size]
    return trees.unravel(owed, summed), trees.merged(residual, trees.unravel(owed, error))


def _empty(leaf: jax.Array) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype)


def _gathered(row: jax.Array, axis_name: AxisName) -> jax.Array:
    """The rows of all workers, marked as equal on all of them where `shard_map` keeps track of that."""
    axes = cast("tuple[Any, ...]", axis_name if isinstance(axis_name, tuple) else (axis_name,))
    to = "invarying" if differs_over(row) >= set(axes) else "varying"
    return cast("jax.Array", jax.lax.all_gather(row, axis_name, to=to))
