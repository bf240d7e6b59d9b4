"""The default method: accelerated proximal steps of a size that the gradients show, with restarts and a guard."""

import dataclasses
import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from nagjax import proximal, trees
from nagjax.reductions import inner_products, power_of_largest, squared_norm
from nagjax.scalars import as_scalar, increment
from nagjax.solve.composite import Composite, Evaluation
from nagjax.solve.method import Ending, Method, Report, Start, empty_report, lands, lowest, scale_of, settles
from nagjax.step_sizes.curvature import next_step, no_samples, probe
from nagjax.step_sizes.pairs import rounding_unit
from nagjax.types import PyTree

GROWTH = 1.2  # of the step size from one step to the next, at most
FISTA_STEPS = 200  # the first cycle has FISTA's momentum up to here, then 1
MOST_REVERTS = 60  # in a row: the step size has fallen by 2^60
REVERT, STAY, RESTART, GO_ON = range(4)  # what a step comes to
STILL_STEPS = 10  # in a row that rounding swallows


class AcceleratedState(NamedTuple):
    """State of `default`: six trees of the parameters' structure, and scalars."""

    params: PyTree  # x, the answer
    query: PyTree  # y
    lead: PyTree  # y - x, which would lose digits as a difference of large numbers
    moved: PyTree  # y - y', alike
    previous_gradient: PyTree  # g'
    magnitude: jax.Array  # a power of 2 near the first gradient's largest entry; scalars are those of F / magnitude
    reference: PyTree  # x_ref, where the last good cycle began
    start: Start
    start_size: jax.Array  # |x_0|^2
    floor: jax.Array  # a value of f that only an unbounded objective reaches
    nonsmooth: jax.Array  # h(x)
    reference_value: jax.Array  # F(x_ref)
    reference_residual: jax.Array
    slack: jax.Array  # tau, relative tolerance of the guard
    step_size: jax.Array  # s of the last step
    taken: jax.Array  # s with which the cycle began
    longest: jax.Array  # the step size may not exceed this: set by a revert, from which it grows
    window: jax.Array  # the last two samples of curvature, shape (2,)
    t: jax.Array  # momentum number
    steps: jax.Array  # k, int32
    fresh: jax.Array  # y is x, bool
    at_reference: jax.Array  # x is x_ref, bool
    paired: jax.Array  # y' and g' may be used, bool
    reverts: jax.Array  # since F(x_ref) was set, int32
    outside: jax.Array  # the last of them left the domain, bool
    still: jax.Array  # steps in a row that rounding swallows, int32
    report: Report


def default() -> Method:
    """Accelerated proximal gradient steps without any constant to give; the default of `solve.minimize`.

    One value-and-gradient a step. The step size is the inverse of the curvature between the last query points
    (`step_sizes.curvature`); FISTA's momentum in the first cycle, 1 afterwards; gradient restart; a free guard returns
    to the start of a cycle that provably went above it.

    Guarantee:
        For convex f and steps of at most 1/L, values at restart points never increase, up to rounding, and the first
        step after a restart is a plain proximal-gradient step. Momentum 1 and the step rule are heuristics without an
        O(1/k^2) theorem: for the theorem use `nagjax.fista` with a fixed step.

    Source:
        A. Beck and M. Teboulle, 2009 (FISTA); D. Kim and J. Fessler, 2018 (OGM's term); B. O'Donoghue and E. Candes,
        2015 (gradient restart); J. Liang, T. Luo and C.-B. Schoenlieb, 2022 (momentum 1); K. Scheinberg, D. Goldfarb
        and X. Bai, 2014 (momentum after a change of the step). Their combination is nagjax's.
    """
    return Method(init, update)


def init(composite: Composite, params: PyTree, start: Start) -> AcceleratedState:
    """The state at the start; without a step size the first step is a tiny probe."""
    yes, no = jnp.ones((), jnp.bool), jnp.zeros((), jnp.bool)
    count = jnp.zeros((), jnp.int32)
    return AcceleratedState(
        params=params,
        query=params,
        lead=trees.zeros(params),
        moved=trees.zeros(params),
        previous_gradient=trees.zeros(params),
        magnitude=as_scalar(1.0),
        reference=params,
        start=start,
        start_size=squared_norm(params),
        floor=as_scalar(-jnp.inf),
        nonsmooth=as_scalar(composite.prox.value(params)),
        reference_value=as_scalar(jnp.inf),
        reference_residual=as_scalar(jnp.inf),
        slack=as_scalar(10 * rounding_unit(params)),
        step_size=start.step_size,
        taken=as_scalar(0.0),
        longest=as_scalar(jnp.inf),
        window=no_samples(),
        t=as_scalar(1.0),
        steps=count,
        fresh=yes,
        at_reference=yes,
        paired=no,
        reverts=count,
        outside=no,
        still=count,
        report=empty_report(),
    )


