"""`path`, a sequence of problems from strong to weak regularization, each started where the last one ended."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.proximal import Prox
from nagjax.solve.minimize import minimize
from nagjax.solve.solution import Solution
from nagjax.types import PyTree


def path(
    fun: Callable[..., Any],
    init: PyTree,
    strengths: ArrayLike,
    prox: Callable[[Any], Prox],
    *,
    args: tuple[Any, ...] = (),
    **options: Any,
) -> Solution:
    """Minimize fun(params, *args) + h_c(params) for each strength c in turn, with warm starts.

    Each run starts at the parameters and with the step size of the one before, and measures its residual on the scale
    of the first. The whole path is one compiled program.

    Args:
        fun: As in `minimize`.
        init: Where the first run starts: a tree of arrays.
        strengths: The strengths, shape (n,), in the order in which to solve; from strong to weak is fastest.
        prox: From one strength, a scalar, to h; such as `proximal.l1`.
        args: As in `minimize`.
        **options: As in `minimize`, without `throw`, `progress` and `prox`.

    Returns:
        A `Solution` with a leading axis of n in every field; derivatives as in `minimize`.

    Raises:
        As `minimize`. TypeError: `prox` is not a function. ValueError: `strengths` is not a vector of at least one.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal, solve
        >>> matrix, target = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), jnp.array([1.0, 2.0, 3.0])
        >>> loss = lambda x: jnp.sum((matrix @ x - target) ** 2) / 2
        >>> solutions = solve.path(loss, jnp.zeros(2), jnp.array([30.0, 3.0, 0.3]), proximal.l1)
        >>> solutions.params.shape == (3, 2) and bool(jnp.all(solutions.params[0] == 0))
        True
    """
    if not callable(prox):
        remedy = "give the function, such as proximal.l1, not its result"
        checks.reject("solve.path", "prox", "a function from a strength to a Prox", prox, remedy, TypeError)
    values = jnp.asarray(strengths)
    if values.ndim != 1 or not values.size:
        remedy = "give a vector, such as jnp.geomspace(largest, smallest, 20)"
        checks.reject("solve.path", "strengths", "of shape (n,) with n at least 1", values.shape, remedy)

    def run(start: PyTree | Solution, strength: jax.Array) -> Solution:
        return minimize(fun, start, args=args, prox=prox(strength), **options)

    first = run(trees.as_arrays(init), values[0])

    def follow(last: Solution, strength: jax.Array) -> tuple[Solution, Solution]:
        solution = run(last, strength)
        return solution, solution

    _, others = jax.lax.scan(follow, first, values[1:])

    def stack(one: jax.Array, rest: jax.Array) -> jax.Array:
        return jnp.concatenate([one[None], rest])

    return jax.tree.map(stack, first, others)
