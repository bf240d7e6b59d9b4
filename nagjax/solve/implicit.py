"""Derivatives of a solution by the implicit function theorem, forward and reverse, without any matrix."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import trees
from nagjax.solve.composite import Composite
from nagjax.solve.method import Report
from nagjax.solve.solution import Solution
from nagjax.types import PyTree

Solver = Callable[[Composite, PyTree], Solution]


def differentiable(solver: Solver, composite: Composite, rest: PyTree) -> Solution:
    """`solver(composite, rest)`, with derivatives of `params` and `value` in the arrays of `composite`.

    A solution is a fixed point of T(x) = prox_{s h}(x - s grad f(x)). With the derivatives D of the operator and
    M = I - s H of the gradient step, dx = D M dx + dT, where dT is the derivative in the data. D is symmetric (an
    operator of a convex h is a gradient), so dx = dT + D w with

        (D (I - D) + s D H D) w = D M dT,

    which is symmetric and positive semi-definite: conjugate gradients solve it with two products by D, in time that
    depends on the active part alone, since D vanishes on the rest. The derivative of the value is that of F at a
    fixed x, by the envelope theorem. Everything else (`init`, `tol`, the step) has derivative zero.
    """
    return cast("Any", _solved)(solver, composite, rest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solved(solver: Solver, composite: Composite, rest: PyTree) -> Solution:
    return solver(composite, rest)


@_solved.defjvp
def _jvp(solver: Solver, primals: Any, tangents: Any) -> tuple[Solution, Solution]:
    composite, rest = primals
    solution = differentiable(solver, composite, rest)
    x = solution.params
    report: Report = solution.state.report
    s = jax.lax.stop_gradient(report.step_size)
    s = jnp.where(jnp.isfinite(s) & (s > 0), s, 1)

    def gradient(point: PyTree) -> PyTree:
        return composite.evaluate(point).gradient

    slope, hessian = _linearized(gradient, x)
    one = jnp.ones_like(s)
    before = trees.combine((one, x), (-s, slope))

    def project(point: PyTree) -> PyTree:
        return composite.prox.prox(point, s)

    _, operator = _linearized(project, before)

    def gradient_step(v: PyTree) -> PyTree:
        return trees.combine((one, v), (-s, hessian(v)))

    def normal(w: PyTree) -> PyTree:
        inside = operator(w)
        return trees.difference(inside, operator(gradient_step(inside)))

    def forward_backward(data: Composite) -> PyTree:
        return data.forward_backward(x, data.evaluate(x).gradient, s)

    _, moved = cast("Any", jax.jvp)(forward_backward, (composite,), (tangents[0],))

    # As one real vector: the operator is symmetric in real numbers, and the right-hand side one array.
    def matvec(vector: jax.Array) -> jax.Array:
        return trees.ravel(normal(trees.unravel(x, vector)))

    right = trees.ravel(operator(gradient_step(moved)))
    w = trees.unravel(x, jax.lax.custom_linear_solve(matvec, right, _conjugate_gradients, symmetric=True))
    dx = trees.combine((one, moved), (one, operator(w)))

    def objective(data: Composite) -> jax.Array:
        return data.objective(x)

    _, dvalue = cast("Any", jax.jvp)(objective, (composite,), (tangents[0],))
    zero: Solution = jax.tree.map(_zero_tangent, solution)
    return solution, zero._replace(params=dx, value=dvalue.astype(solution.value.dtype))


def _linearized(function: Callable[[PyTree], PyTree], point: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    return cast("Any", jax.linearize)(function, point)


def _conjugate_gradients(matvec: Callable[[jax.Array], jax.Array], right: jax.Array) -> jax.Array:
    tol = float(np.finfo(np.dtype(right.dtype)).eps)
    solution: Any = cast("Any", jax.scipy.sparse.linalg).cg(matvec, right, tol=tol, maxiter=10 * right.size + 100)
    return solution[0]


def _zero_tangent(leaf: jax.Array) -> Any:
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
