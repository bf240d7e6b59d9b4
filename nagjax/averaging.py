"""Averaging as complete optimizers: Schedule-Free and primal averaging over the steps of any base."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax import momentum as rules
from nagjax.compensation import compensate
from nagjax.descent import add_decayed_weights, scale_by_learning_rate
from nagjax.scalars import Schedule, as_scalar, value_at
from nagjax.storage import full
from nagjax.transform import AccelerateState, accelerate, check_updates, decode_checked
from nagjax.types import PyTree, Storage

Mask = PyTree | Callable[[PyTree], PyTree] | None


def schedule_free(
    base: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    b: ArrayLike = 0.9,
    *,
    warmup_steps: int | jax.Array = 0,
    weight_power: ArrayLike = 2.0,
    count_power: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
    mask: Mask = None,
    storage: Storage | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-Free over any base: no decay of the learning rate is needed, and no horizon.

    The chain of `base`, weight decay, -learning_rate and `accelerate(momentum.schedule_free(...))`. With the identity
    as base it is Schedule-Free SGD, with `nagjax.adaptive.scale_by_nadam(b1=0.0)` Schedule-Free AdamW: without
    momentum that is Adam's direction, with a second moment of at least 32 bits (`optax.scale_by_adam(b1=0.0)` keeps it
    in the dtype of the parameters). A base should have no momentum of its own. Parameters are the points y where
    gradients are taken; evaluate, and deploy, at `eval_params`.

    `reset_momentum` starts the average again, with the weights and the warm-up of update 0; the steps go on with the
    rates of their own count. Where the rate is no constant, or a warm-up is not over, take a new `init` instead.

    Args:
        base: From gradients to ascent directions: any Optax transformation that does not scale by a learning rate.
        learning_rate: At least 0, or an Optax schedule of it; larger than for the base alone.
        b: Interpolation between the fast point z (0) and the average x (1), in [0, 1].
        warmup_steps: W, an integer of at least 0: update t < W has the rate learning_rate (t + 1) / W.
        weight_power: p, at least 0: the average weighs an update with the largest rate so far to this power.
        count_power: r, at least 0: and with (t + 1)^r.
        weight_decay: At least 0: times y, added to the direction. Other values than a Python 0 need `params` in
            `update`.
        mask: Which leaves decay, as in `nesterov`.
        storage: How the velocity is kept, as in `accelerate`.

    Returns:
        A gradient transformation. Memory: that of `base` and one buffer, 4 bytes a parameter with `storage.full()`;
        2 more for parameters of 16 bits, whose rounding `compensate` carries on.

    Raises:
        TypeError: `base` is no transformation, or another argument has the wrong type.
        ValueError: A number is out of its range.

    Guarantee:
        Over the identity, as in `momentum.schedule_free`.

    Example:
        >>> import jax.numpy as jnp, nagjax, optax
        >>> optimizer = nagjax.schedule_free(optax.identity(), 1.0, warmup_steps=5)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(200):
        ...     updates, state = optimizer.update(params, state, params)  # the gradient of |x|^2 / 2 is x
        ...     params = optax.apply_updates(params, updates)
        >>> bool(abs(nagjax.eval_params(params, state)).max() < 1e-2)
        True

    Source:
        A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled and A. Cutkosky, "The road less scheduled", 2024,
        Algorithm 1, and the authors' released optimizers.
    """
    name = "schedule_free"
    _check(name, base, learning_rate, weight_decay)
    checks.count(name, "warmup_steps", warmup_steps, 0, "0 is no warm-up; a few percent of a run are usual")
    rate = _warmed(learning_rate, warmup_steps)
    rule = rules.schedule_free(b, rate, weight_power=weight_power, count_power=count_power)
    return optax.chain(
        base,
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(rate),
        accelerate(rule, storage=storage),
        compensate(),
    )


