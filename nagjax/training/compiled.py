"""Steps compiled as one program: one step a call, many steps a call, or an epoch over data on the device."""

from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks
from nagjax.training.device_data import DeviceData
from nagjax.training.metrics import Metrics
from nagjax.training.step import TrainState, TrainStep, first
from nagjax.types import PyTree

Carry = tuple[TrainState, Metrics]


class Train(Protocol):
    """A compiled step, or several; the state given is used up where it is donated."""

    def __call__(self, state: TrainState, batch: PyTree, metrics: Metrics | None = None) -> Carry:
        """The next state, and the metrics so far with those of the batch added."""
        ...


class Epoch(Protocol):
    """A compiled epoch; the state given is used up where it is donated."""

    def __call__(self, state: TrainState, metrics: Metrics | None = None) -> Carry:
        """The state after the epoch, and the metrics so far with those of the epoch added."""
        ...


def compiled(step: TrainStep, *, steps_per_call: int = 1, donate: bool = True) -> Train:
    """A compiled train step, or several in one call.

    A call of one step costs what Python and the dispatch of every array cost, a microsecond or more each; many steps a
    call pay it once.

    Args:
        step: The step.
        steps_per_call: Number of steps n of a call, at least 1. For n > 1 every leaf of `batch` is a stack of n.
        donate: Whether the state given is overwritten, so that a step holds parameters, gradients and optimizer state
            once. The state given must then not be used again.

    Returns:
        `train(state, batch, metrics=None) -> (state, metrics)`. Metrics are sums on the device, from 0 or from those
        that are passed; nothing is fetched before `metrics.means()`.

    Raises:
        TypeError, ValueError: `steps_per_call` is not an integer of at least 1.

    Example:
        >>> import jax.numpy as jnp, nagjax
        >>> def loss(params, batch):
        ...     return jnp.mean((params["w"] - batch) ** 2)
        >>> step = nagjax.training.TrainStep({"w": jnp.float32(1)}, loss, nagjax.nesterov(0.1))
        >>> train = nagjax.training.compiled(step, steps_per_call=50)
        >>> state, metrics = train(step.init(), jnp.zeros((50, 8), jnp.float32))
        >>> bool(state.step == 50) and 0 < metrics.means()["loss"] < 1
        True
    """
    checks.whole("compiled", "steps_per_call", steps_per_call, 1, "1 dispatches every step by itself")

    def run(state: TrainState, metrics: Metrics, batch: PyTree) -> Carry:
        if steps_per_call == 1:
            return _one(step, (state, metrics), batch)

        def one(carry: Carry, part: PyTree) -> tuple[Carry, None]:
            return _one(step, carry, part), None

        return jax.lax.scan(one, (state, metrics), batch)[0]

    program: Any = jax.jit(run, donate_argnums=(0,) if donate else ())
    zeros = _Zeros(step)

    def train(state: TrainState, batch: PyTree, metrics: Metrics | None = None) -> Carry:
        if steps_per_call > 1:
            _check_stacked(batch, steps_per_call)
        if metrics is None:
            metrics = zeros(state, batch if steps_per_call == 1 else first(batch))
        return program(state, metrics, batch)

    return train


def compiled_epoch(step: TrainStep, data: DeviceData, *, steps: int | None = None, donate: bool = True) -> Epoch:
    """An epoch, or a number of steps, over data on the device as one program that also draws its batches.

    The batches are those of the steps `state.step`, `state.step + 1`, ... of `data`, into the next epoch where they
    reach its end.

    Args:
        step: The step.
        data: The data.
        steps: Steps of a call, from 1 to `data.steps_per_epoch`, which is the default.
        donate: As in `compiled`.

    Returns:
        `epoch(state, metrics=None) -> (state, metrics)`, as in `compiled`.

    Raises:
        TypeError, ValueError: `steps` is not an integer of this range.

    Example:
        >>> import jax.numpy as jnp, nagjax
        >>> def loss(params, batch):
        ...     return jnp.mean((params["w"] - batch) ** 2)
        >>> step = nagjax.training.TrainStep({"w": jnp.float32(1)}, loss, nagjax.nesterov(0.1))
        >>> data = nagjax.training.DeviceData(jnp.zeros(100, jnp.float32), batch_size=10)
        >>> state, metrics = nagjax.training.compiled_epoch(step, data)(step.init())
        >>> int(state.step)
        10
    """
    whole = data.steps_per_epoch
    count = whole if steps is None else steps
    checks.whole("compiled_epoch", "steps", count, 1, "None takes a whole epoch")
    checks.at_most("compiled_epoch", "steps", count, "the steps of an epoch", whole, "call it once an epoch")

    def run(state: TrainState, metrics: Metrics, arrays: PyTree) -> Carry:
        epoch, start = state.step // whole, state.step % whole

        def following() -> jax.Array:
            return data.order(epoch + 1)

        def unused() -> jax.Array:
            return jnp.zeros_like(order)

        order = data.order(epoch)
        after = cast("jax.Array", jax.lax.cond(start + count > whole, following, unused))
        rows = jax.lax.dynamic_slice_in_dim(jnp.concatenate([order, after]), start, count)

        def one(carry: Carry, rows: jax.Array) -> tuple[Carry, None]:
            return _one(step, carry, data.batch(arrays, rows, carry[0].step)), None

        return jax.lax.scan(one, (state, metrics), rows)[0]

    program: Any = jax.jit(run, donate_argnums=(0,) if donate else ())
    zeros = _Zeros(step)

    def epoch(state: TrainState, metrics: Metrics | None = None) -> Carry:
        if metrics is None:
            rows = jax.ShapeDtypeStruct((data.batch_size,), jnp.int32)
            metrics = zeros(state, jax.eval_shape(data.batch, data.arrays, rows, state.step))
        return program(state, metrics, data.arrays)

    return epoch


def _one(step: TrainStep, carry: Carry, batch: PyTree) -> Carry:
    state, metrics = carry
    state, values = step(state, batch)
    return state, metrics.add(values)


class _Zeros:
    """Metrics of no step, whose names are those that a first trace of the step finds."""

    def __init__(self, step: TrainStep) -> None:
        self._step = step
        self._values: Any = None

    def __call__(self, state: TrainState, batch: PyTree) -> Metrics:
        if self._values is None:
            _, self._values = jax.eval_shape(self._step, state, batch)
        return Metrics.zeros(self._values)


def _check_stacked(batch: PyTree, steps: int) -> None:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if any(shape[:1] != (steps,) for shape in shapes):
        condition = f"a tree of stacks of steps_per_call = {steps} batches"
        checks.reject("compiled", "batch", condition, shapes, "stack batches along a new first axis")
