"""Steps compiled as one program: one step a call, many steps a call, or an epoch over data on the device."""

from typing import Any, Protocol

import jax
import numpy as np

from nagjax import checks
from nagjax.training.device_data import DeviceData
from nagjax.training.layout import Layout, check_layout
from nagjax.training.loops import Carry, OverData, Repeated, Stacked
from nagjax.training.metrics import Metrics
from nagjax.training.state import TrainState
from nagjax.training.step import TrainStep
from nagjax.types import PyTree


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


def compiled(step: TrainStep, *, steps_per_call: int = 1, donate: bool = True, layout: Layout | None = None) -> Train:
    """A compiled train step, or several in one call.

    A call of one step costs what Python and the dispatch of every array cost, a microsecond or more each; many steps a
    call pay it once. On CPU a model with convolutions is called step by step all the same: XLA computes them slowly
    inside loops.

    Args:
        step: The step.
        steps_per_call: Number of steps n of a call, at least 1. For n > 1 every leaf of `batch` is a stack of n.
        donate: Whether the state given is overwritten, so that a step holds parameters, gradients and optimizer state
            once. The state given must then not be used again.
        layout: Where arrays lie on a mesh of devices, such as `sharding.zero1(mesh)`; begin with `layout.init(step)`.
            The state stays in its places. Batches of NumPy arrays are cut over the devices, in a run of several
            processes each giving its own part of the batch; arrays of JAX lie as `layout.batch` says, or are moved.

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
    check_layout("compiled", layout)
    if steps_per_call > 1:
        stacked = Stacked(step, steps_per_call, layout, donate=donate)

        def train_stack(state: TrainState, batch: PyTree, metrics: Metrics | None = None) -> Carry:
            _check_stacked(batch, steps_per_call)
            batch = batch if layout is None else layout.place("compiled", "batch", batch, stacked=True)
            zeros = stacked.start(state, lambda: jax.tree.map(_first, batch))
            return stacked(state, zeros if metrics is None else metrics, batch)

        return train_stack

    repeated = Repeated(step, layout, donate=donate)

    def one(state: TrainState, metrics: Metrics, batch: PyTree) -> Carry:
        return repeated.one((state, metrics), batch)

    program = repeated.program(one)

    def train(state: TrainState, batch: PyTree, metrics: Metrics | None = None) -> Carry:
        batch = batch if layout is None else layout.place("compiled", "batch", batch)
        zeros = repeated.start(state, lambda: batch)
        return program(state, zeros if metrics is None else metrics, batch)

    return train


def compiled_epoch(
    step: TrainStep,
    data: DeviceData,
    *,
    steps: int | None = None,
    donate: bool = True,
    layout: Layout | None = None,
) -> Epoch:
    """An epoch, or a number of steps, over data on the device as one program that also draws its batches.

    The batches are those of the steps `state.step`, `state.step + 1`, ... of `data`, into the next epoch where they
    reach its end. On CPU a model with convolutions runs as one program a step, as in `compiled`.

    Args:
        step: The step.
        data: The data.
        steps: Steps of a call, from 1 to `data.steps_per_epoch`, which is the default.
        donate: As in `compiled`.
        layout: As in `compiled`; the data lies whole on every device, `DeviceData(..., sharding=layout.whole)`.

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

    check_layout("compiled_epoch", layout)
    loop = OverData(step, data, layout, donate=donate)

    def epoch(state: TrainState, metrics: Metrics | None = None) -> Carry:
        zeros = loop.start(state, lambda: loop.example(state))
        return loop(state, zeros if metrics is None else metrics, count)

    return epoch


def _first(leaf: Any) -> Any:
    return leaf[0]


def _check_stacked(batch: PyTree, steps: int) -> None:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if any(shape[:1] != (steps,) for shape in shapes):
        condition = f"a tree of stacks of steps_per_call = {steps} batches"
        checks.reject("compiled", "batch", condition, shapes, "stack batches along a new first axis")
