"""What `solve` asks of a method: one value-and-gradient a step, and a report that the loop reads."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nagjax.scalars import as_scalar
from nagjax.solve.composite import Composite, Evaluation
from nagjax.types import PyTree


class Start(NamedTuple):
    """What a run may know beforehand; scalars."""

    step_size: jax.Array  # of the first step; 0 where unknown
    scale: jax.Array  # what residuals are divided by; 0 for that of the first regular step


class Ending(NamedTuple):
    """How the loop asks a step to come to an end; scalars."""

    tol: jax.Array  # settle where the residual is at most tol * scale; 0 never settles
    land: jax.Array  # the new query point is the answer, bool
    close: jax.Array  # settle on the query point whatever its residual, bool


class Report(NamedTuple):
    """What a step knows without a further evaluation; scalars."""

    value: jax.Array  # F at `params` where settled, else a lower bound of F (convex f) at the answer before the step
    residual: jax.Array  # |y - prox_{s h}(y - s grad f(y))| / s at the query point y of the step
    scale: jax.Array  # what residuals are divided by: that of the first regular step
    step_size: jax.Array  # s of the step
    safe_step: jax.Array  # 1 / L for the curvature seen so far
    restarts: jax.Array  # so far, int32
    settled: jax.Array  # `params` is the query point of the step, an answer with this residual; bool
    stalled: jax.Array  # steps have reached the rounding of the parameters; the next query point is the answer; bool
    unbounded: jax.Array  # the objective has fallen below any reasonable bound, bool
    overshot: jax.Array  # the step size is too large, bool; `params` is the best query point
    broken: jax.Array  # no further point with finite value and gradient is found, bool


class State(Protocol):
    """State of a method: a pytree with at least these fields."""

    @property
    def params(self) -> PyTree:
        """The answer."""
        ...

    @property
    def query(self) -> PyTree:
        """Where the next step takes value and gradient."""
        ...

    @property
    def report(self) -> Report:
        """Of the last step."""
        ...


class Method(NamedTuple):
    """A method: `init(composite, params, start) -> state` and `update(composite, state, evaluation, ending) -> state`.

    `update` gets value and gradient of the smooth part at `state.query`. Where that point is an answer and
    `ending` allows it, the new state keeps it as `params` and reports `settled`.
    """

    init: Callable[[Composite, PyTree, Start], Any]
    update: Callable[[Composite, Any, Evaluation, Ending], Any]

    def start(self, composite: Composite, params: PyTree) -> Any:
        """The state of a run that starts at `params` and knows nothing else."""
        return self.init(composite, params, unknown())

    def step(self, composite: Composite, state: Any) -> Any:
        """One step that does not settle."""
        no = jnp.zeros((), jnp.bool)
        return self.update(composite, state, composite.evaluate(state.query), Ending(as_scalar(0.0), no, no))


def unknown() -> Start:
    """The start of a run that knows nothing."""
    return Start(as_scalar(0.0), as_scalar(0.0))


def empty_report() -> Report:
    """The report before the first step."""
    no = jnp.zeros((), jnp.bool)
    infinite = as_scalar(jnp.inf)
    return Report(infinite, infinite, infinite, as_scalar(0.0), infinite, jnp.zeros((), jnp.int32), no, no, no, no, no)


def scale_of(start: Start, begins: jax.Array, residual: jax.Array, last: jax.Array) -> jax.Array:
    """The scale of residuals: the one given, or the residual at the start."""
    return jnp.where(start.scale > 0, start.scale, jnp.where(begins, residual, last))


def meets(tol: jax.Array, residual: jax.Array, scale: jax.Array) -> jax.Array:
    """Whether a residual is within the tolerance; never for a tolerance of 0."""
    return (tol > 0) & (residual <= tol * scale)


def settles(fresh: jax.Array, residual: jax.Array, scale: jax.Array, ending: Ending) -> jax.Array:
    """Whether a step ends on its query point, which `fresh` says is an answer."""
    return fresh & (ending.close | meets(ending.tol, residual, scale))


def lands(residual: jax.Array, scale: jax.Array, ending: Ending) -> jax.Array:
    """Whether the answer of this step is to be the next query point, where its own residual shows.

    The answer z has a subgradient of norm 2 |y - z| / s at most, where s times the curvature is at most 1.
    """
    return ending.land | meets(ending.tol, 2 * residual, scale)


def lowest(value: jax.Array, slope: jax.Array, size: jax.Array, unit: float) -> jax.Array:
    """A value that an objective reaches only if it is unbounded below, from |grad f| and |x|^2 at the start."""
    return value - (jnp.abs(value) + slope * (1 + jnp.sqrt(size))) / unit**1.5
