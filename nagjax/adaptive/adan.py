"""Adan: Nesterov momentum estimated from differences of gradients, with adaptive steps."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, proximal, trees
from nagjax.adaptive.nadamw import (
    average,
    bias_correction,
    check_decays,
    check_optimizer,
    divided,
    rooted,
    squared,
    zero_squares,
)
from nagjax.descent import add_decayed_weights, scale_by_learning_rate
from nagjax.scalars import Schedule, as_scalar, increment
from nagjax.storage import decode, full, scaled, where
from nagjax.transform import check_floating, decode_checked
from nagjax.types import Carry, PyTree, Restart, Storage


class AdanState(NamedTuple):
    """State of `scale_by_adan`; trees have the structure of the parameters, in units of the gradient."""

    velocity: PyTree  # m, the average of gradients, as its storage keeps it
    difference: PyTree  # v, the average of differences of gradients; at least 32 bits
    second_moment: PyTree  # n, the average of |g + b2 d|^2; real, at least 32 bits
    previous_gradient: PyTree  # g of the last update; at least 32 bits, not read at age 0
    age: jax.Array  # updates since the last restart or reset, which correct m and v; int32 scalar
    step: jax.Array  # t, updates since n started, at a restart or in the first one, which correct n; int32 scalar
    restart: Carry  # of the restart test

    def answer(self, params: PyTree) -> PyTree:
        """The parameters themselves: the published method is evaluated there."""
        return params

    def buffers(self) -> PyTree:
        """m, in at least 32 bits."""
        return decode(self.velocity)

    def reset(self) -> "AdanState":
        """Both first moments and their age start again; the second moment and its count go on."""
        difference, age = trees.zeros((self.difference, self.age))
        return self._replace(velocity=where(self.velocity, False), difference=difference, age=age)

    def scaled(self, factors: list[jax.Array]) -> "AdanState":
        """m and v times one scalar a leaf: with a factor other than 1 they are no averages that the age corrects."""
        moved = {field: scaled(getattr(self, field), factors) for field in ("velocity", "difference")}
        return self._replace(**moved)


def scale_by_adan(
    b1: ArrayLike = 0.98,
    b2: ArrayLike = 0.92,
    b3: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    *,
    restart: Restart | None = None,
    storage: Storage | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The ascent direction of Adan, as the authors' code computes it.

    With the difference d = g - (the last g), 0 in the first update, in update t = 1, 2, ...::

        m' = b1 m + (1 - b1) g
        v' = b2 v + (1 - b2) d
        n' = b3 n + (1 - b3) |g + b2 d|^2
        direction = (m' / (1 - b1^t) + b2 v' / (1 - b2^t)) / (sqrt(n' / (1 - b3^t)) + eps)

    The paper writes beta_i = 1 - b_i, and so 1 - beta_2 for the weight b2. `optax.scale_by_adan` takes the same b_i
    and weighs d and v' with 1 - b2, 0.08 instead of 0.92: another method.

    Args:
        b1: Decay of the average of gradients, in [0, 1).
        b2: Decay of the average of their differences and the weight of these, in [0, 1).
        b3: Decay of the second moment, in [0, 1).
        eps: Added to the root, at least 0, in units of the gradient; 0 divides by 0 where all gradients vanish.
        restart: A test from `nagjax.restart`, other than `speed`. It sees minus the direction as the step, without
            learning rate and weight decay, and minus m' as the velocity. Where it is true, the update is made as it
            is, and all moments, the last gradient and the counts start again with the next.
        storage: How the average of gradients is kept, from `nagjax.storage`; `full()` by default. It is rounded
            before it is used.

    Returns:
        A gradient transformation. Its answer is `params`. A complex entry has one second moment. Where a gradient is
        None or `optax.MaskedNode` the direction is too, and moments and last gradient stay. Memory: four buffers (16
        bytes a parameter of at most 32 bits with `full()`), two scalars and those of the test.

    Raises:
        TypeError: A number is none, or parameters are not floating-point (raised by `init`).
        ValueError: A number is out of its range, or the restart test needs a rule of Nesterov's form; gradients do
            not have the structure and shapes of the parameters (raised by `update`).

    Source:
        X. Xie, P. Zhou, H. Li, Z. Lin and S. Yan, "Adan: adaptive Nesterov momentum algorithm for faster optimizing
        deep models", 2022, Algorithm 1, with the bias corrections and the first difference of the released code.
    """
    name = "adaptive.scale_by_adan"
    check_decays(name, eps, b1=b1, b2=b2, b3=b3)
    if restart is not None and restart.needs_nesterov:
        condition = "a test that does not read the velocity as the difference of successive answers"
        remedy = "use restart.value(), restart.every(period) or restart.gradient()"
        checks.reject(name, "restart", condition, restart, remedy)
    buffer, plain = full() if storage is None else storage, full()

    def init(params: PyTree) -> AdanState:
        check_floating(name, params)
        params = trees.as_arrays(params)
        return AdanState(
            velocity=buffer.init(params),
            difference=plain.init(params),
            second_moment=zero_squares(params),
            previous_gradient=plain.init(params),
            age=jnp.zeros((), jnp.int32),
            step=jnp.zeros((), jnp.int32),
            restart=() if restart is None else restart.init(),
        )

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, AdanState]:
        del params
        updates = trees.as_arrays(updates)
        previous = decode_checked(name, buffer, state.velocity, updates)
        decay, difference_decay, fresh = as_scalar(b1), as_scalar(b2), state.age == 0
        age, step, one = increment(state.age), increment(state.step), jnp.ones_like(decay)

        def change(g: jax.Array, last: jax.Array) -> jax.Array:
            return jnp.where(fresh, jnp.zeros_like(g), g - last.astype(g.dtype))

        gradients = trees.like(previous, updates)
        changes = trees.map_present(change, gradients, state.previous_gradient)
        stored = buffer.encode(trees.combine((decay, previous), (1 - decay, gradients)), state.velocity)
        moment = buffer.decode(stored, updates)
        difference = average(difference_decay, state.difference, changes)
        ahead = trees.combine((one, gradients), (difference_decay, changes))
        squares = average(as_scalar(b3), state.second_moment, trees.map_present(squared, ahead))

        look_ahead = trees.combine(
            (1 / bias_correction(decay, age), moment),
            (difference_decay / bias_correction(difference_decay, age), difference),
        )
        root = rooted(squares, bias_correction(as_scalar(b3), step), 0.0, eps)
        direction = trees.map_present(divided, look_ahead, root)
        new_state = AdanState(
            velocity=stored,
            difference=trees.merged(state.difference, difference),
            second_moment=trees.merged(state.second_moment, squares),
            previous_gradient=plain.encode(gradients, state.previous_gradient),
            age=age,
            step=step,
            restart=state.restart,
        )
        if restart is not None:
            carry = trees.select(fresh, restart.init(), state.restart)
            flag, carry = restart.test(carry, step=_negative(direction), velocity=_negative(moment), **extra)
            new_state = _started_again(new_state, flag, one)._replace(restart=carry)
        return trees.like(updates, direction), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def adan(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.98,
    b2: ArrayLike = 0.92,
    b3: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    *,
    no_prox: bool = False,
    restart: Restart | None = None,
    storage: Storage | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adan, adaptive Nesterov momentum.

    With the direction u of `adaptive.scale_by_adan` parameters become (params - learning_rate * u) / (1 +
    learning_rate * weight_decay): the proximal step of weight_decay |params|^2 / 2.

    Args:
        learning_rate: Step size, at least 0, or an Optax schedule of it, whose count starts at 0.
        b1: As in `adaptive.scale_by_adan`, like `b2`, `b3`, `eps`, `restart` and `storage`.
        b2: See `b1`.
        b3: See `b1`.
        eps: See `b1`.
        weight_decay: At least 0. Other values than a Python 0 need `params` in `update`.
        mask: Which leaves decay: a tree of booleans, or a function from parameters to one. None decays all.
        no_prox: Whether parameters become (1 - learning_rate * weight_decay) params - learning_rate * u instead.
        restart: See `b1`.
        storage: See `b1`.

    Returns:
        A gradient transformation whose answer is `params`; memory as in `adaptive.scale_by_adan`.

    Raises:
        TypeError: A number is none, or parameters are not floating-point (raised by `init`).
        ValueError: A number is out of its range, or the restart test needs a rule of Nesterov's form; `update` got
            no `params` to decay.

    Example:
        >>> import jax, nagjax, optax
        >>> from nagjax import adaptive
        >>> tx = adaptive.adan(0.1, weight_decay=1.0)
        >>> params = jax.numpy.array([1.0, -100.0])
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> expected = jax.numpy.array([0.9, -99.9]) / 1.1
        >>> bool(abs(optax.apply_updates(params, updates) - expected).max() < 1e-4)
        True

    Source:
        As `adaptive.scale_by_adan`.
    """
    check_optimizer("adan", learning_rate, weight_decay, eps, b1=b1, b2=b2, b3=b3)
    direction = scale_by_adan(b1, b2, b3, eps, restart=restart, storage=storage)
    descent = scale_by_learning_rate(learning_rate)
    if no_prox:
        return optax.chain(direction, add_decayed_weights(weight_decay, mask), descent)

    def rate(count: ArrayLike) -> ArrayLike:
        return learning_rate(count) if callable(learning_rate) else learning_rate

    # A function also where the rate is a number: as such the step size of a proximal step may not be 0.
    decay: Any = proximal.step(proximal.squared_l2(weight_decay), rate)
    if checks.is_python_zero(weight_decay):
        # Without decay it needs no parameters; its state is the one that an injected 0 has.
        decay = _at_zero(decay)
    return optax.chain(direction, descent, decay if mask is None else optax.masked(decay, mask))


def _at_zero(step: optax.GradientTransformationExtraArgs) -> optax.GradientTransformation:
    """A proximal step of parameters that are 0, whatever they are."""

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        updates = trees.as_arrays(updates)
        return step.update(updates, state, trees.zeros(updates))

    return optax.GradientTransformation(step.init, update)


def _negative(tree: PyTree) -> PyTree:
    return trees.map_present(jnp.negative, tree)


def _started_again(state: AdanState, flag: jax.Array, one: jax.Array) -> AdanState:
    """The state as it is, or one that is fresh where `flag` is true; noise of rounding goes on."""
    # A conditional, so that XLA's CPU backend does not compute the test again in the kernel of every leaf.
    keep = cast("jax.Array", jax.lax.cond(flag, lambda: jnp.zeros_like(one), lambda: one)) > 0
    kept = {field: where(getattr(state, field), keep) for field in AdanState._fields if field != "restart"}
    return state._replace(**kept)
