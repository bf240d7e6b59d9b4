"""What `bench_convex` measures beside its table: scaled objectives, batches, total variation, compilation."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import bench_convex_runs, convex_held_out, convex_methods, convex_problems
from nagjax import proximal, solve

FACTORS = (1e-8, 1e-4, 1.0, 1e4, 1e8)
BATCH = 256
BATCHED = (60, 40)  # samples and columns of each problem of the batch


def measure(rounds: int, *, quick: bool = False) -> dict[str, Any]:
    """Returns iterations by factor, seconds on the total-variation dual, throughput of batches, compile times."""
    compared = bench_convex_runs.measure(convex_held_out.total_variation_dual(), rounds, 2000 if quick else 5000)
    return {
        "iterations_by_factor": scaled_iterations(),
        "total_variation": compared,
        "batch": batch(32 if quick else BATCH, rounds),
        "compile": compilation(1 if quick else 3),
    }


def scaled_iterations(factors: tuple[float, ...] = FACTORS) -> dict[str, dict[str, Any]]:
    """Iterations to a relative residual of 1e-6 on a lasso whose objective is multiplied by each factor."""
    problem = convex_problems.lasso("scaled", 0.0, 0.1, rows=300, columns=100)
    found: dict[str, dict[str, Any]] = {}
    for name in bench_convex_runs.OWN:
        runs = [problem.scaled(factor) for factor in factors]
        found[name] = {
            f"{factor:g}": int(
                solve.minimize(
                    p.fun, p.init, args=p.args, prox=p.prox, method=name, tol=1e-6, max_iters=1000
                ).iterations
            )
            for factor, p in zip(factors, runs, strict=True)
        }
    return found


def batch(size: int, rounds: int) -> dict[str, float]:
    """Seconds of many lasso problems under `vmap` and in Python loops: of `minimize`, and of one jitted function."""
    rows, columns = BATCHED
    rng = np.random.default_rng(0)
    matrices = jnp.asarray(rng.standard_normal((size, rows, columns)))
    targets = jnp.asarray(rng.standard_normal((size, rows)))
    weights = 0.1 * jnp.max(jnp.abs(jnp.einsum("brc,br->bc", matrices, targets)), axis=1)
    start = jnp.zeros(columns)

    def one(matrix: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
        prox = proximal.l1(weight)
        args = (matrix, target)
        return solve.minimize(convex_problems.least_squares, start, args=args, prox=prox, tol=1e-6).params

    single, together = jax.jit(one), jax.jit(jax.vmap(one))
    problems = [(matrices[i], targets[i], weights[i]) for i in range(size)]
    answers = jnp.stack([single(*problem) for problem in problems])
    programs = {
        "plain_seconds": lambda: [one(*problem) for problem in problems],
        "jitted_seconds": lambda: [single(*problem) for problem in problems],
        "vmap_seconds": lambda: together(matrices, targets, weights),
    }
    difference = float(jnp.max(jnp.abs(answers - programs["vmap_seconds"]())))
    one(*problems[0])
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - begun)
    vmapped = np.array(seconds["vmap_seconds"])
    return {
        "problems": size,
        **{name: float(np.median(times)) for name, times in seconds.items()},
        "ratio": float(np.median(np.array(seconds["plain_seconds"]) / vmapped)),
        "jitted_ratio": float(np.median(np.array(seconds["jitted_seconds"]) / vmapped)),
        "largest_difference": difference,
    }


def compilation(repeats: int) -> dict[str, float]:
    """Least CPU seconds that each solver's loop takes to compile on a lasso."""
    problem = convex_problems.lasso("compiled", 0.0, 0.1, rows=300, columns=100)
    names = [*bench_convex_runs.OWN, *(["jaxopt"] if convex_methods.installed("jaxopt") else [])]
    found = {name: float("inf") for name in names}
    for _ in range(repeats):
        for name in names:
            jax.clear_caches()
            found[name] = min(found[name], bench_convex_runs.compiled(problem, name, 10)[1])
    return found
