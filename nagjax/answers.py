"""Reading and resetting momentum wherever a state is nested: `eval_params`, `velocity`, resets and rescaling."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.scalars import as_scalar
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
    opt_state: PyTree, *, mask: PyTree | Callable[[PyTree], PyTree] | None = None, label: str | None = None
) -> PyTree:
    """Start momentum again: zero velocity, readout and age; everything else is kept.

    The next update takes the state of its rule and restart test from the beginning. Counters of rounding noise go on.
    For fine-tuning a part may be chosen. With `mask` the velocity of the chosen leaves alone is cleared, which puts
    their answer at their parameters; the age is one for all leaves, and stays.

    Args:
        opt_state: An optimizer state, or a pytree that holds one.
        mask: The leaves to reset: booleans in the structure of the parameters or a prefix of it, or a function from
            the tree of velocities to them. None resets all.
        label: Resets only the part of an `optax.partition` with this label, or of an `optax.named_chain` so named.

    Returns:
        The same tree with momentum at rest. Parameters do not change, and are now their own answer.

    Raises:
        ValueError: `opt_state` holds no momentum, or none under `label`; the mask does not fit the parameters, or a
            state's velocity cannot be reset in parts.
    """
    if mask is None:
        return _replace("reset_momentum", opt_state, "reset", label, lambda node: node.reset())
    return _scale("reset_momentum", opt_state, mask, label, 0.0)


def rescale_momentum(
    opt_state: PyTree,
    factor: ArrayLike,
    *,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    label: str | None = None,
) -> PyTree:
    """Multiply the velocity by a factor, when the learning rate or the batch size jumps.

    A velocity in units of the parameters still moves at the old rate a1 after a jump to a2, for some 1/(1 - b) updates.
    With the factor a2/a1 it goes on at the new rate at once, which is what PyTorch's and Optax's convention does by
    itself. If the batch grows and the rate with it, the factor is the same ratio; if the rate stays it is 1.

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
        ValueError: `factor` is negative or not finite; otherwise as in `reset_momentum`.
    """
    checks.nonnegative("rescale_momentum", "factor", factor, "give the new learning rate divided by the old one")
    return _scale("rescale_momentum", opt_state, mask, label, factor)


def _scale(
    function: str,
    opt_state: PyTree,
    mask: PyTree | Callable[[PyTree], PyTree] | None,
    label: str | None,
    factor: ArrayLike,
) -> PyTree:
    def scale(node: Any) -> Any:
        if not _has("scaled")(node):
            remedy = "use reset_momentum without a mask"
            expected = "one whose velocity can be scaled leaf by leaf"
            checks.reject(function, "opt_state", expected, type(node).__name__, remedy)
        velocity = node.buffers()
        chosen = [True] * len(trees.leaves(velocity)) if mask is None else _flags(function, mask, velocity)
        return node.scaled([jnp.where(flag, as_scalar(factor), 1) for flag in chosen])

    return _replace(function, opt_state, "buffers", label, scale)


def _flags(function: str, mask: PyTree | Callable[[PyTree], PyTree], velocity: PyTree) -> list[Any]:
    """The mask, one boolean a leaf of the velocity."""
    flags = mask(velocity) if callable(mask) else mask
    expected = len(trees.leaves(velocity))
    found = jax.tree.leaves(flags)
    if len(found) != expected:
        try:
            found = jax.tree.leaves(jax.tree.broadcast(flags, velocity, is_leaf=trees.is_absent))
        except ValueError:
            found = []
    if len(found) != expected or not all(jnp.result_type(flag) == jnp.bool_ for flag in found):
        condition = f"a tree of booleans for {expected} leaves of parameters, or a prefix of it"
        checks.reject(function, "mask", condition, flags, "give each leaf True to change its velocity, or False")
    return found


def _replace(function: str, opt_state: PyTree, method: str, label: str | None, change: Callable[[Any], Any]) -> PyTree:
    """`opt_state` with `change` applied to every node that has `method`, below `label` where one is given."""
    has_method = _has(method)
    if not _find(opt_state, method):
        checks.reject(function, "opt_state", "a state with momentum", type(opt_state).__name__, _REMEDY)
    found: set[str] = set()

    def replace(path: tuple[Any, ...], node: Any) -> Any:
        if not has_method(node):
            return node
        names = {part.key for part in path if isinstance(part, jax.tree_util.DictKey) and isinstance(part.key, str)}
        found.update(names)
        return change(node) if label is None or label in names else node

    result = jax.tree_util.tree_map_with_path(replace, opt_state, is_leaf=has_method)
    if label is not None and label not in found:
        condition = f"one of {sorted(found)}" if found else "None, as no part of this state has a name"
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
