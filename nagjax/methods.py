"""Complete optimizers: short chains of a step size, and of `accelerate` with the rule that fits it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
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
        learning_rate: Step size, at least 0, or an Optax schedule of it.
        momentum: As in `accelerate`.
        weight_decay: Coefficient of coupled decay, at least 0. Other values than a Python 0 need `params` in
            `update`.
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


def agnes(
    smoothness: ArrayLike, noise: ArrayLike, strong_convexity: ArrayLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """AGNES with the parameters of its theorems, for gradients whose noise is proportional to the gradient.

    With s2 = noise the step is eta = 1/(L (1 + s2)). For convex functions alpha = eta/(2 (1 + s2)) and
    rho_n = (n + n_0)/(n + n_0 + 3) with n_0 = 2 s2. For strongly convex ones, with q = mu/L,
    alpha = eta (1 - sqrt(q))/(1 - sqrt(q) + s2) and rho = (1 + s2 - sqrt(q))/(1 + s2 + sqrt(q)); q = 1 without noise is
    gradient descent.

    Args:
        smoothness: L, positive.
        noise: sigma^2, at least 0: E|g - grad f|^2 <= sigma^2 |grad f|^2.
        strong_convexity: mu, positive and at most L; None for functions that are only convex.

    Returns:
        A gradient transformation; memory as in `accelerate`.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range.

    Guarantee:
        For L-smooth f at the answer: E f - f* is O(L R^2 (1 + s2)^2/n^2), and with mu it falls by
        1 - sqrt(q)/(1 + s2) a step. Nesterov's method with the same eta diverges on quadratics for s2 = 3 and q = 0.01.

    Source:
        K. Gupta, J. Siegel and S. Wojtowytsch, "Nesterov acceleration despite very noisy gradients", 2024
        (arXiv 2302.05515), the theorems on convex and strongly convex functions.
    """
    _check_smoothness("agnes", smoothness)
    checks.nonnegative("agnes", "noise", noise, "give the variance of g over |grad f|^2")
    extra = number(noise)
    eta = 1 / (number(smoothness) * (1 + extra))
    if strong_convexity is None:
        first = 2 * extra
        rule = rules.agnes(eta, eta / (2 * (1 + extra)), lambda n: (n + first) / (n + first + 3.0))
    else:
        root = _condition_number("agnes", smoothness, strong_convexity) ** -0.5
        total = 1 - root + extra
        # 0 for q = 1 without noise, where rho is 0 too and alpha plays no part.
        divisor = jnp.where(total == 0, 1, total) if isinstance(total, jax.Array) else total or 1.0
        alpha = eta * (1 - root) / divisor
        rule = rules.agnes(eta, alpha, (1 + extra - root) / (1 + extra + root))
    return optax.chain(scale_by_learning_rate(1.0), accelerate(rule))


def mass(
    smoothness: ArrayLike, strong_convexity: ArrayLike, statistical_condition_number: ArrayLike
) -> optax.GradientTransformationExtraArgs:
    """MaSS with the parameters of its theorem, for models that interpolate their data.

    With k = L1/mu and k~ the statistical condition number: eta_1 = 1/L1, alpha = 1/sqrt(k k~),
    gamma = (1 - alpha)/(1 + alpha) and eta_2 = eta_1 (1 - 1/k~)/(1 + alpha).

    Args:
        smoothness: L1, positive: the least c with E[g^T g] <= 2 c (f - f*) for the gradient g of a minibatch; for least
            squares with examples x, E[|x|^2 x x^T] <= L1 E[x x^T].
        strong_convexity: mu, positive and at most L1; the smallest positive curvature.
        statistical_condition_number: k~, at least 1 and at most k; for least squares with H = E[x x^T],
            E[<x, H^-1 x> x x^T] <= k~ H. It is d + 2 for Gaussian examples in d dimensions.

    Returns:
        A gradient transformation; memory as in `accelerate`.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of its range.

    Guarantee:
        For least squares that interpolates, E|error|^2 falls by 1 - 1/sqrt(k k~) a step, where stochastic gradient
        descent has 1 - 1/k and Nesterov's method with the same step diverges.

    Source:
        C. Liu and M. Belkin, "Accelerating SGD with momentum for over-parameterized learning", 2020 (arXiv
        1810.13395), section 4.
    """
    kappa = _condition_number("mass", smoothness, strong_convexity)
    remedy = "for Gaussian examples in d dimensions it is d + 2"
    checks.scalar(
        "mass",
        "statistical_condition_number",
        statistical_condition_number,
        "at least 1 and finite",
        lambda v: 1 <= v < float("inf"),
        remedy,
    )
    statistical = number(statistical_condition_number)
    bound = "smoothness / strong_convexity"
    checks.at_most("mass", "statistical_condition_number", statistical, bound, kappa, remedy)
    alpha = (kappa * statistical) ** -0.5
    eta = 1 / number(smoothness)
    compensation = eta * (1 - 1 / statistical) / (1 + alpha)
    rule = rules.mass(eta, compensation, (1 - alpha) / (1 + alpha))
    return optax.chain(scale_by_learning_rate(1.0), accelerate(rule))


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
