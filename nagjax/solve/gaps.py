"""Duality gaps: certificates in the value of the objective, for problems that offer one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax.proximal import Prox
from nagjax.reductions import inner_product
from nagjax.scalars import as_scalar
from nagjax.types import PyTree


def least_squares_gap(prox: Prox, dual_norm: Callable[[PyTree], ArrayLike]) -> Callable[..., jax.Array]:
    """The duality gap of |A x - b|^2 / 2 + h(x) for a norm h, from value and gradient alone.

    With the residual r = A x - b, the dual point -a r is feasible where a times the dual norm of the gradient A'r is
    at most 1, and |r|^2 and <b, r> follow from value and gradient; a is the best factor.

    Args:
        prox: h, a norm such as `proximal.l1(weight)` or `proximal.group_lasso(weight)`.
        dual_norm: The dual norm of h, weight included: for `l1(weight)` it is `lambda g: jnp.max(jnp.abs(g)) / weight`.

    Returns:
        A function `gap(params, value, gradient)`, at least F(params) - min F, for `minimize(duality_gap=...)`. `fun`
        has to be |A x - b|^2 / 2 with this factor 1/2.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal, solve
        >>> matrix, target = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), jnp.array([1.0, 2.0, 3.0])
        >>> gap = solve.least_squares_gap(proximal.l1(2.0), lambda g: jnp.max(jnp.abs(g)) / 2.0)
        >>> loss = lambda x: jnp.sum((matrix @ x - target) ** 2) / 2
        >>> solution = solve.minimize(loss, jnp.zeros(2), prox=proximal.l1(2.0), duality_gap=gap)
        >>> bool(solution.converged & (solution.residual <= 1e-6))
        True

    Source:
        O. Fercoq, A. Gramfort and J. Salmon, "Mind the duality gap: safer rules for the lasso", 2015, equation (4).
    """

    def gap(params: PyTree, value: jax.Array, gradient: PyTree) -> jax.Array:
        across = inner_product(params, gradient) - 2 * value  # <b, r>
        size: Any = as_scalar(dual_norm(gradient))
        limit = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), jnp.inf)
        factor = jnp.clip(-across / jnp.where(value > 0, 2 * value, 1), -limit, limit)
        return value + as_scalar(prox.value(params)) + factor * across + factor**2 * value

    return gap
