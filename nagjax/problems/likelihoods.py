"""Test problems from statistics: regularized logistic regression and the log-sum-exp of affine functions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from numpy.typing import NDArray

from nagjax import checks
from nagjax.problems.problem import Problem, minimizer_or_zero, real_array, resolve_dtype

_NEWTON_STEPS = 100


def logistic(features: ArrayLike, labels: ArrayLike, ridge: float, *, dtype: DTypeLike | None = None) -> Problem:
    """Logistic regression: the mean of log(1 + exp(-label feature^T x)) plus ridge |x|^2 / 2.

    Args:
        features: Shape (samples, dimension).
        labels: -1 or 1; shape (samples,).
        ridge: Weight of the squared norm, positive: without it separable data have no minimizer.
        dtype: Of parameters; JAX's default for real numbers by default.

    Returns:
        The problem, with the minimizer that Newton's method finds in float64.

    Raises:
        TypeError: `ridge` is not a number.
        ValueError: Shapes do not match, a label is neither -1 nor 1, or `ridge` is not positive.
    """
    matrix = real_array("logistic", "features", features, 2, "one row a sample")
    signs = real_array("logistic", "labels", labels, 1, "one label a sample")
    if len(signs) != len(matrix):
        checks.reject("logistic", "labels", f"of length {len(matrix)}", len(signs), "give one label a sample")
    if not np.all(np.abs(signs) == 1):
        checks.reject("logistic", "labels", "-1 or 1", labels, "map {0, 1} by 2 * labels - 1")
    checks.positive("logistic", "ridge", ridge, "1 / samples is usual")
    signed = matrix * signs[:, None]
    weight = float(ridge)
    solution, minimum = _minimize_logistic(signed, weight)
    kind = resolve_dtype(dtype)
    rows = jnp.asarray(signed, kind)

    def value(x: jax.Array) -> jax.Array:
        margins = jnp.matmul(rows, x, precision="highest")
        return jnp.mean(jax.nn.softplus(-margins)) + 0.5 * weight * jnp.sum(x**2)

    # The second derivative of log(1 + exp(-m)) is at most 1/4.
    largest = float(np.linalg.norm(matrix, 2)) ** 2 / (4 * len(matrix))
    return Problem(value, jnp.asarray(solution, kind), minimum, largest + weight, weight)


def log_sum_exp(
    rows: int,
    dimension: int,
    *,
    seed: int,
    temperature: float = 1.0,
    minimizer: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> Problem:
    """f(x) = t log sum_i exp((a_i^T x - b_i) / t): convex, without strong convexity, with a known minimizer.

    Random rows a_i are shifted so that their mean under random weights p is zero, and b is chosen so that these are
    the softmax weights at x*; then x* is stationary, and f(x*) = 0.

    Args:
        rows: Number of affine functions, more than `dimension`, so that the minimizer is unique.
        dimension: Number of parameters, at least 1.
        seed: Seed of rows and weights.
        temperature: t, positive.
        minimizer: x*, shape (dimension,); the origin by default.
        dtype: Of parameters; JAX's default for real numbers by default.

    Returns:
        The problem.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range or has the wrong shape.
    """
    checks.whole("log_sum_exp", "dimension", dimension, 1, "give the number of parameters")
    checks.whole("log_sum_exp", "rows", rows, dimension + 1, "give more rows than parameters")
    checks.positive("log_sum_exp", "temperature", temperature, "1 is usual")
    t = float(temperature)
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((rows, dimension))
    weights = generator.dirichlet(np.ones(rows))
    matrix = matrix - weights @ matrix
    point = minimizer_or_zero("log_sum_exp", minimizer, dimension)
    offsets = matrix @ point - t * np.log(weights)
    kind = resolve_dtype(dtype)
    slopes, shifts = jnp.asarray(matrix, kind), jnp.asarray(offsets, kind)

    def value(x: jax.Array) -> jax.Array:
        exponents = (jnp.matmul(slopes, x, precision="highest") - shifts) / t
        return t * jax.nn.logsumexp(exponents)

    # diag(p) - p p^T has no eigenvalue above 1/2.
    largest = float(np.linalg.norm(matrix, 2)) ** 2 / (2 * t)
    return Problem(value, jnp.asarray(point, kind), 0.0, largest, 0.0)


def _minimize_logistic(signed: NDArray[np.float64], ridge: float) -> tuple[NDArray[np.float64], float]:
    samples, dimension = signed.shape

    def value(x: NDArray[np.float64]) -> float:
        return float(np.mean(np.logaddexp(0, -signed @ x)) + 0.5 * ridge * x @ x)

    def newton(x: NDArray[np.float64]) -> NDArray[np.float64]:
        chance = np.exp(-np.logaddexp(0, signed @ x))
        gradient = ridge * x - signed.T @ chance / samples
        hessian = (signed.T * (chance * (1 - chance))) @ signed / samples + ridge * np.eye(dimension)
        return np.asarray(np.linalg.solve(hessian, gradient), np.float64)

    x = np.zeros(dimension)
    for _ in range(_NEWTON_STEPS):
        direction, step = newton(x), 1.0
        # The allowance lets the last steps be full, where values differ by rounding alone.
        while value(x - step * direction) > (1 + 1e-12) * value(x):
            step /= 2
        x = x - step * direction
        if np.max(np.abs(direction)) <= 1e-15 * np.max(np.abs(x)):
            break
    return x, value(x)
