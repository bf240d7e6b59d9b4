"""A step compiled to be repeated: in a loop inside one program, or called again where such a loop would be slow."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from nagjax.training.convolutions import slow_in_loops
from nagjax.training.device_data import DeviceData
from nagjax.training.layout import Layout
from nagjax.training.metrics import Metrics
from nagjax.training.placement import constrained, pinned
from nagjax.training.state import TrainState
from nagjax.training.step import TrainStep
from nagjax.types import PyTree

Carry = tuple[TrainState, Metrics]


class Repeated:
    """A step whose metrics are summed; `start` must see a state before the first call."""

    def __init__(self, step: TrainStep, layout: Layout | None, *, donate: bool) -> None:
        self._step: Any = jax.jit(step, inline=True)  # traced once, whatever program it is part of
        self._zeros: Metrics | None = None
        self._layout = layout
        self._places = None if layout is None else (layout.of(step), layout.whole)
        self._donated = (0,) if donate else ()
        self.in_loops = True

    @property
    def started(self) -> bool:
        """Whether the step has been traced."""
        return self._zeros is not None

    def start(self, state: TrainState, example: Callable[[], PyTree]) -> Metrics:
        """The metrics of no step; the first time a batch is made and the step traced."""
        if self._zeros is None:
            traced = self._step.trace(*jax.tree.map(_shape, (state, example())))
            self.in_loops = not slow_in_loops(traced.jaxpr)
            self._zeros = Metrics.zeros(traced.out_info[1])
        return self._zeros

    def program(self, function: Callable[..., Any], *, more: int = 0) -> Any:
        """A compiled function of a state and more, which returns a carry and `more` small trees."""
        if self._layout is None or self._places is None:
            return jax.jit(function, donate_argnums=self._donated)
        places = (*self._places, *(self._layout.whole for _ in range(more)))
        return pinned(function, places, donate_argnums=self._donated)

    def one(self, carry: Carry, batch: PyTree) -> Carry:
        """One more step."""
        state, metrics = carry
        if self._layout is not None:
            batch = constrained(batch, self._layout.batch)
        state, values = self._step(state, batch)
        return state, metrics.add(values)


class Stacked(Repeated):
    """Steps over the batches of a stack."""

    def __init__(self, step: TrainStep, count: int, layout: Layout | None, *, donate: bool) -> None:
        super().__init__(step, layout, donate=donate)
        self._count = count
        self._loop, self._single = self.program(self._scan), self.program(self._nth)

    def __call__(self, state: TrainState, metrics: Metrics, stack: PyTree) -> Carry:
        """Steps over the whole stack."""
        if self.in_loops:
            return self._loop(state, metrics, stack)
        for index in range(self._count):
            state, metrics = self._single(state, metrics, stack, np.int32(index))
        return state, metrics

    def _scan(self, state: TrainState, metrics: Metrics, stack: PyTree) -> Carry:
        def body(carry: Carry, batch: PyTree) -> tuple[Carry, None]:
            return self.one(carry, batch), None

        return jax.lax.scan(body, (state, metrics), stack)[0]

    def _nth(self, state: TrainState, metrics: Metrics, stack: PyTree, index: jax.Array) -> Carry:
        return self.one((state, metrics), nth(stack, index))


class Order(NamedTuple):
    """The rows of an epoch, kept on the device from call to call."""

    epoch: jax.Array
    rows: jax.Array  # shape (steps_per_epoch, batch_size)


class OverData(Repeated):
    """Any number of steps, up to an epoch, over data on the device; one compilation for all numbers."""

    def __init__(self, step: TrainStep, data: DeviceData, layout: Layout | None, *, donate: bool) -> None:
        super().__init__(step, layout, donate=donate)
        if layout is not None:
            layout.check_batch("DeviceData", "batch_size", (data.batch_size,), data.batch_size)
            data.check_place(layout.whole)
        self._data = data
        rows = np.zeros((data.steps_per_epoch, data.batch_size), np.int32)
        self._order = Order(cast("Any", np.int32(-1)), cast("Any", rows))
        self._loop, self._single = self.program(self._run, more=1), self.program(self._nth)
        self._draw_rows: Any = jax.jit(self._draw)

    def example(self, state: TrainState) -> PyTree:
        """The shapes of a batch."""
        rows = jax.ShapeDtypeStruct((self._data.batch_size,), jnp.int32)
        return jax.eval_shape(self._data.batch, self._data.arrays, rows, state.step)

    def __call__(self, state: TrainState, metrics: Metrics, count: int) -> Carry:
        """`count` steps, at most an epoch's."""
        arrays = self._data.arrays
        if self.in_loops:
            state, metrics, self._order = self._loop(state, metrics, self._order, arrays, np.int32(count))
            return state, metrics
        rows, self._order = self._draw_rows(state.step, self._order, np.int32(count))
        for index in range(count):
            state, metrics = self._single(state, metrics, arrays, rows, np.int32(index))
        return state, metrics

    def _run(
        self, state: TrainState, metrics: Metrics, order: Order, arrays: PyTree, count: jax.Array
    ) -> tuple[TrainState, Metrics, Order]:
        rows, order = self._draw(state.step, order, count)

        def body(index: jax.Array, carry: Carry) -> Carry:
            return self._nth(*carry, arrays, rows, index)

        state, metrics = cast("Any", jax.lax.fori_loop(jnp.int32(0), count, body, (state, metrics)))
        return state, metrics, order

    def _nth(self, state: TrainState, metrics: Metrics, arrays: PyTree, rows: jax.Array, index: jax.Array) -> Carry:
        return self.one((state, metrics), self._data.batch(arrays, rows[index], state.step))

    def _draw(self, step: jax.Array, order: Order, count: jax.Array) -> tuple[jax.Array, Order]:
        """The rows of the next steps, shape (steps_per_epoch, batch_size), of which the first `count` are valid."""
        whole = self._data.steps_per_epoch
        epoch, start = step // whole, step % whole
        crosses = start + count > whole

        def kept() -> jax.Array:
            return order.rows

        def present() -> jax.Array:
            return now

        def drawn() -> jax.Array:
            return self._data.order(epoch)

        def following() -> jax.Array:
            return self._data.order(epoch + 1)

        now = cast("jax.Array", jax.lax.cond(order.epoch == epoch, kept, drawn))
        after = cast("jax.Array", jax.lax.cond(crosses, following, present))
        rows = jax.lax.dynamic_slice_in_dim(jnp.concatenate([now, after]), start, whole)
        return rows, Order(epoch + crosses.astype(jnp.int32), after)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype alone: where an array lies does not matter to the trace."""
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def nth(stack: PyTree, index: Any) -> PyTree:
    """One tree of a stack of trees."""

    def take(leaf: jax.Array) -> jax.Array:
        return cast("jax.Array", jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False))

    return jax.tree.map(take, stack)
