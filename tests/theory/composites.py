"""Composite functions with known minimizers, for NumPy loops and for transformations, and runs on them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nagjax
from nagjax.proximal import Prox
from nagjax.theory.proximal_loops import Composite


class Case(NamedTuple):
    """F = f + weight |x|_1 twice, with a minimizer and the smoothness of f."""

    loop: Composite
    value: Callable[[Any], Any]  # f, for JAX
    prox: Prox | None
    start: np.ndarray
    minimizer: np.ndarray
    smoothness: float

    @property
    def radius(self) -> float:
        return float(np.linalg.norm(self.start - self.minimizer))

    def gaps(self, points) -> np.ndarray:
        """F(x) - F* at every row."""
        least = self.loop.objective(self.minimizer)
        return np.array([self.loop.objective(x) - least for x in points])


class Run(NamedTuple):
    queries: np.ndarray
    answers: np.ndarray
    step_sizes: np.ndarray
    states: Any  # stacked


def l1(weight):
    def prox(x, s):
        def shrink(leaf):
            limit = jnp.asarray(s * weight).astype(leaf.dtype)
            return jnp.sign(leaf) * jnp.maximum(jnp.abs(leaf) - limit, 0)

        return jax.tree.map(shrink, x)

    return Prox(lambda x: weight * sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(x)), prox)


def composite(value, gradient, weight):
    def prox(x, s):
        return np.sign(x) * np.maximum(np.abs(x) - s * weight, 0)

    return Composite(value, gradient, lambda x: weight * float(np.sum(np.abs(x))), prox)


def lasso(seed=0, rows=12, size=6, weight=0.3, scales=(1.0, 1.3, 0.8, 0.5, 1.0, 0.7)) -> Case:
    """|A x - b|^2 / 2 + weight |x|_1, b chosen so that x* is the unique minimizer."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((rows, size)) * np.resize(scales, size)
    minimizer = np.where(np.arange(size) % 2 == 0, generator.standard_normal(size) + 1, 0.0)
    signs = np.where(minimizer != 0, np.sign(minimizer), generator.uniform(-0.7, 0.7, size))
    right = matrix @ minimizer + weight * matrix @ np.linalg.solve(matrix.T @ matrix, signs)
    loop = composite(
        lambda x: float(np.sum((matrix @ x - right) ** 2)) / 2, lambda x: matrix.T @ (matrix @ x - right), weight
    )

    def value(x):
        return jnp.sum((jnp.asarray(matrix, x.dtype) @ x - jnp.asarray(right, x.dtype)) ** 2) / 2

    smoothness = float(np.linalg.norm(matrix, 2)) ** 2
    return Case(loop, value, l1(weight), 2 * generator.standard_normal(size), minimizer, smoothness)


def quadratic(curvatures=(1.0, 10.0, 100.0)) -> Case:
    """sum c_i x_i^2 / 2."""
    curved = np.asarray(curvatures)
    loop = composite(lambda x: float(curved @ x**2) / 2, lambda x: curved * x, 0.0)
    start = np.linspace(2, 1, len(curved))
    return Case(
        loop,
        lambda x: jnp.sum(jnp.asarray(curved, x.dtype) * x**2) / 2,
        None,
        start,
        0 * start,
        float(np.max(curved)),
    )


def chain(size=40) -> Case:
    """Nesterov's tridiagonal quadratic, L <= 4."""
    matrix = 2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)
    linear = np.eye(size)[0]
    loop = composite(lambda x: float(x @ matrix @ x) / 2 - float(linear @ x), lambda x: matrix @ x - linear, 0.0)

    def value(x):
        return x @ jnp.asarray(matrix, x.dtype) @ x / 2 - x[0]

    return Case(loop, value, None, np.zeros(size), np.linalg.solve(matrix, linear), 4.0)


def huber(kink, start=1.0) -> Case:
    """x^2 / 2 up to the kink, linear beyond it."""

    def value(x):
        return float(np.sum(np.where(np.abs(x) <= kink, x**2 / 2, kink * np.abs(x) - kink**2 / 2)))

    loop = composite(value, lambda x: np.clip(x, -kink, kink), 0.0)

    def traced(x):
        return jnp.sum(jnp.where(jnp.abs(x) <= kink, x**2 / 2, kink * jnp.abs(x) - kink**2 / 2))

    return Case(loop, traced, None, np.array([start]), np.zeros(1), 1.0)


def absolute(weight=0.02) -> Case:
    """f = 0, h = weight |x|."""
    loop = composite(lambda x: 0.0, lambda x: 0 * x, weight)
    return Case(loop, lambda x: 0 * jnp.sum(x), l1(weight), np.ones(1), np.zeros(1), 1.0)


CASES = {
    "lasso": lasso(),
    "wide lasso": lasso(3, 30, 20, 0.5),
    "quadratic": quadratic(),
    "ill-conditioned quadratic": quadratic(np.geomspace(1e-4, 1, 8)),
    "chain": chain(),
    **{f"huber {kink}": huber(kink) for kink in (0.3, 0.05, 0.01, 0.002)},
}


def run(tx, case: Case, steps: int, *, dtype=jnp.float64, shift=0.0, **given) -> Run:
    """Queries, answers and states after 0, ..., `steps` updates; functions of `params` in `given` are called."""

    def smooth(x):
        return case.value(x) + jnp.asarray(shift, x.dtype)

    def update(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(smooth)(params)
        extra = {name: function(params) for name, function in given.items()}
        updates, state = tx.update(gradient, state, params, value=value, value_fn=smooth, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, nagjax.eval_params(params, state), state)

    # What float32 reaches depends on the order of its sums: as users compile it, and not as other tests.
    usual = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}

    @partial(jax.jit, compiler_options=usual if dtype == jnp.float32 else None)
    def whole(params):
        return jax.lax.scan(update, (params, tx.init(params)), length=steps)[1]

    start = jnp.asarray(case.start, dtype)
    queries, answers, states = whole(start)
    first = np.asarray(start)[None]
    sizes = optax.tree_utils.tree_get(states, "step_size", np.zeros(steps))
    return Run(np.concatenate([first, queries]), np.concatenate([first, answers]), np.asarray(sizes), states)
