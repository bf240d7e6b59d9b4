"""Projections that act on single coordinates: boxes, the nonnegative orthant, and the ball of the linf norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks, trees
from nagjax.proximal.parameters import bind, check, check_weights, indicator, largest, leafwise, ratio
from nagjax.proximal.prox import Prox
from nagjax.types import PyTree

_REMEDY = "give a number, an array that broadcasts to the parameters, or a tree of these; infinity is no bound"


def box(lower: PyTree, upper: PyTree) -> Prox:
    """The box lower <= x <= upper, entry by entry; real parameters.

    Args:
        lower: One number; an array that broadcasts to the parameters (one array); or a tree of these that matches
            the tree of parameters or its top. -inf is no bound. In units of the parameters.
        upper: The same, of at least `lower`; inf is no bound.

    Returns:
        A separable `Prox`, whose leaves are the bounds. Its value is 0 up to a violation of sqrt(eps) max |x|, with
        eps of the coarsest dtype, else infinity. Its operator projects.

    Raises:
        TypeError: A bound is not a number or an array; parameters are complex.
        ValueError: A bound is NaN, or the box is empty; when traced, a tree or shape does not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal
        >>> z = proximal.box(-1.0, jnp.array([1.0, jnp.inf])).prox(jnp.array([2.0, 3.0]), 1.0)
        >>> bool(jnp.array_equal(z, jnp.array([1.0, 3.0])))
        True
    """
    check("proximal.box", "lower", lower, "less than infinity", lambda v: v < np.inf, _REMEDY)
    check("proximal.box", "upper", upper, "more than minus infinity", lambda v: v > -np.inf, _REMEDY)
    _check_order(lower, upper)
    return Prox(bind(_box_value, lower, upper), bind(_box_prox, lower, upper), separable=True, constraint=True)


def _check_order(lower: PyTree, upper: PyTree) -> None:
    lows, highs = trees.leaves(lower), trees.leaves(upper)
    if len(lows) == 1 or len(highs) == 1:
        lows, highs = lows * (len(highs) if len(lows) == 1 else 1), highs * (len(lows) if len(highs) == 1 else 1)
    elif trees.structure(lower) != trees.structure(upper):
        # Both may still match the parameters: the order then shows in the result alone.
        return
    for low, high in zip(lows, highs, strict=True):
        known = all(checks.is_known(bound) and not trees.is_absent(bound) for bound in (low, high))
        if known and not np.all(np.asarray(low, np.float64) <= np.asarray(high, np.float64)):
            checks.reject("proximal.box", "lower", f"at most upper = {high!r}", low, "the box is empty: exchange them")


def _clip(x: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    # Comparisons that NaN fails: it passes through. At a bound the derivative is that of the inside.
    lower, upper = lower.astype(x.dtype), upper.astype(x.dtype)
    return jnp.where(x < lower, lower, jnp.where(x > upper, upper, x))


def _box_value(lower: PyTree, upper: PyTree, params: PyTree) -> jax.Array:
    def violation(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
        return jnp.maximum(low.astype(x.dtype) - x, x - high.astype(x.dtype))

    worst = largest("proximal.box", violation, params, real=True, lower=lower, upper=upper)
    return indicator(worst, largest("proximal.box", jnp.abs, params), params)


def _box_prox(lower: PyTree, upper: PyTree, params: PyTree, step_size: Any) -> PyTree:
    del step_size
    return leafwise("proximal.box", _clip, params, real=True, lower=lower, upper=upper)


def nonnegative() -> Prox:
    """The nonnegative orthant x >= 0; real parameters.

    Returns:
        A separable `Prox` without leaves. Its value is 0 up to a violation of sqrt(eps) max |x|, with eps of the
        coarsest dtype, else infinity. Its operator is the projection max(x, 0).
    """
    return Prox(bind(_nonnegative_value), bind(_nonnegative_prox), separable=True, constraint=True)


def _nonnegative_value(params: PyTree) -> jax.Array:
    below = largest("proximal.nonnegative", jnp.negative, params, real=True)
    return indicator(below, largest("proximal.nonnegative", jnp.abs, params), params)


def _nonnegative_prox(params: PyTree, step_size: Any) -> PyTree:
    del step_size

    def operator(x: jax.Array) -> jax.Array:
        return jnp.where(x < 0, 0, x)

    return leafwise("proximal.nonnegative", operator, params, real=True)


def linf_ball(radius: PyTree = 1.0) -> Prox:
    """The ball of the linf norm, |x_i| <= radius_i; complex entries keep their argument.

    Args:
        radius: At least 0: one number, an array, or a tree, as the bounds of `box`.

    Returns:
        A separable `Prox`, whose leaves are the radii. Its value is as that of `box`; its operator projects.

    Raises:
        TypeError: A radius is not a number or an array.
        ValueError: A radius is negative or not finite; when traced, a tree or shape does not match.
    """
    check_weights("proximal.linf_ball", "radius", radius)
    return Prox(bind(_linf_ball_value, radius), bind(_linf_ball_prox, radius), separable=True, constraint=True)


def _linf_ball_value(radius: PyTree, params: PyTree) -> jax.Array:
    def violation(x: jax.Array, r: jax.Array) -> jax.Array:
        return jnp.abs(x) - r.astype(x.real.dtype)

    worst = largest("proximal.linf_ball", violation, params, radius=radius)
    return indicator(worst, largest("proximal.linf_ball", jnp.abs, params), params)


def _linf_ball_prox(radius: PyTree, params: PyTree, step_size: Any) -> PyTree:
    del step_size

    def operator(x: jax.Array, r: jax.Array) -> jax.Array:
        r = r.astype(x.real.dtype)
        if not jnp.iscomplexobj(x):
            return _clip(x, -r, r)
        size = jnp.abs(x)
        return trees.scaled(jnp.where(size <= r, 1, ratio(r, size)), x)

    return leafwise("proximal.linf_ball", operator, params, radius=radius)
