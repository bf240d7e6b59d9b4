"""PyTorch's and Keras' momentum, step for step, with the answer of each.

The conventions differ in the units of the buffer. In Keras (and the textbook) it is a velocity in units of the
parameters, which a change of the learning rate leaves alone; in PyTorch and Optax it is in units of the gradient, so
that a new rate rescales the velocity already gathered.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.descent import scale_by_learning_rate
from nagjax.mapped import varying_like
from nagjax.momentum.classical import constant, heavy_ball
from nagjax.scalars import as_scalar, increment, scalar_dtype, value_at
from nagjax.storage import full, scaled
from nagjax.transform import accelerate, check_floating, decode_checked, subtract_velocity
from nagjax.types import PyTree


class PytorchSgdState(NamedTuple):
    """State of `pytorch_sgd`."""

    momentum_buffer: PyTree  # m, in units of the gradient; the structure of the parameters, at least 32 bits
    readout: jax.Array  # of m, scalar: -(learning rate last used) * momentum with Nesterov, else 0
    age: jax.Array  # updates since the buffer was empty, int32 scalar
    step: jax.Array  # updates, for schedules; int32 scalar

    def answer(self, params: PyTree) -> PyTree:
        """x = params + (learning rate last used) * momentum * m with Nesterov, params otherwise."""
        return subtract_velocity(params, self.momentum_buffer, self.readout)

    def buffers(self) -> PyTree:
        """m, in units of the gradient."""
        return self.momentum_buffer

    def reset(self) -> "PytorchSgdState":
        """An empty buffer; the count of schedules goes on."""
        buffer, readout, age = trees.zeros((self.momentum_buffer, self.readout, self.age))
        return PytorchSgdState(buffer, readout, age, self.step)

    def scaled(self, factors: list[jax.Array]) -> "PytorchSgdState":
        """m times one scalar a leaf."""
        return self._replace(momentum_buffer=scaled(self.momentum_buffer, factors))


def pytorch_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: ArrayLike = 0.0,
    dampening: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.SGD`, step for step.

    With g = gradient (negated for `maximize`) + weight_decay * params::

        m      = g in the first update, then momentum * m + (1 - dampening) * g
        params = params - learning_rate * (g + momentum * m)    with Nesterov
        params = params - learning_rate * m                     without

    For constant rates this is `nesterov` (or the heavy ball) of this library. `optax.sgd` is the same without
    dampening, weight decay and an answer.

    Args:
        learning_rate: Step size, at least 0, or an Optax schedule of it.
        momentum: In [0, 1).
        dampening: In [0, 1]; must be 0 with Nesterov.
        weight_decay: Coupled decay, at least 0; other values than a Python 0 need `params` in `update`.
        nesterov: Whether to look ahead; needs a positive momentum.
        maximize: Whether to ascend.

    Returns:
        A gradient transformation. Memory: one buffer in at least 32 bits, three scalars.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is out of its range, or Nesterov is asked for without momentum or with dampening.

    Source:
        PyTorch's documentation of `torch.optim.SGD`, whose pseudocode this is.
    """
    name = "pytorch_sgd"
    if not callable(learning_rate):
        checks.nonnegative(name, "learning_rate", learning_rate, "PyTorch's default is 1e-3")
    checks.fraction(name, "momentum", momentum, "0.9 is usual")
    checks.scalar(name, "dampening", dampening, "in [0, 1]", lambda v: 0 <= v <= 1, "0 is usual")
    checks.nonnegative(name, "weight_decay", weight_decay, "typical values are 0 to 1e-2")
    if nesterov:
        positive = "positive with nesterov=True"
        checks.scalar(name, "momentum", momentum, positive, lambda v: v > 0, "0.9 is usual")
        checks.scalar(name, "dampening", dampening, "0 with nesterov=True", lambda v: v == 0, "leave it out")
    storage = full()
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)

    def init(params: PyTree) -> PytorchSgdState:
        check_floating(name, params)
        return PytorchSgdState(
            momentum_buffer=storage.init(trees.as_arrays(params)),
            readout=jnp.zeros((), scalar_dtype()),
            age=jnp.zeros((), jnp.int32),
            step=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PytorchSgdState]:
        del extra
        if decays and params is None:
            remedy = "weight decay needs them: call `update(gradients, state, params)`"
            checks.reject(name, "params", "passed to update", params, remedy)
        updates, params = trees.as_arrays(updates), trees.as_arrays(params)
        previous = decode_checked(name, storage, state.momentum_buffer, updates)
        rate = value_at(name, learning_rate, state.step)
        decay, first = as_scalar(momentum), state.age == 0
        damping = jnp.where(first, 1, 1 - as_scalar(dampening))

        def descent(g: jax.Array, m: jax.Array, y: Any) -> jax.Array:
            g = -g.astype(m.dtype) if maximize else g.astype(m.dtype)
            return g + trees.scaled(as_scalar(weight_decay), y.astype(m.dtype)) if decays else g

        def accumulate(g: jax.Array, m: jax.Array) -> jax.Array:
            return trees.scaled(decay, m) + trees.scaled(damping, g)

        def propose(u: jax.Array, g: jax.Array, m: jax.Array) -> jax.Array:
            direction = g + trees.scaled(decay, m) if nesterov else m
            return trees.scaled(-rate, direction).astype(u.dtype)

        gradients = trees.map_present(descent, updates, previous, params if decays else updates)
        buffer = trees.map_present(accumulate, gradients, previous)
        new_state = PytorchSgdState(
            momentum_buffer=storage.encode(buffer, state.momentum_buffer),
            readout=varying_like(-rate * decay if nesterov else jnp.zeros_like(rate), state.readout),
            age=increment(state.age),
            step=increment(state.step),
        )
        return trees.map_present(propose, updates, gradients, buffer), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def keras_sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: ArrayLike = 0.0, nesterov: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`keras.optimizers.SGD`, step for step.

    With the velocity v = momentum * v - learning_rate * g, parameters move by momentum * v - learning_rate * g with
    Nesterov and by v without.

    Args:
        learning_rate: Step size, at least 0, or an Optax schedule of it.
        momentum: In [0, 1).
        nesterov: Whether to look ahead.

    Returns:
        A gradient transformation; memory as in `accelerate`.

    Raises:
        TypeError: An argument is not a number.
        ValueError: A number is out of its range.

    Source:
        Keras's documentation of `keras.optimizers.SGD`.
    """
    if not callable(learning_rate):
        checks.nonnegative("keras_sgd", "learning_rate", learning_rate, "Keras's default is 1e-2")
    checks.fraction("keras_sgd", "momentum", momentum, "0.9 is usual")
    rule = constant(momentum) if nesterov else heavy_ball(momentum)
    return optax.chain(scale_by_learning_rate(learning_rate), accelerate(rule))
