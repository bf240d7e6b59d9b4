"""`step`, the proximal step as a gradient transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import varying_like
from nagjax.proximal.prox import Prox
from nagjax.scalars import Schedule, as_scalar, evaluate, increment, scalar_dtype
from nagjax.types import PyTree


class ProximalStepState(NamedTuple):
    """State of `step`."""

    steps: jax.Array  # updates so far, int32 scalar
    step_size: jax.Array  # s of the last update; scalar, float32 or float64


def step(prox: Prox, step_size: ArrayLike | Schedule | None = None) -> optax.GradientTransformationExtraArgs:
    """Turn a gradient step u into the proximal step prox_{s h}(y + u) - y.

    It stands between the step size and `accelerate`, and takes the same step size s::

        optax.chain(optax.scale(-s), proximal.step(proximal.l1(0.1), s), accelerate(momentum.fista()))

    is FISTA for f + 0.1 |x|_1 with the gradient of f.

    Args:
        prox: h, from `nagjax.proximal`.
        step_size: s, positive, or the Optax schedule that scales the gradient. None takes the keyword argument
            `step_size` of `update`, which the wrappers of `nagjax.step_sizes` give.

    Returns:
        A gradient transformation that needs `params`. State: two scalars.

    Raises:
        TypeError: `prox` is not a `Prox`, or `step_size` not a number.
        ValueError: `step_size` is not positive; `update` got neither `params` nor a step size.

    Example:
        >>> import jax, jax.numpy as jnp, nagjax, optax
        >>> from nagjax import momentum, proximal
        >>> f = lambda x: jnp.sum((x - jnp.array([3.0, 0.05])) ** 2) / 2
        >>> tx = optax.chain(
        ...     optax.scale(-0.5), proximal.step(proximal.l1(0.1), 0.5), nagjax.accelerate(momentum.fista()))
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for _ in range(200):
        ...     updates, state = tx.update(jax.grad(f)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(abs(nagjax.eval_params(params, state) - jnp.array([2.9, 0.0])).max() < 1e-5)
        True
    """
    check_prox("proximal.step", prox)
    if step_size is not None and not callable(step_size):
        checks.positive("proximal.step", "step_size", step_size, "give the step size that scales the gradient")

    def init(params: PyTree) -> optax.OptState:
        del params
        if step_size is None:
            return optax.EmptyState()  # the wrapper's state has the step size
        return ProximalStepState(jnp.zeros((), jnp.int32), jnp.zeros((), scalar_dtype()))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        if params is None:
            remedy = "the proximal operator acts on them: call `update(gradients, state, params)`"
            checks.reject("proximal.step", "params", "passed to update", None, remedy)
        if callable(step_size):
            s = evaluate("proximal.step", step_size, state.steps)
        else:
            given: Any = extra.get("step_size") if step_size is None else step_size
            if given is None:
                remedy = "pass it to proximal.step, or put the chain into a wrapper of nagjax.step_sizes"
                checks.reject("proximal.step", "step_size", "known", None, remedy)
            s = as_scalar(given)
        updates, params = trees.as_arrays(updates), trees.as_arrays(params)
        proposed = prox.prox(trees.add(trees.wide(updates, updates), params), s)
        updates = trees.like(updates, trees.difference(proposed, params))
        if step_size is None:
            return updates, state
        return updates, ProximalStepState(increment(state.steps), varying_like(s, state.step_size))

    return optax.GradientTransformationExtraArgs(init, update)


def check_prox(function: str, prox: object) -> None:
    """Check that `prox` is a `Prox`."""
    if not isinstance(prox, Prox):
        remedy = "take one from nagjax.proximal, or write Prox(value, prox)"
        checks.reject(function, "prox", "a nagjax.proximal.Prox", prox, remedy, TypeError)
