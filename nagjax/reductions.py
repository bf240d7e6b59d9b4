"""Inner products and norms over whole trees.

Every global scalar of nagjax goes through this pair. Under `jit` with sharded arrays the sums are global as they
stand; inside `shard_map` or `pmap` a tree holds one shard only, so the sum over devices needs `axis_name`. Where
`shard_map` tracks which arrays differ between devices, those that do not count once.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp

from nagjax import trees
from nagjax.mapped import AxisName, differs_over, tracked
from nagjax.scalars import scalar_dtype
from nagjax.types import PyTree

_LARGE = 2**16  # elements
_ROWS = 8


def inner_product(a: PyTree, b: PyTree, axis_name: AxisName | None = None) -> jax.Array:
    """The real inner product sum Re<a, b> over all leaves.

    Args:
        a: A tree of real or complex arrays; leaves that are absent (None, `optax.MaskedNode`) count as zero.
        b: A tree of the same structure.
        axis_name: The mapped axis, or axes, over which the leaves are sharded; None where they are whole. Under `pmap`
            and `check_vma=False` all leaves must be.

    Returns:
        A scalar in float32, or float64 under `jax_enable_x64`.
    """
    pairs = zip(trees.leaves(a), trees.leaves(b), strict=True)
    products = [_leaf_product(left, right) for left, right in pairs if not trees.is_absent(left)]
    if axis_name is None:
        return _total(products)
    known = tracked(axis_name)
    if not known:
        return cast("jax.Array", jax.lax.psum(_total(products), axis_name))
    parts: dict[frozenset[Any], list[jax.Array]] = {}
    for product in products:
        parts.setdefault(differs_over(product) & known, []).append(product)
    return _total([jax.lax.psum(_total(part), tuple(axes)) if axes else _total(part) for axes, part in parts.items()])


def _total(products: list[jax.Array]) -> jax.Array:
    # One sum of a stack: a chain of additions takes longer to compile.
    return jnp.sum(jnp.stack([jnp.zeros((), scalar_dtype()), *products]))


def inner_products(*pairs: tuple[PyTree, PyTree]) -> list[jax.Array]:
    """`inner_product` of several pairs of trees with equal shapes, small leaves in one pass.

    A solver takes many of them in every step, and where the leaves are small each kernel costs more than its sums.
    """
    columns = [list(zip(trees.leaves(a), trees.leaves(b), strict=True)) for a, b in pairs]
    totals = [jnp.zeros((), scalar_dtype()) for _ in pairs]
    small: list[list[jax.Array]] = [[] for _ in pairs]
    for row, column in enumerate(columns):
        for left, right in column:
            if trees.is_absent(left):
                continue
            if left.size < _LARGE and not _explicitly_sharded(left):
                small[row].append(_products(left, right).astype(scalar_dtype()).reshape(-1))
            else:
                totals[row] += _leaf_product(left, right)
    if not small[0]:
        return totals
    vectors = [jnp.concatenate(parts) if len(parts) > 1 else parts[0] for parts in small]
    whole = vectors[0].size // _ROWS * _ROWS
    # Sums of a few long rows are vectorized; what is left is one pass over all pairs, in which their sums do not wait
    # for each other.
    folded = [jnp.concatenate([_fold(v[:whole].reshape(_ROWS, -1)), v[whole:]]) for v in vectors]
    zero = jnp.zeros((), scalar_dtype())
    sums = cast("list[jax.Array]", jax.lax.reduce(folded, [zero] * len(folded), _add_all, (0,)))
    return [jnp.add(total, part) for total, part in zip(totals, sums, strict=True)]


def _explicitly_sharded(leaf: Any) -> bool:
    """Whether the type of an array says how it is sharded; such arrays are not reshaped at will."""
    return any(axes is not None for axes in jax.typeof(leaf).sharding.spec)


def _fold(rows: jax.Array) -> jax.Array:
    return functools.reduce(jnp.add, list(rows))


def _add_all(totals: list[jax.Array], parts: list[jax.Array]) -> list[jax.Array]:
    return [jnp.add(total, part) for total, part in zip(totals, parts, strict=True)]


def squared_norm(a: PyTree, axis_name: AxisName | None = None) -> jax.Array:
    """The squared Euclidean norm over all leaves; arguments and result as in `inner_product`."""
    return inner_product(a, a, axis_name)


def _leaf_product(left: Any, right: Any) -> jax.Array:
    return _sum(_products(left, right)).astype(scalar_dtype())


def _products(left: Any, right: Any) -> jax.Array:
    # Multiply and sum, not vdot: the producers of both factors are then computed inside the sum.
    left, right = (jnp.asarray(x).astype(trees.compute_dtype(x.dtype)) for x in (left, right))
    return left.real * right.real + left.imag * right.imag if jnp.iscomplexobj(left) else left * right


def _sum(products: jax.Array) -> jax.Array:
    if products.size < _LARGE or not _on_one_device():
        return jnp.sum(products)
    return cast("jax.Array", jax.lax.platform_dependent(products, cpu=_sum_in_rows, default=jnp.sum))


def _on_one_device() -> bool:
    """Whether what is traced surely lies on one device: a reduction that XLA does not know cannot be partitioned."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or (not mesh.empty and mesh.manual_axes == mesh.axis_names)


def _sum_in_rows(products: jax.Array) -> jax.Array:
    """The sum of a large array, for XLA's CPU backend.

    That backend hands plain sums to a library kernel and first writes out the operands, which costs up to nine times
    a whole plain step. It keeps a reduction that it does not recognize, computes the operands inside it, and
    vectorizes it where the rows are long.
    """

    def add(total: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.select(x == x, total + x, x)

    flat = products.reshape(-1)
    whole = flat.size // _ROWS * _ROWS
    rows = flat[:whole].reshape(_ROWS, -1)
    total = jnp.sum(jax.lax.reduce(rows, jnp.zeros((), flat.dtype), add, (0,)))
    return total if whole == flat.size else total + jnp.sum(flat[whole:])


def power_of_largest(tree: PyTree) -> jax.Array:
    """A power of 2 near the largest entry of a tree, which scales without rounding; 1 where there is none."""
    sizes = [jnp.max(jnp.abs(leaf)).astype(scalar_dtype()) for leaf in jax.tree.leaves(tree) if leaf.size]
    largest = jnp.max(jnp.stack(sizes)) if sizes else jnp.zeros((), scalar_dtype())
    known = (largest > 0) & jnp.isfinite(largest)
    return jnp.where(known, jnp.exp2(jnp.floor(jnp.log2(jnp.where(known, largest, 1)))), 1)
