"""Complete optimizers: short chains of a step size, and of `accelerate` with the rule that fits it."""

from collections.abc import Callable

import optax
from jax.typing import ArrayLike

from nagjax import checks, proximal
from nagjax import momentum as rules
from nagjax.descent import add_decayed_weights, scale_by_learning_rate
from nagjax.momentum.optimal import contraction
from nagjax.proximal import Prox
from nagjax.scalars import number
from nagjax.transform import accelerate
from nagjax.types import Momentum, PyTree, Restart, Storage


def nesterov(
    learning_rate: optax.ScalarOrSchedule,
    momentum: ArrayLike | optax.Schedule | Momentum = 0.9,
    *,
    weight_decay: ArrayLike = 0.0,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    restart: Restart | None = None,
    storage: Storage | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent with Nesterov momentum, `accelerate` after the learning rate.

    A change of the learning rate does not rescale the velocity (the textbook's and Keras's convention; for PyTorch's
    and Optax's see `conventions.pytorch_sgd`).

    Weight decay is coupled: `weight_decay * params` is added to the gradient and passes through rate and momentum, so
    that a curvature lambda becomes lambda + weight_decay. For decoupled decay, which neither enters the velocity,
    leave it 0 here and append `optax.add_decayed_weights(-learning_rate * weight_decay)` to the chain.

    Args:
        learning_rate: Positive step size, or an Optax schedule of it.
        momentum: As in `accelerate`.
        weight_decay: Coefficient of coupled decay, at least 0. Other values than 0 need `params` in `update`.
        mask: Which leaves decay: a tree of booleans, or a function from parameters to one. None decays all.
        restart: As in `accelerate`.
        storage: As in `accelerate`.

    Returns:
        A gradient transformation; memory as in `accelerate`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range.

    Example:
        >>> import jax.numpy as jnp, nagjax, optax
        >>> optimizer = nagjax.nesterov(0.1, 0.9)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(300):
        ...     updates, state = optimizer.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(abs(nagjax.eval_params(params, state)).max() < 1e-6)
        True
    """
    if not callable(learning_rate):
        checks.nonnegative("nesterov", "learning_rate", learning_rate, "typical values are 1e-3 to 1")
    checks.nonnegative("nesterov", "weight_decay", weight_decay, "typical values are 0 to 1e-2")
    return optax.chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
        accelerate(momentum, restart=restart, storage=storage),
    )


def fista(
    step_size: optax.ScalarOrSchedule, prox: Prox | None = None, *, restart: Restart | None = None
) -> optax.GradientTransformationExtraArgs:
    """FISTA: (proximal) gradient descent with FISTA's momentum, for convex f + h with a smooth f.

    Args:
        step_size: s, at most 1/L; a positive number or an Optax schedule of it.
        prox: h, from `nagjax.proximal`; None for h = 0. With it every update needs `params`.
        restart: A restart test; `restart.gradient()` where the function is strongly convex to an unknown degree.

    Returns:
        A gradient transformation; memory as in `accelerate`.

    Raises:
        TypeError: `step_size` is not a number, or `prox` not a `Prox`.
        ValueError: `step_size` is not positive and finite.

    Guarantee:
        As in `momentum.fista`, with h too.
    """
    if not callable(step_size):
        checks.positive("fista", "step_size", step_size, "give 1 / L for an L-smooth function")
    gradient_step, momentum = scale_by_learning_rate(step_size), accelerate(rules.fista(), restart=restart)
    if prox is None:
        return optax.chain(gradient_step, momentum)
    return optax.chain(gradient_step, proximal.step(prox, step_size), momentum)


def ogm(smoothness: ArrayLike, prox: None = None) -> optax.GradientTransformationExtraArgs:
    """The optimized gradient method for convex, L-smooth functions.

    Args:
        smoothness: L, positive.
        prox: Refused: the method is for smooth functions only, and `fista` takes a prox.

    Returns:
        A gradient transformation; memory as in `accelerate`.

    Raises:
        TypeError: `smoothness` is not a number.
        ValueError: `smoothness` is not positive and finite, or a prox is given.

    Guarantee:
        As in `momentum.ogm`.
    """
    _refuse_prox("ogm", prox)
    _check_smoothness("ogm", smoothness)
    return optax.chain(scale_by_learning_rate(1 / number(smoothness)), accelerate(rules.ogm()))


def triple_momentum(
    smoothness: ArrayLike, strong_convexity: ArrayLike, prox: None = None
) -> optax.GradientTransformationExtraArgs:
    """The triple momentum method for mu-strongly convex, L-smooth functions.

    Args:
        smoothness: L, positive.
        strong_convexity: mu, positive and at most L.
        prox: Refused: the method is for smooth functions only, and `fista` takes a prox.

    Returns:
        A gradient transformation; memory as in `accelerate`.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range, or a prox is given.

    Guarantee:
        As in `momentum.triple_momentum`.
    """
    _refuse_prox("triple_momentum", prox)
    kappa = _condition_number("triple_momentum", smoothness, strong_convexity)
    step_size = (1 + contraction(kappa)) / number(smoothness)
    return optax.chain(scale_by_learning_rate(step_size), accelerate(rules.triple_momentum(kappa)))


def item(
    smoothness: ArrayLike, strong_convexity: ArrayLike, prox: None = None
) -> optax.GradientTransformationExtraArgs:
    """The information-theoretic exact method for mu-strongly convex, L-smooth functions.

    Args:
        smoothness: L, positive.
        strong_convexity: mu, positive and less than L.
        prox: Refused: the method is for smooth functions only, and `fista` takes a prox.

    Returns:
        A gradient transformation; memory as in `accelerate`.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range, or a prox is given.

    Guarantee:
        As in `momentum.item`.
    """
    _refuse_prox("item", prox)
    kappa = _condition_number("item", smoothness, strong_convexity)
    return optax.chain(scale_by_learning_rate(1 / number(smoothness)), accelerate(rules.item(kappa)))


def _check_smoothness(function: str, smoothness: ArrayLike) -> None:
    checks.positive(function, "smoothness", smoothness, "give the largest curvature L")


def _condition_number(function: str, smoothness: ArrayLike, strong_convexity: ArrayLike) -> ArrayLike:
    _check_smoothness(function, smoothness)
    checks.positive(function, "strong_convexity", strong_convexity, "give the smallest curvature mu")
    kappa = number(smoothness) / number(strong_convexity)
    if checks.is_known(kappa) and kappa < 1:
        remedy = "smoothness is the largest curvature, strong_convexity the smallest"
        checks.reject(function, "strong_convexity", f"at most smoothness = {smoothness}", strong_convexity, remedy)
    return kappa


def _refuse_prox(function: str, prox: object) -> None:
    if prox is not None:
        remedy = "its theorem is for smooth functions; for f + h use nagjax.fista(step_size, prox) or solve.minimize"
        checks.reject(function, "prox", "None", prox, remedy)
