"""Models as pure functions: the trained parameters, the model's other variables, and the loss of both."""

from collections.abc import Callable
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nagjax import checks
from nagjax.mapped import AxisName, differs_over, tracked, varying
from nagjax.scalars import scalar_dtype
from nagjax.training.gradients import mean
from nagjax.training.precision import cast_floating
from nagjax.types import PyTree

Model = Any
LossFn = Callable[..., Any]
Values = dict[str, jax.Array]
LOSS = "loss"
SKIPPED, OVERFLOWED = "skipped", "overflowed"  # flags of a step whose gradient was not finite
RESERVED = (LOSS, SKIPPED, OVERFLOWED)


class Functional(Protocol):
    """A model whose variables are held outside of it.

    `params` are trained; `rest` is what else the model needs, and what changes from call to call. Both are the values
    at the start. Over an `axis_name` each device draws random numbers of its own, and has `rest` in common with the
    others between steps.
    """

    params: PyTree
    rest: PyTree

    def loss(self, params: PyTree, rest: PyTree, batch: PyTree) -> tuple[jax.Array, tuple[PyTree, Values]]:
        """(loss, (rest after the call, values to report))."""
        ...

    def local(self, rest: PyTree) -> PyTree:
        """`rest` for use on this device."""
        ...

    def shared(self, rest: PyTree) -> PyTree:
        """`rest` in common again."""
        ...

    def merge(self, params: PyTree, rest: PyTree) -> Model:
        """The model as its user knows it."""
        ...


class Module:
    """A Flax nnx module; `rest` is a pair: the parameters that the filter `wrt` does not pass, and other variables."""

    def __init__(
        self,
        function: str,
        model: nnx.Module,
        loss_fn: LossFn,
        wrt: Any,
        dtype: DTypeLike | None,
        axis_name: AxisName | None,
    ) -> None:
        self._function, self._loss_fn, self._dtype, self._axis = function, loss_fn, dtype, axis_name
        model = nnx.clone(model)
        nnx.pop(model, nnx.Intermediate)
        self._filters = (wrt, nnx.Param, ...)
        self._graph, *states = cast("Any", nnx.split(model, *self._filters))
        self.params, *rest = map(nnx.as_pure, states)
        self.rest = tuple(rest)
        if not jax.tree.leaves(self.params):
            checks.reject(function, "wrt", "a filter that some variable of the model passes", wrt, "use nnx.Param")

    def loss(self, params: PyTree, rest: PyTree, batch: PyTree) -> tuple[jax.Array, tuple[PyTree, Values]]:
        """`loss_fn(model, batch)` on a model of these variables, parameters and batch in the dtype to compute in."""
        frozen, others = rest
        params, used, batch = (cast_floating(tree, self._dtype) for tree in (params, frozen, batch))
        own = _own_keys(others, self._axis)
        model = self.merge(params, (used, own))
        loss, values = _scalars(self._function, self._loss_fn(model, batch))
        nnx.pop(model, nnx.Intermediate)  # what layers sow is for this call alone
        new = nnx.as_pure(cast("Any", nnx.split(model, *self._filters))[-1])
        if cast("Any", jax.tree.structure(new)) != jax.tree.structure(others):
            remedy = "make them when the model is built"
            found = f"{jax.tree.structure(new)} instead of {jax.tree.structure(others)}"
            checks.reject(self._function, "loss_fn", "a function that adds no variables to the model", found, remedy)
        return loss, ((frozen, jax.tree.map(self._carried, others, own, new)), values)

    def local(self, rest: PyTree) -> PyTree:
        """Statistics are those of the device's own examples."""
        frozen, others = rest
        return frozen, _map_floating(varying, others, self._axis)

    def shared(self, rest: PyTree) -> PyTree:
        """Statistics are means over devices."""
        frozen, others = rest
        for path, leaf in cast("Any", jax.tree_util.tree_leaves_with_path(others)):
            if not jnp.issubdtype(leaf.dtype, jnp.floating) and tracked(self._axis) & differs_over(leaf):
                found = f"{leaf.dtype} at {jax.tree_util.keystr(path)}, which depends on the batch"
                condition = "one whose variables that depend on the batch are floating-point"
                checks.reject(self._function, "model", condition, found, "report it from loss_fn, or make it a float")
        return frozen, _map_floating(mean, others, self._axis)

    def _carried(self, old: jax.Array, own: jax.Array, new: jax.Array) -> jax.Array:
        """A variable after a call as a loop needs it: a key in common with other devices, a float in its dtype."""
        if self._axis is not None and _is_key(old):
            if new is not own:
                remedy = "let layers draw from nnx.Rngs, which count and keep their keys"
                condition = "one that leaves its keys as they are, over an axis_name"
                checks.reject(self._function, "model", condition, "one that replaces a key", remedy)
            return old
        return new.astype(old.dtype) if jnp.issubdtype(old.dtype, jnp.floating) else new

    def merge(self, params: PyTree, rest: PyTree) -> nnx.Module:
        """A module with these variables."""
        # A copy, because Flax refuses to count random numbers across the levels of scan and grad.
        return nnx.merge(self._graph, params, *rest, copy=True)


