"""`minimize`, the solver for f + h."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from nagjax import checks, proximal, trees
from nagjax.scalars import as_scalar, scalar_dtype
from nagjax.solve.accelerated import default
from nagjax.solve.arguments import check_iterations, check_method, check_numbers, check_problem, check_shapes
from nagjax.solve.boosted import boosted
from nagjax.solve.chain import chain
from nagjax.solve.composite import Composite, hoisted
from nagjax.solve.fista import backtracking, fixed_step
from nagjax.solve.implicit import differentiable
from nagjax.solve.loop import run
from nagjax.solve.method import Method, Report, Start
from nagjax.solve.solution import Solution, SolveError, Status
from nagjax.transform import check_floating
from nagjax.types import PyTree

METHODS: dict[str, Method] = {"default": default(), "boosted": boosted(), "fista": fixed_step()}
WITHOUT_STEP = {"fista": backtracking()}


def minimize(
    fun: Callable[..., Any],
    init: PyTree | Solution,
    *,
    args: tuple[Any, ...] = (),
    prox: proximal.Prox | None = None,
    has_aux: bool = False,
    method: str | Method | optax.GradientTransformation = "default",
    step_size: ArrayLike | None = None,
    tol: ArrayLike = 1e-6,
    max_iters: ArrayLike = 10_000,
    history: bool = False,
    progress: bool = False,
    throw: bool = False,
    duality_gap: Callable[..., ArrayLike] | None = None,
) -> Solution:
    """Minimize fun(params, *args) + h(params) in one compiled loop, with one value-and-gradient a step.

    The default method needs no constant: it finds its step size from the gradients that it takes anyway. Runs stop
    on the residual |x - prox_{s h}(x - s grad f(x))| / s of the very point that they return, divided by its value at
    the start; with h = 0 that is the relative norm of the gradient. Scaling the objective changes nothing.

    The function works under `jit`, `vmap` (each lane stops on its own) and, in the arrays of `args` and `prox` and
    in what `fun` closes over, under `grad`, `jvp` and `vjp`: the derivative is that of the solution, by the implicit
    function theorem, on the active set of h. Called outside of `jit` it compiles once for each `fun`: define `fun`
    once, and pass data through `args`.

    Args:
        fun: The smooth part: `fun(params, *args)` returns a real scalar, or a pair (scalar, aux) with `has_aux`. It
            must be differentiable by JAX.
        init: Where to start: a tree of real or complex floating-point arrays (those of 16 bits are solved in float32).
            Or a `Solution`, for a warm start: its parameters, its step size and its scale of residuals.
        args: Data for `fun`, a tuple of pytrees.
        prox: h, from `nagjax.proximal`; None for h = 0.
        has_aux: Whether `fun` returns a pair; `Solution.aux` is its second part at `Solution.params`.
        method: "default"; "boosted", which adds quasi-Newton steps on the identified face; "fista", with the theorem;
            an Optax chain, such as `nagjax.fista(s, prox)`, `nagjax.ogm(L)` or `nagjax.acfgm(prox)`; or a
            `solve.Method`. Build chains once: each new one compiles.
        step_size: For "fista" the fixed step 1/L (None: backtracking); for "default" and "boosted" the first step.
        tol: Relative tolerance, at least 0. With 0 a run never stops early. It is relative to the residual at the
            start, so a start that is far out loosens it: run again from the parameters.
        max_iters: Most steps, at least 0; may be traced unless `history` is asked for.
        history: Record value, residual, step size and restarts of every step (`solve.History`).
        progress: Show a live line on standard error.
        throw: Raise `solve.SolveError` unless the status is converged. Not under `jit`.
        duality_gap: Stop on a duality gap instead of the residual: `duality_gap(params, value, gradient)` gets value
            and gradient of the smooth part and returns an upper bound of F(params) - min F (such as
            `solve.least_squares_gap`). `Solution.residual` is then the gap relative to |F(params)|.

    Returns:
        A `Solution` with params, value, status, iterations, evaluations, residual, history, state and aux. `status` is
        a `solve.Status`, and `Solution.message` says in a sentence how the run ended. Memory of the loop: six trees
        like the parameters ("boosted": 28).

    Raises:
        TypeError: An argument has the wrong type; parameters are not floating-point.
        ValueError: `fun` is not scalar, `prox` does not fit the parameters, or a number is out of its range.
        SolveError: With `throw`, where the run did not converge.

    Guarantee:
        "default" and "boosted": at convergence the stated residual; see `solve.default`. "fista": f - f* <= R^2 / (2 s
        t_N^2) after N steps. Chains: theirs.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal, solve
        >>> def loss(x, matrix, target):
        ...     return jnp.sum((matrix @ x - target) ** 2) / 2
        >>> matrix, target = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), jnp.array([1.0, 2.0, 3.0])
        >>> solution = solve.minimize(loss, jnp.zeros(2), args=(matrix, target), prox=proximal.l1(1.0))
        >>> bool(solution.converged) and bool(solution.params[0] == 0)
        True
    """
    check_numbers(tol, step_size)
    check_method(method, step_size, METHODS)
    records = check_iterations(max_iters, history)
    first_step: ArrayLike = 0.0
    scale: ArrayLike = 0.0
    if isinstance(init, Solution):
        if np.ndim(init.status):
            remedy = "take one, such as jax.tree.map(lambda leaf: leaf[-1], solution)"
            checks.reject("solve.minimize", "init", "one Solution", f"a batch of {np.shape(init.status)}", remedy)
        report: Report = init.state.report
        init, first_step, scale = init.params, report.step_size, report.scale
    check_floating("solve.minimize", init)
    if step_size is not None:
        first_step = step_size
    composite = hoisted(check_problem(fun, args, prox, has_aux, duality_gap), trees.map_present(widened, init))
    numbers = [_strong(number) for number in (first_step, scale, tol)]
    solution: Solution = cast("Any", _compiled)(
        composite,
        init,
        *numbers,
        _count(max_iters),
        method=named(method, step_size),
        records=records,
        progress=progress,
    )
    if throw:
        if not checks.is_known(solution.status):
            remedy = "check Solution.status outside of the transformation"
            checks.reject("solve.minimize", "throw", "False under jit, vmap and grad", throw, remedy)
        if np.any(np.asarray(solution.status) != Status.CONVERGED):
            raise SolveError(solution)
    return solution


def solved(
    composite: Composite,
    init: PyTree,
    first_step: ArrayLike,
    scale: ArrayLike,
    tol: ArrayLike,
    max_iters: ArrayLike,
    *,
    method: str | Method | optax.GradientTransformation,
    records: int | None,
    progress: bool,
) -> Solution:
    """The part of `minimize` that is compiled; shapes are checked here, once for each compilation.

    A `first_step` of 0 is for the method to find, a `scale` of 0 for the first residual.
    """
    init = trees.as_arrays(init)
    params = trees.map_present(widened, init)
    check_shapes(composite, params)
    start = Start(as_scalar(first_step), as_scalar(scale))
    chosen = _resolved(method)

    def solver(composite: Composite, rest: Any) -> Solution:
        params, start, tol, max_iters = rest
        state = chosen.init(composite, params, start)
        return run(composite, chosen, state, tol=tol, max_iters=max_iters, records=records, progress=progress)

    solution = differentiable(solver, composite, (params, start, as_scalar(tol), jnp.asarray(max_iters)))
    return solution._replace(params=trees.map_present(_as_dtype_of, solution.params, init))


_compiled = functools.partial(jax.jit, static_argnames=("method", "records", "progress"))(solved)


def _strong(number: ArrayLike) -> Any:
    """A number in the dtype of scalars: a Python number has a type of its own, and would compile again."""
    return np.asarray(number, scalar_dtype()) if checks.is_known(number) else as_scalar(number)


def _count(max_iters: Any) -> Any:
    """A count in 32 bits."""
    most = np.iinfo(np.int32).max - 1
    if checks.is_known(max_iters):
        return np.asarray(min(int(max_iters), most), np.int32)
    return jnp.minimum(max_iters, most).astype(jnp.int32)


def named(
    method: str | Method | optax.GradientTransformation, step_size: ArrayLike | None
) -> str | Method | optax.GradientTransformation:
    """The method that a name stands for where no step size is given; else as it is."""
    return WITHOUT_STEP.get(method, method) if isinstance(method, str) and step_size is None else method


def _resolved(method: str | Method | optax.GradientTransformation) -> Method:
    if isinstance(method, str):
        return METHODS[method]
    return method if isinstance(method, Method) else chain(method)


def widened(leaf: Any) -> Any:
    """The array in at least 32 bits."""
    dtype = jnp.result_type(leaf)
    wide = trees.compute_dtype(dtype)
    return leaf if dtype == wide else jnp.asarray(leaf).astype(wide)


def _as_dtype_of(leaf: jax.Array, like: jax.Array) -> jax.Array:
    return leaf.astype(like.dtype)
