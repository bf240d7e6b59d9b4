"""One row of `bench_convex`: counts to three accuracies, times and compile times of every method on one problem."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import convex_curves, convex_methods, convex_peers, convex_reference
from experiments.convex_curves import Curve
from experiments.convex_problems import Problem
from experiments.output import Run
from nagjax import solve

TARGETS = (1e-3, 1e-6, 1e-9)
TIMED = 1e-6
OWN = ("default", "boosted")
SECONDS = 60.0  # of one curve
LEAST = 0.05  # seconds that one measurement takes at least, by repeated calls
MOST = 50  # calls
BUDGET = 20.0  # seconds for all rounds of a problem, the last of which may run over it
WITNESSED = 1500  # most steps of a curve that the function itself counts


def absent() -> list[str]:
    """The packages that could have taken part."""
    return [name for name in ("jaxopt",) if not convex_methods.installed(name)]


def measure(problem: Problem, rounds: int, cap: int, run: Run | None = None) -> dict[str, Any]:
    """Measures one problem.

    Returns:
        For each method the counts to `TARGETS` (None where it does not arrive), the median and all seconds to
        `TIMED`, and the CPU seconds of compilation; the reference optimum.
    """
    begun = time.perf_counter()
    steppers = [convex_methods.solver(name) for name in reversed(OWN)]
    best, own = convex_reference.reference(problem, steppers, limit=cap, seconds=SECONDS)
    goal = {"minimum": best.minimum, "scale": best.scale}
    curves = {curve.name: curve for curve in reversed(own)}
    for stepper in rivals(problem):
        curves[stepper.name] = convex_curves.curve(
            stepper, problem, limit=cap, target=TARGETS[-1], seconds=SECONDS, **goal
        )
    if problem.smooth:
        if convex_methods.installed("jaxopt"):
            stepper = convex_methods.jaxopt_lbfgs()
            curves[stepper.name] = convex_curves.witnessed(
                stepper, problem, limit=min(cap, WITNESSED), target=TARGETS[-1], **goal
            )
        curves["scipy_lbfgs"] = convex_peers.scipy_lbfgs(problem)
    methods = {name: _counts(curve, best) for name, curve in curves.items()}
    _time(problem, methods, rounds)
    row = {"problem": problem.name, "title": problem.title, "reference": best, "methods": methods}
    if run is not None:
        run.log({**row, "seconds": time.perf_counter() - begun})
    return row


def rivals(problem: Problem) -> list[convex_curves.Stepper]:
    """The methods that JAX runs in a loop and that are told no constant."""
    found = [convex_methods.jaxopt_proximal_gradient()] if convex_methods.installed("jaxopt") else []
    return found + ([convex_methods.optax_lbfgs()] if problem.smooth else [])


def _counts(curve: Curve, best: convex_reference.Reference) -> dict[str, Any]:
    # Beyond the floor F* is not known well enough.
    known = [target if target >= best.floor else convex_curves.NEVER for target in TARGETS]
    return {
        "counts": [curve.cost_to(target, best.minimum, best.scale) for target in known],
        "steps": [curve.steps_to(target, best.minimum, best.scale) for target in known],
        "lowest": float((np.nanmin(curve.values) - best.minimum) / best.scale),
    }


def _time(problem: Problem, methods: dict[str, Any], rounds: int) -> None:
    """Adds seconds to `TIMED`: of whole runs of the compiled solvers, taken in turn."""
    programs: dict[str, Callable[[], Any]] = {}
    for name in (*OWN, "jaxopt"):
        steps = methods[name]["steps"][TARGETS.index(TIMED)] if name in methods else None
        if steps:
            programs[name], methods[name]["compile_seconds"] = compiled(problem, name, steps)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    once = {name: _elapsed(program, 1) for name, program in programs.items()}
    calls = {name: min(max(math.ceil(LEAST / taken), 1), MOST) for name, taken in once.items()}
    rounds = min(rounds, max(math.ceil(BUDGET / sum(once.values())), 1)) if once else 0
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(programs)):
            seconds[str(name)].append(_elapsed(programs[str(name)], calls[str(name)]))
    for name, times in seconds.items():
        methods[name]["seconds"] = float(np.median(times))
        methods[name]["all_seconds"] = times


def _elapsed(program: Callable[[], Any], calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(program())
    return (time.perf_counter() - begun) / calls


def compiled(problem: Problem, name: str, steps: int) -> tuple[Callable[[], Any], float]:
    """A solver's own loop with a fixed number of steps, as users run it, and the CPU seconds that it compiles for."""

    def own(params: Any, prox: Any, args: Any) -> Any:
        return solve.minimize(problem.fun, params, args=args, prox=prox, method=name, tol=0.0, max_iters=steps).params

    def other(params: Any, prox: Any, args: Any) -> Any:
        with convex_methods.standard_promotion():
            data = solve.Composite(problem.fun, prox, args)
            return convex_methods.jaxopt_solver(data, maxiter=steps, tol=0.0).run(params, prox, *args).params

    data = convex_curves.composite(problem)
    arguments = (problem.init, data.prox, problem.args)
    lowered = jax.jit(other if name == "jaxopt" else own).lower(*arguments)
    begun = time.process_time()
    program = lowered.compile()
    spent = time.process_time() - begun
    return lambda: program(*arguments), spent
