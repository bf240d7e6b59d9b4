"""The methods of `nagjax.solve` as a minimiser of Optimistix, and the adjoint that knows of the prox."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from nagjax import checks, proximal, trees
from nagjax.proximal.transform import check_prox
from nagjax.reductions import squared_norm
from nagjax.scalars import as_scalar, increment
from nagjax.solve.chain import chain
from nagjax.solve.composite import Composite
from nagjax.solve.implicit import differentiable
from nagjax.solve.method import Ending, Method, Report, meets, unknown
from nagjax.solve.minimize import METHODS, WITHOUT_STEP
from nagjax.solve.solution import Solution, Status
from nagjax.types import PyTree

DERIVATIVE = "derivative"  # the option of `init` that says who takes derivatives


def _missing(*_: Any, **__: Any) -> NoReturn:
    message = "nagjax.interop.optimistix needs the package optimistix; run pip install 'nagjax[interop]'."
    raise ImportError(message)


class _NotInstalled:
    """Stands for the classes of Optimistix where it is not installed, so that importing this module stays possible."""

    __new__ = _missing


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_optimistix, _equinox = _library("optimistix"), _library("equinox")
_Minimiser: Any = getattr(_optimistix, "AbstractMinimiser", _NotInstalled)
_Adjoint: Any = getattr(_optimistix, "AbstractAdjoint", _NotInstalled)


class MinimiserState(NamedTuple):
    """State of `AcceleratedProximalGradient`: that of the method, and two scalars."""

    main: Any  # of the method; `main.params` is the answer so far
    steps: jax.Array  # int32
    status: jax.Array  # a solve.Status, int32; MAX_ITERS while the run goes on


class AcceleratedProximalGradient(_Minimiser):
    """Minimize fn(y, args) + h(y) by a method of `nagjax.solve`, one value-and-gradient a step.

    The steps are those of `solve.minimize`. Its answer after a step is a point where no gradient has been taken yet,
    so the `y` of a step is the query point, and the answer is what `postprocess`, and so `optimistix.minimise`,
    returns. A run ends where |y - prox_{s h}(y - s grad f(y))| / s at the answer is at most rtol times its value at the
    start plus atol; with h = 0 that is the norm of the gradient.

    `optimistix.ImplicitAdjoint`, the default of `optimistix.minimise`, differentiates a root of the gradient of fn,
    and with an h the solution is none. So with a prox pass `adjoint=ProximalAdjoint()`; a run without it is refused.
    Where no derivative is taken (or steps are made by hand) `options={"derivative": "none"}` does as well.

    Args:
        rtol: Relative tolerance, at least 0. With an `atol` of 0 it is the `tol` of `solve.minimize`.
        atol: Absolute tolerance, at least 0, in units of the gradient; looked at from the third step on.
        prox: h, from `nagjax.proximal`; None for h = 0. A weight that is an array may change without a compilation.
        method: "default", "boosted" or "fista", an Optax chain or a `solve.Method`, as in `solve.minimize`.

    Returns:
        An `optimistix.AbstractMinimiser` for parameters of 32 or 64 bits. `Solution.stats` has `num_steps` (one more
        than `iterations` of `solve.minimize`: the last one looks at the answer), `value`, `residual` (relative),
        `evaluations`, `step_size`, `restarts` and `status` (a `solve.Status`). Diverged runs and those that are not
        finite have the result of that name; a run that stalled at rounding has `stagnation`. `Solution.aux` belongs
        to `Solution.value`. Its norm is Euclidean.

    Raises:
        ImportError: Optimistix is not installed.
        TypeError: `prox` is not a `Prox`, `method` not a method; parameters are not of 32 or 64 bits.
        ValueError: A tolerance is negative; a prox without an adjoint that knows of it.

    Example::

        import jax.numpy as jnp, optimistix
        from nagjax import proximal
        from nagjax.interop.optimistix import AcceleratedProximalGradient, ProximalAdjoint

        solver = AcceleratedProximalGradient(rtol=1e-6, atol=0.0, prox=proximal.l1(1.0))
        loss = lambda y, target: jnp.sum((y - target) ** 2) / 2
        target = jnp.array([3.0, 0.5])
        found = optimistix.minimise(loss, solver, jnp.zeros(2), target, adjoint=ProximalAdjoint())
        assert bool(jnp.allclose(found.value, jnp.array([2.0, 0.0]), atol=1e-5))
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], jax.Array]
    prox: proximal.Prox
    method: Any

    def __init__(
        self,
        rtol: Any,
        atol: Any,
        *,
        prox: proximal.Prox | None = None,
        method: str | Method | optax.GradientTransformation = "default",
    ) -> None:
        function = "AcceleratedProximalGradient"
        checks.nonnegative(function, "rtol", rtol, "typical values are 1e-3 to 1e-9")
        checks.nonnegative(function, "atol", atol, "0 leaves the relative tolerance alone")
        given: Any = method
        if not isinstance(given, str | Method | optax.GradientTransformation):
            remedy = f"give one of {', '.join(METHODS)}, an Optax chain or a solve.Method"
            checks.reject(function, "method", "a method", given, remedy, TypeError)
        if isinstance(method, str) and method not in METHODS:
            checks.reject(function, "method", f"one of {', '.join(METHODS)}", method, "or pass an Optax chain")
        prox = proximal.zero() if prox is None else prox
        check_prox(function, prox)
        self.rtol, self.atol, self.norm, self.prox, self.method = rtol, atol, _optimistix.two_norm, prox, method

    def init(
        self, fn: Any, y: PyTree, args: PyTree, options: dict[str, Any], f_struct: Any, aux_struct: Any, tags: Any
    ) -> MinimiserState:
        """The state at the start; no evaluation."""
        del f_struct, aux_struct, tags
        composite = self._composite(fn, args)
        if not composite.is_smooth and options.get(DERIVATIVE) not in ("implicit", "none"):
            condition, found = "ProximalAdjoint() where there is a prox", "one that may differentiate fn alone"
            remedy = 'pass adjoint=nagjax.interop.optimistix.ProximalAdjoint(), or options={"derivative": "none"}'
            checks.reject("AcceleratedProximalGradient", "adjoint", condition, found, remedy)
        for leaf in jax.tree.leaves(y):
            if trees.compute_dtype(leaf.dtype) != leaf.dtype:
                remedy = "cast it, or use solve.minimize, which computes in float32"
                checks.reject("AcceleratedProximalGradient", "y0", "of 32 or 64 bits", leaf.dtype, remedy, TypeError)
        main = self._chosen().init(composite, y, unknown())
        return MinimiserState(main, jnp.zeros((), jnp.int32), jnp.full((), Status.MAX_ITERS, jnp.int32))

    def step(
        self, fn: Any, y: PyTree, args: PyTree, options: dict[str, Any], state: MinimiserState, tags: Any
    ) -> tuple[PyTree, MinimiserState, PyTree]:
        """The next query point, the state, and aux at `y`, which is the query point of the state."""
        del y, options, tags
        composite, before = self._composite(fn, args), cast("Report", state.main.report)
        evaluation = composite.evaluate(state.main.query)
        # The scale is that of the second step.
        known = (state.steps > 1) & (before.scale > 0)
        floor = jnp.where(known, as_scalar(self.atol) / jnp.where(known, before.scale, 1), 0)
        tol = as_scalar(self.rtol) + floor
        no = jnp.zeros((), jnp.bool)
        main = self._chosen().update(composite, state.main, evaluation, Ending(tol, land=no, close=before.stalled))
        report: Report = main.report
        ended = jnp.where(meets(tol, report.residual, report.scale), Status.CONVERGED, Status.STALLED)
        status = jnp.where(report.settled, ended, Status.MAX_ITERS)
        status = jnp.where(report.unbounded | report.overshot, Status.DIVERGED, status)
        status = jnp.where(report.broken, Status.NON_FINITE, status).astype(jnp.int32)
        return main.query, MinimiserState(main, increment(state.steps), status), evaluation.aux

    def terminate(
        self, fn: Any, y: PyTree, args: PyTree, options: dict[str, Any], state: MinimiserState, tags: Any
    ) -> tuple[jax.Array, Any]:
        """Whether the run is over, and how it went."""
        del fn, y, args, options, tags
        results = _optimistix.RESULTS
        result = results.where(state.status == Status.DIVERGED, results.nonlinear_divergence, results.successful)
        result = results.where(state.status == Status.NON_FINITE, results.nonfinite, result)
        return state.status != Status.MAX_ITERS, results.where(
            state.status == Status.STALLED, results.stagnation, result
        )

    def postprocess(
        self,
        fn: Any,
        y: PyTree,
        aux: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: MinimiserState,
        tags: Any,
        result: Any,
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """The answer, its aux and its numbers; one more evaluation where the last step was not at the answer."""
        del y, options, tags, result
        composite, report, answer = self._composite(fn, args), cast("Report", state.main.report), state.main.params

        def known() -> tuple[jax.Array, jax.Array, PyTree]:
            return report.value, report.residual, aux

        def looked() -> tuple[jax.Array, jax.Array, PyTree]:
            evaluation = composite.evaluate(answer)
            s = jnp.where(report.step_size > 0, report.step_size, 1)
            moved = trees.difference(answer, composite.forward_backward(answer, evaluation.gradient, s))
            value = evaluation.value + as_scalar(composite.prox.value(answer))
            return value, jnp.sqrt(squared_norm(moved)) / s, evaluation.aux

        extra = getattr(state.main, "function_evaluations", 0)
        value, residual, aux = cast("Any", jax.lax.cond(report.settled, known, looked))
        stats = {
            "value": value,
            # Without a step the start is measured by itself.
            "residual": jnp.where(residual == 0, 0, residual / jnp.where(state.steps == 0, residual, report.scale)),
            "evaluations": state.steps + (~report.settled).astype(jnp.int32) + extra,
            "step_size": report.step_size,
            "restarts": report.restarts,
            "status": state.status,
        }
        return answer, aux, stats

    def _composite(self, fn: Any, args: PyTree) -> Composite:
        return Composite(fn, self.prox, (args,), has_aux=True)

    def _chosen(self) -> Method:
        if isinstance(self.method, str):
            return WITHOUT_STEP.get(self.method, METHODS[self.method])
        return self.method if isinstance(self.method, Method) else chain(self.method)


class ProximalAdjoint(_Adjoint):
    """Derivatives of a minimizer of fn + h by the implicit function theorem, for `optimistix.minimise(adjoint=...)`.

    Those of `solve.minimize`: of `Solution.value` in `args`, in what fn closes over and in the arrays of the prox,
    forward and reverse, without a matrix. Derivatives of anything else (stats, aux, state) are zero. The solver has to
    be an `AcceleratedProximalGradient`; derivatives through its steps (`RecursiveCheckpointAdjoint`) do not exist.

    Raises:
        ImportError: Optimistix is not installed.
        TypeError: The solver is another one.
    """

    def apply(self, primal_fn: Callable[..., Any], rewrite_fn: Any, inputs: tuple[Any, ...], tags: Any) -> Any:
        """Run the loop of Optimistix with these derivatives."""
        del rewrite_fn, tags
        fn, solver, y0, args, options, *others = inputs
        if not isinstance(solver, AcceleratedProximalGradient):
            remedy = "use optimistix.ImplicitAdjoint for solvers without a prox"
            found = type(solver).__name__
            checks.reject("ProximalAdjoint", "solver", "an AcceleratedProximalGradient", found, remedy, TypeError)
        options = {**options, DERIVATIVE: "implicit"}
        arrays, constants = _equinox.partition((fn, args), _equinox.is_array)
        rest, settings = _equinox.partition((solver, y0, options, *others), _equinox.is_array)

        def objective(arrays: PyTree, y: PyTree) -> Any:
            fn, args = _equinox.combine(arrays, constants)
            return fn(y, args)

        def run(composite: Composite, rest: PyTree) -> Solution:
            fn, args = _equinox.combine(cast("Any", composite.fun).args[0], constants)
            solver, y0, options, *others = _equinox.combine(rest, settings)
            solver = _equinox.tree_at(_prox_of, solver, composite.prox)
            value, report = primal_fn((fn, solver, y0, args, options, *others, _while_loop))
            report = jax.tree.map(_as_array, report)
            num_steps, _, state, *_, stats = report
            return Solution(
                params=value,
                value=stats["value"],
                status=stats["status"],
                iterations=num_steps,
                evaluations=stats["evaluations"],
                residual=stats["residual"],
                history=None,
                state=state.main,
                aux=report,
            )

        composite = Composite(Partial(objective, arrays), solver.prox, has_aux=True)
        solution = differentiable(run, composite, rest)
        return solution.params, solution.aux


def _prox_of(solver: AcceleratedProximalGradient) -> proximal.Prox:
    return solver.prox


def _as_array(leaf: Any) -> jax.Array:
    return jnp.asarray(leaf)


def _while_loop(
    cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init: Any, *, max_steps: int | None
) -> Any:
    """The loop that Optimistix asks an adjoint for."""

    def unfinished(carry: tuple[jax.Array, Any]) -> jax.Array:
        more = cond_fun(carry[1])
        return more if max_steps is None else more & (carry[0] < max_steps)

    def body(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return carry[0] + 1, body_fun(carry[1])

    return cast("Any", jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), init)))[1]
