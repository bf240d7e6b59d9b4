"""The curvature step: what two query points and their gradients say about the step size, without a line search."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName
from nagjax.proximal.prox import Prox
from nagjax.reductions import squared_norm
from nagjax.scalars import as_scalar, scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.step_sizes.pairs import Memory, limited
from nagjax.step_sizes.pairs import rounding_unit as rounding_unit
from nagjax.types import PyTree

FIRST_MOVE = 1e-3  # length of the first probe, relative to 1 + |x_0|
PROBE_GROWTH = 10.0  # of the probe, until it meets curvature
CAP = 10.0  # of the co-coercivity estimate, in units of |dg| / |dy|
NOISE = 10.0  # |dg| below this many units of rounding of |g| says nothing
FLAT = 100.0  # predicted |dg| above this many units of rounding of |g| would be seen


def local_smoothness(squared_move: ArrayLike, squared_change: ArrayLike, product: ArrayLike) -> jax.Array:
    """The smoothness L that a pair of query points shows: min(b^2 / c, 10 b / a) if c > 0, else b / a.

    b^2 / c is the inverse of the short step of Barzilai and Borwein, at least b / a, and at most L for convex f.

    Args:
        squared_move: a^2 = |y - y'|^2, positive.
        squared_change: b^2 = |grad f(y) - grad f(y')|^2.
        product: c = <y - y', grad f(y) - grad f(y')>, its real part.

    Returns:
        A scalar, at least 0.

    Source:
        J. Barzilai and J. Borwein, "Two-point step size gradient methods", 1988; as an estimate of smoothness in
        P. Latafat, A. Themelis, L. Stella and P. Patrinos, "Adaptive proximal algorithms for convex optimization
        under local Lipschitz continuity of the gradient", 2023. The cap is a heuristic.
    """
    move, change, product = jnp.sqrt(as_scalar(squared_move)), jnp.sqrt(as_scalar(squared_change)), as_scalar(product)
    ratio = change / jnp.where(move > 0, move, 1)
    # b^2 / c as b (b / c): the square may overflow where the quotient does not.
    convex = product > 0
    short = change * (change / jnp.where(convex, product, 1))
    return jnp.where(convex, jnp.minimum(short, CAP * ratio), ratio)


def probe(squared_params: ArrayLike, squared_gradient: ArrayLike) -> jax.Array:
    """The first step size, 1e-3 (1 + |x_0|) / |g_0|: a small move of known length.

    Args:
        squared_params: |x_0|^2.
        squared_gradient: |g_0|^2; at 0 the step does not matter and is taken for |g_0| = 1.

    Returns:
        A positive scalar.
    """
    size, slope = jnp.sqrt(as_scalar(squared_params)), jnp.sqrt(as_scalar(squared_gradient))
    return limited(FIRST_MOVE * (1 + size) / jnp.where(slope > 0, slope, 1))


def first_step(
    initial: ArrayLike | None, gradient: PyTree, params: PyTree, pair: pairs.Pair, axis_name: AxisName | None
) -> jax.Array:
    """The given first step size, or that of `probe`."""
    if initial is not None:
        return as_scalar(initial)
    return probe(squared_norm(trees.wide(gradient, params), axis_name), pair.squared_gradient)


def no_samples() -> jax.Array:
    """The window of `next_step` before the first sample: two places, of which -1 marks the empty ones."""
    return jnp.full((2,), -1, scalar_dtype())


def next_step(
    step_size: ArrayLike,
    window: jax.Array,
    squared_move: ArrayLike,
    squared_change: ArrayLike,
    product: ArrayLike,
    squared_gradient: ArrayLike,
    *,
    growth: ArrayLike = 1.2,
    unit: float,
) -> tuple[jax.Array, jax.Array]:
    """The next step size s <- min(growth s, 1 / Lmax), Lmax the larger of the last two samples of curvature.

    A change of the gradient within its rounding is no sample, and the step stays, with two exceptions. Before the
    first sample the probe grows tenfold: the function is linear this near. And where Lmax says that a change would
    have been seen, the flatness is a sample. The first sample sets s = 1 / L, whatever the growth.

    Args:
        step_size: s of the update before; positive.
        window: The last two samples, shape (2,), from `no_samples` or the last call.
        squared_move: a^2 = |y - y'|^2.
        squared_change: b^2 = |g - g'|^2.
        product: c = <y - y', g - g'>, its real part.
        squared_gradient: |g|^2.
        growth: Largest growth of the step from one update to the next, at least 1.
        unit: The rounding unit of the gradient, from `rounding_unit`.

    Returns:
        The step size, a positive scalar, and the window, shape (2,). Where the query point has not moved, or a sum
        is not finite, both are as they were.
    """
    dtype = scalar_dtype()
    step_size, growth = as_scalar(step_size), as_scalar(growth)
    move, change, slope = (jnp.sqrt(as_scalar(x)) for x in (squared_move, squared_change, squared_gradient))
    noise = jnp.asarray(unit, dtype) * slope
    largest = jnp.max(window)
    measurable = (move > 0) & jnp.isfinite(move) & jnp.isfinite(change)
    seen = measurable & (change > NOISE * noise)
    flat = measurable & ~seen & (largest * move > FLAT * noise)
    first = largest < 0

    ratio = change / jnp.where(move > 0, move, 1)
    sample = jnp.where(seen, local_smoothness(squared_move, squared_change, product), ratio)
    window = jnp.where(seen | flat, jnp.stack([window[1], sample]), window)
    largest = jnp.max(window)

    inverse = limited(1 / jnp.where(largest > 0, largest, 1))
    bounded = jnp.where(largest > 0, jnp.minimum(growth * step_size, inverse), growth * step_size)
    proposed = jnp.where(first, inverse, bounded)
    # Without a sample in the window there is no reason to stay: the probe, or a step on a flat piece, goes on growing.
    unseen = jnp.where(first, PROBE_GROWTH, jnp.where(largest > 0, 1, growth)) * step_size
    unseen = jnp.where(measurable, unseen, step_size)
    return limited(jnp.where(seen | flat, proposed, unseen)), window


class CurvatureState(NamedTuple):
    """State of `curvature`."""

    step_size: jax.Array  # s of the last update, 0 before the first; scalar, float32 or float64
    window: jax.Array  # the last two samples of L, -1 where there is none; shape (2,)
    memory: Memory  # the last query point and its gradient
    inner: optax.OptState


def curvature(
    inner: optax.GradientTransformation,
    *,
    prox: Prox | None = None,
    growth: ArrayLike = 1.2,
    initial: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale the gradient by a step size taken from the curvature between query points; no smoothness to know.

    The first update makes a small probe, the second takes s = 1 / L from it, and later ones s <- min(growth s,
    1 / Lmax) by the rule of `next_step`. `inner`, such as `accelerate(momentum.fista())`, gets the step -s g (with a
    prox, prox_{s h}(y - s g) - y) and the keyword arguments `step_size` = s and `step_ratio` = s_{k-1} / s_k, by
    which `momentum.fista` corrects its sequence. Instead of giving `prox` here one may put `proximal.step(prox)`
    first into `inner`; the state then has two fields of the name `step_size`.

    Args:
        inner: What follows the step size.
        prox: h of f + h, from `nagjax.proximal`; the gradient passed to `update` is that of f.
        growth: Largest growth of s from one update to the next, at least 1.
        initial: The first step size, positive; the probe of `probe` by default.
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A gradient transformation that needs `params`. Memory: two buffers (8 bytes a parameter of at most 32 bits),
        three scalars, and that of `inner`. Cost: one gradient a step, nothing else.

    Guarantee:
        None; heuristic. For convex, L-smooth f every sample is at most L, so that s never falls below
        min(s_1, 1 / L).

    Raises:
        TypeError: `prox` is not a `Prox`, or a number is none.
        ValueError: A number is out of its range; `update` got no `params`.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax, optax
        >>> from nagjax import momentum, restart, step_sizes
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2) / 2
        >>> tx = step_sizes.curvature(nagjax.accelerate(momentum.fista(), restart=restart.gradient()))
        >>> params = jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(150):
        ...     updates, state = tx.update(jax.grad(f)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(nagjax.eval_params(params, state)) < 1e-6)
        True

    Source:
        See `local_smoothness`; the correction of the momentum is that of K. Scheinberg, D. Goldfarb and X. Bai, "Fast
        first-order methods for composite convex optimization with backtracking", 2014.
    """
    name = "step_sizes.curvature"
    checks.scalar(name, "growth", growth, "at least 1 and finite", lambda v: 1 <= v < float("inf"), "1.2 is usual")
    pairs.check_optional_prox(name, prox)
    pairs.check_optional_step(name, initial)
    following = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> CurvatureState:
        memory = pairs.no_memory(name, params)
        return CurvatureState(jnp.zeros((), scalar_dtype()), no_samples(), memory, following.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, CurvatureState]:
        params, updates = pairs.required_params(name, params), trees.as_arrays(updates)
        pair, memory = pairs.measure(name, state.memory, params, updates, axis_name)
        later, window = next_step(
            state.step_size,
            state.window,
            pair.squared_move,
            pair.squared_change,
            pair.product,
            pair.squared_gradient,
            growth=growth,
            unit=rounding_unit((updates, params)),
        )
        point = trees.wide(updates, params)
        first = first_step(initial, updates, params, pair, axis_name)
        fresh = state.step_size == 0
        s = jnp.where(fresh, first, later)
        ratio = jnp.where(fresh, 1, state.step_size / s)
        step = trees.like(updates, pairs.step_of(prox, point, updates, s))
        step, inner_state = following.update(step, state.inner, params, step_size=s, step_ratio=ratio, **extra)
        window = jnp.where(fresh, state.window, window)
        return step, CurvatureState(s, window, memory, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
