"""PyTorch's Nadam, step for step."""

import optax
from jax.typing import ArrayLike

from nagjax import checks
from nagjax.adaptive.nadamw import check_optimizer, scale_by_nadam
from nagjax.descent import add_decayed_weights, scale_by_learning_rate
from nagjax.scalars import Schedule


def pytorch_nadam(
    learning_rate: ArrayLike | Schedule = 2e-3,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    momentum_decay: ArrayLike = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.NAdam`, step for step.

    The direction is that of `adaptive.scale_by_nadam(convention="pytorch")`. It looks ahead with the momenta
    mu_t = b1 (1 - 0.96^(t momentum_decay) / 2), which rise from b1 / 2 to b1, while the average of gradients decays
    with b1. For a large `momentum_decay` this is `optax.nadam`.

    Args:
        learning_rate: Step size, at least 0, or an Optax schedule of it.
        b1: In [0, 1).
        b2: In [0, 1).
        eps: At least 0.
        weight_decay: At least 0; other values than a Python 0 need `params` in `update`.
        momentum_decay: psi, at least 0.
        decoupled_weight_decay: Whether parameters decay by learning_rate * weight_decay; otherwise
            weight_decay * params is added to the gradient, after its sign is chosen.
        maximize: Whether to ascend.

    Returns:
        A gradient transformation whose answer is `params`; memory as in `adaptive.scale_by_nadam`. PyTorch keeps the
        product of the momenta in its default dtype, float32, so that its float64 runs agree to 1e-7 only; and it has
        two second moments for a complex entry.

    Raises:
        TypeError: A number is none, or parameters are not floating-point (raised by `init`).
        ValueError: A number is out of its range; `update` got no `params` to decay.

    Example:
        >>> import jax, nagjax
        >>> params, gradient = jax.numpy.array([1.0, -2.0]), jax.numpy.array([3.0, 0.1])
        >>> tx = nagjax.conventions.pytorch_nadam(0.1, momentum_decay=0.0)  # the momentum is 0.45
        >>> updates, state = tx.update(gradient, tx.init(params), params)
        >>> bool(abs(updates + 0.1 * (1 + 0.45 * 0.1 / (1 - 0.45**2))).max() < 1e-6)
        True

    Source:
        PyTorch's documentation of `torch.optim.NAdam`, whose pseudocode this is.
    """
    name = "pytorch_nadam"
    check_optimizer(name, learning_rate, weight_decay, eps, b1=b1, b2=b2)
    checks.nonnegative(name, "momentum_decay", momentum_decay, "PyTorch's default is 4e-3")
    decay = add_decayed_weights(weight_decay)
    direction = scale_by_nadam(b1, b2, eps, convention="pytorch", momentum_decay=momentum_decay)
    return optax.chain(
        optax.scale(-1.0) if maximize else optax.identity(),
        optax.identity() if decoupled_weight_decay else decay,
        direction,
        decay if decoupled_weight_decay else optax.identity(),
        scale_by_learning_rate(learning_rate),
    )
