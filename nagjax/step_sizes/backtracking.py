"""Backtracking: the step size that passes the descent test, found with values of the function alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName
from nagjax.proximal.prox import Prox
from nagjax.reductions import inner_product, squared_norm
from nagjax.scalars import as_scalar, scalar_dtype
from nagjax.step_sizes import pairs
from nagjax.transform import check_floating
from nagjax.types import PyTree

_SLACK = 16.0  # units of rounding of the values, below which their difference says nothing
_SHORT = 0.25  # a step of this over the curvature seen is short enough where differences of values may be rounding


class BacktrackingState(NamedTuple):
    """State of `backtracking`."""

    step_size: jax.Array  # s of the last update; scalar, float32 or float64
    trial: jax.Array  # where the next search begins, 0 before the first; scalar
    curvature: jax.Array  # the largest 2 D / |z - y|^2 of a D that is no rounding; scalar
    function_evaluations: jax.Array  # calls of value_fn so far, int32 scalar
    inner: optax.OptState


class _Trial(NamedTuple):
    step_size: jax.Array
    excess: jax.Array  # D - |z - y|^2 / (2 s), D = f(z) - f(y) - <g, z - y>
    room: jax.Array  # |z - y|^2 / (2 s)
    slack: jax.Array  # rounding of the values
    doubt: jax.Array  # what rounding inside the function may be
    evaluations: jax.Array


def backtracking(
    inner: optax.GradientTransformation,
    *,
    prox: Prox | None = None,
    shrink: ArrayLike = 0.5,
    growth: ArrayLike = 1.0,
    initial: ArrayLike | None = None,
    max_trials: int = 60,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale the gradient by a step size s that passes the descent test.

    With z = prox_{s h}(y - s g) the test is f(z) <= f(y) + <g, z - y> + |z - y|^2 / (2 s); s is multiplied by
    `shrink` until it holds. Differences of values within their rounding count as passed, and those that rounding
    inside the function may explain do where the step is short for the curvature seen, so that the search ends near
    the optimum in every precision and steps do not collapse.

    `inner` gets the step z - y and the keyword arguments `step_size` = s and `step_ratio` = s_k / (first trial of
    update k+1), by which `momentum.fista` corrects its sequence, and `objective` = f + h at `params` for
    `restart.value`.

    `growth` above 1 lets the next search begin at growth * s, where this update says that the longer step would have
    passed too. Every growth that is taken back costs the sequence t a factor, because the query point is formed
    before the search: with persistent changes O(1/k^2) is lost.

    Args:
        inner: What follows the step size, such as `accelerate(momentum.fista())`.
        prox: h of f + h, from `nagjax.proximal`; gradient, `value` and `value_fn` are those of f.
        shrink: Factor of a failed trial, in (0, 1).
        growth: Factor from one update to the first trial of the next, at least 1.
        initial: The first trial of the first update, positive. By default that search begins with a step of length
            1 + |x_0|, and then also lengthens s while the test passes.
        max_trials: Most function values in one update, an integer of at least 1.
        axis_name: The mapped axis over which parameters are sharded inside `shard_map` or `pmap`.

    Returns:
        A gradient transformation that needs `params`, `value` and `value_fn` in every update. Memory: four scalars,
        and that of `inner`. Cost: one gradient and at least one function value a step.

    Guarantee:
        With `accelerate(momentum.fista())` and convex f, F(x_k) - F* <= R^2 / (2 s_k t_k^2) at the answer for every
        `growth`. With growth = 1 and an L-smooth f, s_k >= min(initial, shrink / L), and so F(x_N) - F* <=
        2 L R^2 / (shrink (N + 1)^2).

    Raises:
        TypeError: `prox` is not a `Prox`, or a number is none.
        ValueError: A number is out of its range; `update` got no `params`, `value` or `value_fn`.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax, optax
        >>> from nagjax import momentum, step_sizes
        >>> f = lambda x: jnp.sum(jnp.array([1.0, 100.0]) * x**2) / 2
        >>> tx = step_sizes.backtracking(nagjax.accelerate(momentum.fista()))
        >>> params = jnp.array([1.0, 1.0])
        >>> state = tx.init(params)
        >>> for _ in range(60):
        ...     value, gradient = jax.value_and_grad(f)(params)
        ...     updates, state = tx.update(gradient, state, params, value=value, value_fn=f)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(f(nagjax.eval_params(params, state)) < 2 * 100 * 2 / (0.5 * 61**2))
        True

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems", 2009,
        FISTA with backtracking; for growing steps K. Scheinberg, D. Goldfarb and X. Bai, "Fast first-order methods for
        composite convex optimization with backtracking", 2014. The growth only with room is that of J.-F. Aujol, L.
        Calatroni, C. Dossal, H. Labarriere and A. Rondepierre, "Parameter-free FISTA by adaptive restart and
        backtracking", 2023.
    """
    name = "step_sizes.backtracking"
    checks.scalar(name, "shrink", shrink, "between 0 and 1", lambda v: 0 < v < 1, "0.5 is usual")
    checks.scalar(name, "growth", growth, "at least 1 and finite", lambda v: 1 <= v < float("inf"), "1 keeps O(1/k^2)")
    checks.whole(name, "max_trials", max_trials, 1, "60 halvings are enough for every scale")
    pairs.check_optional_prox(name, prox)
    pairs.check_optional_step(name, initial)
    following = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> BacktrackingState:
        check_floating(name, params)
        step_size, trial, curvature = (jnp.zeros((), scalar_dtype()) for _ in range(3))
        return BacktrackingState(step_size, trial, curvature, jnp.zeros((), jnp.int32), following.init(params))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        value: Any = None,
        value_fn: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, BacktrackingState]:
        params, updates = pairs.required_params(name, params), trees.as_arrays(updates)
        present = pairs.required_value(name, value)
        function = pairs.required_function(name, value_fn, extra)
        slope, point = trees.wide(updates, updates), trees.wide(updates, params)
        unit = _SLACK * pairs.rounding_unit((params, present))
        before = as_scalar(present)

        def attempt(s: jax.Array, evaluations: jax.Array) -> _Trial:
            # The test is about the point that will be evaluated: rounded to the dtype of the parameters.
            proposed = trees.like(params, pairs.forward(prox, point, slope, s))
            step = trees.difference(trees.wide(updates, proposed), point)
            after, linear = as_scalar(function(trees.merged(params, proposed))), inner_product(slope, step, axis_name)
            room = squared_norm(step, axis_name) / (2 * s)
            size = jnp.abs(before) + jnp.where(jnp.isfinite(after), jnp.abs(after), 0)
            excess = after - before - linear - room
            return _Trial(s, excess, room, unit * size, unit**0.5 * size, evaluations + 1)

        zero = jnp.zeros((), jnp.int32)
        fresh = state.trial == 0
        slope_size = jnp.sqrt(squared_norm(slope, axis_name))
        length = 1 + jnp.sqrt(squared_norm(point, axis_name))
        default = pairs.limited(length / jnp.where(slope_size > 0, slope_size, 1))
        begin = jnp.where(fresh, default if initial is None else as_scalar(initial), state.trial)
        found = attempt(begin, zero)
        if initial is None:
            found = _lengthen(attempt, found, fresh, as_scalar(shrink), max_trials)
        found = _shorten(attempt, found, as_scalar(shrink), max_trials, state.curvature)
        difference = found.excess + found.room
        clear = (difference > found.doubt) & (found.room > 0)
        sample = jnp.where(clear, difference / jnp.where(clear, found.room * found.step_size, 1), 0)
        curvature = jnp.maximum(state.curvature, sample)

        s = found.step_size
        # D + slack <= |z - y|^2 / (2 growth s): the longer step would have passed, whatever the rounding.
        room = found.room * (1 - 1 / as_scalar(growth))
        grows = (found.excess + found.slack <= -room) & (found.room > 0)
        trial = pairs.limited(jnp.where(grows, as_scalar(growth) * s, s))
        step = trees.like(updates, pairs.step_of(prox, point, slope, s))
        objective = extra.pop("objective", None)
        if objective is None:
            objective = before + pairs.penalty(prox, params)
        step, inner_state = following.update(
            step,
            state.inner,
            params,
            value=value,
            value_fn=value_fn,
            objective=objective,
            step_size=s,
            step_ratio=s / trial,
            **extra,
        )
        evaluations = state.function_evaluations + found.evaluations
        return step, BacktrackingState(s, trial, curvature, evaluations, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _passes(trial: _Trial) -> jax.Array:
    return trial.excess <= trial.slack


def _lengthen(
    attempt: Callable[[jax.Array, jax.Array], _Trial], first: _Trial, wanted: jax.Array, shrink: jax.Array, most: int
) -> _Trial:
    """The longest step of a geometric sequence that passes beyond rounding, in a search upward."""

    def clear(trial: _Trial) -> jax.Array:
        return trial.excess + trial.slack <= 0

    def go_on(carry: tuple[_Trial, _Trial]) -> jax.Array:
        _, ahead = carry
        return wanted & clear(ahead) & (ahead.evaluations < most) & (ahead.room > 0)

    def body(carry: tuple[_Trial, _Trial]) -> tuple[_Trial, _Trial]:
        _, ahead = carry
        return ahead, attempt(pairs.limited(ahead.step_size / shrink), ahead.evaluations)

    last, ahead = jax.lax.while_loop(go_on, body, (first, first))
    return trees.select(_passes(ahead), ahead, last)._replace(evaluations=ahead.evaluations)


def _shorten(
    attempt: Callable[[jax.Array, jax.Array], _Trial],
    first: _Trial,
    shrink: jax.Array,
    most: int,
    curvature: jax.Array,
) -> _Trial:
    def short(trial: _Trial) -> jax.Array:
        rounding = jnp.abs(trial.excess) <= trial.doubt
        return rounding & (curvature > 0) & (trial.step_size * curvature <= _SHORT)

    def go_on(trial: _Trial) -> jax.Array:
        return ~(_passes(trial) | short(trial)) & (trial.evaluations < most)

    def body(trial: _Trial) -> _Trial:
        return attempt(shrink * trial.step_size, trial.evaluations)

    return jax.lax.while_loop(go_on, body, first)
