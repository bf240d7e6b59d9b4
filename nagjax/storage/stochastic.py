"""A velocity in 16 bits, rounded at random."""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks, noise, trees
from nagjax.mapped import AxisName
from nagjax.storage import plain
from nagjax.types import PyTree, Storage

_BITS = {jnp.dtype(jnp.bfloat16): 16, jnp.dtype(jnp.float16): 13}  # of a float32 that the dtype drops
_LEAST_NORMAL = 2.0**-14  # of float16


class StochasticState(NamedTuple):
    """A velocity in 16 bits, rounded at random."""

    values: PyTree  # w: the leaves' shapes (complex: a trailing axis of 2), bfloat16 or float16
    step: jax.Array  # counter of the noise, uint32 scalar; never reset

    def decode(self, like: PyTree | None = None) -> PyTree:
        """The velocity as a tree; complex leaves need `like`, else they are pairs in a trailing axis of 2."""
        return plain.decode_arrays(self.values, like)

    def where(self, keep: ArrayLike) -> "StochasticState":
        """Itself where the scalar `keep` is true, zero velocity elsewhere."""
        return self._replace(values=plain.select(keep, self.values))

    def scaled(self, factors: list[jax.Array]) -> "StochasticState":
        """Itself times one scalar a leaf, rounded to the nearest."""
        return self._replace(values=plain.scale_arrays(self.values, factors))


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

    Source:
        M. P. Connolly, N. J. Higham, T. Mary, "Stochastic Rounding and Its Probabilistic Backward Error Analysis",
        2021, definition 2.1.
    """
    target = plain.floating("stochastic_rounding", dtype)
    if target not in _BITS:
        remedy = "use cast() for other dtypes or int8()"
        checks.reject("stochastic_rounding", "dtype", "bfloat16 or float16", target.name, remedy)
    checks.whole("stochastic_rounding", "seed", seed, 0, "pass a Python integer")

    def init(params: PyTree) -> StochasticState:
        return StochasticState(plain.zeros(params, target), jnp.zeros((), jnp.uint32))

    def encode(velocity: PyTree, stored: StochasticState) -> StochasticState:
        keys = noise.keys(seed, stored.step, len(trees.leaves(velocity)), axis_name)

        def round_leaf(number: int, new: jax.Array, old: jax.Array) -> tuple[jax.Array]:
            real = trees.as_pairs(new).astype(jnp.float32)
            return (cast("jax.Array", _round(real, keys[number], old.dtype)),)

        (values,) = plain.encode_leaves(round_leaf, velocity, stored.values)
        return StochasticState(values, stored.step + np.uint32(1))

    return Storage(init, plain.decode, encode)


@partial(jax.jit, static_argnames="dtype")
def _round(real: jax.Array, key: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Add noise below the bits that `dtype` keeps of a float32, and cut them off."""
    magnitude, dropped = jnp.abs(real), np.uint32(_BITS[jnp.dtype(dtype)])
    shift = jnp.float32(0)
    if dtype == jnp.float16:
        # Its subnormal numbers are as far apart as those of the first normal binade: they are rounded there.
        shift = jnp.where(magnitude < np.float32(_LEAST_NORMAL), np.float32(_LEAST_NORMAL), shift)
    pattern = jax.lax.bitcast_convert_type(magnitude + shift, jnp.uint32)
    pattern = (pattern + (noise.bits(key, real.shape) >> (np.uint32(32) - dropped))) >> dropped << dropped
    rounded = jnp.copysign(jax.lax.bitcast_convert_type(pattern, jnp.float32) - shift, real)
    return jnp.where(jnp.isfinite(real), rounded, real).astype(dtype)
