"""Total variation of sequences, with the exact proximal operator."""

from typing import Any

import jax
import jax.numpy as jnp

from nagjax.proximal.parameters import bind, check_weights, leafwise, thresholds, total
from nagjax.proximal.prox import Prox
from nagjax.types import PyTree


def total_variation(weight: PyTree = 1.0) -> Prox:
    """The total variation h(x) = weight sum_i |x_{i+1} - x_i| along the last axis of each leaf; real parameters.

    A leaf of shape (..., n) is a batch of sequences, whose variations add up.

    Args:
        weight: At least 0: one number, or a tree of numbers that matches the parameters or their top. An array of
            the batch shape (..., 1) gives each sequence its weight.

    Returns:
        A `Prox` whose leaves are the weights. The operator is exact and takes O(n) sequential steps, and O(n) memory
        for each sequence. Its derivative is the average over each constant segment.

    Raises:
        TypeError: A weight is not a number or an array; parameters are complex.
        ValueError: A weight is negative or not finite; when traced, a tree or shape does not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal
        >>> z = proximal.total_variation(1.0).prox(jnp.array([0.0, 1.0, 9.0, 10.0]), 1.0)
        >>> bool(jnp.allclose(z, jnp.array([1.0, 1.0, 9.0, 9.0])))
        True

    Source:
        N. Johnson, "A dynamic programming algorithm for the fused lasso and L0-segmentation", 2013, section 2.
    """
    check_weights("proximal.total_variation", "weight", weight)
    return Prox(bind(_value, weight), bind(_prox, weight))


def _batch_shape(x: jax.Array) -> tuple[int, ...]:
    return (*x.shape[:-1], 1) if x.ndim else ()


def _value(weight: PyTree, params: PyTree) -> jax.Array:
    def value(x: jax.Array, w: jax.Array) -> jax.Array:
        return w.astype(x.dtype) * jnp.abs(jnp.diff(x, axis=-1)) if x.ndim else jnp.zeros_like(x)

    return total("proximal.total_variation", value, params, real=True, shape=_batch_shape, weight=weight)


def _prox(weight: PyTree, params: PyTree, step_size: Any) -> PyTree:
    def operator(x: jax.Array, w: jax.Array) -> jax.Array:
        if not x.ndim or x.shape[-1] < 2 or not x.size:
            return x
        t = jnp.broadcast_to(thresholds(step_size, w, x), _batch_shape(x)).reshape(-1)
        if t.size == 1:
            # Without a batch the loops end by themselves, not with the slowest sequence.
            return denoise(x.reshape(-1), t[0]).reshape(x.shape)
        return jax.vmap(denoise)(x.reshape(-1, x.shape[-1]), t).reshape(x.shape)

    return leafwise("proximal.total_variation", operator, params, real=True, shape=_batch_shape, weight=weight)


def denoise(y: jax.Array, t: jax.Array) -> jax.Array:
    """argmin_x |x - y|^2 / 2 + t sum_i |x_{i+1} - x_i| for one sequence."""
    # The search for the segments needs no derivative: in each of them x is the mean of y, plus t over its length for
    # each neighbor above, minus t over its length for each one below. Taken about the solution found, this also
    # removes the rounding of the search.
    rough = jax.lax.stop_gradient(_solve(jax.lax.stop_gradient(y), jax.lax.stop_gradient(t)))
    n, steps = y.size, jnp.sign(jnp.diff(rough))
    labels = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), (steps != 0).astype(jnp.int32)]))
    ends = jnp.zeros(1, y.dtype)
    pulls = jnp.concatenate([steps, ends]) - jnp.concatenate([ends, steps])
    lengths = jnp.zeros(n, y.dtype).at[labels].add(1)
    shifts = jnp.zeros(n, y.dtype).at[labels].add(y - rough + t * pulls)
    return rough + shifts[labels] / jnp.maximum(lengths[labels], 1)


def _solve(y: jax.Array, t: jax.Array) -> jax.Array:
    """Dynamic programming over the derivative of the cost to come, a nondecreasing piecewise linear function.

    With m_k(b) the least cost of x_1..x_k when x_k = b: m_{k+1}'(b) = clip(m_k'(b), -t, t) + b - y_{k+1}. Clipping
    removes knots at both ends and adds one at each: `low[k]` and `high[k]`, where m_k' is -t and t. Backwards,
    x_k = clip(x_{k+1}, low[k], high[k]).
    """
    n = y.size
    zeros = jnp.zeros(2 * n, y.dtype)
    # Knots left..right, each with the change of slope and of intercept there. Each step adds one at either end.
    at, slopes, intercepts = zeros, zeros, zeros

    def first_piece(left: Any, right: Any, knots: Any, value: jax.Array, intercept: jax.Array) -> Any:
        """From the left, the first piece that reaches `value`, and the first knot to the right of it."""
        at, slopes, intercepts = knots

        def before(carry: Any) -> jax.Array:
            i, slope, intercept = carry
            return (i <= right) & (slope * at[i] + intercept <= value)

        def skip(carry: Any) -> Any:
            i, slope, intercept = carry
            return i + 1, slope + slopes[i], intercept + intercepts[i]

        return jax.lax.while_loop(before, skip, (left, jnp.ones_like(value), intercept))

    def last_piece(left: Any, right: Any, knots: Any, value: jax.Array, intercept: jax.Array) -> Any:
        """The same from the right."""
        at, slopes, intercepts = knots

        def after(carry: Any) -> jax.Array:
            i, slope, intercept = carry
            return (i >= left) & (slope * at[i] + intercept >= value)

        def skip(carry: Any) -> Any:
            i, slope, intercept = carry
            return i - 1, slope - slopes[i], intercept - intercepts[i]

        return jax.lax.while_loop(after, skip, (right, jnp.ones_like(value), intercept))

    def forward(carry: Any, datum: jax.Array) -> Any:
        left, right, at, slopes, intercepts, tail = carry
        knots = at, slopes, intercepts
        i, slope_low, cut_low = first_piece(left, right, knots, -t, -datum - tail)
        low = (-t - cut_low) / slope_low
        j, slope_high, cut_high = last_piece(i, right, knots, t, -datum + tail)
        high = (t - cut_high) / slope_high
        left, right = i - 1, j + 1
        at = at.at[left].set(low).at[right].set(high)
        slopes = slopes.at[left].set(slope_low).at[right].set(-slope_high)
        intercepts = intercepts.at[left].set(cut_low + t).at[right].set(t - cut_high)
        # After the first datum the clipped function is -t on the far left and t on the far right.
        return (left, right, at, slopes, intercepts, t), (low, high)

    start = (jnp.int32(n), jnp.int32(n - 1), at, slopes, intercepts, jnp.zeros_like(t))
    (left, right, *knots, tail), (lows, highs) = jax.lax.scan(forward, start, y[:-1])
    _, slope, cut = first_piece(left, right, tuple(knots), jnp.zeros_like(t), -y[-1] - tail)
    last = -cut / slope

    def backward(following: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x = jnp.clip(following, *bounds)
        return x, x

    _, xs = jax.lax.scan(backward, last, (lows, highs), reverse=True)
    return jnp.concatenate([xs, last[None]])
