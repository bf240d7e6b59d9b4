"""Optax chains as methods: FISTA, OGM, triple momentum, ITEM, adaptive steps, or a user's own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nagjax import checks, trees
from nagjax.answers import eval_params, reset_momentum
from nagjax.proximal.transform import ProximalStepState
from nagjax.reductions import inner_products, power_of_largest, squared_norm
from nagjax.scalars import as_scalar, increment
from nagjax.solve.composite import Composite, Evaluation
from nagjax.solve.method import Ending, Method, Report, Start, empty_report, lands, lowest, scale_of, settles
from nagjax.step_sizes.pairs import rounding_unit
from nagjax.types import PyTree

STILL_STEPS = 10  # in a row that rounding swallows
ROUNDING = 32.0  # units of rounding, within which two ways to compute an answer agree


class ChainState(NamedTuple):
    """State of `chain`."""

    params: PyTree  # the answer
    query: PyTree  # the parameters of the chain
    opt_state: Any
    best: PyTree  # the query point with the least objective
    best_value: jax.Array
    previous_query: PyTree
    previous_gradient: PyTree
    curvature: jax.Array  # the largest seen
    start: Start
    start_value: jax.Array  # F at the start
    floor: jax.Array  # a value of f that only an unbounded objective reaches
    steps: jax.Array  # int32
    fresh: jax.Array  # the query point is the answer, bool
    still: jax.Array  # steps in a row that rounding swallows, int32
    report: Report

    @property
    def function_evaluations(self) -> jax.Array:
        """Values of the smooth part alone that the chain has taken, int32."""
        return _field(self.opt_state, "function_evaluations", jnp.zeros((), jnp.int32))


def chain(transformation: optax.GradientTransformation) -> Method:
    """A method from an Optax transformation.

    `update` gets the gradient of the smooth part, `params`, and the keyword arguments `value`, `grad` and `value_fn` of
    the smooth part, and with a prox `objective`, which is f + h at `params`. A transformation with a prox tells its
    step size in a field `step_size` of its state, as those of nagjax do; its operator then runs twice a step.
    """
    tx = optax.with_extra_args_support(transformation)

    def init(composite: Composite, params: PyTree, start: Start) -> ChainState:
        opt_state = tx.init(params)
        takes_prox = _field(opt_state, "step_size", None) is not None
        if not composite.is_smooth and not takes_prox:
            remedy = "put proximal.step(prox, step_size) before accelerate; or use nagjax.fista(step_size, prox)"
            found = "one without"
            checks.reject("solve.minimize", "method", "a chain with a proximal step for this prox", found, remedy)
        if composite.is_smooth and _has_proximal_step(opt_state):
            remedy = "pass the prox of the chain to minimize too: it needs its value and the residual"
            checks.reject("solve.minimize", "prox", "given for a chain with a proximal step", None, remedy)
        count = jnp.zeros((), jnp.int32)
        return ChainState(
            params=params,
            query=params,
            opt_state=opt_state,
            best=params,
            best_value=as_scalar(jnp.inf),
            previous_query=params,
            previous_gradient=trees.zeros(params),
            curvature=as_scalar(0.0),
            start=start,
            start_value=as_scalar(jnp.inf),
            floor=as_scalar(-jnp.inf),
            steps=count,
            fresh=jnp.ones((), jnp.bool),
            still=count,
            report=empty_report(),
        )

    def update(composite: Composite, state: ChainState, evaluation: Evaluation, ending: Ending) -> ChainState:
        y, g, f, before = state.query, evaluation.gradient, evaluation.value, state.report
        begins, unit = state.steps == 0, rounding_unit(state.query)
        objective = f + as_scalar(composite.prox.value(y))
        values = {"value": f, "grad": g, "value_fn": composite.smooth}
        if not composite.is_smooth:
            values["objective"] = objective
        updates, opt_state = tx.update(g, state.opt_state, y, **values)
        following = optax.apply_updates(y, updates)

        moved, changed = trees.difference(y, state.previous_query), trees.difference(g, state.previous_gradient)
        magnitude = power_of_largest(g)
        smaller = trees.combine((1 / magnitude, g))  # whose square neither overflows nor underflows
        move, change, slope, size, length = inner_products(
            (moved, moved), (changed, changed), (smaller, smaller), (y, y), (updates, updates)
        )
        slope_norm = magnitude * jnp.sqrt(slope)
        seen = ~begins & (move > 0) & (jnp.sqrt(change) > 10 * unit * slope_norm)
        sample = jnp.sqrt(change / jnp.where(move > 0, move, 1))
        curvature = jnp.where(seen, jnp.maximum(state.curvature, sample), state.curvature)
        safe_step = jnp.where(curvature > 0, 1 / curvature, jnp.inf)

        x = _answer(following, opt_state)
        if composite.is_smooth:
            s = _field(opt_state, "step_size", jnp.where(jnp.isfinite(safe_step), safe_step, 1))
            z, residual = x, slope_norm
        else:
            s = as_scalar(_field(opt_state, "step_size", None))
            z = composite.forward_backward(y, g, s)
            residual = composite.residual(slope_norm, squared_norm(trees.difference(y, z)), size, s, unit)
        scale = scale_of(state.start, begins, residual, before.scale)
        start_value = jnp.where(begins, objective, state.start_value)
        finite = jnp.isfinite(f) & jnp.isfinite(slope)
        better = objective < state.best_value
        best = trees.select(better, y, state.best)
        # Momentum may have left the domain: go on from the answer, and without momentum.
        outside = ~finite & ~state.fresh
        higher = ~(objective <= start_value) & ~begins & ~outside
        lost = ~finite & state.fresh & ~begins
        overshot = lost | (higher & ~(residual <= scale / unit**0.5))
        still = jnp.where(length <= unit**2 * size, increment(state.still), 0)
        stalled = (ending.tol > 0) & (still >= STILL_STEPS)

        error, scale = composite.error(y, evaluation, residual, scale)
        settled = settles(state.fresh, error, scale, ending)
        landing = stalled | outside | lands(error, scale, ending)
        stops = settled | landing
        proposed = x if composite.is_smooth else _snapped(x, z, y, unit)
        kept = (begins & ~finite) | outside
        answer = trees.select(settled, y, trees.select(overshot, best, trees.select(kept, state.params, proposed)))
        opt_state = trees.select(outside, state.opt_state, opt_state)
        return ChainState(
            params=answer,
            query=trees.select(stops, answer, following),
            opt_state=trees.select(stops, _reset(opt_state), opt_state),
            best=best,
            best_value=jnp.where(better, objective, state.best_value),
            previous_query=y,
            previous_gradient=g,
            curvature=curvature,
            start=state.start,
            start_value=start_value,
            floor=jnp.where(begins, lowest(f, slope_norm, size, unit), state.floor),
            steps=increment(state.steps),
            fresh=stops,
            still=still,
            report=Report(
                value=jnp.where(overshot, state.best_value, objective),
                residual=error,
                scale=scale,
                step_size=as_scalar(s),
                safe_step=safe_step,
                restarts=before.restarts,
                settled=settled,
                stalled=stalled,
                unbounded=f < state.floor,
                overshot=overshot,
                broken=begins & ~finite,
            ),
        )

    return Method(init, update)


def _has_proximal_step(opt_state: Any) -> bool:
    def is_step(node: object) -> bool:
        return isinstance(node, ProximalStepState)

    return any(is_step(node) for node in jax.tree.leaves(opt_state, is_leaf=is_step))


def _answer(params: PyTree, opt_state: Any) -> PyTree:
    """The answer of a chain, which is its parameters where no state says otherwise."""
    try:
        return eval_params(params, opt_state)
    except (TypeError, ValueError):
        return params


def _reset(opt_state: Any) -> Any:
    """The state without momentum, where it has any."""
    try:
        return reset_momentum(opt_state)
    except (TypeError, ValueError):
        return opt_state


def _snapped(x: PyTree, z: PyTree, y: PyTree, unit: float) -> PyTree:
    """The answer x, or what the proximal operator returned where they differ by rounding: its zeros are exact."""

    def snap(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        near = jnp.abs(a - b) <= ROUNDING * unit * (jnp.abs(a) + jnp.abs(b) + jnp.abs(c))
        return jnp.where(near, b, a)

    return trees.map_present(snap, x, z, y)


def _field(opt_state: Any, name: str, default: Any) -> Any:
    try:
        return optax.tree_utils.tree_get(opt_state, name, default)
    except KeyError:  # more than one
        return default
