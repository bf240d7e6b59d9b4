"""Compensated summation: parameters of 16 bits that follow the sum of their updates, however small each is."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from nagjax import checks, trees
from nagjax.transform import check_floating, check_updates
from nagjax.types import PyTree


class CompensateState(NamedTuple):
    """State of `compensate` where some parameter has at most 16 bits; `optax.EmptyState` elsewhere."""

    residual: PyTree  # r, what rounding took away: the leaves' shapes and dtypes (bfloat16 and 0 for wider leaves)


def compensate() -> optax.GradientTransformation:
    """Add to each update what the rounding of parameters of 16 bits took from the ones before.

    In bfloat16 an update of less than 1/512 of a parameter is lost, and an average over N steps takes N roundings. With
    y the parameter, u the update and r the residual::

        y' = round(y + u + r)
        r' = (y + u + r) - y'

    so that y + r is the sum of all updates, with twice as many digits. Put it last. Leaves of 32 bits and more
    pass as they are.

    Returns:
        A transformation whose updates need `params` where leaves have 16 bits. Memory: 2 bytes a parameter if any has.

    Raises:
        TypeError: Parameters are not floating-point (raised by `init`).
        ValueError: `params` is not passed, or updates or `params` do not have the structure and shapes of the
            parameters (both raised by `update`).

    Example:
        >>> import jax.numpy as jnp, nagjax, optax
        >>> tx, params = nagjax.compensate(), jnp.ones((), jnp.bfloat16)
        >>> state = tx.init(params)
        >>> for _ in range(1000):
        ...     updates, state = tx.update(jnp.asarray(0.001, jnp.bfloat16), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(abs(params - 2) < 0.01)  # without compensation it is 1
        True

    Source:
        W. Kahan, "Further remarks on reducing truncation errors", 1965.
    """

    def start(leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf, dtype=leaf.dtype if _is_narrow(leaf) else jnp.bfloat16)

    def init(params: PyTree) -> optax.OptState:
        check_floating("compensate", params)
        params = trees.as_arrays(params)
        narrow = any(not trees.is_absent(leaf) and _is_narrow(leaf) for leaf in trees.leaves(params))
        return CompensateState(trees.map_present(start, params)) if narrow else optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, optax.OptState]:
        if isinstance(state, optax.EmptyState):
            return updates, state
        if params is None:
            remedy = "parameters of 16 bits need them: call `update(gradients, state, params)`"
            checks.reject("compensate", "params", "passed to update", None, remedy)
        updates, params = trees.as_arrays(updates), trees.as_arrays(params)
        for argument, tree in ("updates", updates), ("params", params):
            check_updates("compensate", tree, state.residual, argument)
        rows = zip(*map(trees.leaves, (updates, state.residual, params)), strict=True)
        pairs = [(u, r) if trees.is_absent(u) or not _is_narrow(y) else _add(u, r, y) for u, r, y in rows]
        moves, residual = [u for u, _ in pairs], [r for _, r in pairs]
        return trees.rebuild(updates, moves), CompensateState(trees.rebuild(state.residual, residual))

    return optax.GradientTransformation(init, update)


def _is_narrow(leaf: jax.Array) -> bool:
    return leaf.dtype.itemsize < 4


def _add(update: jax.Array, residual: jax.Array, param: jax.Array) -> tuple[jax.Array, jax.Array]:
    kind = cast("Any", jnp.finfo(param.dtype))
    mantissa = int(kind.nmant)
    exponent = int(kind.bits) - 1 - mantissa

    def rounded(x: jax.Array) -> jax.Array:
        # A cast there and back again may be optimized away.
        return jax.lax.reduce_precision(x, exponent, mantissa)

    y = param.astype(jnp.float32)
    wanted = update.astype(jnp.float32) + residual.astype(jnp.float32)
    # The update is rounded too, and its sum with y as `optax.apply_updates` computes it.
    move = rounded(rounded(y + wanted) - y)
    left = wanted - (rounded(y + move) - y)
    # Parameters that overflow stay so.
    left = jnp.where(jnp.isfinite(left), left, 0)
    return move.astype(update.dtype), left.astype(residual.dtype)