def primal_averaging(
    base: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    mu_x: ArrayLike | Schedule = 0.9967,
    mu_y: ArrayLike | Schedule = 0.7,
    *,
    weight_decay: ArrayLike = 0.0,
    mask: Mask = None,
    decay_query: bool = False,
    storage: Storage | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Generalized primal averaging (GPA) over any base: a smooth DiLoCo on one worker.

    The chain of `base`, -learning_rate and `accelerate(momentum.primal_averaging(mu_x, mu_y))`. With d the direction
    of the base at y::

        z' = z - learning_rate d
        x' = mu_x x + (1 - mu_x) z'             the answer
        y' = mu_y x' + (1 - mu_y) z'            `params`

    Weight decay acts on z before the step and leaves y as it is, as in the authors' code; with `decay_query` it is
    added to the direction as weight_decay y, so that z' = z - learning_rate (d + weight_decay y).

    Args:
        base: From gradients to ascent directions, such as `optax.scale_by_adam()`.
        learning_rate: At least 0, or an Optax schedule of it.
        mu_x: Decay of the average, in [0, 1), or a schedule. For the effect of DiLoCo with 1, 8, 32, 128 inner steps
            the paper takes 0.9, 0.9869, 0.9967, 0.9992.
        mu_y: Interpolation between z (0) and x (1), in [0, 1] (above 0 where z decays), or a schedule.
        weight_decay: At least 0, decoupled. Other values than a Python 0 need `params` in `update`.
        mask: Which leaves decay, as in `nesterov`.
        decay_query: Whether y decays instead of z.
        storage: How the velocity is kept, as in `accelerate`.

    Returns:
        A gradient transformation; memory as in `schedule_free`.

    Raises:
        TypeError: `base` is no transformation, or another argument has the wrong type.
        ValueError: A number is out of its range.

    Guarantee:
        None of its own: with mu_x = mu_y = m over the identity it is `nesterov` with momentum m and the learning rate
        times 1 - m.

    Source:
        A. Defazio et al., generalized primal averaging, 2025 (arXiv 2512.17131), and the authors' released optimizer.
    """
    name = "primal_averaging"
    _check(name, base, learning_rate, weight_decay)
    momentum = accelerate(rules.primal_averaging(mu_x, mu_y), storage=storage)
    if checks.is_python_zero(weight_decay):
        return optax.chain(base, scale_by_learning_rate(learning_rate), momentum, compensate())
    if decay_query:
        decay = add_decayed_weights(weight_decay, mask)
        return optax.chain(base, decay, scale_by_learning_rate(learning_rate), momentum, compensate())
    if not callable(mu_y):
        remedy = "x is not determined by y and z there; set decay_query=True"
        checks.scalar(name, "mu_y", mu_y, "above 0 where z decays", lambda v: v > 0, remedy)
    shrink = optax.chain(add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
    momentum = _decay_of_fast_point(momentum, shrink, mu_y, full() if storage is None else storage)
    return optax.chain(base, scale_by_learning_rate(learning_rate), momentum, compensate())


class FastPointDecayState(NamedTuple):
    """State of the momentum of `primal_averaging` where z decays."""

    shrink: PyTree  # of the decay: the count of a schedule of the rate
    accelerate: AccelerateState


def _decay_of_fast_point(
    momentum: optax.GradientTransformationExtraArgs,
    shrink: optax.GradientTransformation,
    mu_y: ArrayLike | Schedule,
    buffer: Storage,
) -> optax.GradientTransformationExtraArgs:
    # With s = -rate * decay * z the authors' code replaces z by z + s and leaves y, which replaces the velocity
    # (z - y) / (mu_y decay_k) by w + s / (mu_y decay_k). So s / mu_y is part of the step that the velocity gathers, and
    # no part of the step that y makes directly.
    def init(params: PyTree) -> FastPointDecayState:
        return FastPointDecayState(shrink.init(params), cast("AccelerateState", momentum.init(params)))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, FastPointDecayState]:
        if params is None:
            remedy = "weight decay needs them: call `update(gradients, state, params)`"
            checks.reject("primal_averaging", "params", "passed to update", None, remedy)
        updates, params = trees.as_arrays(updates), trees.as_arrays(params)
        check_updates("primal_averaging", updates, params)
        steps = trees.wide(updates, updates)
        carry = state.accelerate.momentum
        count = jnp.where(state.accelerate.age == 0, 0, carry.step)
        share = value_at("primal_averaging", mu_y, count)
        one = jnp.ones_like(share)
        velocity = decode_checked("primal_averaging", buffer, state.accelerate.velocity, steps)
        fast_point = trees.combine((one, trees.wide(updates, params)), (share * carry.decay, velocity))
        shrinkage, shrink_state = shrink.update(trees.zeros(steps), state.shrink, fast_point)
        gathered = trees.combine((one, steps), (1 / share, shrinkage))
        moves, momentum_state = momentum.update(gathered, state.accelerate, params, **extra)
        moves = trees.combine((one, moves), (1 - 1 / share, shrinkage))
        return trees.like(updates, moves), FastPointDecayState(shrink_state, cast("AccelerateState", momentum_state))

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    function: str,
    base: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: ArrayLike,
) -> None:
    checks.transformation(function, "base", base, "pass optax.identity() for plain gradient steps")
    if not callable(learning_rate):
        checks.nonnegative(function, "learning_rate", learning_rate, "typical values are 1e-3 to 10")
    checks.nonnegative(function, "weight_decay", weight_decay, "typical values are 0 to 0.1")


def _warmed(learning_rate: optax.ScalarOrSchedule, warmup_steps: ArrayLike) -> Schedule:
    def rate(count: ArrayLike) -> jax.Array:
        warmed_up = value_at("schedule_free", learning_rate, jnp.asarray(count))
        return warmed_up * jnp.minimum((as_scalar(count) + 1) / jnp.maximum(as_scalar(warmup_steps), 1), 1)

    return rate
