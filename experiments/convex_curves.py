"""Curves of convex solvers: the objective after every step against the exact cost so far.

The unit of cost is a pass over the data, as a product with the matrix is: 1 for a value of f alone, 2 for a gradient,
with or without its value. The evaluation that records the curve is not counted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.convex_problems import Problem, objective
from nagjax.solve import Composite

CHUNK = 250
PROBE = 50  # steps that show how long a step takes
NEVER = -1.0


class Stepper(NamedTuple):
    """An iterative method as pure functions, so that all of them run in the same loop."""

    name: str
    init: Callable[[Composite, Any], Any]  # (problem, params) -> state
    step: Callable[[Composite, Any], Any]  # (problem, state) -> state
    read: Callable[[Any], tuple[Any, Any]]  # state -> answer, cost so far


@dataclass
class Curve:
    """F after every step and the cost until then; the first entry is the start, at no cost."""

    name: str
    costs: NDArray[np.float64]
    values: NDArray[np.float64]
    seconds: NDArray[np.float64] | None = None
    answer: Any = None

    def gaps(self, minimum: float, scale: float) -> NDArray[np.float64]:
        """Suboptimality relative to `scale`; nan counts as not arrived."""
        return np.where(np.isfinite(self.values), (self.values - minimum) / scale, np.inf)

    def first(self, gaps: NDArray[np.float64], target: float) -> int | None:
        """The first step whose gap is at most the target, or None."""
        reached = np.flatnonzero(gaps <= target)
        return int(reached[0]) if len(reached) else None

    def cost_to(self, target: float, minimum: float, scale: float) -> float | None:
        """The cost until the target, or None where the curve does not arrive."""
        first = self.first(self.gaps(minimum, scale), target)
        return None if first is None else float(self.costs[first])

    def steps_to(self, target: float, minimum: float, scale: float) -> int | None:
        """The steps until the target, or None."""
        return self.first(self.gaps(minimum, scale), target)

    def seconds_to(self, target: float, minimum: float, scale: float) -> float | None:
        """The seconds until the target, or None."""
        first = self.first(self.gaps(minimum, scale), target)
        return None if first is None or self.seconds is None else float(self.seconds[first])


def composite(problem: Problem) -> Composite:
    """The problem as the solver takes it."""
    if problem.prox is None:
        return Composite(problem.fun, args=problem.args)
    return Composite(problem.fun, problem.prox, problem.args)


def value(problem: Composite, params: Any) -> jax.Array:
    """F."""
    return objective(problem.fun, problem.prox, problem.args, params)


@partial(jax.jit, static_argnums=(0, 1))
def _advance(stepper: Stepper, steps: int, problem: Composite, state: Any) -> Any:
    def body(state: Any, _: None) -> Any:
        state = stepper.step(problem, state)
        params, cost = stepper.read(state)
        return state, (value(problem, params), cost)

    return jax.lax.scan(body, state, length=steps)


@partial(jax.jit, static_argnums=0)
def _start(stepper: Stepper, problem: Composite, params: Any) -> tuple[Any, jax.Array]:
    return stepper.init(problem, params), value(problem, params)


@partial(jax.jit, static_argnums=0)
def _repeat(stepper: Stepper, steps: jax.Array, problem: Composite, params: Any) -> Any:
    state = jax.lax.fori_loop(0, steps, lambda _, state: stepper.step(problem, state), stepper.init(problem, params))
    return stepper.read(state)[0]


def curve(
    stepper: Stepper,
    problem: Problem,
    *,
    limit: int,
    target: float = NEVER,
    minimum: float = 0.0,
    scale: float = 1.0,
    seconds: float = np.inf,
    chunk: int = CHUNK,
) -> Curve:
    """Runs a method until (F - minimum) / scale is at most the target.

    Args:
        stepper: The method.
        problem: The problem.
        limit: Most steps; rounded up to a multiple of `chunk`.
        target: Where to stop; never by default.
        minimum: F*.
        scale: What the gap is divided by.
        seconds: Budget of wall time after the first chunk; the chunk that crosses it is the last.
        chunk: Steps a compiled program takes.

    Returns:
        The curve with its last answer, without seconds.
    """

    def arrived(values: NDArray[np.float64], best: float) -> bool:
        return bool((values - minimum <= target * scale).any())

    return _run(stepper, problem, limit, seconds, chunk, arrived)


def long_curve(stepper: Stepper, problem: Problem, *, limit: int, seconds: float, chunk: int = CHUNK) -> Curve:
    """Runs a method until its objective falls no more: by less than rounding in two chunks on end."""
    idle = 0

    def stalled(values: NDArray[np.float64], best: float) -> bool:
        nonlocal idle
        idle = 0 if values.min() < best - 4 * np.finfo(np.float64).eps * abs(best) else idle + 1
        return idle == 2

    return _run(stepper, problem, limit, seconds, chunk, stalled)


def _run(
    stepper: Stepper,
    problem: Problem,
    limit: int,
    seconds: float,
    chunk: int,
    finished: Callable[[NDArray[np.float64], float], bool],
) -> Curve:
    data = composite(problem)
    state, start = _start(stepper, data, problem.init)
    values, costs = [np.array([float(start)])], [np.zeros(1)]
    best, begun = float(start), float("inf")
    for _ in range(-(-limit // chunk)):
        state, (found, spent) = _advance(stepper, chunk, data, state)
        values.append(np.asarray(found, np.float64))
        costs.append(np.asarray(spent, np.float64))
        late = time.perf_counter() - begun > seconds
        if late or finished(values[-1], best) or not np.isfinite(values[-1][-1]):
            break
        best = min(best, float(values[-1].min()))
        # The first chunk compiles, which is not what the budget is for.
        begun = min(begun, time.perf_counter())
    return Curve(stepper.name, np.concatenate(costs), np.concatenate(values), answer=stepper.read(state)[0])


@jax.custom_jvp
def _mark(value: jax.Array) -> jax.Array:
    jax.debug.callback(_count_value)
    return value


@_mark.defjvp
def _mark_gradient(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    jax.debug.callback(_count_gradient)
    return primals[0], tangents[0]


_COUNTS = {"values": 0, "gradients": 0}


def _count_value() -> None:
    _COUNTS["values"] += 1


def _count_gradient() -> None:
    _COUNTS["gradients"] += 1


@dataclass(frozen=True)
class _Counted:
    fun: Callable[..., jax.Array]

    def __call__(self, params: Any, *args: Any) -> jax.Array:
        return _mark(self.fun(params, *args))


def witnessed(stepper: Stepper, problem: Problem, *, limit: int, target: float = NEVER, minimum: float = 0.0,
              scale: float = 1.0) -> Curve:  # fmt: skip
    """A curve whose costs are counted by the function itself, as it runs; slow, and independent of `stepper.read`."""
    data = composite(problem)
    counted = composite(dataclasses.replace(problem, fun=_Counted(problem.fun)))
    step, measure = jax.jit(stepper.step), jax.jit(value)
    _COUNTS.update(values=0, gradients=0)
    state = stepper.init(counted, problem.init)
    values, costs = [float(measure(data, problem.init))], [0.0]
    for _ in range(limit):
        state = step(counted, state)
        jax.block_until_ready(state)
        jax.effects_barrier()
        values.append(float(measure(data, stepper.read(state)[0])))
        costs.append(_COUNTS["values"] + 2.0 * _COUNTS["gradients"])
        if values[-1] - minimum <= target * scale or not np.isfinite(values[-1]):
            break
    return Curve(stepper.name, np.array(costs), np.array(values), answer=stepper.read(state)[0])


def timed(
    stepper: Stepper, problem: Problem, found: Curve, *, steps: int, rounds: int = 3, budget: float = 0.7
) -> Curve:
    """Adds seconds to a curve: those of the bare compiled loop, spread over its steps by their cost.

    Args:
        stepper: The method of the curve.
        problem: Its problem.
        found: The curve.
        steps: How many of its steps to time.
        rounds: Runs, of which the fastest counts.
        budget: Seconds of a run; where `steps` would take longer, fewer are timed.
    """
    data = composite(problem)

    def elapsed(count: int) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(_repeat(stepper, jnp.asarray(count), data, problem.init))
        return time.perf_counter() - begun

    elapsed(1)
    few = min(steps, PROBE)
    last = max(min(steps, int(budget * few / elapsed(few))), few)
    found.seconds = found.costs * (min(elapsed(last) for _ in range(rounds)) / found.costs[last])
    return found
