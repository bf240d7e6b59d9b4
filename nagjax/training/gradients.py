"""The mean loss over devices, whose gradient is the mean gradient however the devices are mapped."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from nagjax import checks, trees
from nagjax.mapped import AxisName, differs_over, tracked, varying
from nagjax.types import PyTree

# The transpose of a mean over devices is right where `shard_map` tracks what differs between devices, and nowhere else.
# There the two functions at the end, each the backward pass of the other, take its place.


def mean_loss(
    loss_fn: Callable[..., Any], axis_name: AxisName | None = None, *, has_aux: bool = False
) -> Callable[..., Any]:
    """The mean of a loss over devices, whose gradient in its first argument is the mean of their gradients.

    It is the same under `jax.pmap`, `jax.shard_map` with and without `check_vma`, and `jax.vmap`, where `pmean` of a
    gradient and the gradient of a `pmean` are each wrong in some, by the factor of the number of devices or by not
    being a mean at all.

    Args:
        loss_fn: `loss_fn(params, *args) -> loss`, a scalar: the mean over the examples of this device, without
            communication; or `(loss, aux)`. Examples are to be spread evenly.
        axis_name: The mapped axis, or axes, with other examples on each device and equal parameters. None under
            `jit`, where arrays are global and `loss_fn` is returned as it is, but for the check.
        has_aux: Whether `loss_fn` returns `aux` too: a tree of floating-point arrays to average.

    Returns:
        A function of the arguments of `loss_fn`, for reverse-mode derivatives of any order; for forward mode too where
        `shard_map` tracks what differs.

    Raises:
        ValueError: When it is traced: `axis_name` is not a mapped axis; or, where `shard_map` tracks it, the
            parameters differ over the axis, the loss does not, or the loss differs over an axis that is not named,
            over which JAX would sum the gradients.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nagjax.training import sharding
        >>> loss = sharding.mean_loss(lambda w, x: jnp.mean((x - w) ** 2), "data")
        >>> batch = jnp.arange(6, dtype=jnp.float32).reshape(3, 2)
        >>> grads = jax.vmap(jax.grad(loss), (None, 0), axis_name="data")(jnp.float32(1), batch)
        >>> grads.tolist() == [-3.0, -3.0, -3.0]
        True
    """

    def mean_fn(params: PyTree, *args: Any) -> Any:
        name = "sharding.mean_loss"
        check_axis(name, axis_name)
        known = bool(tracked(axis_name))
        local = varying(params, axis_name) if axis_name is None or known else _local(axis_name, params)
        result = loss_fn(local, *args)
        loss: jax.Array = result[0] if has_aux else result
        check_loss(name, params, loss, axis_name)
        if axis_name is None:
            return result
        _check_examples(name, loss_fn, axis_name, params, *args)
        mean_of_losses = _pmean(loss, axis_name) if known else _mean_of_local(axis_name, loss)
        return (mean_of_losses, mean(varying(result[1], axis_name), axis_name)) if has_aux else mean_of_losses

    return mean_fn


def value_and_grad(
    loss_fn: Callable[..., Any], axis_name: AxisName | None = None, *, has_aux: bool = False
) -> Callable[..., Any]:
    """`jax.value_and_grad` of `mean_loss`: the mean loss over devices and its gradient; arguments as there."""
    return jax.value_and_grad(mean_loss(loss_fn, axis_name, has_aux=has_aux), has_aux=has_aux)


def mean(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """The mean of a tree over devices that hold different values of it, such as gradients of their own examples.

    Args:
        tree: Floating-point arrays.
        axis_name: The mapped axis, or axes; None returns the tree as it is.

    Returns:
        The mean, equal on all devices.

    Raises:
        ValueError: When it is traced: `axis_name` is not a mapped axis; or, where `shard_map` tracks it, an array is
            the same on all devices. A gradient is where JAX has summed it already, and its mean would be too large by
            the number of devices.
    """
    if axis_name is None:
        return tree
    check_axis("sharding.mean", axis_name)
    known = tracked(axis_name)
    for path, leaf in cast("Any", jax.tree_util.tree_leaves_with_path(tree)):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            found = f"{leaf.dtype} at {jax.tree_util.keystr(path) or 'the array'}"
            checks.reject("sharding.mean", "tree", "floating-point or complex", found, "cast it, or leave it out")
        if same := sorted(known - differs_over(leaf)):
            remedy = "take gradients with sharding.value_and_grad; JAX has summed these over the axis already"
            found = f"the same on all of {', '.join(map(repr, same))} at {jax.tree_util.keystr(path) or 'the array'}"
            checks.reject("sharding.mean", "tree", "different on different devices", found, remedy)
    return _pmean(tree, axis_name)


def check_axis(function: str, axis_name: AxisName | None) -> None:
    """Raise ValueError if this is not the name of a mapped axis."""
    if axis_name is None:
        return
    try:
        lax.axis_index(axis_name)
    except NameError:
        remedy = "call it inside shard_map, pmap or vmap over that axis, or leave it out under jit"
        checks.reject(function, "axis_name", "a mapped axis, or None", axis_name, remedy)


def _pmean(tree: PyTree, axis_name: AxisName) -> PyTree:
    """The mean, in at least 32 bits: the sum of float16 numbers may be too large for one."""

    def average(leaf: jax.Array) -> jax.Array:
        wide: jax.Array = lax.pmean(leaf.astype(trees.compute_dtype(leaf.dtype)), axis_name)
        return wide.astype(leaf.dtype)

    return jax.tree.map(average, tree)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local(axis_name: AxisName, params: PyTree) -> PyTree:
    """The parameters for use on this device; the gradient in them is averaged."""
    del axis_name
    return params


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mean_of_local(axis_name: AxisName, tree: PyTree) -> PyTree:
    """The mean of what devices have, of which each differentiates its own."""
    return _pmean(tree, axis_name)


def _local_forward(axis_name: AxisName, params: PyTree) -> tuple[PyTree, None]:
    return _local(axis_name, params), None


def _local_backward(axis_name: AxisName, _: None, gradient: PyTree) -> tuple[PyTree]:
    return (_mean_of_local(axis_name, gradient),)


def _mean_forward(axis_name: AxisName, tree: PyTree) -> tuple[PyTree, None]:
    return _mean_of_local(axis_name, tree), None


def _mean_backward(axis_name: AxisName, _: None, gradient: PyTree) -> tuple[PyTree]:
    return (_local(axis_name, gradient),)


_local.defvjp(_local_forward, _local_backward)
_mean_of_local.defvjp(_mean_forward, _mean_backward)


def check_loss(function: str, params: PyTree, loss: jax.Array, axis_name: AxisName | None) -> None:
    """Raise ValueError where types say that the gradient of this loss is not averaged over the right axes."""
    over = tracked(axis_name)
    own = _over_any(params)
    if both := sorted(over & own):
        remedy = "average over the axis of the examples, or leave out the mean where each device has its own model"
        checks.reject(function, "params", "equal on all devices", f"different ones over {both}", remedy)
    if same := sorted(over - differs_over(loss)):
        remedy = "leave the mean over the axis to this function"
        checks.reject(function, "loss_fn", "the loss of one device's examples", f"one value on all of {same}", remedy)
    if summed := sorted(differs_over(loss) - own - over):
        remedy = f"name the axes that hold different examples, {summed} too; JAX would sum the gradients over them"
        checks.reject(function, "axis_name", "all axes over which the loss differs", axis_name, remedy)


def _check_examples(
    function: str, loss_fn: Callable[..., Any], axis_name: AxisName, params: PyTree, *args: Any
) -> None:
    """Raise ValueError where `shard_map` knows that all devices have the same examples."""
    over = tracked(axis_name)
    if not over - _over_any(args):
        return

    def loss() -> jax.Array:  # at parameters that are not marked as different; its examples may come in a closure
        return jax.tree.leaves(loss_fn(params, *args))[0]

    (traced,) = jax.make_jaxpr(loss)().out_avals
    _refuse_same(function, "args", over - frozenset(traced.mat.varying))


def check_batch(function: str, batch: PyTree, axis_name: AxisName | None) -> None:
    """Raise ValueError where types say that all devices have the same batch."""
    _refuse_same(function, "batch", tracked(axis_name) - _over_any(batch))


def _refuse_same(function: str, argument: str, axes: frozenset[Any]) -> None:
    """Raise ValueError if an argument is the same over some axes."""
    if axes:
        remedy = "split the batch over the axis (in_specs)"
        found = f"the same on all of {sorted(axes)}"
        checks.reject(function, argument, "different examples on each device", found, remedy)


def _over_any(tree: PyTree) -> frozenset[Any]:
    """The axes over which an array of the tree is known to differ."""
    return frozenset[Any]().union(*(differs_over(leaf) for leaf in jax.tree.leaves(tree)))
