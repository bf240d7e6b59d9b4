"""States of momentum that move between Optax, PyTorch, Keras and the textbook."""

from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.conventions.sgd import PytorchSgdState
from nagjax.scalars import as_scalar, scalar_dtype
from nagjax.transform import AccelerateState
from nagjax.types import PyTree

Convention = Literal["optax", "pytorch", "keras", "textbook"]
_NODES: dict[str, Any] = {
    "optax": optax.TraceState,
    "pytorch": PytorchSgdState,
    "keras": AccelerateState,
    "textbook": AccelerateState,
}
_OPTIMIZERS = {
    "optax": "optax.sgd",
    "pytorch": "conventions.pytorch_sgd",
    "keras": "conventions.keras_sgd",
    "textbook": "nagjax.nesterov",
}


class _Momentum(NamedTuple):
    """What all conventions hold, in units of the parameters."""

    velocity: PyTree  # v
    readout: ArrayLike  # of v
    age: jax.Array
    updates: jax.Array | None  # the count of the schedule of the rate
    carry: Any = None  # of the rule, where the source has one


def convert(
    state: PyTree,
    *,
    source: Convention,
    target: Convention,
    learning_rate: ArrayLike,
    momentum: ArrayLike = 0.0,
    like: PyTree | None = None,
) -> PyTree:
    """The state of one framework's momentum as the state of another's.

    The buffer m of Optax and PyTorch sums gradients, the velocity v of Keras and the textbook sums steps:
    v = -learning_rate m. Parameters are the same points in all of them, and so is the answer. If the next update has
    the same learning rate, it is the one that the source would make; after a change it is the target's own, because a
    new rate rescales m but not v.

    Args:
        state: State of `optax.sgd` with momentum ("optax"), `conventions.pytorch_sgd` ("pytorch"),
            `conventions.keras_sgd` ("keras") or `nesterov` ("textbook"), or a tree that holds one such momentum.
        source: The convention of `state`.
        target: The convention of the result.
        learning_rate: The rate of the last update, positive.
        momentum: With the source "optax" the momentum that Nesterov's method used, in [0, 1), since Optax's state does
            not hold it; without it the answer is `params` until the next update.
        like: A fresh state of the optimizer that goes on, where that is more than the target's with a constant rate or
            has parameters of 16 bits: it is returned with the velocity, in its dtype, and with the counts of
            `optax.scale_by_schedule` and of `momentum.schedule`. Counts of `optax.inject_hyperparams` stay as they are,
            and Optax's state counts nothing where its rate is constant.

    Returns:
        The state of `optax.sgd`, `pytorch_sgd`, `keras_sgd` or `nesterov` with a constant momentum, or the one
        described by `like`.

    Raises:
        TypeError: `learning_rate` is not a number.
        ValueError: A convention is unknown; a number is out of its range; `state` or `like` does not hold exactly one
            momentum of its convention; `like` has another structure or shapes, a velocity in 8 bits or rounded at
            random, or a rule with a memory that the source does not have.

    Example:
        >>> import jax.numpy as jnp, nagjax, optax
        >>> old, new = optax.sgd(0.1, 0.9, nesterov=True), nagjax.nesterov(0.1, 0.9)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = old.init(params)
        >>> for _ in range(3):
        ...     updates, state = old.update(params, state)
        ...     params = optax.apply_updates(params, updates)
        >>> moved = nagjax.conventions.convert(state, source="optax", target="textbook", learning_rate=0.1)
        >>> bool(jnp.allclose(new.update(params, moved, params)[0], old.update(params, state)[0]))
        True
    """
    for argument, name in ("source", source), ("target", target):
        if name not in tuple(_NODES):
            remedy = "name the framework whose optimizer has this state"
            checks.reject("convert", argument, f"one of {', '.join(map(repr, _NODES))}", name, remedy)
    checks.fraction("convert", "momentum", momentum, "give the momentum of optax.sgd, or leave it out")
    checks.positive("convert", "learning_rate", learning_rate, "give the rate of the last update")
    rate = as_scalar(learning_rate)
    found = _read(source, _node(source, "state", state), state, rate, as_scalar(momentum))
    if like is None:
        # PyTorch's state counts updates whether its rate is a schedule or not.
        scheduled = found.updates is not None and source != "pytorch"
        return _fresh(target, found, rate, scheduled=scheduled)
    node = _node(target, "like", like)
    written = _written(target, found, rate, node)

    def replace(part: Any) -> Any:
        if part is node:
            return written
        if isinstance(part, optax.ScaleByScheduleState) and found.updates is not None:
            return optax.ScaleByScheduleState(found.updates)
        return part

    return jax.tree.map(
        replace, like, is_leaf=lambda part: part is node or isinstance(part, optax.ScaleByScheduleState)
    )


