"""Computing in 16 bits beside parameters in 32: casts, the scale of the loss, the test for finite gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from nagjax import trees
from nagjax.types import PyTree

GROWTH_INTERVAL = 2000  # finite steps after which the scale doubles
_LARGEST = 2.0**126


class LossScale(NamedTuple):
    """The factor by which the loss is multiplied, so that gradients do not vanish in float16.

    Source:
        P. Micikevicius et al., "Mixed precision training", 2018, section 3.2, with the dynamic choice of the factor
        that frameworks share.
    """

    scale: jax.Array  # float32, shape (), a power of 2 times the first one
    streak: jax.Array  # finite steps since the scale changed; int32, shape ()

    @classmethod
    def first(cls, scale: float) -> "LossScale":
        """The state before the first step."""
        return cls(jnp.float32(scale), jnp.int32(0))

    def after(self, finite: jax.Array) -> "LossScale":
        """Half the scale after a gradient that is not finite, twice the scale after 2,000 finite ones in a row."""
        streak = jnp.where(finite, self.streak + 1, 0).astype(jnp.int32)
        grows = streak >= GROWTH_INTERVAL
        grown = jnp.where(grows, jnp.minimum(2 * self.scale, _LARGEST), self.scale)
        scale = jnp.where(finite, grown, jnp.maximum(self.scale / 2, jnp.float32(1)))
        return LossScale(scale.astype(jnp.float32), jnp.where(grows, 0, streak).astype(jnp.int32))

    def unscale(self, gradient: PyTree) -> PyTree:
        """The gradient of the loss itself, in the dtypes of `gradient`."""

        def divide(leaf: jax.Array) -> jax.Array:
            return trees.scaled(1 / self.scale, leaf)

        return jax.tree.map(divide, gradient)


def cast_floating(tree: PyTree, dtype: DTypeLike | None) -> PyTree:
    """The tree with floating leaves in `dtype`; the same tree for None."""
    if dtype is None:
        return tree

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no leaf holds NaN or infinity; bool, shape ()."""
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.bool_(True)
