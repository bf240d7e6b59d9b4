"""Solvers outside of JAX: SciPy, and scikit-learn, skglm and celer where they know the problem and are installed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.convex_curves import Curve
from experiments.convex_methods import installed
from experiments.convex_problems import Problem

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12)
MOST = 100_000  # iterations
BUDGET = 3.0  # seconds; no tighter tolerance is tried after a run that took longer


@dataclass(frozen=True)
class Endpoint:
    """One run of a solver that shows only its result."""

    tolerance: float
    seconds: float
    value: float


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of tolerances out of reach, which the curves show; and no threads for products of small matrices."""
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        warnings.simplefilter("ignore")
        yield


def scipy_lbfgs(problem: Problem) -> Curve:
    """SciPy's L-BFGS-B with the compiled value and gradient; the lowest value so far after every evaluation.

    Only for problems without h, and for x >= 0.
    """
    from scipy.optimize import minimize

    start, unravel = ravel_pytree(problem.init)
    compiled = jax.jit(jax.value_and_grad(lambda x, args: problem.fun(unravel(x), *args)))
    bounds = [(0, None)] * len(start) if problem.kind == "nnls" else None
    values: list[float] = []
    seconds: list[float] = []

    def evaluate(x: Any) -> tuple[float, Any]:
        value, gradient = compiled(jnp.asarray(x), problem.args)
        values.append(float(value))
        seconds.append(time.perf_counter() - begun)
        return values[-1], np.asarray(gradient)

    begun = time.perf_counter()
    evaluate(np.asarray(start))  # so that nothing is done for the first time below
    values.clear()
    seconds.clear()
    begun = time.perf_counter()
    options = {"maxiter": MOST, "maxfun": MOST, "ftol": 0.0, "gtol": 0.0}
    with _quiet():
        minimize(evaluate, np.asarray(start), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    # The first evaluation is at the start: its cost counts, its value is that of the start.
    lowest = np.minimum.accumulate(values)
    return Curve("scipy_lbfgs", 2.0 * np.arange(len(values) + 1), np.r_[values[0], lowest], np.r_[0.0, seconds])


def endpoints(problem: Problem) -> dict[str, list[Endpoint]]:
    """Runs of every peer that knows the problem, from loose to tight tolerances."""
    found: dict[str, list[Endpoint]] = {}
    for name, solver in _solvers(problem).items():
        with _quiet():
            solver(1e-1)  # compiles what is compiled, and warms caches
            runs: list[Endpoint] = []
            for tolerance in TOLERANCES:
                begun = time.perf_counter()
                answer = solver(tolerance)
                seconds = time.perf_counter() - begun
                runs.append(Endpoint(tolerance, seconds, float(problem.objective(answer))))
                if seconds > BUDGET:
                    break
        found[name] = runs
    return found


def absent(problem: Problem) -> list[str]:
    """Packages that know the problem and are not installed."""
    wanted = {"lasso": ("celer", "skglm"), "logistic_l1": ("celer", "skglm")}.get(problem.kind, ())
    return [name for name in wanted if not installed(name)]


def _solvers(problem: Problem) -> dict[str, Callable[[float], Any]]:
    table: dict[str, Callable[[Problem], dict[str, Callable[[float], Any]]]] = {
        "lasso": _lasso,
        "nnls": _nnls,
        "logistic": _logistic,
        "softmax": _softmax,
        "logistic_l1": _sparse_logistic,
    }
    return table[problem.kind](problem) if problem.kind in table else {}


def _coefficients(model: Any, matrix: Any, target: Any) -> jax.Array:
    return jnp.asarray(np.ravel(model.fit(matrix, target).coef_))


def _lasso(problem: Problem) -> dict[str, Callable[[float], Any]]:
    from sklearn.linear_model import Lasso

    matrix, target = np.asfortranarray(problem.facts["matrix"]), problem.facts["target"]
    weight = problem.facts["weight"] / len(target)  # they minimize |A x - b|^2 / (2 samples) + weight |x|_1

    def build(kind: Any) -> Callable[[float], Any]:
        def solver(tolerance: float) -> Any:
            return _coefficients(kind(alpha=weight, fit_intercept=False, tol=tolerance, **_limit(kind)), matrix, target)

        return solver

    found = {"scikit-learn": build(Lasso)}
    if installed("skglm"):
        import skglm

        found["skglm"] = build(skglm.Lasso)
    if installed("celer"):
        import celer

        found["celer"] = build(celer.Lasso)
    return found


def _limit(kind: Any) -> dict[str, int]:
    # Passes of coordinate descent for scikit-learn; rounds of working sets, of which there are few, for the others.
    return {"max_iter": MOST} if kind.__module__.startswith("sklearn") else {"max_iter": 200}


def _nnls(problem: Problem) -> dict[str, Callable[[float], Any]]:
    from scipy.optimize import nnls

    matrix, target = problem.facts["matrix"], problem.facts["target"]
    return {"scipy.nnls": lambda tolerance: jnp.asarray(nnls(matrix, target, maxiter=MOST)[0])}


def _regression(problem: Problem, labels: Any, read: Callable[[Any], Any]) -> dict[str, Callable[[float], Any]]:
    from sklearn.linear_model import LogisticRegression

    matrix = problem.facts["matrix"]
    inverse = 1 / (problem.facts["ridge"] * len(labels))

    def solver(tolerance: float) -> Any:
        return read(LogisticRegression(C=inverse, tol=tolerance, max_iter=MOST).fit(matrix, labels))

    return {"scikit-learn": solver}


def _logistic(problem: Problem) -> dict[str, Callable[[float], Any]]:
    def read(model: Any) -> Any:
        return {"weights": jnp.asarray(model.coef_[0]), "bias": jnp.asarray(model.intercept_[0])}

    return _regression(problem, problem.facts["labels"], read)


def _softmax(problem: Problem) -> dict[str, Callable[[float], Any]]:
    def read(model: Any) -> Any:
        return {"weights": jnp.asarray(model.coef_.T), "bias": jnp.asarray(model.intercept_)}

    return _regression(problem, problem.facts["labels"], read)


def _sparse_logistic(problem: Problem) -> dict[str, Callable[[float], Any]]:
    matrix, labels = np.asfortranarray(problem.facts["matrix"]), problem.facts["labels"]
    weight = problem.facts["weight"]
    inverse = 1 / (weight * len(labels))
    found: dict[str, Callable[[float], Any]] = {}
    if installed("skglm"):
        from skglm import SparseLogisticRegression

        found["skglm"] = lambda tolerance: _coefficients(
            SparseLogisticRegression(alpha=weight, fit_intercept=False, tol=tolerance), matrix, labels
        )
    if installed("celer"):
        import celer

        found["celer"] = lambda tolerance: _coefficients(
            celer.LogisticRegression(C=inverse, tol=tolerance), matrix, labels
        )
    return found