def _node(convention: str, argument: str, state: PyTree) -> Any:
    kind = _NODES[convention]
    parts: list[Any] = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kind))
    nodes = [part for part in parts if isinstance(part, kind)]
    remedy = f"pass the state of {_OPTIMIZERS[convention]}, or name another convention"
    if len(nodes) != 1:
        expected = f"a state with one {kind.__name__} for the convention {convention!r}"
        checks.reject("convert", argument, expected, len(nodes), remedy)
    return nodes[0]


def _read(convention: str, node: Any, state: PyTree, rate: jax.Array, momentum: jax.Array) -> _Momentum:
    if convention == "pytorch":
        velocity = trees.combine((-rate, node.momentum_buffer))
        return _Momentum(velocity, -node.readout / rate, node.age, node.step)
    counts: list[Any] = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState))
    count: Any = next((part.count for part in counts if isinstance(part, optax.ScaleByScheduleState)), None)
    if convention == "optax":
        # Optax does not count: an age of 1 says that there is a velocity.
        age = jnp.ones((), jnp.int32) if count is None else count
        return _Momentum(trees.combine((-rate, trees.wide(node.trace, node.trace))), momentum, age, count)
    return _Momentum(node.buffers(), node.readout, node.age, count, node.momentum)


def _written(convention: str, found: _Momentum, rate: jax.Array, like: Any) -> Any:
    """`like`, a fresh node of the target, with the momentum."""
    if convention in ("keras", "textbook"):
        velocity = _fitted(found.velocity, like.velocity)
        carry = _carry(found, like.momentum)
        return like._replace(velocity=velocity, readout=as_scalar(found.readout), age=found.age, momentum=carry)
    buffer = trees.combine((-1 / rate, found.velocity))
    if convention == "optax":
        return optax.TraceState(_fitted(buffer, like.trace))
    step = found.age if found.updates is None else found.updates
    readout = -rate * as_scalar(found.readout)
    return PytorchSgdState(_fitted(buffer, like.momentum_buffer), readout, found.age, step)


def _fitted(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` in the structure and dtypes of `like`, after checking that they fit."""
    if callable(getattr(cast("Any", type(like)), "decode", None)):
        expected, found = "a state whose velocity is stored in full, or cast", type(like).__name__
        checks.reject("convert", "like", expected, found, "convert with storage.full(), the default")
    new, old = trees.leaves(tree), trees.leaves(like)
    shapes = [[None if trees.is_absent(leaf) else jnp.shape(leaf) for leaf in leaves] for leaves in (new, old)]
    if shapes[0] != shapes[1]:
        remedy = "init the optimizer with the same parameters"
        checks.reject("convert", "like", f"a state for leaves of the shapes {shapes[0]}", shapes[1], remedy)
    rows = zip(new, old, strict=True)
    return trees.rebuild(like, [y if trees.is_absent(x) else x.astype(y.dtype) for x, y in rows])


def _carry(found: _Momentum, fresh: Any) -> Any:
    """The memory of the rule that goes on."""
    if not jax.tree.leaves(fresh):
        return fresh
    if jax.tree.structure(found.carry) == jax.tree.structure(fresh):
        return found.carry
    if not isinstance(fresh, jax.Array):
        expected, remedy = "a state of a constant or scheduled momentum", "begin with a fresh state of this rule"
        checks.reject("convert", "like", expected, type(fresh).__name__, remedy)
    return found.age  # of momentum.schedule


def _fresh(convention: str, found: _Momentum, rate: jax.Array, *, scheduled: bool) -> PyTree:
    zero = jnp.zeros((), scalar_dtype())
    if convention == "pytorch":
        return _written(convention, found, rate, PytorchSgdState(found.velocity, zero, found.age, found.age))
    step = optax.ScaleByScheduleState(cast("jax.Array", found.updates)) if scheduled else optax.EmptyState()
    if convention == "optax":
        return _written(convention, found, rate, optax.TraceState(found.velocity)), step
    node = _written(convention, found, rate, AccelerateState(found.velocity, zero, found.age, (), ()))
    return (step, node) if convention == "keras" else (optax.EmptyState(), step, node)
