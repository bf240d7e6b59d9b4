"""AcceleGrad: an accelerated method whose step is a distance over the gradients so far."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName, varying_like
from nagjax.momentum.universal import accelegrad as rule
from nagjax.momentum.universal import weight
from nagjax.reductions import inner_product, squared_norm
from nagjax.scalars import as_scalar, increment, scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.step_sizes.curvature import FIRST_MOVE
from nagjax.transform import AccelerateState, accelerate
from nagjax.types import PyTree, Restart, Storage

LONGEST = 0.5  # a distance is short enough where this part of the first slope is left ...
SHORTEST = 0.9  # ... and long enough where no more than this is
TARGET = 0.7  # what interpolation aims at
_GROWTH = (1.5, 100.0)  # from one distance that was too short to the next, at least and at most
_SHRINK = 0.1  # the same where it was too long, at most
_CLOSE = 1.1  # a bracket of this ratio has found a kink
_WIDE = 8.0  # brackets of more than this are halved on a logarithmic scale
_PROBES = 40  # after these the search gives up


class Opening(NamedTuple):
    """The search for a distance; scalars in float32 or float64."""

    reference: PyTree  # the first gradient while the search runs, then where the method started; at least 32 bits
    slope: jax.Array  # |g_0|, 0 before the first update
    shorter: jax.Array  # the longest distance known to be short enough, 0 while there is none
    longer: jax.Array  # the shortest one known to be too long, infinite while there is none
    probes: jax.Array  # points tried, -1 once the method runs; int32 scalar


class AccelegradState(NamedTuple):
    """State of `accelegrad`; scalars in float32 or float64."""

    step_size: jax.Array  # eta of the last update, 0 while the search runs
    gradient_sum: jax.Array  # G^2 + sum of a_t^2 |g_t|^2
    distance: jax.Array  # D, or r; while the search runs that of the present point from x_0
    opening: Opening | tuple[()]  # empty where D is given
    inner: AccelerateState


class _Found(NamedTuple):
    """What the search makes of the present point."""

    runs: jax.Array  # the method runs, from this update on or from an earlier one
    distance: jax.Array  # D before this update's own distance, or that of the next point of the search
    move: jax.Array  # coefficient of the reference in the update
    opening: Opening


def accelegrad(
    distance: ArrayLike | None = None,
    *,
    gradient_bound: ArrayLike = 0.0,
    initial: ArrayLike | None = None,
    restart: Restart | None = None,
    storage: Storage | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AcceleGrad: accelerated where f is smooth, optimal where it is not, without its smoothness.

    With the weights a_t = max(1, (t + 1)/4) the step size is::

        eta_t = 2 D / sqrt(G^2 + a_0^2 |g_0|^2 + ... + a_t^2 |g_t|^2)

    and `momentum.accelegrad` follows. eta falls where gradients are large; the step a_t eta_t of the fast sequence
    grows where they vanish. It is the published method without a set to project on.

    Without `distance` the step is r / sqrt(...), and two parts of nagjax find r. An opening looks along the first
    gradient for a point where between 0.5 and 0.9 of the slope is left: it multiplies the distance r from x_0 by up to
    100, or by at most 0.1, then bisects, with one gradient a point. The method starts there with this r (or with what
    is left up to a point that was too far, where that is less), and r is from then on at least the distance to where
    it started, as in DoG. Gradients must not be noisy in the opening (after 40 points it gives up, and takes r =
    `initial`): else give `distance`.

    A restart begins the weights again; sum and distance stay.

    Args:
        distance: D, positive; at least |x_0 - x*|, and too long by no more than it must: the number of steps grows
            with it. None finds it.
        gradient_bound: G, at least 0; a bound of gradient norms in the paper, of which any small number does.
        initial: r of the first point of the opening, positive; 1e-3 (1 + |x_0|) by default. Every factor of 10 to 100
            by which it is wrong costs one gradient.
        restart: As in `accelerate`; `restart.gradient()` for functions that are strongly convex to an unknown degree.
        storage: As in `accelerate`.
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A gradient transformation; without `distance` it needs `params`. Memory: that of `accelerate` and three scalars,
        and without `distance` a buffer more (4 bytes a parameter of at most 32 bits) and four scalars. Cost: one
        gradient a step.

    Guarantee:
        With `distance`, no restart and G = 0, while z_t = y_t + a_t (x_{t+1} - y_t) (x the query points, y the
        answers) stays within D of x*, as on a set of diameter D: f(y_T) - f* <= 64 L D^2 (log(16 L D / (3 |g_0|)) -
        1/2) / T^2 for convex, L-smooth f and T >= 4, and O(M D sqrt(log T) / sqrt(T)) for convex f with gradients of
        at most M.
        Without `distance` for the opening alone: on convex f the method starts with r <= 2 |x_0 - x*|, from a point
        that is no farther from x* than x_0, unless it gives up.

    Raises:
        TypeError: A number is none.
        ValueError: A number is out of its range; `initial` beside `distance`; `update` got no `params`.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax, optax
        >>> from nagjax import adaptive
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2) / 2
        >>> tx, params = adaptive.accelegrad(), jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(200):
        ...     updates, state = tx.update(jax.grad(f)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(nagjax.eval_params(params, state)) < 1e-6)
        True

    Source:
        K. Levy, A. Yurtsever and V. Cevher, "Online adaptive methods, universality and acceleration", 2018. The bound
        at the last y with its constants, and the opening, are derived in BUILD_NOTES.md. The distance that grows is
        that of M. Ivgi, O. Hinder and Y. Carmon, "DoG is SGD's best friend", 2023; for accelerated methods, I.
        Kreisler, M. Ivgi, O. Hinder and Y. Carmon, "Accelerated parameter-free stochastic optimization", 2024, who
        prove it for another method.
    """
    name = "adaptive.accelegrad"
    if distance is not None:
        checks.positive(name, "distance", distance, "give a bound of |x_0 - x*|, or leave it out")
        if initial is not None:
            checks.reject(name, "initial", "left out beside distance", initial, "there is nothing to search for")
    checks.nonnegative(name, "gradient_bound", gradient_bound, "0 is usual")
    pairs.check_optional_step(name, initial)
    following = accelerate(rule(), restart=restart, storage=storage)

    def init(params: PyTree) -> AccelegradState:
        inner, zero = cast("AccelerateState", following.init(params)), jnp.zeros((), scalar_dtype())
        opening: Opening | tuple[()] = ()
        if distance is None:
            infinite = jnp.full((), jnp.inf, zero.dtype)
            probes = jnp.zeros((), jnp.int32)
            opening = Opening(
                pairs.zero_buffer(name, params), zero, jnp.zeros_like(zero), infinite, jnp.zeros_like(probes)
            )
        return AccelegradState(
            step_size=jnp.zeros_like(zero),
            gradient_sum=as_scalar(gradient_bound) ** 2,
            distance=jnp.zeros_like(zero) if distance is None else as_scalar(distance),
            opening=opening,
            inner=inner,
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AccelegradState]:
        updates = trees.as_arrays(updates)
        square = squared_norm(updates, axis_name)
        total = state.gradient_sum + weight(state.inner.age) ** 2 * square
        if distance is not None:
            longest = varying_like(as_scalar(distance), state.distance)
            step_size = _quotient(2 * longest, total)
            step = trees.like(updates, pairs.step_of(None, updates, updates, step_size))
            moved, inner = following.update(step, state.inner, params, **extra)
            return moved, AccelegradState(step_size, total, longest, (), cast("AccelerateState", inner))

        params = pairs.required_params(name, params)
        point, slopes = trees.wide(updates, params), trees.wide(updates, updates)
        reference = pairs.read(name, state.opening.reference, updates)
        first = FIRST_MOVE * (1 + jnp.sqrt(squared_norm(point, axis_name))) if initial is None else as_scalar(initial)
        product = inner_product(slopes, reference, axis_name)
        found = _search(state.opening, state.distance, jnp.sqrt(square), product, first)

        fresh, opened = state.opening.slope == 0, found.runs & (state.opening.probes >= 0)
        reference = trees.select(fresh, slopes, trees.select(opened, point, reference))
        covered = jnp.sqrt(squared_norm(trees.difference(point, reference), axis_name))
        longest = jnp.where(found.runs, jnp.maximum(found.distance, covered), found.distance)
        step_size = jnp.where(found.runs, _quotient(longest, total), 0)
        # A select, for gradients of points that were too far may not be finite.
        step = trees.select(found.runs, trees.combine((-step_size, slopes)), trees.zeros(slopes))
        moved, following_state = following.update(trees.like(updates, step), state.inner, params, **extra)
        inner, one = cast("AccelerateState", following_state), jnp.ones_like(step_size)
        moved = trees.combine((one, trees.wide(updates, moved)), (found.move, reference))
        new_state = AccelegradState(
            step_size=step_size,
            gradient_sum=jnp.where(found.runs, total, state.gradient_sum),
            distance=longest,
            opening=found.opening._replace(reference=pairs.write(reference, state.opening.reference)),
            # While the search runs the velocity is 0, and the method has not begun.
            inner=inner._replace(age=jnp.where(found.runs, inner.age, 0)),
        )
        return trees.like(updates, moved), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _search(opening: Opening, distance: jax.Array, size: jax.Array, product: jax.Array, first: jax.Array) -> _Found:
    """One point of the search, x_0 - r g_0 / |g_0|: what its gradient says about r, and the next r."""
    fresh, searching = opening.slope == 0, opening.probes >= 0
    known = jnp.where(fresh, 1, opening.slope)
    left = product / known / known  # the part of the slope that is left, 1 at x_0
    left = jnp.where(jnp.isfinite(left), left, 0)  # what overflows was too far
    short = left >= LONGEST
    shorter = jnp.where(fresh | ~short, opening.shorter, distance)
    longer = jnp.where(fresh | short, opening.longer, distance)
    closed = longer <= _CLOSE * shorter
    gives_up = opening.probes >= _PROBES
    accepted = searching & ~fresh & ((short & ((left <= SHORTEST) | closed)) | gives_up)
    runs = accepted | ~searching

    lost = 1 - left
    # Interpolation of the slope between x_0 and here; exact on quadratics.
    aim = (1 - TARGET) / jnp.where(lost > 0, lost, 1)
    up = shorter * jnp.where(lost > 0, jnp.clip(aim, *_GROWTH), _GROWTH[1])
    down = distance * jnp.minimum(aim, _SHRINK)
    bounded = jnp.isfinite(longer)
    end = jnp.where(bounded, longer, shorter)
    middle = jnp.where(end > _WIDE * shorter, jnp.sqrt(shorter) * jnp.sqrt(end), (shorter + end) / 2)
    searched = pairs.limited(jnp.where(bounded, jnp.where(shorter > 0, middle, down), up))
    following = jnp.where(fresh, first, searched)
    slope = jnp.where(fresh, size, opening.slope)
    here = jnp.where(fresh, 0, distance)
    move = jnp.where(runs | (slope == 0), 0, (here - following) / jnp.where(slope > 0, slope, 1))

    start = jnp.where(short, jnp.minimum(distance, longer - shorter), first)
    following = jnp.where(runs, jnp.where(accepted, start, distance), following)
    probes = jnp.where(runs, -1, jnp.where(fresh & (size == 0), 0, increment(opening.probes)))
    return _Found(runs, following, move, Opening(opening.reference, slope, shorter, longer, probes.astype(jnp.int32)))


def _quotient(numerator: jax.Array, square: jax.Array) -> jax.Array:
    """numerator / sqrt(square), 0 where that is 0: nothing has had a gradient yet."""
    some = square > 0
    return jnp.where(some, numerator / jnp.sqrt(jnp.where(some, square, 1)), 0)
