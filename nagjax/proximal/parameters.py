"""What the operators share: their parameters over trees, sums over leaves, safe norms, and the test of membership."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nagjax import checks, trees
from nagjax.scalars import as_scalar, scalar_dtype
from nagjax.types import PyTree

_LEAF = cast("Any", jax.tree.structure(0))


@dataclasses.dataclass(frozen=True)
class _Specialized:
    """A function with static keyword arguments; unlike `functools.partial`, equal to another one made alike."""

    function: Callable[..., Any]
    static: tuple[tuple[str, Hashable], ...]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments, **dict(self.static))


def bind(function: Callable[..., Any], *leaves: PyTree, **static: Hashable) -> Callable[..., Any]:
    """`function` with its first arguments as leaves of a pytree and its keyword arguments as structure."""
    return Partial(_Specialized(function, tuple(sorted(static.items()))) if static else function, *leaves)


def check(function: str, argument: str, tree: PyTree, condition: str, holds: Callable[[Any], Any], remedy: str) -> None:
    """Check that every known number of a tree of real numbers and arrays satisfies `holds`."""
    present: list[Any] = [leaf for leaf in trees.leaves(tree) if not trees.is_absent(leaf)]
    for leaf in present:
        kinds = int | float | np.ndarray | np.generic | jax.Array
        if isinstance(leaf, bool) or not isinstance(leaf, kinds):
            checks.reject(function, argument, condition, leaf, remedy, TypeError)
        found: Any = leaf
        if np.iscomplexobj(found):
            checks.reject(function, argument, f"real and {condition}", found, remedy)
        if checks.is_known(found) and not np.all(holds(np.asarray(found, dtype=np.float64))):
            checks.reject(function, argument, condition, found, remedy)


def check_weights(function: str, argument: str, tree: PyTree) -> None:
    """Check that all weights of a tree are finite and not negative."""

    def holds(values: Any) -> Any:
        return np.isfinite(values) & (values >= 0)

    remedy = "give a number, an array that broadcasts to the parameters, or a tree of these"
    check(function, argument, tree, "at least 0 and finite", holds, remedy)


def match(function: str, argument: str, tree: PyTree, params: PyTree) -> list[Any]:
    """The parameter of each leaf of `params`: `tree` is one number or array, or a tree that matches its top."""
    leaves = trees.leaves(params)
    if trees.structure(tree) == _LEAF:
        present = sum(not trees.is_absent(leaf) for leaf in leaves)
        if np.ndim(tree) and present > 1:
            condition = f"a number or a tree of arrays that matches the parameters {trees.structure(params)}"
            remedy = "one array goes with parameters that are one array"
            checks.reject(function, argument, condition, f"an array of shape {np.shape(tree)}", remedy)
        return [tree] * len(leaves)
    try:
        parts = trees.structure(tree).flatten_up_to(params)
    except (ValueError, TypeError):
        condition = f"a number or a tree that matches the parameters {trees.structure(params)}, or their top"
        checks.reject(function, argument, condition, trees.structure(tree), "give one entry for each leaf")
    found: list[Any] = []
    for entry, part in zip(trees.leaves(tree), parts, strict=True):
        below = trees.leaves(part)
        if trees.is_absent(entry) and not all(trees.is_absent(leaf) for leaf in below):
            checks.reject(function, argument, "present wherever the parameters are", entry, "0 leaves a leaf out")
        found += [entry] * len(below)
    return found


def wide(function: str, leaf: Any, real: bool = False) -> jax.Array:
    """A leaf in the dtype of computation; `real` refuses complex ones."""
    x = jnp.asarray(leaf)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        checks.reject(function, "params", "floating or complex", x.dtype, "convert them", TypeError)
    if real and jnp.iscomplexobj(x):
        checks.reject(function, "params", "real", x.dtype, "split them into real and imaginary parts", TypeError)
    return x.astype(trees.compute_dtype(x.dtype))


def widened(function: str, params: PyTree) -> PyTree:
    """The tree with each leaf in its dtype of computation, for operators in several parts."""
    return trees.map_present(functools.partial(wide, function), params)


def _columns(
    function: str, params: PyTree, real: bool, shape: Callable[[jax.Array], tuple[int, ...]], named: dict[str, PyTree]
) -> list[tuple[Any, ...] | None]:
    """For each leaf, None where absent, else the leaf in its dtype of computation and its parameters, broadcast."""
    columns = {name: match(function, name, tree, params) for name, tree in named.items()}
    rows: list[tuple[Any, ...] | None] = []
    for i, leaf in enumerate(trees.leaves(params)):
        if trees.is_absent(leaf):
            rows.append(None)
            continue
        x = wide(function, leaf, real)
        fitted = [_fit(function, name, column[i], shape(x)) for name, column in columns.items()]
        rows.append((x, *fitted))
    return rows


def _fit(function: str, argument: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    value = as_scalar(value)
    if not value.ndim:
        return value
    try:
        fits = np.broadcast_shapes(value.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        found = f"shape {value.shape}"
        checks.reject(function, argument, f"a number or an array that broadcasts to {shape}", found, "reshape it")
    return jnp.broadcast_to(value, shape)


def _leaf_shape(x: jax.Array) -> tuple[int, ...]:
    return x.shape


def leafwise(
    function: str,
    operator: Callable[..., jax.Array],
    params: PyTree,
    *,
    real: bool = False,
    shape: Callable[[jax.Array], tuple[int, ...]] = _leaf_shape,
    **named: PyTree,
) -> PyTree:
    """`operator(leaf, *parameters)` for each present leaf, computed wide and cast back to the leaf's dtype."""
    rows = _columns(function, params, real, shape, named)
    results = [
        leaf if row is None else operator(*row).astype(jnp.asarray(leaf).dtype)
        for leaf, row in zip(trees.leaves(params), rows, strict=True)
    ]
    return trees.rebuild(params, results)