def update(composite: Composite, state: AcceleratedState, evaluation: Evaluation, ending: Ending) -> AcceleratedState:
    """One step; the numbers are those of the recipe in BUILD_NOTES.md."""
    begins = state.steps == 0

    def kept_magnitude(gradient: PyTree) -> jax.Array:
        del gradient
        return state.magnitude

    magnitude = cast("jax.Array", jax.lax.cond(begins, power_of_largest, kept_magnitude, evaluation.gradient))
    given, raw = composite, evaluation
    composite, evaluation = scaled(composite, evaluation, magnitude)
    factor = jnp.where(begins, magnitude, 1)  # what `init` knew is not scaled yet
    last_step, nonsmooth = state.step_size * factor, state.nonsmooth / factor

    x, y, g, before = state.params, state.query, evaluation.gradient, state.report
    unit = rounding_unit(y)

    # 1, 2: curvature and step.
    moved, changed = state.moved, trees.difference(g, state.previous_gradient)
    move, change, product, slope, ahead = inner_products(
        (moved, moved), (changed, changed), (moved, changed), (g, g), (g, state.lead)
    )
    measured, window = next_step(last_step, state.window, move, change, product, slope, growth=GROWTH, unit=unit)
    window = jnp.where(state.paired, window, state.window)
    probing = begins & (last_step <= 0)
    s = jnp.where(probing, probe(state.start_size, slope), jnp.where(state.paired, measured, last_step))
    s = jnp.minimum(s, state.longest)

    # 3: the guard. For convex f the model value is a lower bound of F(x), exact where y is x.
    model = evaluation.value - jnp.where(state.fresh, 0, ahead) + nonsmooth
    improves = state.fresh & (model <= state.reference_value)
    allowed = model <= state.reference_value + state.slack * jnp.abs(state.reference_value)
    # Momentum may have left the domain: go on from the answer, and without momentum.
    backs_off = ~jnp.isfinite(model) & ~state.fresh
    reverts = ~(improves | allowed | state.at_reference | backs_off)

    # 4: the proximal step.
    one = jnp.ones_like(s)
    z = composite.forward_backward(y, g, s)
    u = trees.combine((-s, g)) if composite.is_smooth else trees.difference(z, y)
    forth = trees.combine((one, state.lead), (one, u))  # z - x
    length, turn, size, stride = inner_products((u, u), (u, forth), (z, z), (forth, forth))
    residual = magnitude * composite.residual(jnp.sqrt(slope), length, size, s, unit)
    # The probe is too short for a scale of residuals; the step after it is the first regular one.
    regular = state.steps == jnp.where(state.start.step_size > 0, 0, 1)
    scale = scale_of(state.start, begins | regular, residual, before.scale)
    residual, scale = given.error(y, raw, residual, scale)
    still_probing = probing & (slope > 0) & ~ending.close
    settled = settles(state.fresh, residual, scale, ending) & ~reverts & ~still_probing

    # 5, 6: momentum and restart.
    falls = improves & (model < state.reference_value)
    reverted = jnp.where(falls, 0, state.reverts + reverts.astype(jnp.int32))
    outside = jnp.where(reverts | backs_off, ~jnp.isfinite(model), state.outside & ~falls)
    # A step that a pair far away has made short grows again, and does not count.
    at_limit = (s * jnp.max(window) > 0.5) | outside
    still = jnp.where((stride <= unit**2 * size) & at_limit, increment(state.still), 0)
    finite = jnp.isfinite(evaluation.value) & jnp.isfinite(slope)
    exhausted = (still >= STILL_STEPS) | (reverted > MOST_REVERTS)
    stalled = (ending.tol > 0) & exhausted & ~outside
    gives_up = exhausted & outside
    restarts = (turn <= 0) | stalled | lands(residual, scale, ending)
    t = (1 + jnp.sqrt(1 + 4 * jnp.where(begins, 1, last_step / s) * state.t**2)) / 2
    cautious = (before.restarts == 0) & (state.steps <= FISTA_STEPS)
    momentum = jnp.where(cautious, (state.t - 1) / t, 1)
    correction = jnp.where(cautious, 0.5 * state.t / t, 0)
    lead = trees.combine((momentum, forth), (correction, u))

    # 7: the next state; a revert takes x_ref, and the end takes the query point itself.
    ends = settled | (reverts & ending.close)
    reference = trees.select(improves, x, state.reference)
    fresh = restarts | reverts | ends | backs_off
    stays = settled | backs_off | (begins & ~finite)
    turn_taken = _detached(
        jnp.where(reverts | gives_up, REVERT, jnp.where(stays, STAY, jnp.where(restarts, RESTART, GO_ON)))
    )
    back_to, kept, plain = (turn_taken == which for which in (REVERT, STAY, RESTART))
    params = trees.select(back_to, reference, trees.select(kept, x, z))
    lead = trees.select(kept | plain | back_to, trees.zeros(lead), lead)
    query = trees.combine((one, params), (one, lead))
    reference_value = jnp.where(improves, model, state.reference_value)
    reference_residual = jnp.where(improves, residual, state.reference_residual)
    largest = jnp.max(window)
    floor = jnp.where(begins, lowest(evaluation.value, jnp.sqrt(slope), state.start_size, unit), state.floor)
    report = Report(
        value=jnp.where(reverts, reference_value, model) * magnitude,
        residual=jnp.where(reverts & ending.close, reference_residual, residual),
        scale=scale,
        step_size=s / magnitude,
        safe_step=jnp.where(largest > 0, 1 / largest, jnp.inf) / magnitude,
        restarts=before.restarts + (restarts & ~reverts & ~ends).astype(jnp.int32),
        settled=ends,
        stalled=stalled,
        unbounded=evaluation.value < floor,
        overshot=jnp.zeros((), jnp.bool),
        broken=(begins & ~finite) | gives_up,
    )
    return AcceleratedState(
        params=params,
        query=query,
        lead=lead,
        moved=trees.combine((one, u), (one, lead)),
        previous_gradient=g,
        magnitude=magnitude,
        reference=reference,
        start=state.start,
        start_size=state.start_size,
        floor=floor,
        # The start may violate a constraint.
        nonsmooth=jnp.where(reverts & jnp.isinf(reference_value), jnp.inf, composite.nonsmooth(params)),
        reference_value=reference_value,
        reference_residual=reference_residual,
        slack=jnp.where(reverts, 10 * state.slack, state.slack),
        # Half of the step that left x_ref: that of the last one may be tiny, or may have grown again.
        step_size=jnp.where(reverts, state.taken / 2, jnp.where(backs_off, s / 2, s)),
        taken=jnp.where(state.fresh | (state.steps <= 1), s, state.taken),
        longest=jnp.where(reverts, state.taken / 2, jnp.where(falls, jnp.inf, GROWTH * state.longest)),
        window=window,
        t=jnp.where(fresh, 1, t),
        steps=increment(state.steps),
        fresh=fresh,
        at_reference=reverts,
        paired=~(reverts | backs_off),
        reverts=reverted,
        outside=outside,
        still=still,
        report=report,
    )


def scaled(composite: Composite, evaluation: Evaluation, magnitude: jax.Array) -> tuple[Composite, Evaluation]:
    """F / magnitude, and its smooth part at the point: squares of its gradients neither overflow nor underflow."""
    inverse = 1 / magnitude
    smaller = evaluation._replace(
        value=evaluation.value * inverse, gradient=trees.combine((inverse, evaluation.gradient))
    )  # fmt: skip
    if composite.is_smooth:
        return composite, smaller
    return dataclasses.replace(composite, prox=proximal.scale(composite.prox, inverse)), smaller


def _detached(index: jax.Array) -> jax.Array:
    # XLA's CPU backend would compute the scalars behind an index again in the kernel of every leaf that uses it. It
    # does not fuse across a conditional.
    branches = [functools.partial(jnp.int32, which) for which in (REVERT, STAY, RESTART, GO_ON)]
    return cast("jax.Array", jax.lax.switch(index, branches))
