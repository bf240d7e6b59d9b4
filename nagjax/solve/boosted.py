"""The boosted method: the default method, and quasi-Newton steps once the active face of h is known."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from nagjax import trees
from nagjax.reductions import inner_products
from nagjax.scalars import as_scalar, increment
from nagjax.solve import accelerated, quasi_newton
from nagjax.solve.composite import Composite, Evaluation
from nagjax.solve.method import Ending, Method, Report, Start, lands
from nagjax.solve.quasi_newton import Pairs
from nagjax.step_sizes.curvature import local_smoothness, no_samples
from nagjax.step_sizes.pairs import rounding_unit
from nagjax.types import PyTree

AGREEING = 2  # steps with the same face before a visit
AGREEING_COUPLED = 4  # the same for an h that couples coordinates, at restarts alone
MOST_WAITING = 64  # steps between visits, at most
GOOD_VISIT = 3  # accepted steps
DECREASE = 0.5e-4  # of the envelope that a trial has to reach, in units of |R|^2 / s
STEEPEST = 1e3  # most curvature that one pair may show, in units of 1 / s
CAUTION = 0.95  # step size over 1 / L


class BoostedState(NamedTuple):
    """State of `boosted`: that of the default method and 22 more trees of the parameters' size.

    During a visit to the face `base` is the point u that trials start from, `main.previous_gradient` its gradient, and
    `main.params` the proximal step z from there. Scalars are those of F / magnitude, as in the default method.
    """

    main: accelerated.AcceleratedState
    base: PyTree  # u
    pairs: Pairs
    change: jax.Array  # (y' - z') / s' of the last step where h couples coordinates, else empty
    face: jax.Array  # where the derivative of the operator is above 1/2, shape (n,)
    direction: jax.Array  # of the visit, shape (n,)
    agreeing: jax.Array  # steps with this face, int32
    waited: jax.Array  # steps since the last visit, int32
    wait: jax.Array  # steps before the next visit, int32
    inside: jax.Array  # in a visit, bool
    entering: jax.Array  # the query point becomes the base point, bool
    halved: jax.Array  # the trial is the second one, bool
    accepted: jax.Array  # steps of this visit, int32
    base_value: jax.Array  # f(u)
    entry_value: jax.Array  # F where the visit began

    @property
    def params(self) -> PyTree:
        """The answer."""
        return self.main.params

    @property
    def query(self) -> PyTree:
        """Where the next step takes value and gradient."""
        return self.main.query

    @property
    def report(self) -> Report:
        """Of the last step."""
        return self.main.report


class _Base(NamedTuple):
    """A point with all that the envelope needs there."""

    point: PyTree
    gradient: PyTree
    value: jax.Array  # f
    proposal: PyTree  # z
    envelope: jax.Array  # f + <g, z - u> + |z - u|^2 / (2 s) + h(z)
    squared: jax.Array  # |u - z|^2


def boosted() -> Method:
    """The default method with quasi-Newton steps on the identified face; still one value-and-gradient a step.

    Once the coordinates on which the operator of h is locally flat have been the same for a few steps, L-BFGS
    directions in the other ones are tried, and kept while the forward-backward envelope decreases; two rejected
    trials return to accelerated steps. Its memory is filled from the gradients of both phases. An h that couples
    coordinates (group lasso, nuclear norm) is boosted as a whole, from the residual map.

    Guarantee:
        As the default method; during a visit the envelope, an upper bound of F at the answer for s at most 1/L,
        decreases.

    Source:
        L. Stella, A. Themelis and P. Patrinos, "A simple and efficient algorithm for nonlinear model predictive
        control" (PANOC), 2017; A. De Marchi and A. Themelis, 2022 (steps that adapt); P. Pas, M. Schuller and P.
        Patrinos, 2022 (L-BFGS on a face). The combination is nagjax's.
    """
    return Method(_init, _update)


def _init(composite: Composite, params: PyTree, start: Start) -> BoostedState:
    vector, no, none = trees.ravel(params), jnp.zeros((), jnp.bool), jnp.zeros((), jnp.int32)
    coupled = _coupled(composite, params)
    return BoostedState(
        main=accelerated.init(composite, params, start),
        base=params,
        pairs=quasi_newton.no_pairs(vector),
        change=jnp.zeros_like(vector) if coupled else jnp.zeros((0,), vector.dtype),
        face=jnp.ones(vector.shape, jnp.bool),
        direction=jnp.zeros_like(vector),
        agreeing=none,
        waited=none,
        wait=jnp.full((), AGREEING, jnp.int32),
        inside=no,
        entering=no,
        halved=no,
        accepted=none,
        base_value=as_scalar(0.0),
        entry_value=as_scalar(0.0),
    )


def _update(composite: Composite, state: BoostedState, evaluation: Evaluation, ending: Ending) -> BoostedState:
    """One step of either phase; the pair of the last two query points is kept in both."""
    smaller, scaled = accelerated.scaled(composite, evaluation, state.main.magnitude)
    if not _coupled(composite, state.query):
        # Pairs of the gradient stay valid when the face changes; those of the residual map do not.
        from_base = trees.difference(state.query, state.base)
        move = trees.ravel(trees.select(state.inside, from_base, state.main.moved))
        change = trees.ravel(trees.difference(scaled.gradient, state.main.previous_gradient))
        state = state._replace(pairs=_remember(state.pairs, move, change, state.main.paired))

    def visit(state: BoostedState) -> BoostedState:
        return _visit(composite, smaller, state, scaled, ending)

    def accelerate(state: BoostedState) -> BoostedState:
        return _accelerate(composite, state, evaluation, ending)

    return cast("BoostedState", jax.lax.cond(state.inside, visit, accelerate, state))


def _accelerate(composite: Composite, state: BoostedState, evaluation: Evaluation, ending: Ending) -> BoostedState:
    y, regular = state.query, state.main.steps > 0
    main = accelerated.update(composite, state.main, evaluation, ending)
    s = main.report.step_size
    if _coupled(composite, y):
        change = trees.ravel(trees.difference(y, main.params)) / _like(s * main.magnitude, state.change)
        move = trees.ravel(state.main.moved)
        pairs = _remember(state.pairs, move, change - state.change, state.main.paired & regular)
        state = state._replace(pairs=pairs, change=change)
        face, same, least = state.face, jnp.ones((), jnp.bool), AGREEING_COUPLED
        allowed = main.fresh
    else:
        face = _face(composite, y, evaluation.gradient, s)
        same, least, allowed = jnp.all(face == state.face), AGREEING, jnp.ones((), jnp.bool)
    agreeing = jnp.where(same, increment(state.agreeing), 1)
    waited = increment(state.waited)
    report = main.report
    landing = ending.land | report.stalled | report.settled | lands(report.residual, report.scale, ending)
    ready = (state.pairs.length > 0) & (agreeing >= least) & (waited >= state.wait)
    enters = allowed & ready & regular & main.paired & ~landing
    return state._replace(
        main=main._replace(
            query=trees.select(enters, main.params, main.query),
            step_size=jnp.where(enters, CAUTION * main.step_size, main.step_size),
        ),
        base=trees.select(enters, y, state.base),
        face=face,
        agreeing=agreeing,
        waited=waited,
        inside=enters,
        entering=enters,
        halved=jnp.zeros((), jnp.bool),
        accepted=jnp.zeros((), jnp.int32),
    )


def _visit(
    given: Composite, composite: Composite, state: BoostedState, evaluation: Evaluation, ending: Ending
) -> BoostedState:
    main, w, g = state.main, state.query, evaluation.gradient
    moved = trees.difference(w, state.base)
    changed = trees.difference(g, main.previous_gradient)
    move, change, product = inner_products((moved, moved), (changed, changed), (moved, changed))
    curvature = local_smoothness(move, change, product)
    shown = jnp.minimum(curvature, STEEPEST / main.step_size)
    shorter = shown * main.step_size > 1
    s = jnp.where(shorter, CAUTION / shown, main.step_size)

    old = _proposed(composite, state.base, main.previous_gradient, state.base_value, s)
    new = _proposed(composite, w, g, evaluation.value, s)
    rounding = 10 * rounding_unit(w) * jnp.abs(old.envelope)
    level = (new.envelope <= old.envelope + rounding) & (new.squared < old.squared)
    lower = new.envelope <= old.envelope - DECREASE * old.squared / s
    # The envelope bounds F where s is at most 1/L; for a longer step a low one means nothing.
    entry_value = jnp.where(state.entering, evaluation.value + main.nonsmooth, state.entry_value)
    short = curvature * s <= 1
    below = evaluation.value + composite.nonsmooth(new.proposal) <= entry_value + main.slack * jnp.abs(entry_value)
    accepts = state.entering | ((lower | level) & short & below)
    base: _Base = trees.select(accepts, new, old)
    slope, size = inner_products((base.gradient, base.gradient), (base.proposal, base.proposal))
    residual = main.magnitude * composite.residual(jnp.sqrt(slope), base.squared, size, s, rounding_unit(w))
    scale = main.report.scale
    at_base = Evaluation(main.magnitude * base.value, trees.combine((main.magnitude, base.gradient)), None)
    residual, scale = given.error(base.point, at_base, residual, scale)
    step = trees.ravel(trees.difference(base.point, base.proposal))

    if _coupled(composite, w):
        slope = trees.ravel(trees.difference(w, new.proposal)) / _like(s, step)
        before = trees.ravel(trees.difference(old.point, old.proposal)) / _like(s, step)
        pairs = _remember(state.pairs, trees.ravel(moved), slope - before, ~state.entering)
        state = state._replace(pairs=pairs)
        face = state.face
    else:
        face = _face(composite, base.point, base.gradient, s)
    newton = jnp.where(face, -quasi_newton.multiply(state.pairs, face, step / _like(s, step)), -step)
    direction = jnp.where(accepts, newton, state.direction)
    tries_half = ~accepts & ~state.halved
    trial = jnp.where(accepts, direction, 0.5 * (direction - step))

    lost = ~accepts & state.halved
    leaves = lost | ((move == 0) & ~state.entering) | lands(residual, scale, ending)
    accepted = state.accepted + (accepts & ~state.entering).astype(jnp.int32)
    longer = jnp.minimum(2 * state.wait, MOST_WAITING)
    wait = jnp.where(leaves, jnp.where(accepted < GOOD_VISIT, longer, AGREEING), state.wait)
    following = trees.combine((jnp.ones_like(s), base.point), (jnp.ones_like(s), trees.unravel(base.point, trial)))
    report = main.report._replace(
        residual=residual,
        scale=scale,
        step_size=s / main.magnitude,
        value=base.envelope * main.magnitude,
        unbounded=base.value < main.floor,
    )
    return state._replace(
        main=main._replace(
            params=base.proposal,
            query=trees.select(leaves, base.proposal, following),
            lead=trees.zeros(base.point),
            previous_gradient=base.gradient,
            nonsmooth=composite.nonsmooth(base.proposal),
            step_size=s,
            window=jnp.where(leaves, no_samples(), main.window),
            t=as_scalar(1.0),
            steps=increment(main.steps),
            fresh=leaves,
            at_reference=jnp.zeros((), jnp.bool),
            paired=~leaves,
            report=report,
        ),
        base=base.point,
        face=face,
        direction=direction,
        agreeing=jnp.where(leaves, 0, state.agreeing),
        waited=jnp.where(leaves, 0, state.waited),
        wait=wait,
        inside=~leaves,
        entering=jnp.zeros((), jnp.bool),
        halved=tries_half,
        accepted=accepted,
        base_value=base.value,
        entry_value=entry_value,
    )


def _proposed(composite: Composite, u: PyTree, gradient: PyTree, value: jax.Array, s: jax.Array) -> _Base:
    z = composite.forward_backward(u, gradient, s)
    move = trees.difference(z, u)
    slope, squared = inner_products((gradient, move), (move, move))
    envelope = value + slope + squared / (2 * s) + composite.nonsmooth(z)
    return _Base(u, gradient, value, z, envelope, squared)


def _face(composite: Composite, y: PyTree, gradient: PyTree, s: jax.Array) -> jax.Array:
    """Where the derivative of the operator is above 1/2; for a separable h one product with a vector of ones."""
    if composite.is_smooth:
        return jnp.ones(trees.ravel(y).shape, jnp.bool)
    before = trees.combine((jnp.ones_like(s), y), (-s, gradient))

    def operator(point: PyTree) -> PyTree:
        return composite.prox.prox(point, s)

    _, slopes = cast("Any", jax.jvp)(operator, (before,), (trees.ones(before),))
    return trees.ravel(slopes) > 0.5


def _coupled(composite: Composite, params: PyTree) -> bool:
    """Whether h couples real coordinates."""
    separable = composite.prox.separable and not any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(params))
    return not (composite.is_smooth or separable)


def _remember(pairs: Pairs, move: jax.Array, change: jax.Array, keep: jax.Array) -> Pairs:
    product, moves, changes = inner_products((move, change), (move, move), (change, change))
    curved = product > quasi_newton.CURVED * jnp.sqrt(moves * changes)
    return quasi_newton.push(pairs, move, change, keep & curved)


def _like(scalar: jax.Array, vector: jax.Array) -> jax.Array:
    return scalar.astype(vector.dtype)
