"""Reading and resetting momentum wherever a state is nested: `eval_params`, `velocity`, resets and rescaling."""

import sys
from collections.abc import Callable, Hashable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.scalars import as_scalar
from nagjax.transform import AccelerateState
from nagjax.types import PyTree

_REMEDY = "pass the optimizer state of a chain with nagjax.accelerate, or of an optimizer of nagjax"


def eval_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """The answer x, the point that theorems are about, from the query point y that training holds.

    Works wherever the state is nested (chain, masked, partition, MultiSteps, inject_hyperparams, apply_if_finite,
    ...), and under `jit`. Evaluate and deploy models at the answer; keep training at `params`.

    Args:
        params: The parameters that `opt_state` belongs to. Flax variables are unwrapped.
        opt_state: An optimizer state, or an `nnx.Optimizer` or Flax `TrainState` that holds one.

    Returns:
        A tree of the structure and dtypes of `params`. Leaves without momentum stay as they are.

    Raises:
        ValueError: `opt_state` holds no state with an answer, or does not belong to `params`.
    """
    nodes = _find(opt_state, "answer")
    if not nodes:
        checks.reject("eval_params", "opt_state", "a state that has an answer", type(opt_state).__name__, _REMEDY)
    answer: PyTree = _plain(params)
    # The last transformation of a chain made the last step, so it is undone first.
    for node in reversed(nodes):
        answer = node.answer(answer)
    return trees.rebuild(params, trees.leaves(answer))


def has_answer(opt_state: PyTree) -> bool:
    """Whether `eval_params` has something to read in this state."""
    return bool(_find(opt_state, "answer"))


def velocity(opt_state: PyTree) -> PyTree:
    """The velocity w, decoded from its storage.

    Args:
        opt_state: An optimizer state, or an object that holds one.

    Returns:
        A tree of the structure of the parameters, with leaves of at least 32 bits; a tuple of such trees where the
        state holds several. Complex leaves that are stored in low precision appear as pairs in a trailing axis of 2.

    Raises:
        ValueError: `opt_state` holds no momentum.
    """
    nodes = _find(opt_state, "buffers")
    if not nodes:
        checks.reject("velocity", "opt_state", "a state with momentum", type(opt_state).__name__, _REMEDY)
    found = tuple(node.buffers() for node in nodes)
    return found[0] if len(found) == 1 else found


def reset_momentum(
    opt_state: PyTree, *, mask: PyTree | Callable[[PyTree], PyTree] | None = None, label: Hashable | None = None
) -> PyTree:
    """Start momentum again: zero velocity, readout and age; everything else is kept.

    The next update takes the state of its rule and restart test from the beginning: schedules of momentum start
    again, those of the learning rate go on, and so do counters of rounding noise.

    For fine-tuning a part may be chosen. With `mask` the velocity of the chosen leaves is cleared, which puts their
    answer at their parameters; the age, one for all leaves, stays, so that a bias correction does not start again. For
    a new head an `optax.partition` with a label of its own is cleaner. The slow weights of `nagjax.outer` are
    parameters and not momentum: where parameters are replaced, call `init` again.

    Args:
        opt_state: An optimizer state, or a pytree that holds one.
        mask: The leaves to reset: booleans in the structure of the parameters or a prefix of it, or a function from
            the tree of velocities to them. None resets all.
        label: Resets only the part of an `optax.partition` with this label, or of an `optax.named_chain` so named.

    Returns:
        The same tree with momentum at rest. Parameters do not change, and are now their own answer; the answer of
        `nagjax.outer` is that of its last synchronization.

    Raises:
        ValueError: `opt_state` holds no momentum, or none under `label`; the mask does not fit the parameters, or a
            state's velocity cannot be reset in parts.
    """
    if mask is None:
        return _replace("reset_momentum", opt_state, "reset", label, lambda node: node.reset())

    def clear(node: Any) -> Any:
        if not _has("scaled")(node):
            expected, remedy = "one whose velocity can be reset leaf by leaf", "use reset_momentum without a mask"
            checks.reject("reset_momentum", "opt_state", expected, type(node).__name__, remedy)
        return node.scaled(_factors("reset_momentum", mask, node.buffers(), 0.0))

    return _replace("reset_momentum", opt_state, "buffers", label, clear)


