"""Test problems that are quadratic near the minimizer and linear far from it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks
from nagjax.problems.problem import Problem, minimizer_or_zero, real_array, resolve_dtype, rotation


def huber(
    threshold: float,
    *,
    smoothness: float = 1.0,
    strong_convexity: float = 0.0,
    minimizer: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> Problem:
    """The Huber function of the distance from the minimizer, on which many methods attain their worst case.

    With r = |x - x*| and c = L - mu, f(x) = (mu + c) r^2 / 2 for r <= tau, else mu r^2 / 2 + c tau r - c tau^2 / 2.

    Args:
        threshold: The kink tau, positive.
        smoothness: L, positive.
        strong_convexity: mu in [0, L].
        minimizer: x*, a number or a vector; parameters have its shape.
        dtype: Of parameters; JAX's default for real numbers by default.

    Returns:
        The problem.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range.

    Source:
        Y. Drori and M. Teboulle, "Performance of first-order methods for smooth convex minimization", 2014, section 3.
    """
    checks.positive("huber", "threshold", threshold, "give the distance at which the function becomes linear")
    checks.positive("huber", "smoothness", smoothness, "give the largest curvature L")
    in_range = "at least 0 and at most smoothness"
    checks.scalar(
        "huber", "strong_convexity", strong_convexity, in_range, lambda v: 0 <= v <= smoothness, "0 is Huber's function"
    )
    point = real_array("huber", "minimizer", minimizer, (0, 1), "give a number or a vector")
    center = jnp.asarray(point, resolve_dtype(dtype))
    tau, ridge = float(threshold), float(strong_convexity)
    slope = float(smoothness) - ridge

    def value(x: jax.Array) -> jax.Array:
        square = jnp.sum((x - center) ** 2)
        inner = square <= tau**2
        # The root has no derivative at 0, and a derivative of the branch not taken would still be computed.
        distance = jnp.sqrt(jnp.where(inner, tau**2, square))
        flat = jnp.where(inner, 0.5 * square, tau * distance - 0.5 * tau**2)
        return slope * flat + 0.5 * ridge * square

    return Problem(value, center, 0.0, float(smoothness), ridge)


def log_cosh(
    spectrum: ArrayLike,
    *,
    scale: float = 1.0,
    strong_convexity: float = 0.0,
    seed: int | None = None,
    minimizer: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> Problem:
    """A smooth counterpart of the quadratic: the sum of lambda_i scale^2 log cosh(z_i / scale), z = Q^T (x - x*).

    Args:
        spectrum: Curvatures lambda_i at the minimizer, at least 0; shape (dimension,).
        scale: The distance at which the function becomes linear, positive.
        strong_convexity: mu of a term mu |x - x*|^2 / 2 that is added, at least 0.
        seed: Seed of the random orthogonal basis Q; None takes the coordinate axes.
        minimizer: x*, shape (dimension,); the origin by default.
        dtype: Of parameters; JAX's default for real numbers by default.

    Returns:
        The problem; its smoothness is max lambda_i + mu.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range or has the wrong shape.
    """
    remedy = "give the curvatures at the minimizer"
    weights = real_array("log_cosh", "spectrum", spectrum, 1, remedy)
    if np.any(weights < 0):
        checks.reject("log_cosh", "spectrum", "at least 0", float(weights.min()), remedy)
    checks.positive("log_cosh", "scale", scale, "1 is usual")
    checks.nonnegative("log_cosh", "strong_convexity", strong_convexity, "0 leaves the function convex only")
    kind = resolve_dtype(dtype)
    dimension = len(weights)
    center = jnp.asarray(minimizer_or_zero("log_cosh", minimizer, dimension), kind)
    curvatures = jnp.asarray(weights * float(scale) ** 2, kind)
    directions = jnp.asarray(rotation(seed, dimension).T, kind)
    width, ridge = float(scale), float(strong_convexity)

    def value(x: jax.Array) -> jax.Array:
        error = x - center
        z = jnp.matmul(directions, error, precision="highest") / width
        return jnp.sum(curvatures * _log_cosh(z)) + 0.5 * ridge * jnp.sum(error**2)

    return Problem(value, center, 0.0, float(weights.max()) + ridge, ridge)


def _log_cosh(z: jax.Array) -> jax.Array:
    # log(1 + sinh^2) / 2 keeps all digits near 0, where the value is compared with the minimum; it overflows far away.
    near = jnp.abs(z) < 1
    inside = 0.5 * jnp.log1p(jnp.sinh(jnp.where(near, z, 0)) ** 2)
    away = jnp.abs(jnp.where(near, 1, z))
    outside = away + jnp.log1p(jnp.exp(-2 * away)) - math.log(2)
    return jnp.where(near, inside, outside)
