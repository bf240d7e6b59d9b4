"""`periodic`: an outer transformation of the displacement that several inner steps make."""

from typing import Any, NamedTuple

import jax
import optax
from jax.typing import DTypeLike

from nagjax.mapped import AxisName
from nagjax.outer.fragments import Fragments
from nagjax.outer.rounds import Phase, core, count_of
from nagjax.outer.state import DilocoState, answer_of
from nagjax.types import PyTree


class PeriodicState(NamedTuple):
    """State of `periodic`."""

    inner: optax.OptState  # of the inner transformation; with an axis, one for each worker
    outer: optax.OptState  # of the outer transformation, as of the last synchronization
    slow: PyTree  # s, the slow weights: the structure and shapes of the parameters, at least 32 bits or `slow_dtype`
    step: jax.Array  # inner steps since the last synchronization, int32 scalar; with "start" it begins at period - 1

    def answer(self, params: PyTree) -> PyTree:
        """The outer method's answer as of the last synchronization; s where it has none of its own."""
        return answer_of(self.slow, self.outer, params)


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
    period = count_of("outer.periodic", period)
    made = core(
        "outer.periodic",
        inner,
        outer,
        period,
        axis_name,
        phase=phase,
        reset_inner=reset_inner,
        slow_dtype=slow_dtype,
        fragments=Fragments("outer.periodic", 1, None),
    )

    def init(params: PyTree) -> PeriodicState:
        return _plain(made.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, PeriodicState]:
        steps, after = made.update(updates, DilocoState(*state), params, None, extra)
        return steps, _plain(after)

    return optax.GradientTransformationExtraArgs(init, update)


def _plain(state: DilocoState) -> PeriodicState:
    return PeriodicState(state.inner, state.outer, state.slow, state.step)
