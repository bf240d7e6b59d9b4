"""Adam with Nesterov momentum: `scale_by_nadam`, the direction in three conventions, and `nadamw`."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.descent import add_decayed_weights, scale_by_learning_rate
from nagjax.scalars import Schedule, as_scalar, increment, scalar_dtype
from nagjax.storage import decode, full, scaled, where
from nagjax.transform import check_floating, decode_checked
from nagjax.types import PyTree, Storage

Convention = Literal["dozat", "pytorch", "algoperf"]
_CONVENTIONS = ("dozat", "pytorch", "algoperf")


class NadamState(NamedTuple):
    """State of `scale_by_nadam`."""

    velocity: PyTree  # m, the average of gradients, as its storage keeps it; in units of the gradient
    second_moment: PyTree  # v, the average of |g|^2: the parameters' structure and shapes, real, at least 32 bits
    correction: Any  # 1 - mu_1 ... mu_t since the last reset, scalar in float32 or float64; () but for "pytorch"
    age: jax.Array  # updates since the last reset, which correct m; int32 scalar
    step: jax.Array  # t, updates in all, which correct v; int32 scalar

    def answer(self, params: PyTree) -> PyTree:
        """The parameters themselves: the published methods are evaluated there."""
        return params

    def buffers(self) -> PyTree:
        """m, in at least 32 bits."""
        return decode(self.velocity)

    def reset(self) -> "NadamState":
        """The first moment, its momenta and its age start again; the second moment and its count go on."""
        correction, age = trees.zeros((self.correction, self.age))
        return self._replace(velocity=where(self.velocity, False), correction=correction, age=age)

    def scaled(self, factors: list[jax.Array]) -> "NadamState":
        """m times one scalar a leaf: with a factor other than 1 it is no average that the age corrects."""
        return self._replace(velocity=scaled(self.velocity, factors))


def scale_by_nadam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    eps_root: ArrayLike = 0.0,
    convention: Convention = "dozat",
    momentum_decay: ArrayLike = 4e-3,
    storage: Storage | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The ascent direction of Adam with Nesterov momentum, in one of three conventions.

    With m' = b1 m + (1 - b1) g and v' = b2 v + (1 - b2) |g|^2, in update t = 1, 2, ...::

        direction = (p m' + q g) / (sqrt(v' / (1 - b2^t) + eps_root) + eps)

        "dozat"     p = b1 / (1 - b1^(t+1))          q = (1 - b1) / (1 - b1^t)
        "algoperf"  p = b1 / (1 - b1^t)              q = (1 - b1) / (1 - b1^t)
        "pytorch"   p = mu_{t+1} / (1 - P_{t+1})     q = (1 - mu_t) / (1 - P_t)

    where P_t = mu_1 ... mu_t and mu_t = b1 (1 - 0.96^(t momentum_decay) / 2). With eps = 0 the first direction has
    entries of size 1 + b1 / (1 + b1) in "dozat" and 1 + b1 in "algoperf", not 1.

    Args:
        b1: Decay of the average of gradients, in [0, 1).
        b2: Decay of the average of their squares, in [0, 1).
        eps: Added to the root, at least 0, in units of the gradient; 0 divides by 0 where all gradients vanish.
        eps_root: Added under the root, at least 0.
        convention: "dozat" is `optax.scale_by_adam(nesterov=True)`, "pytorch" is `torch.optim.NAdam`, "algoperf" the
            NAdamW of the AlgoPerf benchmark.
        momentum_decay: psi, at least 0; the other conventions have none and do not read it.
        storage: How the average of gradients is kept, from `nagjax.storage`; `full()` by default. It is rounded
            before it is used.

    Returns:
        A gradient transformation. Its answer is `params`. A complex entry has one second moment, of |g|^2, as in
        Optax (PyTorch takes real and imaginary part for two entries). Where a gradient is None or
        `optax.MaskedNode` the direction is too, and the moments stay. Memory: two buffers (8 bytes a parameter of at
        most 32 bits with `full()`) and two or three scalars.

    Raises:
        TypeError: A number is none, or parameters are not floating-point (raised by `init`).
        ValueError: A number is out of its range, or the convention is none of the three; gradients do not have the
            structure and shapes of the parameters (raised by `update`).

    Source:
        T. Dozat, "Incorporating Nesterov momentum into Adam", 2016, Algorithm 2, without the factor b2 before the
        second moment that is printed there; PyTorch's documentation of `torch.optim.NAdam`; G. Dahl et al.,
        "Benchmarking neural network training algorithms", 2023, the NAdamW baseline.
    """
    name = "adaptive.scale_by_nadam"
    check_decays(name, eps, b1=b1, b2=b2)
    checks.nonnegative(name, "eps_root", eps_root, "0 is usual")
    checks.nonnegative(name, "momentum_decay", momentum_decay, "PyTorch's default is 4e-3")
    if convention not in _CONVENTIONS:
        remedy = "optax.nadamw is 'dozat', torch.optim.NAdam is 'pytorch'"
        checks.reject(name, "convention", "'dozat', 'pytorch' or 'algoperf'", convention, remedy)
    buffer = full() if storage is None else storage

    def init(params: PyTree) -> NadamState:
        check_floating(name, params)
        params = trees.as_arrays(params)
        return NadamState(
            velocity=buffer.init(params),
            second_moment=zero_squares(params),
            correction=jnp.zeros((), scalar_dtype()) if convention == "pytorch" else (),
            age=jnp.zeros((), jnp.int32),
            step=jnp.zeros((), jnp.int32),
        )

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, NadamState]:
        del params, extra
        updates = trees.as_arrays(updates)
        previous = decode_checked(name, buffer, state.velocity, updates)
        decay, age, step = as_scalar(b1), increment(state.age), increment(state.step)
        gradients = trees.like(previous, updates)
        stored = buffer.encode(trees.combine((decay, previous), (1 - decay, gradients)), state.velocity)
        moment = buffer.decode(stored, updates)
        squares = average(as_scalar(b2), state.second_moment, trees.map_present(squared, gradients))

        p, q, correction = _weights(convention, decay, momentum_decay, age, state.correction)
        look_ahead = trees.combine((p, moment), (q, gradients))
        root = rooted(squares, bias_correction(as_scalar(b2), step), eps_root, eps)
        direction = trees.like(updates, trees.map_present(divided, look_ahead, root))
        new_squares = trees.merged(state.second_moment, squares)
        return direction, NadamState(stored, new_squares, correction, age, step)

    return optax.GradientTransformationExtraArgs(init, update)


