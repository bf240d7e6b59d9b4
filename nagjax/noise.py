"""Rounding noise from a counter: a hash of (seed, step, leaf, element) in 32-bit integers.

A hash of the element's own index is one fused elementwise expression, has no state but the counter of steps, and is
the same however an array is sharded. Random keys of `jax.random` would be compiled once a leaf.
"""

from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp

# Odd multipliers of Chris Wellons' search for 32-bit hashes of low bias (`lowbias32`), and the golden ratio.
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B
_GOLDEN = 0x9E3779B9


def key(seed: int, step: jax.Array, axis_name: Hashable | None = None) -> jax.Array:
    """The part of the hash that all elements of one step share.

    Args:
        seed: any integer; its low 32 bits count.
        step: counter of steps, uint32 scalar.
        axis_name: axis (or axes) of `shard_map`, `pmap` or `vmap` along which the noise is to differ.

    Returns:
        uint32 scalar.
    """
    mixed = _mix(step + _uint32(seed * _GOLDEN + 1))
    if axis_name is None:
        return mixed
    return _mix(mixed ^ _mix(jax.lax.axis_index(axis_name).astype(jnp.uint32) + _uint32(_GOLDEN)))


def bits(key: jax.Array, leaf: int, shape: Sequence[int]) -> jax.Array:
    """32 noisy bits an element; the high ones are the best.

    Args:
        key: what `key` returns.
        leaf: number of the leaf in its tree.
        shape: shape of the result.

    Returns:
        uint32 array.
    """
    first = _mix(key ^ _uint32(leaf * _GOLDEN))
    second = _mix(first + _uint32(_GOLDEN))
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * _uint32(stride)
        stride *= shape[axis]
    mixed = (index + first) * _uint32(_FIRST)
    mixed = (mixed ^ (mixed >> _uint32(15)) ^ second) * _uint32(_SECOND)
    return mixed ^ (mixed >> _uint32(16))


def _mix(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> _uint32(16))) * _uint32(_FIRST)
    word = (word ^ (word >> _uint32(15))) * _uint32(_SECOND)
    return word ^ (word >> _uint32(16))


def _uint32(value: int) -> jax.Array:
    return jnp.uint32(value & 0xFFFFFFFF)
