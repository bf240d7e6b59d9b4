"""Where `fit` gets its batches: data on the device, or a stream; one call of the compiled program at a time."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from nagjax import checks
from nagjax.training.compiled import Carry, Train, compiled, compiled_epoch
from nagjax.training.device_data import DeviceData
from nagjax.training.metrics import Metrics
from nagjax.training.prefetch import Prefetch, to_device
from nagjax.training.step import TrainState, TrainStep
from nagjax.types import PyTree

DEFAULT_STEPS = 100  # of one call on data on the device
AHEAD = 2  # stacks on their way to the device

Cursor = dict[str, Any]
Call = Callable[[TrainState, Metrics | None], Carry]


class Feed(Protocol):
    """The calls of one epoch after another."""

    steps_per_epoch: int | None  # None where only the end of the data tells

    def calls(self, done: int) -> Iterator[tuple[int, Call]]:
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

    def __init__(self, step: TrainStep, data: DeviceData, steps_per_call: int | None) -> None:
        self.steps_per_epoch: int | None = data.steps_per_epoch
        self._step, self._data = step, data
        self._most = min(steps_per_call or DEFAULT_STEPS, data.steps_per_epoch)
        self._programs: dict[int, Call] = {}

    def calls(self, done: int) -> Iterator[tuple[int, Call]]:
        """As in `Feed`."""
        while done < self._data.steps_per_epoch:
            count = min(self._most, self._data.steps_per_epoch - done)
            if count not in self._programs:
                self._programs[count] = compiled_epoch(self._step, self._data, steps=count)
            yield count, self._programs[count]
            done += count

    def cursor(self) -> None:
        """None: the state has the step counter."""

    def restore(self, cursor: Any) -> None:
        """Nothing is left to do."""


class StreamFeed:
    """Batches of an iterable, sent ahead to the device, several of them stacked where a call takes several.

    An epoch is one pass, or `steps_per_epoch` batches of a pass that goes on from epoch to epoch.
    """

    def __init__(
        self, step: TrainStep, data: Iterable[PyTree], steps_per_call: int | None, steps_per_epoch: int | None
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        self._step, self._data, self._most = step, data, steps_per_call or 1
        self._programs: dict[int, Train] = {}
        self._ahead: Prefetch | None = None
        self._passes = 0
        self._read = 0  # batches read from this pass
        self._taken = 0  # batches of this pass that calls were given

    def calls(self, done: int) -> Iterator[tuple[int, Call]]:
        """As in `Feed`."""
        if done == self.steps_per_epoch:
            return
        ahead = self._ahead or self._open()
        for count, batch in ahead:
            self._taken += count
            yield count, functools.partial(self._call, count, batch)
            done += count
            if done == self.steps_per_epoch:
                return
        self._ahead, self._taken = None, 0
        if self.steps_per_epoch is not None:
            condition = f"long enough for epochs of steps_per_epoch = {self.steps_per_epoch}"
            checks.reject("fit", "data", condition, f"its end after {done}", "repeat it, or leave out steps_per_epoch")

    def cursor(self) -> Cursor:
        """Batches taken from this pass, and the state of its iterator where it has one."""
        return {"taken": self._taken, "source": None if self._ahead is None else self._ahead.get_state()}

    def restore(self, cursor: Any) -> None:
        """As in `Feed`; an iterator without a state is read up to the place."""
        ahead = self._open()
        if cursor["source"] is not None:
            ahead.set_state(cursor["source"])
        self._read = self._taken = cursor["taken"]
        if cursor["source"] is None:
            ahead.skip(cursor["taken"])

    def _open(self) -> Prefetch:
        if self._passes and iter(self._data) is self._data:
            remedy = "pass what can be iterated anew, or give steps_per_epoch"
            checks.reject("fit", "data", "an iterable for more than one epoch", "an iterator that is used up", remedy)
        self._passes += 1
        self._read = self._taken = 0
        self._ahead = Prefetch(self._data, AHEAD, self._stack)
        return self._ahead

    def _stack(self, source: Iterator[PyTree]) -> tuple[int, PyTree]:
        """As many of the next batches as one call takes, without those of the next epoch."""
        left = self._most if self.steps_per_epoch is None else self.steps_per_epoch - self._read % self.steps_per_epoch
        batches = list(itertools.islice(source, min(self._most, left)))
        if not batches:
            raise StopIteration
        self._read += len(batches)
        batch = batches[0] if len(batches) == 1 else jax.tree.map(_stacked, *batches)
        return len(batches), to_device(batch)

    def _call(self, count: int, batch: PyTree, state: TrainState, metrics: Metrics | None) -> Carry:
        if count not in self._programs:
            self._programs[count] = compiled(self._step, steps_per_call=count)
        return self._programs[count](state, batch, metrics)


def _stacked(*leaves: Any) -> Any:
    return np.stack(leaves)
