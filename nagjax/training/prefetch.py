"""Batches on their way to the device while the steps before them run."""

import collections
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
import numpy as np

from nagjax import checks
from nagjax.training.distributed import global_batch
from nagjax.types import PyTree


class Prefetch(Iterator[Any]):
    """Items that `read(source)` makes ahead of their use; see `prefetch`."""

    def __init__(self, batches: Iterable[PyTree], size: int, read: Callable[[Iterator[PyTree]], Any]) -> None:
        self._source: Any = iter(batches)
        self._size, self._read = size, read
        self._ready: collections.deque[tuple[Any, Any]] = collections.deque()
        self._state = self._source_state()

    @property
    def has_state(self) -> bool:
        """Whether the source says where it is, as Grain's iterators do."""
        return hasattr(self._source, "get_state") and hasattr(self._source, "set_state")

    def __next__(self) -> Any:
        """The next item."""
        while len(self._ready) < self._size:
            try:
                item = self._read(self._source)
            except StopIteration:
                break
            self._ready.append((item, self._source_state()))
        if not self._ready:
            raise StopIteration
        item, self._state = self._ready.popleft()
        return item

    def get_state(self) -> Any:
        """The state of the source after the last item that was handed out; None where the source has no state."""
        return self._state

    def set_state(self, state: Any) -> None:
        """Continues after the item at which `get_state` gave this state."""
        if not self.has_state:
            found = type(self._source).__name__
            remedy = "pass a Grain dataset, say"
            checks.reject("Prefetch.set_state", "batches", "an iterator with set_state", found, remedy)
        self._ready.clear()
        self._source.set_state(state)
        self._state = state

    def skip(self, count: int) -> None:
        """Passes over batches of the source, which must have no state and nothing made ahead."""
        for _ in itertools.islice(self._source, count):
            pass

    def _source_state(self) -> Any:
        return copy.deepcopy(self._source.get_state()) if self.has_state else None


def own(batch: PyTree) -> PyTree:
    """A batch in memory of its own: a source may use its buffers again."""

    def copied(leaf: Any) -> Any:
        return cast("Any", leaf).copy() if isinstance(leaf, np.ndarray) else leaf

    return jax.tree.map(copied, batch)


def to_device(batch: PyTree, sharding: jax.sharding.Sharding | None = None) -> PyTree:
    """A batch, which must not be written to any more, on the device.

    `may_alias=False` of `device_put` would not keep it from reading a buffer after it has returned. Where a sharding
    has devices of other processes, the batch is this process's rows of a global one.
    """
    if sharding is not None and not sharding.is_fully_addressable:
        return global_batch(batch, sharding)
    return jax.device_put(batch, sharding)


def prefetch(batches: Iterable[PyTree], size: int = 2, *, sharding: jax.sharding.Sharding | None = None) -> Prefetch:
    """An iterator that keeps batches ahead on the device, so that transfers and steps overlap.

    Reading itself happens in the thread that asks for batches; let the source read ahead (Grain's `ReadOptions`,
    `mp_prefetch`) where reading is slow.

    Args:
        batches: Trees of arrays; an iterator with `get_state` and `set_state`, such as Grain's, can be resumed.
        size: Batches on the device ahead of the one in use, at least 1. Memory is that of so many batches.
        sharding: Where they go; the default device if None. Where it has devices of several processes, the batches are
            each process's own rows, and `distributed.global_batch` makes them global.

    Returns:
        The iterator. Its state counts the batches that were handed out, not those that were read.

    Raises:
        TypeError, ValueError: `size` is not an integer of at least 1.

    Example:
        >>> import numpy as np, nagjax
        >>> batches = nagjax.training.prefetch([np.zeros(2, np.float32), np.ones(2, np.float32)])
        >>> [float(batch.sum()) for batch in batches] == [0, 2]
        True
    """
    checks.whole("prefetch", "size", size, 1, "2 is usual")

    def read(source: Iterator[PyTree]) -> PyTree:
        return to_device(own(next(source)), sharding)

    return Prefetch(batches, size, read)
