"""Projections onto the simplex and the balls of the l1 and l2 norm, each over the whole tree."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from nagjax import checks, trees
from nagjax.proximal.parameters import (
    bind,
    indicator,
    largest,
    leafwise,
    ratio,
    ravel,
    thresholds,
    total,
    tree_norm,
)
from nagjax.proximal.prox import Prox
from nagjax.scalars import as_scalar
from nagjax.types import PyTree


def level(v: jax.Array, radius: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The level theta with sum (v - theta)_+ = radius along the last axis, as (theta - max v, max v).

    Relative to the largest entry, because projections do not depend on a common shift and large ones cancel. The
    support is found by sorting, and the level then computed from it, so that its derivative is right.
    """
    top = jax.lax.stop_gradient(jnp.max(v, axis=-1, keepdims=True))
    w = v - top
    ordered = jnp.sort(jax.lax.stop_gradient(w), axis=-1, descending=True)
    ranks = jax.lax.broadcasted_iota(w.dtype, w.shape, w.ndim - 1) + 1
    # At least one entry, for radius 0.
    holds = ranks * ordered > jnp.cumsum(ordered, axis=-1) - jax.lax.stop_gradient(radius)
    count = jnp.maximum(jnp.sum(holds, axis=-1, keepdims=True), 1)
    support = w >= jnp.take_along_axis(ordered, count - 1, axis=-1)
    sums = jnp.sum(jnp.where(support, w, 0), axis=-1, keepdims=True)
    return (sums - radius) / jnp.sum(support, axis=-1, keepdims=True).astype(w.dtype), top


def _above(v: jax.Array, radius: jax.Array) -> jax.Array:
    relative, top = level(v, radius)
    return jnp.maximum(v - top - relative, 0)


def simplex(radius: Any = 1.0, axis: Any = None) -> Prox:
    """The simplex: entries of at least 0 whose sum is the radius.

    Args:
        radius: The sum, positive, a scalar.
        axis: None for one simplex over the whole tree; an axis for one simplex in each slice along it, as -1 for
            each row of a matrix.

    Returns:
        A `Prox` whose leaf is the radius. Its value is 0 where entries are negative, and sums off, by at most
        sqrt(eps) of the radius, with eps of the coarsest dtype; infinity elsewhere. Its operator projects; it sorts.

    Raises:
        TypeError: `radius` is not a number or `axis` not an integer; parameters are complex.
        ValueError: `radius` is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal
        >>> bool(jnp.allclose(proximal.simplex().prox(jnp.array([1.5, 1.0, -3.0]), 1.0), jnp.array([0.75, 0.25, 0.0])))
        True

    Source:
        J. Duchi, S. Shalev-Shwartz, Y. Singer and T. Chandra, "Efficient projections onto the l1-ball for learning
        in high dimensions", 2008, Figure 1.
    """
    checks.positive("proximal.simplex", "radius", radius, "give the sum of the entries, 1 for probabilities")
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
        remedy = "name the axis along which entries sum to the radius"
        checks.reject("proximal.simplex", "axis", "None or an integer", axis, remedy, TypeError)
    return Prox(bind(_simplex_value, radius, axis=axis), bind(_simplex_prox, radius, axis=axis), constraint=True)


def _negated(x: jax.Array) -> jax.Array:
    return -x


def _simplex_value(radius: Any, params: PyTree, *, axis: int | None) -> jax.Array:
    r = as_scalar(radius)

    def off(x: jax.Array) -> jax.Array:
        return jnp.abs(jnp.sum(x, axis=axis) - r.astype(x.dtype))

    below = largest("proximal.simplex", _negated, params, real=True)
    if axis is None:
        gap = jnp.abs(total("proximal.simplex", _negated, params, real=True) + r)
    else:
        gap = largest("proximal.simplex", off, params, real=True)
    return indicator(jnp.maximum(below, gap), r, params)


def _simplex_prox(radius: Any, params: PyTree, step_size: Any, *, axis: int | None) -> PyTree:
    del step_size
    if axis is None:
        v = ravel("proximal.simplex", params, real=True)
        return trees.split(params, _above(v, as_scalar(radius).astype(v.dtype))) if v.size else params

    def operator(x: jax.Array) -> jax.Array:
        if not -x.ndim <= axis < x.ndim:
            remedy = "use separable_sum for leaves of different shapes"
            checks.reject("proximal.simplex", "axis", f"an axis of a leaf of shape {x.shape}", axis, remedy)
        if not x.size:
            return x
        return jnp.moveaxis(_above(jnp.moveaxis(x, axis, -1), as_scalar(radius).astype(x.dtype)), -1, axis)

    return leafwise("proximal.simplex", operator, params, real=True)


def l1_ball(radius: Any = 1.0) -> Prox:
    """The ball of the l1 norm of the whole tree, sum_i |x_i| <= radius.

    Args:
        radius: At least 0, a scalar.

    Returns:
        A `Prox` whose leaf is the radius. Its value is 0 up to a norm of (1 + sqrt(eps)) radius, with eps of the
        coarsest dtype, else infinity. Its operator projects; it sorts.

    Raises:
        TypeError: `radius` is not a number.
        ValueError: `radius` is negative or not finite.

    Source:
        As `simplex`, Figure 2.
    """
    checks.nonnegative("proximal.l1_ball", "radius", radius, "give the largest sum of moduli")
    return Prox(bind(_l1_ball_value, radius), bind(_l1_ball_prox, radius), constraint=True)


def _l1_ball_value(radius: Any, params: PyTree) -> jax.Array:
    r = as_scalar(radius)
    return indicator(total("proximal.l1_ball", jnp.abs, params) - r, r, params)


def _l1_ball_prox(radius: Any, params: PyTree, step_size: Any) -> PyTree:
    del step_size
    v = ravel("proximal.l1_ball", params)
    if not v.size:
        return params
    sizes = jnp.abs(v)
    r = thresholds(1.0, as_scalar(radius), sizes)
    inside = jnp.sum(sizes) <= r
    if not jnp.iscomplexobj(v):
        return trees.split(params, jnp.where(inside, v, jnp.sign(v) * _above(sizes, r)))
    return trees.split(params, trees.scaled(jnp.where(inside, 1, ratio(_above(sizes, r), sizes)), v))


def l2_ball(radius: Any = 1.0) -> Prox:
    """The ball of the Euclidean norm of the whole tree, |x| <= radius; `per_leaf(l2_ball(radius))` bounds each leaf.

    Args:
        radius: At least 0, a scalar.

    Returns:
        A `Prox` whose leaf is the radius. Its value is as that of `l1_ball`; its operator projects.

    Raises:
        TypeError: `radius` is not a number.
        ValueError: `radius` is negative or not finite.
    """
    checks.nonnegative("proximal.l2_ball", "radius", radius, "give the largest norm")
    return Prox(bind(_l2_ball_value, radius), bind(_l2_ball_prox, radius), constraint=True)


def _l2_ball_value(radius: Any, params: PyTree) -> jax.Array:
    r = as_scalar(radius)
    return indicator(tree_norm("proximal.l2_ball", params) - r, r, params)


def _l2_ball_prox(radius: Any, params: PyTree, step_size: Any) -> PyTree:
    del step_size
    size, r = tree_norm("proximal.l2_ball", params), as_scalar(radius)
    factor = jnp.where(size <= r, 1, ratio(r, size))
    return leafwise("proximal.l2_ball", functools.partial(trees.scaled, factor), params)
