"""The convex problems of `convex` and `bench_convex`: data from seeds and from scikit-learn, float64.

A problem is min f(params, *args) + h(params). Data go through `args`, never into the function, where XLA would fold
them as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nagjax import proximal
from nagjax.proximal import Prox

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A composite problem, and what other packages need to solve the same one."""

    name: str
    title: str
    fun: Callable[..., jax.Array]  # f(params, *args), smooth
    args: tuple[Any, ...]
    init: Any  # params at the start
    smoothness: float  # L of f, for the methods that must be told
    prox: Prox | None = None  # h; None where the problem is smooth
    kind: str = "other"  # lasso, nnls, logistic, softmax, smooth or other: which peers know it
    facts: dict[str, Any] = field(default_factory=dict[str, Any])  # NumPy data for the peers
    minimum: float | None = None  # F*, where it is known in closed form

    @property
    def smooth(self) -> bool:
        """Whether there is no h."""
        return self.prox is None

    def objective(self, params: Any) -> jax.Array:
        """F = f + h."""
        return objective(self.fun, self.prox, self.args, params)

    def scaled(self, factor: float) -> Problem:
        """The problem with F times `factor`; only for an l1 penalty or none."""
        prox = None if self.prox is None else proximal.l1(factor * self.facts["weight"])
        return Problem(
            f"{self.name} x {factor:g}", self.title, _Scaled(self.fun), (factor, *self.args), self.init,
            factor * self.smoothness, prox, self.kind, self.facts,
            None if self.minimum is None else factor * self.minimum,
        )  # fmt: skip


@dataclass(frozen=True)
class _Scaled:
    fun: Callable[..., jax.Array]

    def __call__(self, params: Any, factor: Any, *args: Any) -> jax.Array:
        return factor * self.fun(params, *args)


def objective(fun: Callable[..., jax.Array], prox: Prox | None, args: tuple[Any, ...], params: Any) -> jax.Array:
    """F = f + h at `params`."""
    value = fun(params, *args)
    return value if prox is None else value + prox.value(params).astype(value.dtype)


def least_squares(x: jax.Array, matrix: jax.Array, target: jax.Array) -> jax.Array:
    """|A x - b|^2 / 2."""
    return jnp.sum((matrix @ x - target) ** 2) / 2


def autoregressive(rng: np.random.Generator, rows: int, columns: int, correlation: float) -> Array:
    """Standard normal columns, each correlated with the one before."""
    noise = rng.standard_normal((rows, columns))
    matrix = noise.copy()
    for j in range(1, columns):
        matrix[:, j] = correlation * matrix[:, j - 1] + np.sqrt(1 - correlation**2) * noise[:, j]
    return matrix


