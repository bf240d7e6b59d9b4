"""A velocity in 16 bits, rounded at random."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks, noise, trees
from nagjax.reductions import AxisName
from nagjax.storage import plain
from nagjax.types import PyTree, Storage


class StochasticState(NamedTuple):
    """A velocity in 16 bits, rounded at random."""

    values: PyTree  # w: the leaves' shapes (complex: a trailing axis of 2), bfloat16 or float16
    step: jax.Array  # counter of the noise, uint32 scalar; never reset

    def decode(self, like: PyTree | None = None) -> PyTree:
        """The velocity as a tree; complex leaves need `like`, else they are pairs in a trailing axis of 2."""
        return plain.decode_plain(self.values, like)

    def where(self, keep: ArrayLike) -> "StochasticState":
        """Itself where the scalar `keep` is true, zero velocity elsewhere."""
        return self._replace(values=plain.select(keep, self.values))


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
    target = plain.floating("stochastic_rounding", dtype)
    if target not in (jnp.bfloat16, jnp.float16):
        remedy = "use cast() for other dtypes or int8()"
        checks.reject("stochastic_rounding", "dtype", "bfloat16 or float16", target.name, remedy)
    checks.whole("stochastic_rounding", "seed", seed, 0, "pass a Python integer")

    def init(params: PyTree) -> StochasticState:
        return StochasticState(plain.zeros(params, target), jnp.zeros((), jnp.uint32))

    def encode(velocity: PyTree, stored: StochasticState) -> StochasticState:
        keys = noise.keys(seed, stored.step, len(trees.leaves(velocity)), axis_name)

        def round_leaf(number: int, new: jax.Array, old: jax.Array) -> tuple[jax.Array]:
            return (_round_at_random(trees.as_pairs(new).astype(jnp.float32), keys[number], old.dtype),)

        (values,) = plain.encode_leaves(round_leaf, velocity, stored.values)
        return StochasticState(values, stored.step + jnp.uint32(1))

    return Storage(init, decode, encode)


@partial(jax.jit, static_argnames="dtype")
def _round_at_random(real: jax.Array, key: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Add noise below the bits that `dtype` keeps of a float32, and cut them off."""
    info = jnp.finfo(dtype)
    cut = np.uint32(23 - info.nmant)
    magnitude = jnp.abs(real)
    # The subnormal numbers of float16 are equidistant, like the numbers of the first normal binade: shift them there.
    first = jnp.float32(info.smallest_normal)
    shift = jnp.where(magnitude < first, first, jnp.float32(0)) if dtype == jnp.float16 else jnp.float32(0)
    pattern = jax.lax.bitcast_convert_type(magnitude + shift, jnp.uint32)
    pattern = ((pattern + (noise.bits(key, real.shape) >> (np.uint32(32) - cut))) >> cut) << cut
    rounded = jnp.copysign(jax.lax.bitcast_convert_type(pattern, jnp.float32) - shift, real)
    return jnp.where(jnp.isfinite(real), rounded, real).astype(dtype)
