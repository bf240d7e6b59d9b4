"""Norms that are not squared, of a whole tree: l2 and linf."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from nagjax import checks, trees
from nagjax.proximal.balls import level
from nagjax.proximal.parameters import bind, largest, leafwise, ratio, ravel, thresholds, tree_norm
from nagjax.proximal.prox import Prox
from nagjax.scalars import as_scalar
from nagjax.types import PyTree


def l2(weight: Any = 1.0) -> Prox:
    """The norm h(x) = weight |x|, not squared, of the whole tree as one vector; its operator is block shrinkage.

    `per_leaf(l2(weight))` is the sum of the norms of the leaves, and `group_lasso` that of the norms of groups.

    Args:
        weight: At least 0, a scalar.

    Returns:
        A `Prox` whose leaf is the weight.

    Raises:
        TypeError: `weight` is not a number.
        ValueError: `weight` is negative or not finite.
    """
    checks.nonnegative("proximal.l2", "weight", weight, "use group_lasso for weights of groups")
    return Prox(bind(_l2_value, weight), bind(_l2_prox, weight))


def _l2_value(weight: Any, params: PyTree) -> jax.Array:
    return as_scalar(weight) * tree_norm("proximal.l2", params)


def _l2_prox(weight: Any, params: PyTree, step_size: Any) -> PyTree:
    threshold, size = as_scalar(step_size) * as_scalar(weight), tree_norm("proximal.l2", params)
    factor = jnp.where(size < threshold, 0, 1 - ratio(threshold, size))
    return leafwise("proximal.l2", functools.partial(trees.scaled, factor), params)


def linf(weight: Any = 1.0) -> Prox:
    """The largest modulus h(x) = weight max_i |x_i| of the whole tree; its operator clips the largest entries.

    Args:
        weight: At least 0, a scalar.

    Returns:
        A `Prox` whose leaf is the weight. The operator sorts the entries.

    Raises:
        TypeError: `weight` is not a number.
        ValueError: `weight` is negative or not finite.

    Source:
        N. Parikh and S. Boyd, "Proximal algorithms", 2014, section 6.5.2: x minus its projection onto the l1 ball.
    """
    checks.nonnegative("proximal.linf", "weight", weight, "use per_leaf for leaves on their own")
    return Prox(bind(_linf_value, weight), bind(_linf_prox, weight))


def _linf_value(weight: Any, params: PyTree) -> jax.Array:
    return as_scalar(weight) * largest("proximal.linf", jnp.abs, params)


def _linf_prox(weight: Any, params: PyTree, step_size: Any) -> PyTree:
    sizes = jnp.abs(ravel("proximal.linf", params))
    if not sizes.size:
        return params
    t = thresholds(step_size, as_scalar(weight), sizes)
    relative, top = level(sizes, t)
    limit = jnp.where(jnp.sum(sizes) <= t, 0, (relative + top)[0])

    def operator(x: jax.Array) -> jax.Array:
        size, bound = jnp.abs(x), limit.astype(x.real.dtype)
        return trees.scaled(jnp.where(size > bound, ratio(bound, size), 1), x)

    return leafwise("proximal.linf", operator, params)