def lasso(name: str, correlation: float, fraction: float, *, rows: int = 2000, columns: int = 1000) -> Problem:
    """|A x - b|^2 / 2 + w |x|_1 with w = fraction * max |A^T b|; at fraction 1 and above x* = 0."""
    rng = np.random.default_rng(0)
    matrix = autoregressive(rng, rows, columns, correlation)
    true = np.zeros(columns)
    true[rng.choice(columns, max(columns // 10, 1), replace=False)] = rng.standard_normal(max(columns // 10, 1))
    target = matrix @ true
    target += 0.1 * np.std(target) * rng.standard_normal(rows)
    weight = fraction * float(np.max(np.abs(matrix.T @ target)))
    kind = f"AR({correlation:g})" if correlation else "independent"
    return Problem(
        name, f"lasso {rows} x {columns}, {kind}, {fraction:g} λmax", least_squares,
        (jnp.asarray(matrix), jnp.asarray(target)), jnp.zeros(columns), _norm(matrix) ** 2,
        proximal.l1(weight), "lasso", {"matrix": matrix, "target": target, "weight": weight},
    )  # fmt: skip


def nonnegative_least_squares(*, rows: int = 1000, columns: int = 500) -> Problem:
    """|A x - b|^2 / 2 over x >= 0, with positive columns, which makes it ill-conditioned."""
    rng = np.random.default_rng(0)
    matrix = rng.random((rows, columns))
    true = np.where(rng.random(columns) < 0.3, rng.random(columns), 0.0)
    target = matrix @ true + 0.4 * rng.standard_normal(rows)
    return Problem(
        "nnls", f"non-negative least squares {rows} x {columns}", least_squares,
        (jnp.asarray(matrix), jnp.asarray(target)), jnp.zeros(columns), _norm(matrix) ** 2,
        proximal.nonnegative(), "nnls", {"matrix": matrix, "target": target},
    )  # fmt: skip


def _softmax(params: Any, images: jax.Array, labels: jax.Array, ridge: float) -> jax.Array:
    scores = images @ params["weights"] + params["bias"][None, :]
    chosen = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    loss = jnp.mean(jax.nn.logsumexp(scores, axis=1) - chosen)
    return loss + 0.5 * ridge * jnp.sum(params["weights"] ** 2)


def digits(*, ridge: float = 1e-3) -> Problem:
    """Softmax regression on scikit-learn's 1,797 images of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    # The Hessian of log-sum-exp is at most I / 2.
    bound = _norm(np.c_[images, np.ones(len(images))]) ** 2 / (2 * len(images)) + ridge
    init = {"weights": jnp.zeros((images.shape[1], 10)), "bias": jnp.zeros(10)}
    return Problem(
        "digits", "softmax regression, digits", _softmax, (jnp.asarray(images), jnp.asarray(labels), ridge), init,
        bound, None, "softmax", {"matrix": images, "labels": labels, "ridge": ridge},
    )  # fmt: skip


def _logistic(params: Any, features: jax.Array, signs: jax.Array, ridge: float) -> jax.Array:
    margins = signs * (features @ params["weights"] + params["bias"])
    return jnp.mean(jax.nn.softplus(-margins)) + 0.5 * ridge * jnp.sum(params["weights"] ** 2)


def cancer(*, ridge: float = 1 / 569) -> Problem:
    """Logistic regression on scikit-learn's breast cancer data, features standardized."""
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    signs = 2.0 * labels - 1
    # The second derivative of log(1 + exp(-m)) is at most 1/4.
    bound = _norm(np.c_[features, np.ones(len(features))]) ** 2 / (4 * len(features)) + ridge
    init = {"weights": jnp.zeros(features.shape[1]), "bias": jnp.zeros(())}
    return Problem(
        "cancer", "logistic regression, breast cancer", _logistic,
        (jnp.asarray(features), jnp.asarray(signs), ridge), init, bound, None, "logistic",
        {"matrix": features, "labels": signs, "ridge": ridge},
    )  # fmt: skip


def _quadratic(x: jax.Array, matrix: jax.Array, linear: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(x * (matrix @ x)) - jnp.sum(linear * x)


def quadratic(*, dimension: int = 500, condition_number: float = 1e6) -> Problem:
    """x^T A x / 2 - b^T x with eigenvalues of A spread evenly in their logarithm, and known minimum."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    eigenvalues = np.logspace(-np.log10(condition_number), 0, dimension)
    matrix = (basis * eigenvalues) @ basis.T
    solution = rng.standard_normal(dimension)
    linear = matrix @ solution
    return Problem(
        "quad", f"quadratic, condition number {condition_number:.0e}", _quadratic,
        (jnp.asarray(matrix), jnp.asarray(linear)), jnp.zeros(dimension), 1.0, None, "smooth",
        {"solution": solution}, -0.5 * float(solution @ linear),
    )  # fmt: skip


def _norm(matrix: Array) -> float:
    return float(np.linalg.norm(matrix, 2))


def deblurring() -> Problem:
    """The photograph of `convex_deblurring`."""
    from experiments import convex_deblurring

    return convex_deblurring.problem()


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "lasso_corr_0.01": lambda: lasso("lasso_corr_0.01", 0.95, 0.01),
    "lasso_corr_0.1": lambda: lasso("lasso_corr_0.1", 0.95, 0.1),
    "lasso_iid_0.01": lambda: lasso("lasso_iid_0.01", 0.0, 0.01),
    "lasso_iid_0.1": lambda: lasso("lasso_iid_0.1", 0.0, 0.1),
    "nnls": nonnegative_least_squares,
    "digits": digits,
    "cancer": cancer,
    "quad": quadratic,
    "deblur": deblurring,
}


def _small_deblurring() -> Problem:
    from experiments import convex_deblurring

    return convex_deblurring.problem(64)


# For checks in seconds.
SMALL: dict[str, Callable[[], Problem]] = {
    "lasso_corr_0.01": lambda: lasso("lasso_corr_0.01", 0.95, 0.01, rows=400, columns=200),
    "nnls": lambda: nonnegative_least_squares(rows=200, columns=100),
    "quad": lambda: quadratic(dimension=100, condition_number=1e4),
    "deblur": _small_deblurring,
}
