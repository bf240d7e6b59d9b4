"""`path`, a sequence of problems from strong to weak regularization, each started where the last one ended."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.proximal import Prox
from nagjax.scalars import as_scalar
from nagjax.solve.arguments import check_iterations, check_method, check_numbers, check_problem
from nagjax.solve.composite import hoisted
from nagjax.solve.method import Method, Report
from nagjax.solve.minimize import METHODS, named, solved, widened
from nagjax.solve.solution import Solution
from nagjax.transform import check_floating
from nagjax.types import PyTree


def path(
    fun: Callable[..., Any],
    init: PyTree,
    strengths: ArrayLike,
    prox: Callable[[Any], Prox],
    *,
    args: tuple[Any, ...] = (),
    has_aux: bool = False,
    method: str | Method | optax.GradientTransformation = "default",
    step_size: ArrayLike | None = None,
    tol: ArrayLike = 1e-6,
    max_iters: ArrayLike = 10_000,
    history: bool = False,
) -> Solution:
    """Minimize fun(params, *args) + h_c(params) for each strength c in turn, with warm starts.

    Each run starts at the parameters and with the step size of the one before, and measures its residual on the scale
    of the first. The whole path is one compiled program, in which the solver is once.

    Args:
        fun: As in `minimize`.
        init: Where the first run starts: a tree of arrays.
        strengths: The strengths, shape (n,), in the order in which to solve; from strong to weak is fastest.
        prox: From one strength, a scalar, to h; such as `proximal.l1`. Define it once: a new function compiles again.
        args: As in `minimize`.
        has_aux: As in `minimize`.
        method: As in `minimize`.
        step_size: As in `minimize`; for "fista" of all runs, for the others of the first one.
        tol: As in `minimize`.
        max_iters: As in `minimize`, for each run.
        history: As in `minimize`.

    Returns:
        A `Solution` with a leading axis of n in every field; derivatives as in `minimize`.

    Raises:
        TypeError: As `minimize`; `prox` is not a function.
        ValueError: As `minimize`; `strengths` is not a vector of at least one.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal, solve
        >>> matrix, target = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), jnp.array([1.0, 2.0, 3.0])
        >>> loss = lambda x: jnp.sum((matrix @ x - target) ** 2) / 2
        >>> solutions = solve.path(loss, jnp.zeros(2), jnp.array([30.0, 3.0, 0.3]), proximal.l1)
        >>> solutions.params.shape == (3, 2) and bool(jnp.all(solutions.params[0] == 0))
        True
    """
    if not callable(prox):
        remedy = "give the function, such as proximal.l1, not its result"
        checks.reject("solve.path", "prox", "a function from a strength to a Prox", prox, remedy, TypeError)
    values = jnp.asarray(strengths)
    if values.ndim != 1 or not values.size:
        remedy = "give a vector, such as jnp.geomspace(largest, smallest, 20)"
        checks.reject("solve.path", "strengths", "of shape (n,) with n at least 1", values.shape, remedy)
    check_numbers(tol, step_size)
    check_method(method, step_size, METHODS)
    records = check_iterations(max_iters, history)
    check_floating("solve.path", init)
    composite = hoisted(check_problem(fun, args, None, has_aux, None), trees.map_present(widened, init))
    return cast("Any", _compiled)(
        composite.fun,
        args,
        values,
        trees.as_arrays(init),
        step_size,
        as_scalar(tol),
        jnp.asarray(max_iters, jnp.int32),
        prox=prox,
        has_aux=has_aux,
        method=named(method, step_size),
        records=records,
    )


@functools.partial(jax.jit, static_argnames=("prox", "has_aux", "method", "records"))
def _compiled(
    fun: Partial,
    args: tuple[Any, ...],
    strengths: jax.Array,
    init: PyTree,
    step_size: jax.Array | None,
    tol: jax.Array,
    max_iters: jax.Array,
    *,
    prox: Callable[[Any], Prox],
    has_aux: bool,
    method: str | Method | optax.GradientTransformation,
    records: int | None,
) -> Solution:
    first = as_scalar(0.0 if step_size is None else step_size)

    def follow(last: tuple[PyTree, jax.Array, jax.Array], strength: jax.Array) -> tuple[Any, Solution]:
        start, step, scale = last
        problem = hoisted(check_problem(fun, args, prox(strength), has_aux, None), trees.map_present(widened, start))
        solution = solved(
            problem, start, step, scale, tol, max_iters, method=method, records=records, progress=False
        )  # fmt: skip
        report: Report = solution.state.report
        step = first if method == "fista" else report.step_size
        return (solution.params, step, report.scale), solution

    return jax.lax.scan(follow, (init, first, as_scalar(0.0)), strengths)[1]