def rescale_momentum(
    opt_state: PyTree,
    factor: ArrayLike,
    *,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    label: Hashable | None = None,
) -> PyTree:
    """Multiply the velocity by a factor, when the learning rate or the batch size jumps.

    A velocity in units of the parameters still moves at the old rate a1 after a jump to a2, for some 1/(1 - b) updates.
    With the factor a2/a1 it goes on at the new rate at once, which is what PyTorch's and Optax's convention does by
    itself. If the batch grows and the rate with it, the factor is the same ratio; if the rate stays it is 1.

    It is for momentum after a learning rate: `nesterov`, `fista`, `accelerate` with a rule of Nesterov's form or the
    heavy ball. The velocity of averaging rules is a distance, and that of rules with steps of their own (agnes, mass,
    nag_gs) is in units of the gradient: leave those alone. In a state of `nagjax.outer` the outer velocity would be
    scaled too: write `state._replace(inner=rescale_momentum(state.inner, factor))`.

    Args:
        opt_state: An optimizer state, or a pytree that holds one.
        factor: Finite and at least 0; the new rate over the old one.
        mask: As in `reset_momentum`.
        label: As in `reset_momentum`.

    Returns:
        The same tree with the velocity scaled, and rounded to the nearest where it is stored in 16 bits. Parameters do
        not change; the answer moves with the velocity.

    Raises:
        TypeError: `factor` is not a number.
        ValueError: `factor` is negative or not finite, or the momentum is in units of the gradient and follows the
            rate by itself; otherwise as in `reset_momentum`.
    """
    name = "rescale_momentum"
    checks.nonnegative(name, "factor", factor, "give the new learning rate divided by the old one")

    def scale(node: Any) -> Any:
        if not isinstance(node, AccelerateState):
            expected = "one with a velocity in units of the parameters"
            checks.reject(name, "opt_state", expected, type(node).__name__, "this one follows the rate by itself")
        return node.scaled(_factors(name, True if mask is None else mask, node.buffers(), factor))

    return _replace(name, opt_state, "buffers", label, scale)


def _factors(
    function: str, mask: PyTree | Callable[[PyTree], PyTree], velocity: PyTree, factor: ArrayLike
) -> list[jax.Array]:
    """`factor` for each leaf of the velocity that the mask chooses, 1 for the others."""
    flags = mask(velocity) if callable(mask) else mask
    chosen = _matched(flags, velocity)
    if chosen is None:
        condition = "a tree of booleans in the structure of the parameters, or a prefix of it"
        checks.reject(function, "mask", condition, flags, "give each leaf True to change its velocity, or False")
    return [jnp.where(flag, as_scalar(factor), 1) for flag in chosen]


def _matched(mask: PyTree, tree: PyTree) -> list[Any] | None:
    """The flag of each leaf of `tree`, by the names on the way to it; None where the mask does not fit."""
    if trees.is_absent(tree):
        return [False]
    if isinstance(mask, bool) or (getattr(mask, "dtype", None) == jnp.bool_ and not jnp.shape(mask)):
        flag: Any = mask
        return [flag] * len(trees.leaves(tree))
    flags, parts = _children(mask), _children(tree)
    if not flags or [name for name, _ in flags] != [name for name, _ in parts]:
        return None
    found: list[Any] = []
    for (_, flag), (_, part) in zip(flags, parts, strict=True):
        below = _matched(flag, part)
        if below is None:
            return None
        found.extend(below)
    return found


def _children(tree: Any) -> list[tuple[str, Any]]:
    """The names and the trees one level down, absent ones included; Flax's containers look like dictionaries."""
    if hasattr(tree, "keys"):
        return [(str(key), tree[key]) for key in sorted(tree.keys(), key=str)]
    if isinstance(tree, list | tuple):
        return [(str(index), part) for index, part in enumerate(cast("list[Any]", tree))]

    def is_child(part: object) -> bool:
        return part is not tree

    parts = cast("Any", jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_child))
    return [(jax.tree_util.keystr(path), part) for path, part in parts if is_child(part)]


def _replace(
    function: str, opt_state: PyTree, method: str, label: Hashable | None, change: Callable[[Any], Any]
) -> PyTree:
    """`opt_state` with `change` applied to every node that has `method`, below `label` where one is given."""
    has_method = _has(method)
    if not _find(opt_state, method):
        checks.reject(function, "opt_state", "a state with momentum", type(opt_state).__name__, _REMEDY)
    found: set[Any] = set()

    def replace(path: tuple[Any, ...], node: Any) -> Any:
        if not has_method(node):
            return node
        names = {part.key for part in path if isinstance(part, jax.tree_util.DictKey)}
        found.update(names)
        return change(node) if label is None or label in names else node

    result = jax.tree_util.tree_map_with_path(replace, opt_state, is_leaf=has_method)
    if label is not None and label not in found:
        names = sorted(found, key=str)
        condition = f"a part with momentum, one of {names}" if names else "None, as no part of this state has a name"
        checks.reject(function, "label", condition, label, "give a label of optax.partition or named_chain")
    return result


def _has(method: str) -> Callable[[Any], bool]:
    # Asked of the type: a tree of parameters may have any key, and some containers show keys as attributes.
    def has(node: object) -> bool:
        return callable(getattr(type(node), method, None))

    return has


def _find(opt_state: PyTree, method: str) -> list[Any]:
    nodes: list[Any] = jax.tree.leaves(_plain(opt_state), is_leaf=_has(method))
    return list(filter(_has(method), nodes))


def _plain(tree: PyTree) -> PyTree:
    """`tree` without Flax's variables; without importing Flax, which only its users have loaded."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return tree
    if isinstance(tree, nnx.Optimizer):
        tree = tree.opt_state
    return nnx.as_pure(tree)
