"""Group lasso and sparse group lasso: sums of norms over groups of entries."""

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks, trees
from nagjax.proximal.operators import shrink, soft_threshold, weighted_modulus
from nagjax.proximal.parameters import bind, check_weights, leafwise, norm, thresholds, total, widened
from nagjax.proximal.prox import Prox
from nagjax.types import PyTree


@dataclasses.dataclass(frozen=True)
class _Groups:
    """How the entries of a leaf fall into groups: slices along axes, blocks of the last axis, or labels of it."""

    function: str
    axis: tuple[int, ...] | None = None
    size: int | None = None
    # As a tuple, so that it is part of the structure: new labels compile again.
    labels: tuple[int, ...] | None = None

    def norms(self, x: jax.Array) -> jax.Array:
        if self.axis is not None:
            if any(not -x.ndim <= a < x.ndim for a in self.axis):
                remedy = "name axes of every leaf, and use per-leaf operators for the others"
                checks.reject(self.function, "axis", f"an axis of a leaf of shape {x.shape}", self.axis, remedy)
            return norm(x, self.axis)
        if self.size is not None:
            if not x.ndim or x.shape[-1] % self.size:
                remedy = "pad the leaf, or give `groups`"
                checks.reject(
                    self.function, "group_size", f"a divisor of the last axis of {x.shape}", self.size, remedy
                )
            return norm(x.reshape(*x.shape[:-1], -1, self.size), -1)[..., 0]
        labels = self._labels(x)
        squares = x.real**2 + x.imag**2
        count = max(self.labels or (0,)) + 1
        sums = jnp.zeros((*x.shape[:-1], count), squares.dtype).at[..., labels].add(squares)
        return jnp.where(sums == 0, 0, jnp.sqrt(jnp.where(sums == 0, 1, sums)))

    def spread(self, factor: jax.Array, x: jax.Array) -> jax.Array:
        """A number for each group, or one for all, as one for each entry."""
        if self.axis is not None or not factor.ndim:
            return factor
        if self.size is not None:
            return jnp.repeat(factor, self.size, axis=-1)
        return factor[..., self._labels(x)]

    def shape(self, x: jax.Array) -> tuple[int, ...]:
        return jax.eval_shape(self.norms, x).shape

    def _labels(self, x: jax.Array) -> Any:
        labels = np.asarray(self.labels, dtype=np.int32)
        if not x.ndim or x.shape[-1] != labels.size:
            found = f"{labels.size} labels"
            remedy = "use separable_sum for leaves with groups of their own"
            checks.reject(self.function, "groups", f"as long as the last axis of {x.shape}", found, remedy)
        return labels


def _groups(function: str, axis: Any, group_size: Any, groups: Any) -> _Groups:
    given = [name for name, v in (("axis", axis), ("group_size", group_size), ("groups", groups)) if v is not None]
    if len(given) != 1:
        checks.reject(function, "the groups", "given by one of axis, group_size and groups", given, "give one")
    if group_size is not None:
        checks.whole(function, "group_size", group_size, 1, "give the number of entries of a group")
        return _Groups(function, size=int(group_size))
    if axis is not None:
        axes: tuple[Any, ...] = tuple(axis) if np.ndim(axis) else (axis,)
        if not axes or any(isinstance(a, bool) or not isinstance(a, numbers.Integral) for a in axes):
            remedy = "name the axes along which a group runs"
            checks.reject(function, "axis", "an integer or a tuple of integers", axes, remedy, TypeError)
        return _Groups(function, axis=tuple(int(a) for a in axes))
    remedy = "give the number of the group of each entry, from 0"
    if not checks.is_known(groups) or not np.issubdtype(np.asarray(groups).dtype, np.integer):
        checks.reject(function, "groups", "a vector of known integers", groups, remedy, TypeError)
    labels = np.asarray(groups)
    if labels.ndim != 1 or (labels.size and labels.min() < 0):
        checks.reject(function, "groups", "a vector of integers of at least 0", groups, remedy)
    return _Groups(function, labels=tuple(labels.tolist()))


