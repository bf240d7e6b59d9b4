"""`minimize`, the solver for f + h."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from nagjax import checks, proximal, trees
from nagjax.proximal.transform import check_prox
from nagjax.scalars import as_scalar
from nagjax.solve.accelerated import default
from nagjax.solve.boosted import boosted
from nagjax.solve.chain import chain
from nagjax.solve.composite import Composite, hoisted
from nagjax.solve.fista import backtracking, fixed_step
from nagjax.solve.implicit import differentiable
from nagjax.solve.loop import run
from nagjax.solve.method import Method, Start, unknown
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
        tol: Relative tolerance, at least 0. With 0 a run never stops early.
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
        like the parameters ("boosted": 31).

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
    checks.nonnegative("solve.minimize", "tol", tol, "typical values are 1e-3 to 1e-9; 0 never stops early")
    records = _checked_iterations(max_iters, history)
    if step_size is not None:
        checks.positive("solve.minimize", "step_size", step_size, "leave it out, or give about 1 / L")
    _check_method(method, step_size)
    given, start = _unpacked(init)
    params = trees.as_arrays(given)
    check_floating("solve.minimize", params)
    params = jax.tree.map(_widened, params)
    if step_size is not None:
        start = start._replace(step_size=as_scalar(step_size))
    elif isinstance(method, str):
        method = WITHOUT_STEP.get(method, METHODS[method])
    composite = _composite(fun, params, args, prox, has_aux, duality_gap)
    settings = _Settings(params, start, as_scalar(tol), jnp.asarray(max_iters))
    solution = cast("Solution", _solve(composite, settings, method=method, records=records, progress=progress))
    solution = solution._replace(params=jax.tree.map(_narrowed, solution.params, trees.as_arrays(given)))
    if throw:
        if not checks.is_known(solution.status):
            remedy = "check Solution.status outside of the transformation"
            checks.reject("solve.minimize", "throw", "False under jit, vmap and grad", throw, remedy)
        if np.any(np.asarray(solution.status) != Status.CONVERGED):
            raise SolveError(solution)
    return solution


class _Settings(NamedTuple):
    params: PyTree
    start: Start
    tol: jax.Array
    max_iters: jax.Array


@functools.partial(jax.jit, static_argnames=("method", "records", "progress"))
def _solve(composite: Composite, settings: _Settings, *, method: Any, records: int | None, progress: bool) -> Solution:
    chosen = _resolved(method)

    def solver(composite: Composite, settings: _Settings) -> Solution:
        params, start, tol, max_iters = settings
        state = chosen.init(composite, params, start)
        return run(composite, chosen, state, tol=tol, max_iters=max_iters, records=records, progress=progress)

    return differentiable(solver, composite, settings)


def _resolved(method: str | Method | optax.GradientTransformation) -> Method:
    if isinstance(method, str):
        return METHODS[method]
    return method if isinstance(method, Method) else chain(method)


def _check_method(method: Any, step_size: ArrayLike | None) -> None:
    if not isinstance(method, str | Method | optax.GradientTransformation):
        remedy = f"give one of {', '.join(METHODS)}, an Optax chain or a solve.Method"
        checks.reject("solve.minimize", "method", "a method", method, remedy, TypeError)
    if isinstance(method, str) and method not in METHODS:
        remedy = "or pass an Optax chain such as nagjax.ogm(L)"
        checks.reject("solve.minimize", "method", f"one of {', '.join(METHODS)}", method, remedy)
    if step_size is not None and isinstance(method, optax.GradientTransformation):
        remedy = "the chain has its own"
        checks.reject("solve.minimize", "step_size", "None for an Optax chain", step_size, remedy)


def _checked_iterations(max_iters: Any, history: bool) -> int | None:
    if checks.is_known(max_iters):
        checks.whole("solve.minimize", "max_iters", operator.index(max_iters), 0, "give the most steps to make")
        return int(max_iters) if history else None
    if history:
        remedy = "its arrays need a length: pass an integer, or history=False"
        checks.reject("solve.minimize", "max_iters", "known when history is asked for", max_iters, remedy)
    return None


def _unpacked(init: PyTree | Solution) -> tuple[PyTree, Start]:
    if not isinstance(init, Solution):
        return init, unknown()
    report = init.state.report
    return init.params, Start(step_size=report.step_size, scale=report.scale)


def _composite(
    fun: Callable[..., Any],
    params: PyTree,
    args: tuple[Any, ...],
    prox: proximal.Prox | None,
    has_aux: bool,
    duality_gap: Callable[..., ArrayLike] | None,
) -> Composite:
    if not callable(fun):
        checks.reject(
            "solve.minimize", "fun", "a function of the parameters", fun, "pass fun(params, *args)", TypeError
        )
    given: Any = args
    if not isinstance(given, tuple):
        remedy = "write args=(data,) for one argument"
        checks.reject("solve.minimize", "args", "a tuple", type(given).__name__, remedy, TypeError)
    chosen = proximal.zero() if prox is None else prox
    check_prox("solve.minimize", chosen)
    composite = hoisted(Composite(fun, chosen, args, has_aux, duality_gap), params)
    _check_scalar(composite, params)
    if prox is not None:
        _check_fit(composite.prox, params)
    return composite


def _check_scalar(composite: Composite, params: PyTree) -> None:
    found: Any = cast("Any", jax.eval_shape)(composite.fun, params, *composite.args)
    if composite.has_aux:
        parts = list(cast("Any", found)) if isinstance(found, tuple) else []
        if len(parts) != 2:
            remedy = "return (value, aux), or leave has_aux out"
            checks.reject(
                "solve.minimize", "fun", "a function that returns a pair", cast("object", found), remedy, TypeError
            )
        found = parts[0]
    if not hasattr(found, "dtype") or found.shape or not jnp.issubdtype(found.dtype, jnp.floating):
        remedy = "sum over examples; with a pair (value, aux) pass has_aux=True"
        checks.reject("solve.minimize", "fun", "a function that returns a real scalar", found, remedy)


def _check_fit(prox: proximal.Prox, params: PyTree) -> None:
    found = cast("Any", jax.eval_shape)(prox.prox, params, as_scalar(1.0))
    same = trees.structure(found) == trees.structure(params)
    if not same or [leaf.shape for leaf in trees.leaves(found)] != [leaf.shape for leaf in trees.leaves(params)]:
        remedy = "its operator has to return what it gets"
        checks.reject("solve.minimize", "prox", "a Prox for parameters of this structure", found, remedy)


def _widened(leaf: jax.Array) -> jax.Array:
    return leaf.astype(trees.compute_dtype(leaf.dtype))


def _narrowed(leaf: jax.Array, like: jax.Array) -> jax.Array:
    return leaf.astype(like.dtype)
