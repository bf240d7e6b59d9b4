"""Quadratic test problems: any spectrum, and Nesterov's worst-case chain."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks
from nagjax.problems.problem import Problem, minimizer_or_zero, real_array, resolve_dtype, rotation


def quadratic(
    spectrum: ArrayLike,
    *,
    seed: int | None = None,
    minimizer: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> Problem:
    """f(x) = (x - x*)^T H (x - x*) / 2 with the given eigenvalues.

    Args:
        spectrum: Eigenvalues of H, at least 0; shape (dimension,).
        seed: Seed of a random orthogonal basis of eigenvectors; None takes the coordinate axes.
        minimizer: x*, shape (dimension,); the origin by default.
        dtype: Of parameters; JAX's default for real numbers by default.

    Returns:
        The problem, with the largest and the smallest eigenvalue as smoothness and strong convexity.

    Raises:
        ValueError: `spectrum` is no vector of numbers of at least 0, or `minimizer` has another length.

    Example:
        >>> import jax, nagjax.problems
        >>> problem = nagjax.problems.quadratic([1.0, 100.0], seed=0, minimizer=[3.0, -1.0])
        >>> bool(abs(jax.grad(problem.value)(problem.minimizer)).max() < 1e-4)
        True
    """
    remedy = "give the eigenvalues of a convex quadratic"
    eigenvalues = real_array("quadratic", "spectrum", spectrum, 1, remedy)
    if np.any(eigenvalues < 0):
        checks.reject("quadratic", "spectrum", "at least 0", float(eigenvalues.min()), remedy)
    kind = resolve_dtype(dtype)
    dimension = len(eigenvalues)
    center = jnp.asarray(minimizer_or_zero("quadratic", minimizer, dimension), kind)
    curvatures = jnp.asarray(eigenvalues, kind)
    directions = None if seed is None else jnp.asarray(rotation(seed, dimension).T, kind)

    def value(x: jax.Array) -> jax.Array:
        error = x - center
        if directions is not None:
            error = jnp.matmul(directions, error, precision="highest")
        return 0.5 * jnp.sum(curvatures * error**2)

    return Problem(value, center, 0.0, float(eigenvalues.max()), float(eigenvalues.min()))


def nesterov_chain(
    dimension: int, smoothness: float = 1.0, strong_convexity: float = 0.0, *, dtype: DTypeLike | None = None
) -> Problem:
    """Nesterov's worst-case function, a chain of springs that is pulled at one end.

    f(x) = (L - mu)/4 ((x_1^2 + (x_1 - x_2)^2 + ... + (x_{n-1} - x_n)^2 + x_n^2)/2 - x_1) + mu |x|^2 / 2. From the
    origin, a method whose points stay in the span of its gradients reaches one more coordinate with each.

    Args:
        dimension: n, at least 1.
        smoothness: L, positive.
        strong_convexity: mu in [0, L).
        dtype: Of parameters; JAX's default for real numbers by default.

    Returns:
        The problem. Smoothness and strong convexity are L and mu, those of the infinite chain.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Source:
        Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, sections 2.1.2 and 2.1.4.
    """
    name = "nesterov_chain"
    checks.whole(name, "dimension", dimension, 1, "give the number of links")
    checks.positive(name, "smoothness", smoothness, "give the largest curvature L")
    in_range = "at least 0 and less than smoothness"
    checks.scalar(
        name, "strong_convexity", strong_convexity, in_range, lambda v: 0 <= v < smoothness, "0 is the convex chain"
    )
    stiffness = (float(smoothness) - float(strong_convexity)) / 4
    links = 2 * np.eye(dimension) - np.eye(dimension, k=1) - np.eye(dimension, k=-1)
    pull = np.zeros(dimension)
    pull[0] = stiffness
    solution = np.linalg.solve(stiffness * links + strong_convexity * np.eye(dimension), pull)
    minimizer = jnp.asarray(solution, resolve_dtype(dtype))
    ridge = float(strong_convexity)

    def value(x: jax.Array) -> jax.Array:
        springs = x[0] ** 2 + jnp.sum(jnp.diff(x) ** 2) + x[-1] ** 2
        return stiffness * (0.5 * springs - x[0]) + 0.5 * ridge * jnp.sum(x**2)

    # At the minimizer of x^T H x / 2 - p^T x the value is -p^T x / 2.
    minimum = -float(pull @ solution) / 2
    return Problem(value, minimizer, minimum, float(smoothness), ridge)
