"""DiLoCo: workers that synchronize rarely, in fragments and with a delay if asked for."""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks
from nagjax.mapped import AxisName
from nagjax.methods import nesterov
from nagjax.outer.exchange import check_weight
from nagjax.outer.fragments import fragments_of
from nagjax.outer.rounds import Phase, core, count_of
from nagjax.outer.state import DilocoState
from nagjax.outer.wire import Wire
from nagjax.types import PyTree

_NAME = "outer.diloco"


def diloco(
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation | None = None,
    period: int | jax.Array = 100,
    axis_name: AxisName | None = None,
    *,
    fragments: int | PyTree = 1,
    delay: int = 0,
    mixing: ArrayLike = 0.0,
    wire: Wire | None = None,
    phase: Phase = "end",
    reset_inner: bool = False,
    slow_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Workers that each make `period` inner steps of their own between outer steps on the mean of what they moved.

    With the slow weights s, equal on all workers, and the fast weights y_i of worker i (`params`)::

        D  = sum over workers of w_i (s - y_i) / sum of w_i       the pseudo-gradient, the only communication
        s' = s + outer.update(D)
        y' = mixing (y_i at that step) + (1 - mixing) s'

    Without options it is `periodic(inner, outer, period, axis_name)`, bit for bit. `fragments` and `delay` make it
    Streaming DiLoCo: leaves are synchronized in groups at different steps of the period, and each outer step comes
    `delay` inner steps after its mean was formed.

    Args:
        inner: As in `periodic`; `optax.adamw` in the papers.
        outer: As in `periodic`; by default `nagjax.nesterov(0.7, 0.9)`. With fragments each has a state of its own.
        period: K, the paper's H, as in `periodic`; typical values are 30 to 500. A Python number of at least the
            number of fragments, and more than `delay`, where there are any.
        axis_name: The mapped axis, or axes, of workers, as in `periodic`; None for one worker.
        fragments: P, the number of groups of leaves, consecutive in flattened order and of about equal bytes (beyond
            the number of leaves they are empty); or a tree of the structure of the parameters with the group of each
            leaf, 0 to P - 1. Group p is synchronized after the inner step (p + 1) K // P of each period, so the last
            one at its end.
        delay: tau in [0, K), the inner steps from the mean to its outer step. During them nothing reads the mean.
            A step that decides at run time whether to synchronize holds the reduction in a conditional, within which
            XLA ends it: the delay then models a slow network but hides nothing. In a program that holds whole periods
            unrolled, give the step as a Python number, `state._replace(step=0)`: there is no conditional around the
            reduction then, and XLA's scheduler may run it beside the next `delay` inner steps.
        mixing: alpha in [0, 1), the part of the fast weights that stays in y'; the paper uses 0.5 with a delay.
        wire: `outer.wire.bfloat16()` or `outer.wire.int8()`: displacements travel in 16 or 8 bits, rounded to the
            nearest, and the errors of all roundings are sent later (error feedback). Complex leaves travel as pairs.
            Under `shard_map` and `pmap` the compiled program moves that many bits; under `vmap` over a sharded axis
            XLA's partitioner chooses, and moves more than without a wire. There, workers have one axis.
        phase: As in `periodic`; "start" begins one step before the end of a period.
        reset_inner: As in `periodic`; with fragments or a delay it is refused.
        slow_dtype: As in `periodic`.

    Returns:
        A gradient transformation as that of `periodic`, with a `DilocoState`; see `per_worker` for maps over workers
        and `keep_workers` for workers that come and go. Its `update` takes one more keyword argument, `weight`: w_i
        of this worker at least 0, its examples or tokens of the round say, read at the steps that form a mean (with
        `mixing`, also at outer steps), and not passed on. Not given, all are equal. A worker of weight 0 counts for
        nothing, even where it reached NaN in this step, and lands on s' without mixing; what its wire still owes is
        sent. Parameters that are NaN already cannot be moved by an update: set them to `state.slow`. Where all
        weights are 0, s and the outer state stay, and parameters return to s. A leaf without a gradient (None) in the
        step of an outer step misses it. Memory: that of `periodic`; with `wire` 4 bytes more a parameter of at most 32
        bits, and with `delay` as many.

    Raises:
        TypeError: `inner` or `outer` is no transformation, `wire` no `Wire`, `period`, `fragments` or `delay` no
            integer (under `optax.inject_hyperparams` name them in `static_args`), or `periodic` raises it.
        ValueError: A number is out of its range; `fragments` is a tree that leaves a number out, or not of the
            structure of the parameters (raised by `init`); `wire` has no `axis_name`; `reset_inner` does not combine;
            or `periodic` raises it.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax, optax
        >>> from nagjax import outer
        >>> optimizer = outer.diloco(optax.sgd(0.1), nagjax.nesterov(0.7, 0.5), period=10, axis_name="workers")
        >>> def train(target):  # each worker has a loss |x - target|^2 / 2 of its own
        ...     params = jnp.zeros(2)
        ...     state = optimizer.init(params)
        ...     for _ in range(200):
        ...         updates, state = optimizer.update(params - target, state, params)
        ...         params = optax.apply_updates(params, updates)
        ...     return nagjax.eval_params(params, state)
        >>> targets = jnp.array([[1.0, 0.0], [3.0, 4.0]])
        >>> answers = jax.vmap(train, axis_name="workers")(targets)
        >>> bool(abs(answers - targets.mean(axis=0, keepdims=True)).max() < 1e-3)
        True

    Source:
        A. Douillard et al., "DiLoCo: distributed low-communication training of language models", 2023 (arXiv
        2311.08105), Algorithm 1; fragments, delay and mixing: A. Douillard et al., "Streaming DiLoCo with overlapping
        communication: towards a distributed free lunch", 2025 (arXiv 2501.18512), Algorithm 2, with D taken from s;
        error feedback: see `outer.wire`.
    """
    period = count_of(_NAME, period)
    groups = fragments_of(_NAME, fragments)
    checks.whole(_NAME, "delay", delay, 0, "give the number of inner steps that a reduction may take")
    checks.fraction(_NAME, "mixing", mixing, "0 lands on the slow weights; the paper uses 0.5 with a delay")
    if groups.size > 1 or delay:
        checks.whole(
            _NAME, "period", period, max(groups.size, delay + 1), "give a longer period, as a number, or less of both"
        )
        if reset_inner:
            remedy = "the inner state belongs to all fragments, and steps go on during a delay"
            checks.reject(_NAME, "reset_inner", "False with fragments or a delay", reset_inner, remedy)
    _check_wire(wire, axis_name)
    made = core(
        _NAME,
        inner,
        nesterov(0.7, 0.9) if outer is None else outer,
        period,
        axis_name,
        phase=phase,
        reset_inner=reset_inner,
        slow_dtype=slow_dtype,
        fragments=groups,
        delay=delay,
        mixing=mixing,
        wire=wire,
    )

    def init(params: PyTree) -> DilocoState:
        return made.init(params)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, *, weight: ArrayLike | None = None, **extra: Any
    ) -> tuple[PyTree, DilocoState]:
        check_weight(_NAME, weight)
        return made.update(updates, state, params, weight, extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_wire(wire: Any, axis_name: AxisName | None) -> None:
    if wire is None:
        return
    if not isinstance(wire, Wire):
        checks.reject(_NAME, "wire", "a Wire or None", wire, "call the factory, as in outer.wire.int8()", TypeError)
    if axis_name is None:
        checks.reject(_NAME, "wire", "None without an axis_name", wire, "one worker sends nothing: leave it out")
