"""`periodic`: an outer transformation of the displacement that several inner steps make."""

from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from nagjax import checks, trees
from nagjax.answers import eval_params, has_answer
from nagjax.reductions import AxisName
from nagjax.scalars import increment
from nagjax.storage.plain import floating
from nagjax.transform import answer_from, check_floating, check_updates
from nagjax.types import PyTree

Phase = Literal["end", "start"]


class PeriodicState(NamedTuple):
    """State of `periodic`."""

    inner: optax.OptState  # of the inner transformation; with an axis, one for each worker
    outer: optax.OptState  # of the outer transformation, as of the last synchronization
    slow: PyTree  # s, the slow weights: the structure and shapes of the parameters, at least 32 bits or `slow_dtype`
    step: jax.Array  # inner steps since the last synchronization, int32 scalar; with "start" it begins at period - 1

    def answer(self, params: PyTree) -> PyTree:
        """The outer method's answer as of the last synchronization; s where it has none of its own."""
        slow = trees.map_present(_wide, self.slow)
        answer = eval_params(slow, self.outer) if has_answer(self.outer) else slow
        return answer_from(params, answer, lambda y, x: x.astype(y.dtype))


def periodic(
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    period: int | jax.Array,
    axis_name: AxisName | None = None,
    *,
    phase: Phase = "end",
    reset_inner: bool = False,
    slow_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Apply an outer transformation to the displacement that every `period` inner steps make.

    With the slow weights s, and the fast weights y that the inner steps have reached (`params`)::

        D  = mean over axis_name of (s - y)                the pseudo-gradient, in place of a gradient at s
        s' = s + outer.update(D)
        y' = s'

    Between synchronizations the inner updates pass as they are, and the outer work stands in a conditional that is
    not taken: no arithmetic and no communication (under `vmap` with a step of its own for each run both branches are
    computed). Put it last in a chain: D is the displacement only if its updates are applied unchanged.

    D is taken from where `params` started, s rounded to their dtype, so that what s has beyond it is never lost: outer
    steps of less than half a unit in the last place of bfloat16 parameters add up in s.

    Args:
        inner: Any transformation; it makes every step.
        outer: Any transformation; it takes D for a gradient at s, in the dtype of s but at least 32 bits, so its
            learning rate is dimensionless and near 1. Keyword arguments of `update` reach both.
        period: K, inner steps between synchronizations, an integer in [1, 2^31) or a scalar array of one; traced
            values are not checked. Under `optax.inject_hyperparams` it may change between updates.
        axis_name: The mapped axis, or axes, of workers that each make inner steps of their own inside `shard_map`,
            `pmap` or `vmap`. `params` and the inner state then differ between workers; s, the outer state and the
            step are equal on all of them, which needs equal `params` at the start, and equal keyword arguments where
            `outer` reads them. Where `shard_map` takes the `params` of `init` for different ones, s starts at those of
            the first worker.
        phase: "end" synchronizes after inner steps K, 2K, ...; "start" after 1, K + 1, 2K + 1, ..., as code does that
            tests its counter before it increments it.
        reset_inner: Whether the inner state starts again from `inner.init(params)` at every synchronization. That
            includes counts of schedules and of rounding noise. False, as in SNOO and DiLoCo, keeps it. An inner
            `periodic` needs True, for its own slow weights to follow.
        slow_dtype: A real floating dtype for s, for real leaves; by default that of `params`, but at least 32 bits.
            In `jnp.bfloat16` s takes 2 bytes a parameter, but outer steps below half a unit in its last place are
            lost, and wider parameters are rounded to it at every synchronization. Under `optax.inject_hyperparams`
            give its name, "bfloat16": that takes the dtype itself for a schedule.

    Returns:
        A gradient transformation. Its updates have the dtypes of `params`, which every update needs. A leaf without a
        gradient (None) in the step of a synchronization waits for the next one. `nagjax.eval_params` gives the
        outer answer as of the last synchronization, whatever the inner steps have done since;
        `nagjax.reset_momentum` resets both momenta, after which that answer is s, and between synchronizations not
        `params`. The state is for the parameters that it was made with: after replacing any of them, by a new head
        say, call `init` again. Otherwise s stays at the old ones, whatever is reset: it is the answer until the next
        synchronization, which draws the new ones back towards it. Memory: the inner state, the outer state, and s, 4
        bytes a parameter of at most 32 bits.

    Raises:
        TypeError: `inner` or `outer` is no transformation, `period` no integer, `slow_dtype` no dtype, or parameters
            are not floating-point (raised by `init`).
        ValueError: `period` is out of its range; `phase` is unknown; `slow_dtype` is not a real floating dtype;
            `update` gets no `params`, or the inner updates do not have the structure and shapes of the parameters.

    Example:
        >>> import jax.numpy as jnp, nagjax, optax
        >>> from nagjax import outer
        >>> optimizer = outer.periodic(optax.sgd(0.1), nagjax.nesterov(0.7, 0.5), period=5)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(300):
        ...     updates, state = optimizer.update(params, state, params)  # the gradient of |x|^2 / 2 is x
        ...     params = optax.apply_updates(params, updates)
        >>> bool(abs(nagjax.eval_params(params, state)).max() < 1e-6)
        True

    Source:
        M. Zhang, J. Lucas, G. Hinton and J. Ba, "Lookahead optimizer: k steps forward, 1 step back", 2019, Algorithm
        1, with any outer step; over workers A. Douillard et al., "DiLoCo: distributed low-communication training of
        language models", 2023, Algorithm 1.
    """
    for argument, value in ("inner", inner), ("outer", outer):
        checks.transformation("outer.periodic", argument, value, "call the factory first, as in optax.sgd(0.1)")
    fast, slow_step = optax.with_extra_args_support(inner), optax.with_extra_args_support(outer)
    period = _count(period)
    if phase not in ("end", "start"):
        checks.reject("outer.periodic", "phase", "'end' or 'start'", phase, "'end' is the usual one")
    kept = None if slow_dtype is None else floating("outer.periodic", slow_dtype, "slow_dtype")

    def init(params: PyTree) -> PeriodicState:
        check_floating("outer.periodic", params)
        params = trees.as_arrays(params)

        def copy(leaf: Any) -> jax.Array:
            own = trees.compute_dtype(leaf.dtype)
            real = not jnp.issubdtype(own, jnp.complexfloating)
            # A copy also where nothing is cast: one buffer cannot be donated twice.
            return jnp.array(
                leaf, dtype=jax.dtypes.canonicalize_dtype(kept) if kept is not None and real else own, copy=True
            )

        slow = _shared(trees.map_present(copy, params), axis_name)
        return PeriodicState(
            inner=fast.init(params),
            # Some transformations keep what they are given here, so it is a copy once more.
            outer=slow_step.init(trees.map_present(_wide_copy, slow)),
            slow=slow,
            step=jnp.full((), period - 1 if phase == "start" else 0, jnp.int32),
        )

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, PeriodicState]:
        if params is None:
            remedy = "the slow weights need them: call `update(gradients, state, params)`"
            checks.reject("outer.periodic", "params", "passed to update", None, remedy)
        params = trees.as_arrays(params)
        steps, inner_state = fast.update(updates, state.inner, params, **extra)
        steps, step = trees.as_arrays(steps), increment(state.step)
        check_updates("outer.periodic", steps, state.slow)

        def wait() -> tuple[PyTree, ...]:
            return _varying_like(trees.like(params, steps), params), inner_state, state.outer, state.slow

        def synchronize() -> tuple[PyTree, ...]:
            wide = trees.map_present(_wide, state.slow)
            gradient = _mean(trees.map_present(_displacement, steps, params, state.slow), axis_name)
            outer_updates, outer_state = slow_step.update(gradient, state.outer, wide, **extra)
            slow = trees.merged(state.slow, trees.map_present(_applied, outer_updates, wide, state.slow))
            target = trees.map_present(_target, steps, params, slow)
            after = fast.init(trees.merged(params, target)) if reset_inner else inner_state
            made = trees.map_present(_step_to, target, params), after, outer_state, slow
            return _varying_like(made, (steps, inner_state, state.outer, state.slow))

        due = step >= period
        if checks.is_known(period) and period == 1:
            made = synchronize()
        elif checks.is_known(due):  # outside `jit`, where a conditional would be compiled anew in every step
            made = synchronize() if due else wait()
        else:
            made = cast("tuple[PyTree, ...]", jax.lax.cond(due, synchronize, wait))
        return made[0], PeriodicState(*made[1:], step=jnp.where(due, 0, step))

    return optax.GradientTransformationExtraArgs(init, update)


def _count(period: int | jax.Array) -> int | jax.Array:
    """The period, checked: a traced one in the dtype of the step, any other as a Python number."""
    remedy = "give the number of inner steps between synchronizations"
    if isinstance(period, jax.Array) and not period.shape and jnp.issubdtype(period.dtype, jnp.integer):
        if not checks.is_known(period):
            return period.astype(jnp.int32)
        period = int(period)
    checks.whole("outer.periodic", "period", period, 1, remedy)
    if period >= 2**31:
        checks.reject("outer.periodic", "period", "below 2**31", period, remedy)
    return int(period)


def _shared(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """The first worker's `tree` on all of them, where `shard_map` says that they may have different ones."""
    names = cast("tuple[Any, ...]", axis_name if isinstance(axis_name, tuple) else (axis_name,))

    def share(leaf: jax.Array) -> jax.Array:
        axes = tuple(name for name in names if name in jax.typeof(leaf).mat.varying)
        if not axes:
            return leaf
        # Not the mean, which rounds: s would not start at `params`.
        return cast("jax.Array", jax.lax.psum(jnp.where(jax.lax.axis_index(axes) == 0, leaf, 0), axes))

    return trees.map_present(share, tree)


def _mean(tree: PyTree, axis_name: AxisName | None) -> PyTree:
    """The mean over workers: the only communication of updates."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _wide(leaf: Any) -> Any:
    return leaf.astype(trees.compute_dtype(leaf.dtype))


def _wide_copy(leaf: Any) -> jax.Array:
    return jnp.array(leaf, dtype=trees.compute_dtype(leaf.dtype), copy=True)


def _displacement(u: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    """From the fast weights after the step u back to where they started, in the dtype of the outer transformation."""
    start, reached = _wide(s.astype(y.dtype)), _wide(y) + u.astype(trees.compute_dtype(y.dtype))
    return (start - reached).astype(trees.compute_dtype(s.dtype))


def _applied(v: jax.Array, wide: jax.Array, s: jax.Array) -> jax.Array:
    """s after the outer update v."""
    return (wide + v.astype(wide.dtype)).astype(s.dtype)


def _target(u: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    """Where y lands: s in its dtype, at the places where a step u is."""
    del u
    return s.astype(y.dtype)


def _step_to(target: jax.Array, y: jax.Array) -> jax.Array:
    return (_wide(target) - _wide(y)).astype(y.dtype)


def _varying_like(tree: PyTree, reference: PyTree) -> PyTree:
    """`tree` marked as varying over the axes of `shard_map` over which `reference` varies: branches must agree."""

    def mark(leaf: Any, other: Any) -> Any:
        missing = tuple(jax.typeof(other).mat.varying - jax.typeof(leaf).mat.varying)
        return cast("Any", jax.lax.pcast(leaf, missing, to="varying")) if missing else leaf

    return trees.map_present(mark, tree, reference)
