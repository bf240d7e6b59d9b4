"""What a test problem is, and how its arrays are made."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from numpy.typing import NDArray

from nagjax import checks
from nagjax.scalars import scalar_dtype


class Problem(NamedTuple):
    """A convex function with all that theorems ask for.

    `value` computes in the dtype of its arrays, which `params` must share; the numbers are float64.
    """

    value: Callable[[jax.Array], jax.Array]  # params -> scalar
    minimizer: jax.Array  # x*, the shape and dtype of params
    minimum: float  # f(x*)
    smoothness: float  # L, an upper bound of the curvature
    strong_convexity: float  # mu, a lower bound of the curvature; 0 where the function is convex only


def resolve_dtype(dtype: DTypeLike | None) -> jnp.dtype:
    """The dtype of a problem: `dtype`, or JAX's default for real numbers."""
    return scalar_dtype() if dtype is None else jnp.dtype(dtype)


def real_array(
    function: str, argument: str, value: ArrayLike, ranks: int | tuple[int, ...], remedy: str
) -> NDArray[np.float64]:
    """`value` as a finite float64 array of one of the given ranks, else ValueError."""
    allowed = (ranks,) if isinstance(ranks, int) else ranks
    array = np.asarray(value, np.float64)
    if array.ndim not in allowed or not array.size or not np.all(np.isfinite(array)):
        rank = " or ".join(str(d) for d in allowed)
        checks.reject(function, argument, f"a finite, non-empty array of rank {rank}", value, remedy)
    return array


def minimizer_or_zero(function: str, minimizer: ArrayLike | None, dimension: int) -> NDArray[np.float64]:
    """The given minimizer, checked, or the origin."""
    if minimizer is None:
        return np.zeros(dimension)
    remedy = f"give {dimension} numbers"
    point = real_array(function, "minimizer", minimizer, 1, remedy)
    if len(point) != dimension:
        checks.reject(function, "minimizer", f"of length {dimension}", len(point), remedy)
    return point


def rotation(seed: int | None, dimension: int) -> NDArray[np.float64]:
    """A uniformly random orthogonal matrix, or the identity where `seed` is None."""
    if seed is None:
        return np.eye(dimension)
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))
    # Without the signs the distribution would be that of the QR algorithm, not the uniform one.
    return q * np.sign(np.diag(r))
