"""The state of `diloco`, and what may be done with its parts: maps over workers, and workers that come and go."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nagjax import checks, trees
from nagjax.answers import eval_params, has_answer
from nagjax.transform import answer_from
from nagjax.types import PyTree


class Waiting(NamedTuple):
    """Means that have been formed and wait for their outer step."""

    mean: PyTree  # D of each leaf: the structure and shapes of the parameters, at least 32 bits
    total: PyTree  # for each fragment the sum of weights, 1 without weights, -1 where no mean waits; scalars


class DilocoState(NamedTuple):
    """State of `diloco`; `inner` and `residual` differ between workers, the rest is equal on all of them."""

    inner: optax.OptState  # of the inner transformation
    outer: optax.OptState  # of the outer transformation, as of the last synchronization; with fragments a tuple of them
    slow: PyTree  # s, the slow weights: the structure and shapes of the parameters, at least 32 bits or `slow_dtype`
    step: Any  # inner steps since the last end of a period, int32 scalar; with "start" it begins at period - 1
    residual: PyTree = ()  # with `wire`, what it has left out: the structure and shapes of the parameters
    waiting: PyTree = ()  # with `delay`, a `Waiting`

    def answer(self, params: PyTree) -> PyTree:
        """The outer method's answer as of the last synchronization; s where it has none of its own."""
        return answer_of(self.slow, self.outer, params)


def answer_of(slow: PyTree, outer: optax.OptState, params: PyTree) -> PyTree:
    """The answer of the outer method with this state at s, in the structure and dtypes of `params`."""
    slow = trees.wide(slow, slow)
    answer = eval_params(slow, outer) if has_answer(outer) else slow
    return answer_from(params, answer, lambda y, x: x.astype(y.dtype))


def per_worker(local: Any, shared: Any) -> Any:
    """A prefix of a `DilocoState`: `local` at what differs between workers, `shared` at what is equal on all of them.

    `per_worker(0, None)` is for `in_axes` and `out_axes` of `jax.vmap` and `jax.pmap`, `per_worker(P("workers"), P())`
    for `in_specs` and `out_specs` of `jax.shard_map`. Where the state is nested, in that of a chain say, so is this.

    To spread a `vmap` over devices, give it `spmd_axis_name` too, and pin `out_shardings` of `jax.jit`, or XLA may
    shard what is equal; the axis of its mesh must be of the type `Auto`, as JAX 0.10 has no collectives of `vmap` over
    explicitly sharded arrays.

    Args:
        local: What stands for the inner state and the residual.
        shared: What stands for the outer state, s, the step and what waits.

    Returns:
        A `DilocoState` of the two.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from nagjax import outer
        >>> optimizer = outer.diloco(optax.sgd(0.1, 0.9), period=5, axis_name="workers")
        >>> def step(params, state, target):
        ...     updates, state = optimizer.update(params - target, state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> state = optimizer.init(jnp.zeros(3))
        >>> state = outer.map_per_worker(lambda leaf: jnp.stack([leaf] * 2), state)  # two workers
        >>> axes = outer.per_worker(0, None)
        >>> workers = jax.vmap(step, in_axes=(0, axes, 0), out_axes=(0, axes), axis_name="workers")
        >>> params = jnp.zeros((2, 3))
        >>> for _ in range(5):
        ...     params, state = workers(params, state, jnp.array([[1.0] * 3, [3.0] * 3]))
        >>> bool((params == state.slow[None]).all())
        True
    """
    return DilocoState(inner=local, outer=shared, slow=shared, step=shared, residual=local, waiting=shared)


def map_per_worker(function: Callable[[Any], Any], state: DilocoState) -> DilocoState:
    """`state` with `function` applied to the leaves that differ between workers.

    With `lambda leaf: jnp.stack([leaf] * workers)` a fresh state becomes that of all workers. Inside `shard_map` local
    leaves have a first axis of 1: `lambda leaf: leaf[0]` takes it away, and `lambda leaf: leaf[None]` gives it back.

    Args:
        function: From a leaf to a leaf.
        state: A `DilocoState`.

    Returns:
        The state with other local leaves.
    """
    inner, residual = jax.tree.map(function, (state.inner, state.residual))
    return state._replace(inner=inner, residual=residual)


def keep_workers(
    state: DilocoState, params: PyTree, indices: Sequence[int | None], optimizer: Any = None
) -> tuple[DilocoState, PyTree]:
    """The state and the parameters of other workers: some of the old ones, in any order, and new ones.

    For a run that goes on with other workers than it had, after a restart without a lost one say. A worker that stays
    keeps its parameters, its inner state and its residual; what a lost worker did since the last synchronization is
    lost with it. An index that comes again makes a copy that owes nothing. A new worker starts from the slow weights.

    Args:
        state: A `DilocoState` whose local leaves are stacked over the old workers, as `vmap` returns it with
            `out_axes=per_worker(0, None)`. Where it is nested, in that of a chain say, take it out.
        params: The parameters, stacked over the old workers.
        indices: Old workers by their number, and None for new ones; at least one.
        optimizer: What `diloco` returned, for the inner state of new workers.

    Returns:
        State and parameters, stacked over the new workers.

    Raises:
        TypeError: An index is no integer.
        ValueError: There is no index, an index is out of range, or a new worker has no `optimizer`.
    """
    name = "outer.keep_workers"
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(params)}
    count = max(sizes, default=0)
    if not indices:
        checks.reject(name, "indices", "at least one worker", list(indices), "give the numbers of those that stay")
    for index in indices:
        if index is None:
            continue
        checks.whole(name, "indices", index, 0, "give None for a new worker")
        if index >= count:
            checks.reject(name, "indices", f"below the number of workers, {count}", index, "give None for a new worker")
    if None in indices and optimizer is None:
        remedy = "pass the transformation that `diloco` returned"
        checks.reject(name, "optimizer", "given where an index is None", optimizer, remedy)

    old = np.array([0 if index is None else index for index in indices])
    new = np.array([index is None for index in indices])
    again = new | np.array([index in indices[:place] for place, index in enumerate(indices)])

    def rows(leaf: Any, fresh: Any, where: Any = new) -> jax.Array:
        chosen = jnp.asarray(leaf)[old]
        flags = where.reshape(-1, *[1] * (chosen.ndim - 1))
        if not where.any():
            return chosen
        new_rows = jnp.asarray(fresh)
        # Keys have no cast.
        return jnp.where(flags, new_rows if new_rows.dtype == chosen.dtype else new_rows.astype(chosen.dtype), chosen)

    def owed(leaf: Any) -> jax.Array:
        return rows(leaf, 0, again)

    start = trees.like(params, state.slow)
    fresh = optimizer.init(start).inner if None in indices else state.inner
    kept = state._replace(inner=jax.tree.map(rows, state.inner, fresh), residual=jax.tree.map(owed, state.residual))
    return kept, trees.map_present(rows, params, start)