class Plain:
    """A tree of arrays and a loss of it; `rest` is the key of the random numbers to come, or empty."""

    def __init__(
        self,
        function: str,
        params: PyTree,
        loss_fn: LossFn,
        key: jax.Array | None,
        dtype: DTypeLike | None,
        axis_name: AxisName | None,
    ) -> None:
        self._function, self._loss_fn, self._dtype, self._axis = function, loss_fn, dtype, axis_name
        self.params: PyTree = params
        self.rest: PyTree = () if key is None else key
        leaves = jax.tree.leaves(params)
        if not leaves or not all(hasattr(leaf, "dtype") for leaf in leaves):
            remedy = "pass the model, or its parameters"
            checks.reject(function, "model", "an nnx module or a tree of arrays", params, remedy, TypeError)

    def loss(self, params: PyTree, rest: PyTree, batch: PyTree) -> tuple[jax.Array, tuple[PyTree, Values]]:
        """`loss_fn(params, batch)`, or `loss_fn(params, batch, key)` with a new key."""
        params, batch = (cast_floating(tree, self._dtype) for tree in (params, batch))
        keys: tuple[jax.Array, ...] = () if isinstance(rest, tuple) else tuple(jax.random.split(rest))
        loss, values = _scalars(self._function, self._loss_fn(params, batch, *_own_keys(keys[1:], self._axis)))
        return loss, (keys[0] if keys else (), values)

    def local(self, rest: PyTree) -> PyTree:
        """The key, or nothing."""
        return rest

    def shared(self, rest: PyTree) -> PyTree:
        """The key, or nothing."""
        return rest

    def merge(self, params: PyTree, rest: PyTree) -> PyTree:
        """The parameters."""
        return params


def _scalars(function: str, result: Any) -> tuple[jax.Array, Values]:
    """Loss and values to report of what a loss function returned, which may be the loss alone."""
    loss, values = cast("Any", result if isinstance(result, tuple) else (result, {}))
    if not isinstance(values, dict):
        remedy = "return the loss, or (loss, {name: scalar})"
        checks.reject(function, "loss_fn", "a function with a dictionary beside the loss", values, remedy, TypeError)
    for name in RESERVED:
        if name in values:
            condition = f"a function whose dictionary has other names than {', '.join(RESERVED)}"
            checks.reject(function, "loss_fn", condition, name, "the loss is reported anyway; rename this value")
    named: dict[str, Any] = {LOSS: loss, **values}
    for name, value in named.items():
        if jnp.shape(value) != () or jnp.iscomplexobj(value):
            condition = f"a function whose {name!r} is a real scalar"
            checks.reject(function, "loss_fn", condition, jnp.shape(value), "take the mean over the batch")
    scalars = {name: jnp.asarray(value).astype(scalar_dtype()) for name, value in named.items()}
    return scalars[LOSS], jax.lax.stop_gradient(scalars)


def _own_keys(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """The tree with keys that are different on each device."""
    if axis_name is None:
        return tree

    def own(leaf: jax.Array) -> jax.Array:
        return jax.random.fold_in(leaf, jax.lax.axis_index(axis_name)) if _is_key(leaf) else leaf

    return jax.tree.map(own, tree)


def _map_floating(
    function: Callable[[jax.Array, AxisName | None], jax.Array], tree: PyTree, axis_name: AxisName | None
) -> PyTree:
    def mapped(leaf: jax.Array) -> jax.Array:
        return function(leaf, axis_name) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(mapped, tree)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
