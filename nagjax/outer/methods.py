"""Outer methods under their names: `periodic` with the outer step that each was published with."""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from nagjax import checks
from nagjax.descent import scale_by_learning_rate
from nagjax.mapped import AxisName
from nagjax.methods import nesterov
from nagjax.outer.periodic import periodic
from nagjax.outer.rounds import Phase
from nagjax.types import Momentum


def snoo(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule = 0.7,
    momentum: ArrayLike | optax.Schedule | Momentum = 0.9,
    period: int | jax.Array = 30,
    *,
    axis_name: AxisName | None = None,
    phase: Phase = "end",
    reset_inner: bool = False,
    slow_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Nesterov momentum over the pseudo-gradients D of any inner optimizer: b = mu b + D, s = s - lr (D + mu b).

    It is `periodic` with `nagjax.nesterov(learning_rate, momentum)` outside. Schedules count synchronizations.

    Args:
        inner: As in `periodic`; optimizers such as `optax.adamw` or `optax.contrib.muon`.
        learning_rate: lr of the outer step, at least 0, or a schedule of it. It has no unit: 1 without momentum goes
            to where the inner steps end. Typical values are 0.4 to 0.8; the default is DiLoCo's.
        momentum: mu, as in `accelerate`. Typical values are 0.4 to 0.9; the default is DiLoCo's.
        period: K, as in `periodic`. Typical values are 10 to 100 for one worker.
        axis_name: As in `periodic`.
        phase: As in `periodic`.
        reset_inner: As in `periodic`.
        slow_dtype: As in `periodic`.

    Returns:
        A gradient transformation as that of `periodic`. Memory: s and the outer velocity, 8 bytes a parameter of at
        most 32 bits, and the inner state.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or a name unknown.

    Guarantee:
        Over gradient descent with the step a on a quadratic, the slow weights are those of Nesterov's method with the
        step lr on the quadratic with the eigenvalues 1 - (1 - a l)^K in place of l.

    Example:
        >>> import jax.numpy as jnp, nagjax, optax
        >>> from nagjax import outer
        >>> optimizer = outer.snoo(optax.sgd(0.1), learning_rate=0.7, momentum=0.5, period=10)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(300):
        ...     updates, state = optimizer.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(abs(nagjax.eval_params(params, state)).max() < 1e-3)
        True

    Source:
        D. Kallusky, V. Rao, V. Nandavanam and H.-J. Shi, "SNOO: Step-K Nesterov Outer Optimizer. The surprising
        effectiveness of Nesterov momentum applied to pseudo-gradients", 2025 (arXiv 2510.15830). Values for lr and
        mu: A. Douillard et al., "DiLoCo: distributed low-communication training of language models", 2023; the
        period: Z. Charles et al., "Communication-efficient language model training scales reliably and robustly:
        scaling laws for DiLoCo", 2025 (arXiv 2503.09799), where lr = 0.4 is best for one worker.
    """
    _check("outer.snoo", inner, learning_rate, "typical values are 0.4 to 0.8")
    return periodic(
        inner,
        nesterov(learning_rate, momentum),
        period,
        axis_name,
        phase=phase,
        reset_inner=reset_inner,
        slow_dtype=slow_dtype,
    )


def lookahead(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule = 0.5,
    period: int | jax.Array = 6,
    *,
    axis_name: AxisName | None = None,
    phase: Phase = "end",
    reset_inner: bool = False,
    slow_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lookahead on plain parameters: after every `period` inner steps, s = s + lr (y - s) and y = s.

    The iterates are those of `optax.lookahead`, which trains a pair of parameters instead. Its answer is s, at which
    the authors evaluate models.

    Args:
        inner: As in `periodic`.
        learning_rate: lr, the paper's alpha, at least 0, or a schedule of it by synchronizations. The paper uses 0.5
            and 0.8.
        period: K, the paper's k, as in `periodic`. The paper uses 5 to 20.
        axis_name: As in `periodic`; with lr = 1 this is local SGD with averaged parameters.
        phase: As in `periodic`.
        reset_inner: As in `periodic`.
        slow_dtype: As in `periodic`.

    Returns:
        A gradient transformation as that of `periodic`. Memory: s, 4 bytes a parameter of at most 32 bits, and the
        inner state.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or a name unknown.

    Source:
        M. Zhang, J. Lucas, G. Hinton and J. Ba, "Lookahead optimizer: k steps forward, 1 step back", 2019, Algorithm 1.
    """
    _check("outer.lookahead", inner, learning_rate, "typical values are 0.5 and 0.8")
    return periodic(
        inner,
        scale_by_learning_rate(learning_rate),
        period,
        axis_name,
        phase=phase,
        reset_inner=reset_inner,
        slow_dtype=slow_dtype,
    )


def _check(function: str, inner: Any, learning_rate: optax.ScalarOrSchedule, remedy: str) -> None:
    checks.transformation(function, "inner", inner, "call the factory first, as in optax.sgd(0.1)")
    if not callable(learning_rate):
        checks.nonnegative(function, "learning_rate", learning_rate, remedy)
