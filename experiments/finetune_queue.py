"""A bounded queue between the samples that arrive and the updates that take them: drop or slow down, and count."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Policy = Literal["drop oldest", "drop newest", "slow down"]


class Arrival(NamedTuple):
    """A sample and when it came."""

    sample: Any
    time: float  # seconds on the queue's clock


@dataclass
class Counts:
    """What became of the samples that were offered: offered = accepted + refused, accepted >= taken + evicted."""

    offered: int = 0
    accepted: int = 0
    refused: int = 0  # "drop newest": not let in
    evicted: int = 0  # "drop oldest": let in, and put out for a newer one
    taken: int = 0
    blocked: float = 0.0  # "slow down": seconds in which the producer had to wait
    longest: int = 0  # most samples that ever waited

    @property
    def dropped(self) -> int:
        """Samples that no update will see."""
        return self.refused + self.evicted


@dataclass
class BoundedQueue:
    """At most `capacity` samples wait; what happens to the next one is the policy.

    "drop oldest" keeps the newest samples, "drop newest" the oldest ones, and "slow down" lets the producer wait until
    there is room. Any number of threads may use it.
    """

    capacity: int
    policy: Policy
    clock: Callable[[], float] = time.perf_counter
    counts: Counts = field(default_factory=Counts, init=False)

    def __post_init__(self) -> None:
        """Makes the queue, empty and open."""
        if self.capacity < 1:
            raise ValueError(f"BoundedQueue: capacity must be at least 1, got {self.capacity}; 64 is a short queue.")
        self._waiting: deque[Arrival] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._blocked = False

    def put(self, sample: Any, arrival: float | None = None) -> bool:
        """Offers a sample, which arrives now unless told otherwise; returns whether it was let in."""
        with self._changed:
            self.counts.offered += 1
            came = self.clock() if arrival is None else arrival
            if len(self._waiting) >= self.capacity and not self._make_room():
                self.counts.refused += 1
                return False
            self._waiting.append(Arrival(sample, came))
            self.counts.accepted += 1
            self.counts.longest = max(self.counts.longest, len(self._waiting))
            self._changed.notify_all()
            return True

    def take(self, most: int) -> list[Arrival]:
        """Waits for a sample, and takes the oldest ones, at most so many; none once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            count = min(most, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
            self.counts.taken += count
            self._blocked = self._blocked and not count
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Ends the stream: those who wait go on, and a producer that is slowed down is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_until_blocked(self) -> None:
        """Waits until a producer has to wait for room."""
        with self._changed:
            self._changed.wait_for(lambda: self._blocked)

    def _make_room(self) -> bool:
        if self.policy == "drop oldest":
            self._waiting.popleft()
            self.counts.evicted += 1
            return True
        if self.policy == "drop newest":
            return False
        start = self.clock()
        self._blocked = True
        self._changed.notify_all()
        self._changed.wait_for(lambda: len(self._waiting) < self.capacity or self._closed)
        self.counts.blocked += self.clock() - start
        return len(self._waiting) < self.capacity