def nadamw(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 1e-4,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    *,
    convention: Convention = "dozat",
    storage: Storage | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with Nesterov momentum and decoupled weight decay.

    The update is -learning_rate * (direction + weight_decay * params), with the direction of
    `adaptive.scale_by_nadam`. "dozat" is `optax.nadamw`, step for step; "pytorch" is
    `torch.optim.NAdam(decoupled_weight_decay=True)`; "algoperf" is the baseline of the AlgoPerf benchmark. Three
    methods with one name: their first updates have the sizes 1.474, 1.056 and 1.9 times the learning rate (b1 = 0.9).

    Args:
        learning_rate: Step size, at least 0, or an Optax schedule of it, whose count starts at 0: after a linear
            warm-up from 0 the first update is 0.
        b1: As in `adaptive.scale_by_nadam`, like `b2`, `eps` and `storage`.
        b2: See `b1`.
        eps: See `b1`.
        weight_decay: At least 0. The default is Optax's; PyTorch's is 0. Other values than a Python 0 need
            `params` in `update`.
        mask: Which leaves decay: a tree of booleans, or a function from parameters to one. None decays all.
        convention: "dozat", "pytorch" (with its momentum decay of 4e-3) or "algoperf".
        storage: See `b1`.

    Returns:
        A gradient transformation whose answer is `params`; memory as in `adaptive.scale_by_nadam`.

    Raises:
        TypeError: A number is none, or parameters are not floating-point (raised by `init`).
        ValueError: A number is out of its range, or the convention is none of the three; `update` got no `params`
            to decay.

    Example:
        >>> import jax, nagjax, optax
        >>> from nagjax import adaptive
        >>> tx = adaptive.nadamw(0.1, weight_decay=0.0)
        >>> params = jax.numpy.array([1.0, -100.0])
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> bool(abs(updates + 0.1 * (1 + 0.9 / 1.9) * jax.numpy.sign(params)).max() < 1e-6)
        True

    Source:
        As `adaptive.scale_by_nadam`; I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019.
    """
    check_optimizer("nadamw", learning_rate, weight_decay, eps, b1=b1, b2=b2)
    return optax.chain(
        scale_by_nadam(b1, b2, eps, convention=convention, storage=storage),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def check_decays(function: str, eps: ArrayLike, **decays: ArrayLike) -> None:
    """Check the decays of moments and `eps`."""
    for argument, value in decays.items():
        checks.fraction(function, argument, value, "it is the share of the average that is kept: 0.9 to 0.999")
    checks.nonnegative(function, "eps", eps, "1e-8 is usual")


def check_optimizer(
    function: str, learning_rate: ArrayLike | Schedule, weight_decay: ArrayLike, eps: ArrayLike, **decays: ArrayLike
) -> None:
    """Check the numbers of an optimizer of Adam's family."""
    if not callable(learning_rate):
        checks.nonnegative(function, "learning_rate", learning_rate, "1e-3 is usual")
    check_decays(function, eps, **decays)
    checks.nonnegative(function, "weight_decay", weight_decay, "typical values are 0 to 1e-1")


def bias_correction(decay: jax.Array, count: jax.Array) -> jax.Array:
    """1 - decay^count, without the cancellation of the difference: the weights in an average of `count` numbers."""
    return -jnp.expm1(count.astype(decay.dtype) * jnp.log(decay))


def zero_squares(params: PyTree) -> PyTree:
    """Zeros for a second moment: real, at least 32 bits."""

    def zero(leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf, dtype=trees.compute_dtype(leaf.real.dtype))

    return trees.map_present(zero, params)


def squared(g: jax.Array) -> jax.Array:
    """|g|^2 of every entry, real."""
    return g.real**2 + g.imag**2 if jnp.iscomplexobj(g) else g**2


def average(decay: jax.Array, old: PyTree, new: PyTree) -> PyTree:
    """decay * old + (1 - decay) * new where `new` is present, in the dtypes of `old`."""

    def leaf(x: jax.Array, kept: jax.Array) -> jax.Array:
        return (trees.scaled(decay, kept.astype(x.dtype)) + trees.scaled(1 - decay, x)).astype(kept.dtype)

    return trees.map_present(leaf, new, old)


def rooted(squares: PyTree, correction: jax.Array, eps_root: ArrayLike, eps: ArrayLike) -> PyTree:
    """sqrt(squares / correction + eps_root) + eps."""

    def leaf(v: jax.Array) -> jax.Array:
        under, outside = (as_scalar(value).astype(v.dtype) for value in (eps_root, eps))
        return jnp.sqrt(trees.scaled(1 / correction, v) + under) + outside

    return trees.map_present(leaf, squares)


def divided(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """A real or complex array divided by a real one, in the dtype of the numerator."""
    if jnp.iscomplexobj(numerator):
        denominator = denominator.astype(numerator.real.dtype)
        return jax.lax.complex(numerator.real / denominator, numerator.imag / denominator)
    return numerator / denominator.astype(numerator.dtype)


def _weights(
    convention: Convention, b1: jax.Array, momentum_decay: ArrayLike, age: jax.Array, correction: Any
) -> tuple[jax.Array, jax.Array, Any]:
    """The weights of the average and of the gradient in a direction, and the new 1 - mu_1 ... mu_t."""
    if convention == "pytorch":
        mu, following = (_pytorch_momentum(b1, momentum_decay, t) for t in (age, increment(age)))
        correction = (1 - mu) + mu * correction
        return following / ((1 - following) + following * correction), (1 - mu) / correction, correction
    own = bias_correction(b1, age)
    ahead = bias_correction(b1, increment(age)) if convention == "dozat" else own
    return b1 / ahead, (1 - b1) / own, correction


def _pytorch_momentum(b1: jax.Array, momentum_decay: ArrayLike, count: jax.Array) -> jax.Array:
    """mu_t, with t = count."""
    share = jnp.exp2(math.log2(0.96) * as_scalar(momentum_decay) * count.astype(b1.dtype))
    return b1 * (1 - share / 2)
