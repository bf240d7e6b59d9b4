"""Limited-memory BFGS on a face: directions from pairs of moves and changes, restricted to some coordinates."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from nagjax.scalars import scalar_dtype

SIZE = 10  # pairs
CURVED = 1e-10  # least <s, y> / (|s| |y|) of a pair


class Pairs(NamedTuple):
    """The last pairs, in a ring: rows of two matrices of shape (SIZE, n)."""

    moves: jax.Array  # S
    changes: jax.Array  # Y
    length: jax.Array  # pairs so far, int32

    @property
    def head(self) -> jax.Array:
        """The row of the next pair, which holds the oldest one."""
        return self.length % SIZE


def no_pairs(vector: jax.Array) -> Pairs:
    """An empty memory for vectors like this one; zero rows are not pairs."""
    rows = jnp.zeros((SIZE, *vector.shape), vector.dtype)
    return Pairs(rows, rows, jnp.zeros((), jnp.int32))


def push(pairs: Pairs, move: jax.Array, change: jax.Array, keep: jax.Array) -> Pairs:
    """The memory with one pair more, where `keep` is true."""

    def write(rows: jax.Array, row: jax.Array) -> jax.Array:
        row = jnp.where(keep, row, rows[pairs.head])
        return jnp.asarray(jax.lax.dynamic_update_index_in_dim(rows, row, pairs.head, 0))

    return Pairs(write(pairs.moves, move), write(pairs.changes, change), pairs.length + keep.astype(jnp.int32))


def multiply(pairs: Pairs, mask: jax.Array, vector: jax.Array) -> jax.Array:
    """H v on the coordinates of `mask`, for the inverse Hessian H that the pairs give there; 0 elsewhere.

    The two loops of the usual recursion are two triangular systems of order SIZE in the inner products of the pairs,
    so all passes over vectors are three matrix products. Pairs without curvature on the face take no part.

    Args:
        pairs: The memory.
        mask: True on the face, shape (n,).
        vector: v, shape (n,).

    Returns:
        A vector of shape (n,).

    Source:
        J. Nocedal, "Updating quasi-Newton matrices with limited storage", 1980. The compact form is that of R. Byrd,
        J. Nocedal and R. Schnabel, "Representations of quasi-Newton matrices and their use in limited memory
        methods", 1994.
    """
    order = (pairs.head + jnp.arange(SIZE, dtype=jnp.int32)) % SIZE  # oldest first
    weights = mask.astype(vector.dtype)
    masked = vector * weights
    basis = jnp.concatenate([pairs.moves, pairs.changes]) * weights[None, :]
    products = _product(basis, basis)
    against = _product(basis, masked[None, :])[:, 0]
    s, y = order, order + SIZE
    sy, yy = products[s][:, y], products[y][:, y]
    squares: jax.Array = _diagonal(products)
    curvature: jax.Array = _diagonal(sy)
    norms = jnp.sqrt(squares[s] * squares[y])
    valid = curvature > CURVED * norms
    both = valid[:, None] & valid[None, :]
    identity = jnp.eye(SIZE, dtype=sy.dtype)
    upper = jnp.where(both, jnp.triu(sy), identity)

    def valid_only(column: jax.Array) -> jax.Array:
        return jnp.where(valid, column, 0)

    newest = jnp.max(jnp.where(valid, jnp.arange(SIZE, dtype=jnp.int32), -1))
    gamma = jnp.where(newest >= 0, curvature[newest] / jnp.where(newest >= 0, yy[newest, newest], 1), 1)
    a = _solve(upper, valid_only(against[s]), lower=False)
    right = curvature * a - gamma * (against[y] - jnp.where(both, yy, 0) @ a)
    c = _solve(upper.T, valid_only(right), lower=True)
    coefficients = jnp.zeros(2 * SIZE, sy.dtype).at[s].set(valid_only(c)).at[y].set(valid_only(-gamma * a))
    combined = _product(basis.T, coefficients.astype(basis.dtype)[None, :])[:, 0]
    return gamma.astype(vector.dtype) * masked + combined.astype(vector.dtype)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # Row by row; at full precision also where matrix units would round to 16 bits.
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision="highest").astype(scalar_dtype())


def _diagonal(matrix: jax.Array) -> jax.Array:
    return cast("Any", jnp.diagonal)(matrix)


def _solve(matrix: jax.Array, right: jax.Array, *, lower: bool) -> jax.Array:
    return cast("Any", jax.scipy.linalg.solve_triangular)(matrix, right, lower=lower)
