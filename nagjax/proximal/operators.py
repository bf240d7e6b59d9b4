"""Functions of single coordinates: l1, squared l2, elastic net, Huber, l0, logarithmic barrier, and zero.

With complex parameters a coordinate is a complex number and |x| its modulus.
"""

from typing import Any

import jax
import jax.numpy as jnp

from nagjax import trees
from nagjax.proximal.parameters import bind, check, check_weights, leafwise, ratio, thresholds, total
from nagjax.proximal.prox import Prox
from nagjax.scalars import scalar_dtype
from nagjax.types import PyTree


def zero() -> Prox:
    """h = 0, whose proximal operator is the identity: for leaves of a tree without penalty or constraint."""
    return Prox(bind(_zero_value), bind(_zero_prox), separable=True)


def _zero_value(params: PyTree) -> jax.Array:
    del params
    return jnp.zeros((), scalar_dtype())


def _zero_prox(params: PyTree, step_size: Any) -> PyTree:
    del step_size
    return trees.as_arrays(params)


def soft_threshold(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """x (1 - threshold/|x|)_+ entrywise; at threshold 0 the identity, with derivative 1 also at x = 0."""
    if jnp.iscomplexobj(x):
        return shrink(x, jnp.abs(x), threshold)
    # The comparison with < keeps NaN, and the identity where a coordinate has no penalty.
    return jnp.where(jnp.abs(x) < threshold, 0, x - jnp.sign(x) * threshold)


def shrink(x: jax.Array, size: jax.Array, threshold: jax.Array) -> jax.Array:
    """x (1 - threshold/size)_+, for a size that broadcasts to x."""
    factor = jnp.where(size < threshold, 0, 1 - ratio(threshold, size))
    return trees.scaled(factor, x)


def l1(weight: PyTree = 1.0) -> Prox:
    """The l1 norm h(x) = sum_i weight_i |x_i|; its operator is soft thresholding.

    Args:
        weight: At least 0: one number; an array that broadcasts to the parameters (one array); or a tree of these
            that matches the tree of parameters or its top, for a weight for each leaf. 0 leaves out a coordinate.

    Returns:
        A separable `Prox`, whose leaves are the weights.

    Raises:
        TypeError: A weight is not a number or an array.
        ValueError: A weight is negative or not finite; when traced, the tree or shape does not match the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal
        >>> h = proximal.l1({"w": 1.0, "b": 0.0})
        >>> z = h.prox({"w": jnp.array([3.0, -0.2]), "b": jnp.array(5.0)}, 0.5)
        >>> bool(jnp.array_equal(z["w"], jnp.array([2.5, 0.0])) and z["b"] == 5.0)
        True

    Source:
        D. Donoho, "De-noising by soft-thresholding", 1995.
    """
    check_weights("proximal.l1", "weight", weight)
    return Prox(bind(_l1_value, weight), bind(_l1_prox, weight), separable=True)


def _l1_value(weight: PyTree, params: PyTree) -> jax.Array:
    return total("proximal.l1", weighted_modulus, params, weight=weight)


def weighted_modulus(x: jax.Array, weight: jax.Array) -> jax.Array:
    """weight |x| entrywise."""
    return weight.astype(x.real.dtype) * jnp.abs(x)


def _l1_prox(weight: PyTree, params: PyTree, step_size: Any) -> PyTree:
    def operator(x: jax.Array, w: jax.Array) -> jax.Array:
        return soft_threshold(x, thresholds(step_size, w, x))

    return leafwise("proximal.l1", operator, params, weight=weight)


def squared_l2(weight: PyTree = 1.0) -> Prox:
    """The squared norm h(x) = sum_i weight_i |x_i|^2 / 2; its operator is x / (1 + s weight).

    Args:
        weight: As in `l1`.

    Returns:
        A separable `Prox`, whose leaves are the weights.

    Raises:
        As `l1`.
    """
    check_weights("proximal.squared_l2", "weight", weight)
    return Prox(bind(_squared_l2_value, weight), bind(_squared_l2_prox, weight), separable=True)


def _squared_l2_value(weight: PyTree, params: PyTree) -> jax.Array:
    return total("proximal.squared_l2", _half_squares, params, weight=weight)


def _half_squares(x: jax.Array, weight: jax.Array) -> jax.Array:
    return weight.astype(x.real.dtype) * (x.real**2 + x.imag**2) / 2


def _squared_l2_prox(weight: PyTree, params: PyTree, step_size: Any) -> PyTree:
    def operator(x: jax.Array, w: jax.Array) -> jax.Array:
        return trees.scaled(1 / (1 + thresholds(step_size, w, x)), x)

    return leafwise("proximal.squared_l2", operator, params, weight=weight)


def elastic_net(l1_weight: PyTree = 1.0, l2_weight: PyTree = 1.0) -> Prox:
    """The elastic net h(x) = sum_i l1_weight_i |x_i| + l2_weight_i |x_i|^2 / 2.

    Args:
        l1_weight: As `weight` of `l1`.
        l2_weight: The same, for the squares.

    Returns:
        A separable `Prox`, whose leaves are the weights.

    Raises:
        As `l1`.

    Source:
        H. Zou and T. Hastie, "Regularization and variable selection via the elastic net", 2005.
    """
    check_weights("proximal.elastic_net", "l1_weight", l1_weight)
    check_weights("proximal.elastic_net", "l2_weight", l2_weight)
    return Prox(
        bind(_elastic_net_value, l1_weight, l2_weight), bind(_elastic_net_prox, l1_weight, l2_weight), separable=True
    )


def _elastic_net_value(l1_weight: PyTree, l2_weight: PyTree, params: PyTree) -> jax.Array:
    def value(x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
        return weighted_modulus(x, w1) + _half_squares(x, w2)

    return total("proximal.elastic_net", value, params, l1_weight=l1_weight, l2_weight=l2_weight)


def _elastic_net_prox(l1_weight: PyTree, l2_weight: PyTree, params: PyTree, step_size: Any) -> PyTree:
    def operator(x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
        factor = 1 / (1 + thresholds(step_size, w2, x))
        return trees.scaled(factor, soft_threshold(x, thresholds(step_size, w1, x)))

    return leafwise("proximal.elastic_net", operator, params, l1_weight=l1_weight, l2_weight=l2_weight)


def huber(weight: PyTree = 1.0, delta: PyTree = 1.0) -> Prox:
    """The Huber function h(x) = sum_i weight_i H(x_i), H(x) = |x|^2/2 to |x| = delta, then delta (|x| - delta/2).

    Args:
        weight: As in `l1`.
        delta: Positive; the shapes of `weight`. In units of the parameters.

    Returns:
        A separable `Prox`, whose leaves are the weights and deltas.

    Raises:
        TypeError: A weight or delta is not a number or an array.
        ValueError: A weight is negative, a delta not positive, or one is not finite; a tree or shape does not match.

    Source:
        P. Huber, "Robust estimation of a location parameter", 1964.
    """
    check_weights("proximal.huber", "weight", weight)
    check(
        "proximal.huber",
        "delta",
        delta,
        "positive and finite",
        lambda v: (v > 0) & (v < float("inf")),
        "give the size up to which h is quadratic",
    )
    return Prox(bind(_huber_value, weight, delta), bind(_huber_prox, weight, delta), separable=True)


def _huber_value(weight: PyTree, delta: PyTree, params: PyTree) -> jax.Array:
    def value(x: jax.Array, w: jax.Array, d: jax.Array) -> jax.Array:
        size, d = jnp.abs(x), d.astype(x.real.dtype)
        inner = jnp.minimum(size, d)
        return w.astype(x.real.dtype) * inner * (size - inner / 2)

    return total("proximal.huber", value, params, weight=weight, delta=delta)


def _huber_prox(weight: PyTree, delta: PyTree, params: PyTree, step_size: Any) -> PyTree:
    def operator(x: jax.Array, w: jax.Array, d: jax.Array) -> jax.Array:
        size, d, t = jnp.abs(x), d.astype(x.real.dtype), thresholds(step_size, w, x)
        return trees.scaled(jnp.where(size <= d * (1 + t), 1 / (1 + t), 1 - ratio(t * d, size)), x)

    return leafwise("proximal.huber", operator, params, weight=weight, delta=delta)


def l0(weight: PyTree = 1.0) -> Prox:
    """The weighted number of entries that are not 0; its operator is hard thresholding at sqrt(2 s weight).

    Not convex: the operator is not continuous and has two values at the threshold, where this one keeps the entry.
    The guarantees of accelerated methods for convex h do not hold.

    Args:
        weight: As in `l1`.

    Returns:
        A separable `Prox`, whose leaves are the weights. The operator has no derivative by the weight.

    Raises:
        As `l1`.

    Source:
        T. Blumensath and M. Davies, "Iterative thresholding for sparse approximations", 2008.
    """
    check_weights("proximal.l0", "weight", weight)
    return Prox(bind(_l0_value, weight), bind(_l0_prox, weight), separable=True)


def _l0_value(weight: PyTree, params: PyTree) -> jax.Array:
    def value(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.where(x == 0, 0, w.astype(x.real.dtype))

    return total("proximal.l0", value, params, weight=weight)


def _l0_prox(weight: PyTree, params: PyTree, step_size: Any) -> PyTree:
    def operator(x: jax.Array, w: jax.Array) -> jax.Array:
        # Without a derivative: that of the root is infinite at weight 0.
        threshold = jnp.sqrt(2 * jax.lax.stop_gradient(thresholds(step_size, w, x)))
        return jnp.where(jnp.abs(x) < threshold, 0, x)

    return leafwise("proximal.l0", operator, params, weight=weight)


def log_barrier(weight: PyTree = 1.0) -> Prox:
    """The logarithmic barrier h(x) = -sum_i weight_i log(x_i), infinite outside of x > 0; real parameters.

    Args:
        weight: As in `l1`.

    Returns:
        A separable `Prox`, whose leaves are the weights; the operator (x + sqrt(x^2 + 4 s weight))/2 is positive.

    Raises:
        As `l1`; TypeError where parameters are complex.

    Source:
        N. Parikh and S. Boyd, "Proximal algorithms", 2014, section 6.1.3.
    """
    check_weights("proximal.log_barrier", "weight", weight)
    return Prox(bind(_log_barrier_value, weight), bind(_log_barrier_prox, weight), separable=True)


def _log_barrier_value(weight: PyTree, params: PyTree) -> jax.Array:
    def value(x: jax.Array, w: jax.Array) -> jax.Array:
        inside = x > 0
        return jnp.where(inside, -w.astype(x.dtype) * jnp.log(jnp.where(inside, x, 1)), jnp.inf)

    return total("proximal.log_barrier", value, params, real=True, weight=weight)


def _log_barrier_prox(weight: PyTree, params: PyTree, step_size: Any) -> PyTree:
    def operator(x: jax.Array, w: jax.Array) -> jax.Array:
        t = thresholds(step_size, w, x)
        square = x**2 + 4 * t
        root = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
        # On the negative side the sum cancels; the product of both roots of z^2 - x z - t does not.
        return jnp.where(x < 0, ratio(2 * t, root + jnp.abs(x)), (x + root) / 2)

    return leafwise("proximal.log_barrier", operator, params, real=True, weight=weight)
