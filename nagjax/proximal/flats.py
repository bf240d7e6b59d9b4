"""Projections onto flat sets: a hyperplane, a half-space, and the solutions of linear equations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks, trees
from nagjax.proximal.parameters import bind, indicator, leafwise, match, norm, ratio, ravel
from nagjax.proximal.prox import Prox
from nagjax.reductions import inner_product, squared_norm
from nagjax.scalars import as_scalar
from nagjax.types import PyTree


def hyperplane(normal: PyTree, offset: Any = 0.0) -> Prox:
    """The hyperplane sum Re<normal, x> = offset, over the whole tree.

    Args:
        normal: Not 0: one number for all entries (`hyperplane(1.0, 1.0)`: entries that sum to 1), an array, or a
            tree that matches the parameters or their top; complex where the parameters are.
        offset: A real scalar.

    Returns:
        A `Prox` whose leaves are the normal and the offset. Its value is 0 up to a violation of sqrt(eps)
        (|normal| |x| + |offset|), with eps of the coarsest dtype, else infinity. Its operator projects.

    Raises:
        TypeError: `offset` is not a number or `normal` has an entry that is not.
        ValueError: `normal` is 0 or not finite, `offset` not finite; when traced, a tree or shape does not match.
    """
    _check_flat("proximal.hyperplane", normal, offset)
    return Prox(bind(_hyperplane_value, normal, offset), bind(_hyperplane_prox, normal, offset), constraint=True)


def half_space(normal: PyTree, offset: Any = 0.0) -> Prox:
    """The half-space sum Re<normal, x> <= offset, over the whole tree; arguments, value and errors as `hyperplane`.

    Args:
        normal: As in `hyperplane`; it points outwards.
        offset: A real scalar.

    Returns:
        A `Prox` whose leaves are the normal and the offset. Its operator projects.

    Raises:
        As `hyperplane`.
    """
    _check_flat("proximal.half_space", normal, offset)
    return Prox(bind(_half_space_value, normal, offset), bind(_half_space_prox, normal, offset), constraint=True)


def _check_flat(function: str, normal: PyTree, offset: Any) -> None:
    checks.scalar(function, "offset", offset, "finite", lambda v: abs(v) < float("inf"), "give a real number")
    condition, remedy = "finite and not 0 everywhere", "give a normal with an entry for each parameter"
    found = [leaf for leaf in trees.leaves(normal) if not trees.is_absent(leaf)]
    for leaf in found:
        if isinstance(leaf, bool) or not isinstance(leaf, int | float | complex | np.ndarray | np.generic | jax.Array):
            checks.reject(function, "normal", condition, leaf, remedy, TypeError)
    if all(checks.is_known(leaf) for leaf in found):
        entries = [np.asarray(leaf, np.complex128) for leaf in found]
        if not all(np.isfinite(e).all() for e in entries) or not any(np.any(e) for e in entries):
            checks.reject(function, "normal", condition, normal, remedy)


def _fitted(function: str, normal: PyTree, params: PyTree) -> PyTree:
    """The normal with the structure, shapes and dtypes of computation of the parameters."""

    def fit(leaf: Any, value: Any) -> Any:
        if trees.is_absent(leaf):
            return leaf
        x, value = jnp.asarray(leaf), jnp.asarray(value)
        if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
            checks.reject(function, "normal", "real where the parameters are", value.dtype, "take its real part")
        try:
            value = jnp.broadcast_to(value, x.shape)
        except ValueError:
            found = f"shape {value.shape}"
            checks.reject(function, "normal", f"an array that broadcasts to {x.shape}", found, "reshape it")
        return value.astype(trees.compute_dtype(x.dtype))

    values = match(function, "normal", normal, params)
    return trees.rebuild(params, [fit(leaf, v) for leaf, v in zip(trees.leaves(params), values, strict=True)])


def _excess(normal: PyTree, offset: Any, params: PyTree) -> jax.Array:
    return inner_product(normal, trees.as_arrays(params)) - as_scalar(offset)


def _scale(normal: PyTree, offset: Any, params: PyTree) -> jax.Array:
    sizes = squared_norm(normal) * squared_norm(trees.as_arrays(params))
    return jnp.sqrt(sizes) + jnp.abs(as_scalar(offset))


def _moved(function: str, params: PyTree, normal: PyTree, amount: jax.Array) -> PyTree:
    factor = ratio(amount, squared_norm(normal))
    leaves = [None if trees.is_absent(leaf) else trees.scaled(factor, leaf) for leaf in trees.leaves(normal)]
    steps = iter(leaf for leaf in leaves if leaf is not None)

    def move(x: jax.Array) -> jax.Array:
        return x - next(steps)

    return leafwise(function, move, params)


def _hyperplane_value(normal: PyTree, offset: Any, params: PyTree) -> jax.Array:
    normal = _fitted("proximal.hyperplane", normal, params)
    return indicator(jnp.abs(_excess(normal, offset, params)), _scale(normal, offset, params), params)


def _hyperplane_prox(normal: PyTree, offset: Any, params: PyTree, step_size: Any) -> PyTree:
    del step_size
    normal = _fitted("proximal.hyperplane", normal, params)
    return _moved("proximal.hyperplane", params, normal, _excess(normal, offset, params))


def _half_space_value(normal: PyTree, offset: Any, params: PyTree) -> jax.Array:
    normal = _fitted("proximal.half_space", normal, params)
    return indicator(_excess(normal, offset, params), _scale(normal, offset, params), params)


def _half_space_prox(normal: PyTree, offset: Any, params: PyTree, step_size: Any) -> PyTree:
    del step_size
    normal = _fitted("proximal.half_space", normal, params)
    return _moved("proximal.half_space", params, normal, jnp.maximum(_excess(normal, offset, params), 0))


def affine(matrix: Any, offset: Any) -> Prox:
    """The solutions of the linear equations A x = b, for x the whole tree as one vector in flattened order.

    Args:
        matrix: A, of shape (m, n), for n parameters in all; of any rank.
        offset: b, of shape (m,), in the range of A.

    Returns:
        A `Prox` whose leaves are A, b and the pseudo-inverse of A, which is computed once, here; the operator costs
        two products. Its value is 0 up to an error of sqrt(eps) (|A| |x| + |b|), with eps of the coarsest dtype,
        else infinity.

    Raises:
        TypeError: An entry is not a number.
        ValueError: The shapes do not match, an entry is not finite, or the equations have no solution.
    """
    kinds = np.ndarray | jax.Array
    for name, given in (("matrix", matrix), ("offset", offset)):
        if not isinstance(given, kinds):
            checks.reject("proximal.affine", name, "an array", given, "give A of (m, n) and b of (m,)", TypeError)
    known = checks.is_known(matrix) and checks.is_known(offset)
    a = np.asarray(matrix) if checks.is_known(matrix) else matrix
    b = np.asarray(offset) if checks.is_known(offset) else offset
    if a.ndim != 2 or b.shape != a.shape[:1]:
        found = f"shapes {a.shape} and {b.shape}"
        checks.reject("proximal.affine", "matrix and offset", "of shapes (m, n) and (m,)", found, "reshape them")
    if not checks.is_known(matrix):
        return _affine(a, b, jnp.linalg.pinv(a))
    # In NumPy and double precision: no device is needed yet.
    exact = a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)
    if not np.isfinite(exact).all() or (known and not np.isfinite(b.astype(np.complex128)).all()):
        checks.reject("proximal.affine", "matrix and offset", "finite", "NaN or infinity", "correct them")
    inverse = np.linalg.pinv(exact)
    if known:
        error, size = np.abs(exact @ (inverse @ b) - b).max(initial=0), np.abs(b).max(initial=0)
        eps = max((np.finfo(x.dtype).eps for x in (a, b) if x.dtype.kind in "fc"), default=0.0)
        if error > max(eps, 1e-12) ** 0.5 * size:
            found = f"an offset at a distance of {error:.3g} from it"
            checks.reject("proximal.affine", "offset", "in the range of the matrix", found, "A x = b has no solution")
    return _affine(a, b, inverse)


def _affine(matrix: Any, offset: Any, inverse: Any) -> Prox:
    return Prox(
        bind(_affine_value, matrix, offset, inverse), bind(_affine_prox, matrix, offset, inverse), constraint=True
    )


def _vector(matrix: Any, params: PyTree) -> jax.Array:
    x = ravel("proximal.affine", params)
    if x.size != matrix.shape[1]:
        found = f"{x.size} parameters"
        checks.reject("proximal.affine", "matrix", f"of shape (m, n) = {matrix.shape} for n parameters", found, "match")
    return x


def _cast(array: Any, x: jax.Array) -> jax.Array:
    array = jnp.asarray(array)
    if jnp.iscomplexobj(array) and not jnp.iscomplexobj(x):
        checks.reject("proximal.affine", "matrix and offset", "real for real parameters", array.dtype, "split them")
    return array.astype(x.dtype)


def _length(x: jax.Array) -> jax.Array:
    return norm(x).reshape(())


def _affine_value(matrix: Any, offset: Any, inverse: Any, params: PyTree) -> jax.Array:
    del inverse
    x = _vector(matrix, params)
    a, b = _cast(matrix, x), _cast(offset, x)
    scale = _length(a) * _length(x) + _length(b)
    return indicator(_length(a @ x - b), scale, params)


def _affine_prox(matrix: Any, offset: Any, inverse: Any, params: PyTree, step_size: Any) -> PyTree:
    del step_size
    x = _vector(matrix, params)
    return trees.split(params, x - _cast(inverse, x) @ (_cast(matrix, x) @ x - _cast(offset, x)))
