"""The core of all outer methods: inner steps, the mean of what they move, and outer steps of the slow weights."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks, trees
from nagjax.mapped import AxisName, varying, varying_like
from nagjax.outer import exchange
from nagjax.outer.fragments import Fragments
from nagjax.outer.state import DilocoState, Waiting
from nagjax.outer.wire import Wire
from nagjax.scalars import as_scalar, increment
from nagjax.storage.plain import floating
from nagjax.transform import check_floating, check_updates
from nagjax.types import PyTree

Phase = Literal["end", "start"]


class Core(NamedTuple):
    """`init(params)`, and `update(updates, state, params, weight, extra)`."""

    init: Callable[[PyTree], DilocoState]
    update: Callable[..., tuple[PyTree, DilocoState]]


class _Part(NamedTuple):
    """One fragment within an update."""

    u: PyTree  # the inner step
    y: PyTree  # `params`, where it was made
    s: PyTree
    residual: PyTree
    mean: PyTree  # what waits
    before: optax.OptState  # of the outer transformation
    total: PyTree  # the sum of weights of what waits


def core(
    function: str,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    period: int | jax.Array,
    axis_name: AxisName | None,
    *,
    phase: Phase,
    reset_inner: bool,
    slow_dtype: DTypeLike | None,
    fragments: Fragments,
    delay: int = 0,
    mixing: ArrayLike = 0.0,
    wire: Wire | None = None,
) -> Core:
    """The core of `periodic` and of `diloco`, whose arguments these are; `function` is their name in messages."""
    for argument, value in ("inner", inner), ("outer", outer):
        checks.transformation(function, argument, value, "call the factory first, as in optax.sgd(0.1)")
    fast, slow_step = optax.with_extra_args_support(inner), optax.with_extra_args_support(outer)
    if phase not in ("end", "start"):
        checks.reject(function, "phase", "'end' or 'start'", phase, "'end' is the usual one")
    kept = None if slow_dtype is None else floating(function, slow_dtype, "slow_dtype")
    groups = range(fragments.size)
    # The step of a period, from 1, at which each fragment is taken, and at which it lands; the last one is the period.
    taken = [(p + 1) * period // len(groups) for p in groups] if len(groups) > 1 else [period]
    landed = [(step + delay - 1) % period + 1 for step in taken] if delay else taken

    def init(params: PyTree) -> DilocoState:
        check_floating(function, params)
        params = trees.as_arrays(params)

        def copy(leaf: Any) -> jax.Array:
            own = trees.compute_dtype(leaf.dtype)
            real = not jnp.issubdtype(own, jnp.complexfloating)
            # A copy also where nothing is cast: one buffer cannot be donated twice.
            return jnp.array(
                leaf, dtype=jax.dtypes.canonicalize_dtype(kept) if kept is not None and real else own, copy=True
            )

        slow = exchange.shared(trees.map_present(copy, params), axis_name)
        # Some transformations keep what they are given here, so it is a copy once more.
        outers = [slow_step.init(trees.map_present(_wide_copy, part)) for part in fragments.of(slow).parts(slow)]
        return DilocoState(
            inner=fast.init(params),
            outer=tuple(outers) if len(groups) > 1 else outers[0],
            slow=slow,
            step=jnp.full((), period - 1 if phase == "start" else 0, jnp.int32),
            residual=() if wire is None else varying_like(trees.map_present(_zeros, slow), params),
            waiting=Waiting(trees.map_present(_zeros, slow), tuple(as_scalar(-1) for _ in groups)) if delay else (),
        )

    def update(
        updates: PyTree, state: DilocoState, params: PyTree | None, weight: ArrayLike | None, extra: dict[str, Any]
    ) -> tuple[PyTree, DilocoState]:
        if params is None:
            remedy = "the slow weights need them: call `update(gradients, state, params)`"
            checks.reject(function, "params", "passed to update", None, remedy)
        params = trees.as_arrays(params)
        steps, inner_state = fast.update(updates, state.inner, params, **extra)
        steps, step = trees.as_arrays(steps), _following(state.step)
        check_updates(function, steps, state.slow)

        def form(part: _Part, u: PyTree) -> tuple[PyTree, PyTree, jax.Array | None]:
            """The mean of displacements, the next residual, and the sum of weights."""
            displacement = trees.map_present(_displacement, u, part.y, part.s)
            return exchange.mean(displacement, part.residual, weight, axis_name, wire)

        def land(part: _Part, mean: PyTree, total: jax.Array | None) -> tuple[PyTree, optax.OptState, PyTree]:
            """The outer step: where the parameters go, the outer state, and s."""
            wide = trees.map_present(_wide, part.s)
            outer_updates, after = slow_step.update(mean, part.before, wide, **extra)
            s = trees.merged(part.s, trees.map_present(_applied, outer_updates, wide, part.s))
            if total is not None:  # all weights may be 0
                after, s = trees.select(total > 0, (after, s), (part.before, part.s))
            return trees.map_present(_target(mixing, weight), part.u, part.y, s), after, s

        def synchronized(part: _Part, due: Any) -> tuple[_Part, optax.OptState]:
            """Both, in one conditional; the inner state comes along where it starts again."""
            own = inner_state if reset_inner else ()

            def wait() -> tuple[PyTree, ...]:
                moves = varying_like(trees.like(part.y, part.u), part.y)
                return moves, part.before, part.s, part.residual, own

            def synchronize() -> tuple[PyTree, ...]:
                mean, residual, total = form(part, part.u)
                target, after, s = land(part, mean, total)
                again = fast.init(trees.merged(params, target)) if reset_inner else ()
                made = trees.map_present(_step_to, target, part.y), after, s, residual, again
                return varying_like(made, (part.u, part.before, part.s, part.residual, own))

            moves, before, s, residual, own = _conditional(due, synchronize, wait)
            return part._replace(u=moves, before=before, s=s, residual=residual), own

        def taken_apart(part: _Part, take: Any, arrive: Any) -> _Part:
            """One conditional for the mean, which communicates, and one for the outer step, which does not."""

            def start() -> tuple[PyTree, ...]:
                # A leaf without a gradient stays where it is, for `mean` has a place for every leaf.
                mean, residual, total = form(part, trees.merged(trees.zeros(part.y), part.u))
                made = mean, residual, as_scalar(1) if total is None else total
                return varying_like(made, (part.mean, part.residual, part.total))

            mean, residual, total = _conditional(take, start, lambda: (part.mean, part.residual, part.total))

            def finish() -> tuple[PyTree, ...]:
                target, after, s = land(part, trees.map_present(_second, part.u, mean), total)
                made = trees.map_present(_step_to, target, part.y), after, s
                return varying_like(made, (part.u, part.before, part.s))

            def go_on() -> tuple[PyTree, ...]:
                return varying_like(trees.like(part.y, part.u), part.y), part.before, part.s

            moves, before, s = _conditional(arrive & (part.total >= 0), finish, go_on)
            return part._replace(u=moves, before=before, s=s, residual=residual, mean=mean, total=total)

        grouping = fragments.of(state.slow)
        residual = varying(state.residual, axis_name)
        waiting = state.waiting if delay else Waiting((), ((),) * len(groups))
        columns = [grouping.parts(tree) for tree in (steps, params, state.slow, residual, waiting.mean)]
        outers = state.outer if len(groups) > 1 else (state.outer,)
        parts: list[_Part] = []
        for p in groups:
            part = _Part(*(column[p] for column in columns), before=cast("Any", outers)[p], total=waiting.total[p])
            due = _due(step, taken[p], period)
            if delay:
                part = taken_apart(part, due, _due(step, landed[p], period))
            else:
                part, restarted = synchronized(part, due)
                inner_state = restarted if reset_inner else inner_state
            parts.append(part)
        u, _, s, residual, mean, before, total = (list(column) for column in zip(*parts, strict=True))
        return grouping.whole(u), DilocoState(
            inner=inner_state,
            outer=tuple(before) if len(groups) > 1 else before[0],
            slow=grouping.whole(s),
            step=_wrapped(step, period),
            residual=grouping.whole(residual),
            waiting=Waiting(grouping.whole(mean), tuple(total)) if delay else (),
        )

    return Core(init, update)


def count_of(function: str, period: int | jax.Array) -> int | jax.Array:
    """The period, checked: a traced one in the dtype of the step, any other as a Python number."""
    remedy = "give the number of inner steps between synchronizations"
    if isinstance(period, jax.Array) and not period.shape and jnp.issubdtype(period.dtype, jnp.integer):
        if not checks.is_known(period):
            return period.astype(jnp.int32)
        period = int(period)
    checks.whole(function, "period", period, 1, remedy)
    if period >= 2**31:
        checks.reject(function, "period", "below 2**31", period, remedy)
    return int(period)


def _is_number(step: object) -> bool:
    return isinstance(step, int | np.generic)


def _following(step: Any) -> Any:
    """The next step; a number of Python or NumPy stays one, so that conditionals are decided when they are traced."""
    return np.int32(step + 1) if _is_number(step) else increment(step)


def _wrapped(step: Any, period: Any) -> Any:
    if _is_number(step) and checks.is_known(period):
        return np.int32(0) if step >= period else step
    return jnp.where(step >= period, 0, step)


def _due(step: Any, at: Any, period: Any) -> Any:
    """Whether a step of a period has come; its last one also where the period has shrunk below the step."""
    if at is not period and at != period:
        return step == at
    return True if checks.is_known(period) and period == 1 else step >= period


def _conditional(due: Any, yes: Callable[[], tuple[Any, ...]], no: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    if checks.is_known(due):  # outside `jit`, where a conditional would be compiled anew in every step
        return yes() if due else no()
    return cast("tuple[Any, ...]", jax.lax.cond(due, yes, no))


def _second(u: jax.Array, mean: jax.Array) -> jax.Array:
    """What waits for a leaf, at the places where a step u is."""
    del u
    return mean


def _zeros(leaf: jax.Array) -> jax.Array:
    return jnp.zeros_like(leaf, dtype=trees.compute_dtype(leaf.dtype))


def _wide(leaf: Any) -> Any:
    return leaf.astype(trees.compute_dtype(leaf.dtype))


def _wide_copy(leaf: Any) -> jax.Array:
    return jnp.array(leaf, dtype=trees.compute_dtype(leaf.dtype), copy=True)


def _reached(u: jax.Array, y: jax.Array) -> jax.Array:
    return _wide(y) + u.astype(trees.compute_dtype(y.dtype))


def _displacement(u: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
    """From the fast weights after the step u back to where they started, in the dtype of the outer transformation."""
    return (_wide(s.astype(y.dtype)) - _reached(u, y)).astype(trees.compute_dtype(s.dtype))


def _applied(v: jax.Array, wide: jax.Array, s: jax.Array) -> jax.Array:
    """s after the outer update v."""
    return (wide + v.astype(wide.dtype)).astype(s.dtype)


def _target(mixing: ArrayLike, weight: ArrayLike | None) -> Callable[..., jax.Array]:
    """Where y lands: s in its dtype, mixed with the fast weights that a worker with a weight has reached."""

    def target(u: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
        if checks.is_python_zero(mixing):
            return s.astype(y.dtype)
        fast, alpha = _reached(u, y), as_scalar(mixing)
        slow = s.astype(fast.dtype)
        mixed = trees.scaled(alpha, fast) + trees.scaled(1 - alpha, slow)
        return (mixed if weight is None else jnp.where(as_scalar(weight) > 0, mixed, slow)).astype(y.dtype)

    return target


def _step_to(target: jax.Array, y: jax.Array) -> jax.Array:
    return (_wide(target) - _wide(y)).astype(y.dtype)
