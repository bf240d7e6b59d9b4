"""Where `fit` gets its batches: data on the device, or a stream; one call of a compiled program at a time."""

import base64
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nagjax import checks
from nagjax.training.compiled import Train, compiled
from nagjax.training.device_data import DeviceData
from nagjax.training.layout import Layout
from nagjax.training.loops import Carry, OverData
from nagjax.training.metrics import Metrics
from nagjax.training.prefetch import Prefetch, own, to_device
from nagjax.training.state import TrainState
from nagjax.training.step import TrainStep
from nagjax.types import PyTree

DEFAULT_STEPS = 100  # of one call on data on the device, where that is soon done
LONG = 1.0  # seconds of a call, after which signals and checkpoints would wait too long

_BASE64 = "base64"

Call = Callable[[TrainState, Metrics | None], Carry]
Room = Callable[[], int]  # steps until the run wants to look at the state


class Feed(Protocol):
    """The calls of one epoch after another."""

    steps_per_epoch: int | None  # None where only the end of the data tells
    batches: int | None  # what an epoch is expected to have, for the time left

    def describe(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one, as JSON knows it."""
        ...

    def calls(self, done: int, room: Room) -> Iterator[tuple[int, Call]]:
        """What is left of an epoch of which `done` steps are done: calls, each with its number of steps."""
        ...

    def cursor(self) -> Any:
        """What it takes to continue after the last call, as JSON knows it."""
        ...

    def restore(self, cursor: Any) -> None:
        """Continues where `cursor` was taken."""
        ...


class DeviceFeed:
    """Data on the device, whose batches the step counter of the state determines."""

    def __init__(self, step: TrainStep, data: DeviceData, steps_per_call: int | None, layout: Layout | None) -> None:
        self.steps_per_epoch: int | None = data.steps_per_epoch
        self.batches: int | None = data.steps_per_epoch
        self._data = data
        self._loop = OverData(step, data, layout, donate=True)
        self._most = min(steps_per_call or DEFAULT_STEPS, data.steps_per_epoch)
        self._adapts = steps_per_call is None and jax.process_count() == 1  # all processes make the same calls

    def describe(self) -> dict[str, Any]:
        """As in `Feed`."""
        return {name: getattr(self._data, name) for name in ("examples", "batch_size", "seed")}

    def calls(self, done: int, room: Room) -> Iterator[tuple[int, Call]]:
        """As in `Feed`; calls that take long are followed by shorter ones."""
        while done < self._data.steps_per_epoch:
            count = min(self._most if self._loop.in_loops else 1, room(), self._data.steps_per_epoch - done)
            compiles, began = not self._loop.started, time.perf_counter()
            yield count, functools.partial(self._call, count)
            done += count
            # The device is at most a few calls behind, so this is about the time of one call.
            if self._adapts and not compiles and time.perf_counter() - began > LONG:
                self._most = max(1, count // 2)

    def cursor(self) -> None:
        """None: the state has the step counter."""

    def restore(self, cursor: Any) -> None:
        """Nothing is left to do."""

    def _call(self, count: int, state: TrainState, metrics: Metrics | None) -> Carry:
        zeros = self._loop.start(state, lambda: self._loop.example(state))
        return self._loop(state, zeros if metrics is None else metrics, count)


class StreamFeed:
    """Batches of an iterable, several of them stacked where a call takes several.

    An epoch is one pass, or `steps_per_epoch` batches of a pass that goes on from epoch to epoch. A batch is read while
    the steps before it run, and none is read that is not trained on.
    """

    def __init__(
        self,
        step: TrainStep,
        data: Iterable[PyTree],
        steps_per_call: int | None,
        steps_per_epoch: int | None,
        layout: Layout | None,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        length = len(data) if isinstance(data, Sized) else None
        self.batches = length if steps_per_epoch is None else steps_per_epoch
        self._step, self._data, self._most, self._layout = step, data, steps_per_call or 1, layout
        self._programs: dict[int, Train] = {}
        self._batches: Prefetch | None = None
        self._taken = 0  # batches of this pass

    def describe(self) -> dict[str, Any]:
        """As in `Feed`."""
        return {"steps_per_epoch": self.steps_per_epoch}

    def calls(self, done: int, room: Room) -> Iterator[tuple[int, Call]]:
        """As in `Feed`."""
        if done == self.steps_per_epoch:
            return
        for count, batch in self._batches or self._open():
            self._taken += count
            done += count
            yield count, functools.partial(self._call, count, batch)
            if done == self.steps_per_epoch:
                return
        found = "an empty one" if not self._taken else f"its end after {done}"
        self._batches, self._taken = None, 0
        if self.steps_per_epoch is not None:
            condition = f"long enough for epochs of steps_per_epoch = {self.steps_per_epoch}"
            checks.reject("fit", "data", condition, found, "repeat it, or leave out steps_per_epoch")
        if not done:
            checks.reject("fit", "data", "an iterable of at least one batch", found, "iterators are used up by a pass")

    def cursor(self) -> dict[str, Any]:
        """Batches taken from this pass, and the state of its iterator where it has one."""
        state = None if self._batches is None else self._batches.get_state()
        if isinstance(state, bytes):  # that of Grain's DataLoader
            state = {_BASE64: base64.b64encode(state).decode()}
        return {"taken": self._taken, "source": state}

    def restore(self, cursor: Any) -> None:
        """As in `Feed`; an iterator without a state is read up to the place."""
        state: Any = cursor["source"]
        self._taken = cursor["taken"]
        if not self._taken:
            return
        batches = self._open()
        if state is None:
            batches.skip(self._taken)
        else:
            batches.set_state(base64.b64decode(state[_BASE64]) if _BASE64 in state else state)

    def _open(self) -> Prefetch:
        self._batches = Prefetch(self._data, 1, self._read)
        return self._batches

    def _read(self, source: Iterator[PyTree]) -> tuple[int, PyTree]:
        """As many of the next batches as one call takes, without those of the next epoch."""
        most = self._most
        if self.steps_per_epoch is not None:
            most = min(most, self.steps_per_epoch - self._taken % self.steps_per_epoch)
        batches: list[PyTree] = [own(batch) for batch in itertools.islice(source, most)]
        if not batches:
            raise StopIteration
        batch: PyTree = batches[0] if len(batches) == 1 else jax.tree.map(_stacked, *batches)
        if self._layout is None:
            return len(batches), to_device(batch)
        return len(batches), self._layout.place("fit", "data", batch, stacked=len(batches) > 1)

    def _call(self, count: int, batch: PyTree, state: TrainState, metrics: Metrics | None) -> Carry:
        if count not in self._programs:
            self._programs[count] = compiled(self._step, steps_per_call=count, layout=self._layout)
        return self._programs[count](state, batch, metrics)


def _stacked(*leaves: Any) -> Any:
    shapes: set[tuple[int, ...]] = {np.shape(leaf) for leaf in leaves}
    if len(shapes) > 1:
        remedy = "drop the last batch of an epoch (drop_remainder=True), or let a call take one step"
        checks.reject("fit", "data", "batches of one shape where a call takes several", sorted(shapes), remedy)
    return jnp.stack(leaves) if any(isinstance(leaf, jax.Array) for leaf in leaves) else np.stack(leaves)
