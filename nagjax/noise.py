"""Rounding noise from a counter: a hash of (seed, step, leaf, element) in 32-bit integers.

A hash of the element's own index is one fused elementwise expression, has no state but the counter of steps, and is
the same however an array is sharded. Random keys of `jax.random` would be compiled once a leaf.
"""

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from nagjax.mapped import AxisName

# Odd multipliers of a 32-bit hash of low bias (`lowbias32` of C. Wellons' hash prospector, 2018), the golden ratio,
# and the linear congruential generator that PCG uses at 32 bits (M. O'Neill, 2014).
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B
_GOLDEN = 0x9E3779B9
_MULTIPLIER = 747796405
_INCREMENT = 2891336453


def keys(seed: int, step: jax.Array, count: int, axis_name: AxisName | None = None) -> list[jax.Array]:
    """The parts of the hash that the elements of a leaf share, for every leaf of a step.

    Args:
        seed: Any integer; its low 32 bits count.
        step: Counter of steps, uint32 scalar.
        count: Number of leaves.
        axis_name: Axis (or axes) of `shard_map`, `pmap` or `vmap` along which the noise is to differ.

    Returns:
        As many uint32 scalars.
    """
    first = _mix(jnp.asarray(step) + _uint32(seed * _GOLDEN + 1))
    if axis_name is not None:
        first = _mix(first ^ _mix(jax.lax.axis_index(axis_name).astype(jnp.uint32) + _uint32(_GOLDEN)))

    def chain(key: jax.Array) -> list[jax.Array]:
        # XLA's CPU backend compiles equal kernels once. Leaves of one shape have equal kernels if their keys are
        # operands, not expressions with constants of their own; and it fuses any expression but a reduction.
        found: list[jax.Array] = []
        for _ in range(count):
            found.append(key)
            lanes = key * np.array([_MULTIPLIER, 0], np.uint32) + np.array([0, _INCREMENT], np.uint32)
            key = jnp.sum(lanes, dtype=jnp.uint32)
        return found

    def direct(key: jax.Array) -> list[jax.Array]:
        found: list[jax.Array] = []
        multiplier, increment = 1, 0
        for _ in range(count):
            found.append(key * _uint32(multiplier) + _uint32(increment))
            multiplier, increment = multiplier * _MULTIPLIER, increment * _MULTIPLIER + _INCREMENT
        return found

    return cast("list[jax.Array]", jax.lax.platform_dependent(first, cpu=chain, default=direct))


def bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """32 noisy bits an element, of which the upper 16 are good.

    Args:
        key: The key of the leaf.
        shape: Shape of the leaf.

    Returns:
        uint32 array.
    """
    index, stride = key, 1
    for axis in reversed(range(len(shape))):
        if shape[axis] > 1:
            place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            index += place if stride == 1 else place * _uint32(stride)
        stride *= shape[axis]
    mixed = jnp.broadcast_to(index, shape) * _uint32(_FIRST)
    return (mixed ^ (mixed >> _uint32(15)) ^ key) * _uint32(_SECOND)


def _mix(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> _uint32(16))) * _uint32(_FIRST)
    word = (word ^ (word >> _uint32(15))) * _uint32(_SECOND)
    return word ^ (word >> _uint32(16))


def _uint32(value: int) -> np.uint32:
    return np.uint32(value & 0xFFFFFFFF)
