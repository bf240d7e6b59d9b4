"""Steps compiled as one program: one step a call, many steps a call, or an epoch over data on the device."""

from collections.abc import Callable
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks
from nagjax.training.device_data import DeviceData
from nagjax.training.loops import Body, Prepare, repeated, slow_in_scan
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
    call pay it once. On CPU a model with convolutions is called step by step all the same: XLA computes them slowly
    inside loops.

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
    one_call = steps_per_call == 1

    def body(carry: Carry, index: Any, batch: PyTree) -> Carry:
        return _one(step, carry, batch if one_call else _nth(batch, index))

    loop = _Loop(step, body, steps_per_call, donate)

    def train(state: TrainState, batch: PyTree, metrics: Metrics | None = None) -> Carry:
        if not one_call:
            _check_stacked(batch, steps_per_call)
        return loop(state, metrics, batch, lambda: batch if one_call else first(batch))

    return train


def compiled_epoch(step: TrainStep, data: DeviceData, *, steps: int | None = None, donate: bool = True) -> Epoch:
    """An epoch, or a number of steps, over data on the device as one program that also draws its batches.

    The batches are those of the steps `state.step`, `state.step + 1`, ... of `data`, into the next epoch where they
    reach its end. On CPU a model with convolutions runs as one program a step, as in `compiled`.

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

    def rows(step: jax.Array) -> jax.Array:
        epoch, start = step // whole, step % whole

        def following() -> jax.Array:
            return data.order(epoch + 1)

        def unused() -> jax.Array:
            return jnp.zeros_like(order)

        order = data.order(epoch)
        after = cast("jax.Array", jax.lax.cond(start + count > whole, following, unused))
        return jax.lax.dynamic_slice_in_dim(jnp.concatenate([order, after]), start, count)

    def body(carry: Carry, index: Any, operands: tuple[PyTree, jax.Array]) -> Carry:
        arrays, rows = operands
        return _one(step, carry, data.batch(arrays, rows[index], carry[0].step))

    def prepare(state: TrainState, arrays: PyTree) -> tuple[PyTree, jax.Array]:
        return arrays, rows(state.step)

    loop = _Loop(step, body, count, donate, prepare)

    def example(state: TrainState) -> PyTree:
        row = jax.ShapeDtypeStruct((data.batch_size,), jnp.int32)
        return jax.eval_shape(data.batch, data.arrays, row, state.step)

    def epoch(state: TrainState, metrics: Metrics | None = None) -> Carry:
        return loop(state, metrics, data.arrays, lambda: example(state))

    return epoch


def _one(step: TrainStep, carry: Carry, batch: PyTree) -> Carry:
    state, metrics = carry
    state, values = step(state, batch)
    return state, metrics.add(values)


class _Loop:
    """A number of steps, compiled when they are first called: only then is it known what they compute and report."""

    def __init__(self, step: TrainStep, body: Body, count: int, donate: bool, prepare: Prepare | None = None) -> None:
        self._step, self._body, self._count, self._donate = step, body, count, donate
        self._prepare = prepare
        self._values: Any = None
        self._run: Any = None

    def __call__(
        self, state: TrainState, metrics: Metrics | None, operands: PyTree, example: Callable[[], PyTree]
    ) -> Carry:
        if self._run is None:
            trace: Any = jax.make_jaxpr(self._step, return_shape=True)
            jaxpr, (_, self._values) = trace(state, example())
            in_scan = self._count > 1 and not slow_in_scan(jaxpr)
            self._run = repeated(self._body, self._count, prepare=self._prepare, in_scan=in_scan, donate=self._donate)
        return self._run(state, Metrics.zeros(self._values) if metrics is None else metrics, operands)


def _nth(stack: PyTree, index: Any) -> PyTree:
    def take(leaf: jax.Array) -> jax.Array:
        return cast("jax.Array", jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False))

    return jax.tree.map(take, stack)


def _check_stacked(batch: PyTree, steps: int) -> None:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if any(shape[:1] != (steps,) for shape in shapes):
        condition = f"a tree of stacks of steps_per_call = {steps} batches"
        checks.reject("compiled", "batch", condition, shapes, "stack batches along a new first axis")
