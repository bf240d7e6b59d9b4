"""The loop around a method: stopping, history and the final evaluation, in one compiled `while_loop`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nagjax import trees
from nagjax.reductions import inner_product, squared_norm
from nagjax.scalars import increment, scalar_dtype
from nagjax.solve.composite import Composite, Evaluation
from nagjax.solve.method import Ending, Method, Report, meets
from nagjax.solve.progress import show
from nagjax.solve.solution import History, Solution, Status
from nagjax.types import PyTree

RUNNING = -1


class _Carry(NamedTuple):
    evaluations: jax.Array  # int32
    status: jax.Array  # int32
    state: Any
    history: History | None
    aux: PyTree


def run(
    composite: Composite,
    method: Method,
    state: Any,
    *,
    tol: jax.Array,
    max_iters: jax.Array,
    records: int | None = None,
    progress: bool = False,
) -> Solution:
    """Step until the residual at an answer is at most `tol` times its start, or another `Status` ends the run.

    The step after number `max_iters` only looks: it evaluates the answer and takes its residual. So every run makes
    `iterations + 1` evaluations, the last of them at the answer that it returns.
    """

    def unfinished(carry: _Carry) -> jax.Array:
        return carry.status == RUNNING

    def body(carry: _Carry) -> _Carry:
        evaluation = composite.evaluate(carry.state.query)
        closing = (carry.evaluations >= max_iters) | carry.state.report.stalled
        ending = Ending(tol, land=carry.evaluations + 1 >= max_iters, close=closing)
        state = method.update(composite, carry.state, evaluation, ending)
        history = carry.history
        if history is not None:
            # The evaluation that settles is no step: its row is out of range, and dropped.
            row = jnp.where(state.report.settled, len(history.value), carry.evaluations)
            history = _record(history, row, composite, carry.state.query, evaluation, state)
        if progress:
            show(carry.evaluations, evaluation.value, state.report)
        status = _status(state.report, tol, carry.state.report.stalled)
        return _Carry(increment(carry.evaluations), status, state, history, evaluation.aux)

    aux = jax.eval_shape(composite.evaluate, state.query).aux
    start = _Carry(
        evaluations=jnp.zeros((), jnp.int32),
        status=jnp.full((), RUNNING, jnp.int32),
        state=state,
        history=None if records is None else _empty(records),
        aux=jax.tree.map(_zeros, aux),
    )
    end = jax.lax.while_loop(unfinished, body, start)
    report: Report = end.state.report
    extra = getattr(end.state, "function_evaluations", 0)
    return Solution(
        params=end.state.params,
        value=report.value,
        status=end.status,
        iterations=end.evaluations - 1,
        evaluations=end.evaluations + extra,
        residual=_relative(report),
        history=end.history,
        state=end.state,
        aux=end.aux,
    )


def _status(report: Report, tol: jax.Array, stalled: jax.Array) -> jax.Array:
    within = meets(tol, report.residual, report.scale)
    ended = jnp.where(within, Status.CONVERGED, jnp.where(stalled, Status.STALLED, Status.MAX_ITERS))
    status = jnp.where(report.settled, ended, RUNNING)
    status = jnp.where(report.unbounded | report.overshot, Status.DIVERGED, status)
    return jnp.where(report.broken, Status.NON_FINITE, status).astype(jnp.int32)


def _relative(report: Report) -> jax.Array:
    return jnp.where(report.residual == 0, 0, report.residual / report.scale)


def _empty(records: int) -> History:
    unknown = jnp.full((records,), jnp.nan, scalar_dtype())
    return History(unknown, unknown, unknown, jnp.full((records,), -1, jnp.int32))


def _record(
    history: History, index: jax.Array, composite: Composite, query: PyTree, evaluation: Evaluation, state: Any
) -> History:
    report: Report = state.report
    z = state.params
    move = trees.difference(z, query)
    value = evaluation.value + inner_product(evaluation.gradient, move) + composite.nonsmooth(z)
    value = value + squared_norm(move) / (2 * report.step_size)
    row = History(value, _relative(report), report.step_size, report.restarts)

    def write(column: jax.Array, x: jax.Array) -> jax.Array:
        return column.at[index].set(x.astype(column.dtype), mode="drop")

    return jax.tree.map(write, history, row)


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype)