def total(
    function: str,
    value: Callable[..., jax.Array],
    params: PyTree,
    *,
    real: bool = False,
    shape: Callable[[jax.Array], tuple[int, ...]] = _leaf_shape,
    **named: PyTree,
) -> jax.Array:
    """The sum of `value(leaf, *parameters)` over the present leaves and over the entries of each result."""
    rows = _columns(function, params, real, shape, named)
    terms = [jnp.sum(value(*row)).astype(scalar_dtype()) for row in rows if row is not None]
    return jnp.sum(jnp.stack([jnp.zeros((), scalar_dtype()), *terms]))


def largest(
    function: str, value: Callable[..., jax.Array], params: PyTree, *, real: bool = False, **named: PyTree
) -> jax.Array:
    """The largest entry of `value(leaf, *parameters)` over the present leaves, and at least 0."""
    rows = _columns(function, params, real, _leaf_shape, named)
    terms = [jnp.max(value(*row), initial=0).astype(scalar_dtype()) for row in rows if row is not None]
    return jnp.max(jnp.stack([jnp.zeros((), scalar_dtype()), *terms]))


def thresholds(step_size: Any, weight: jax.Array, x: jax.Array) -> jax.Array:
    """s times the weight, in the real dtype in which the leaf x is computed."""
    return (as_scalar(step_size) * weight).astype(x.real.dtype)


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient, and the numerator itself where the denominator is 0, so that no derivative is NaN there."""
    return numerator / jnp.where(denominator == 0, 1, denominator)


def norm(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The Euclidean norm along axes that are kept with length 1, without overflow; its derivative at 0 is 0."""
    magnitude = jnp.abs(x)
    size = jax.lax.stop_gradient(jnp.max(magnitude, axis=axis, keepdims=True, initial=0))
    unit = jnp.where(size == 0, 1, size)
    squares = jnp.sum((magnitude / unit) ** 2, axis=axis, keepdims=True)
    return jnp.where(squares == 0, 0, unit * jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def tree_norm(function: str, params: PyTree) -> jax.Array:
    """The Euclidean norm of a whole tree, a scalar of `scalar_dtype()`."""
    norms = [norm(wide(function, x)).reshape(()) for x in trees.leaves(params) if not trees.is_absent(x)]
    stacked = jnp.stack([jnp.zeros((), scalar_dtype()), *(value.astype(scalar_dtype()) for value in norms)])
    return norm(stacked).reshape(())


def tolerance(params: PyTree) -> jax.Array:
    """The relative violation of a constraint that counts as rounding: sqrt(eps) of the coarsest leaf."""
    present: list[Any] = [jnp.asarray(x) for x in trees.leaves(params) if not trees.is_absent(x)]
    infos: list[Any] = [jnp.finfo(x.dtype) for x in present]
    return as_scalar(max((float(info.eps) ** 0.5 for info in infos), default=0.0))


def indicator(violation: jax.Array, scale: jax.Array, params: PyTree) -> jax.Array:
    """0 where the violation of a constraint is at most `tolerance(params)` times its scale, else infinity."""
    allowed = tolerance(params) * scale.astype(scalar_dtype())
    return jnp.where(violation.astype(scalar_dtype()) <= allowed, 0.0, jnp.inf).astype(scalar_dtype())


def ravel(function: str, params: PyTree, real: bool = False) -> jax.Array:
    """All present leaves as one vector, in flattened order."""
    parts = [wide(function, leaf, real).reshape(-1) for leaf in trees.leaves(params) if not trees.is_absent(leaf)]
    return trees.joined(parts) if parts else jnp.zeros((0,), scalar_dtype())