def group_lasso(weight: PyTree = 1.0, *, axis: Any = None, group_size: int | None = None, groups: Any = None) -> Prox:
    """The group lasso h(x) = sum over groups g of weight_g |x_g|, which sets whole groups to 0; on each leaf.

    The groups are given in one of three ways. `axis=-1` (an integer or several): slices along these axes, as the
    rows of a matrix that multiplies features from the left; `group_size=k`: consecutive blocks of k entries of the
    last axis; `groups=labels`: the number of the group of each entry of the last axis, from 0, of any sizes.

    Args:
        weight: At least 0: one number; an array with an entry for each group; or a tree of these that matches the
            parameters or their top. For axes its shape is that of the leaf with 1 in place of the axes, else the
            last axis counts the groups. The usual sqrt(size of the group) is not implied.
        axis: Axes along which a group runs.
        group_size: Entries of a group, a divisor of the last axis.
        groups: Integers of at least 0, as many as the last axis is long. They are part of the structure.

    Returns:
        A `Prox` whose leaves are the weights.

    Raises:
        TypeError: A weight is not a number, or the axes, size or labels are not integers.
        ValueError: A weight is negative or not finite; not exactly one of the three ways is given; when traced, the
            groups do not fit a leaf, or the weights the groups.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal
        >>> h = proximal.group_lasso(1.0, axis=-1)
        >>> z = h.prox(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        >>> bool(jnp.allclose(z, jnp.array([[2.4, 3.2], [0.0, 0.0]])))
        True

    Source:
        M. Yuan and Y. Lin, "Model selection and estimation in regression with grouped variables", 2006.
    """
    check_weights("proximal.group_lasso", "weight", weight)
    layout = _groups("proximal.group_lasso", axis, group_size, groups)
    return Prox(bind(_group_value, weight, layout=layout), bind(_group_prox, weight, layout=layout))


def _group_value(weight: PyTree, params: PyTree, *, layout: _Groups) -> jax.Array:
    def value(x: jax.Array, w: jax.Array) -> jax.Array:
        return w.astype(x.real.dtype) * layout.norms(x)

    return total(layout.function, value, params, shape=layout.shape, weight=weight)


def _shrink_groups(x: jax.Array, threshold: jax.Array, layout: _Groups) -> jax.Array:
    return shrink(x, layout.spread(layout.norms(x), x), layout.spread(threshold, x))


def _group_prox(weight: PyTree, params: PyTree, step_size: Any, *, layout: _Groups) -> PyTree:
    def operator(x: jax.Array, w: jax.Array) -> jax.Array:
        return _shrink_groups(x, thresholds(step_size, w, x), layout)

    return leafwise(layout.function, operator, params, shape=layout.shape, weight=weight)


def sparse_group_lasso(
    l1_weight: PyTree = 1.0,
    group_weight: PyTree = 1.0,
    *,
    axis: Any = None,
    group_size: int | None = None,
    groups: Any = None,
) -> Prox:
    """The sparse group lasso h(x) = sum_i l1_weight_i |x_i| + sum_g group_weight_g |x_g|; on each leaf.

    Args:
        l1_weight: As `weight` of `l1`.
        group_weight: As `weight` of `group_lasso`.
        axis: As in `group_lasso`.
        group_size: As in `group_lasso`.
        groups: As in `group_lasso`.

    Returns:
        A `Prox` whose leaves are the weights. The operator is soft thresholding, then that of the group lasso.

    Raises:
        As `group_lasso`.

    Source:
        N. Simon, J. Friedman, T. Hastie and R. Tibshirani, "A sparse-group lasso", 2013.
    """
    function = "proximal.sparse_group_lasso"
    check_weights(function, "l1_weight", l1_weight)
    check_weights(function, "group_weight", group_weight)
    layout = _groups(function, axis, group_size, groups)
    return Prox(
        bind(_sparse_value, l1_weight, group_weight, layout=layout),
        bind(_sparse_prox, l1_weight, group_weight, layout=layout),
    )


def _sparse_value(l1_weight: PyTree, group_weight: PyTree, params: PyTree, *, layout: _Groups) -> jax.Array:
    entries = total(layout.function, weighted_modulus, params, l1_weight=l1_weight)
    return entries + _group_value(group_weight, params, layout=layout)


def _sparse_prox(l1_weight: PyTree, group_weight: PyTree, params: PyTree, step_size: Any, *, layout: _Groups) -> PyTree:
    def first(x: jax.Array, w: jax.Array) -> jax.Array:
        return soft_threshold(x, thresholds(step_size, w, x))

    # Between the two steps the leaves stay in their dtype of computation.
    wide = leafwise(layout.function, first, widened(layout.function, params), l1_weight=l1_weight)
    return trees.like(params, _group_prox(group_weight, wide, step_size, layout=layout))
