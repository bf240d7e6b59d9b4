"""Reading and resetting momentum wherever a state is nested: `eval_params`, `velocity`, `reset_momentum`."""

import sys
from collections.abc import Callable
from typing import Any

import jax

from nagjax import checks, trees
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


def reset_momentum(opt_state: PyTree) -> PyTree:
    """Start every momentum again: zero velocity, readout and age; everything else is kept.

    The next update takes the state of its rule and restart test from the beginning. Counters of rounding noise go on.

    Args:
        opt_state: An optimizer state, or a pytree that holds one.

    Returns:
        The same tree with momentum at rest. Parameters do not change, and are now their own answer.

    Raises:
        ValueError: `opt_state` holds no momentum.
    """
    has_reset = _has("reset")
    if not _find(opt_state, "reset"):
        checks.reject("reset_momentum", "opt_state", "a state with momentum", type(opt_state).__name__, _REMEDY)

    def reset(node: Any) -> Any:
        return node.reset() if has_reset(node) else node

    return jax.tree.map(reset, opt_state, is_leaf=has_reset)


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
