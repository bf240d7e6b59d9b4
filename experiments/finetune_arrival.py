"""The arrival part of `pretrain_finetune`: updates while samples come at a set rate, below and above capacity."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from experiments import pipelines
from experiments.finetune_place import Place
from experiments.finetune_queue import Arrival, BoundedQueue, Policy
from experiments.finetune_text import CONTEXT, NATS, PRETRAINING_RATE, WARM_UP, Texts, model, trainer
from experiments.finetune_training import Trainer
from nagjax.training import TrainState

MOST = 16  # samples an update takes
CAPACITY = 64  # samples that wait
COARSE = 1e-3  # seconds that the producer sleeps at a time; samples that came meanwhile are offered together


@dataclass(frozen=True)
class Scenario:
    """A rate of arrival and what happens when the queue is full."""

    share: float  # of the capacity that was measured
    policy: Policy

    @property
    def label(self) -> str:
        """As the tables and figures name it."""
        return f"{self.share:g}x, {self.policy}"


SCENARIOS = (
    Scenario(0.5, "drop oldest"),
    Scenario(0.9, "drop oldest"),
    Scenario(2.0, "drop oldest"),
    Scenario(2.0, "drop newest"),
    Scenario(2.0, "slow down"),
)


def produce(
    queue: BoundedQueue,
    samples: Iterator[Any],
    rate: float,
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Offers samples at a rate for so many seconds, then closes the queue.

    Sample i = 0, 1, ... comes at i/rate, even if this thread looks up later. The time in which it is slowed down does
    not count: what was due then comes as much later.
    """
    clock = queue.clock
    first = due = clock()
    end = due + seconds
    for number, sample in enumerate(samples, 1):
        if due >= end:
            break
        while (now := clock()) < due:
            sleep(min(COARSE, due - now))
        blocked = queue.counts.blocked
        queue.put(sample, due)
        first += queue.counts.blocked - blocked
        due = first + number / rate
    queue.close()


class ArrivalPart:
    """Test-then-train on samples as they come: windows of the first text."""

    def __init__(self, texts: Texts, place: Place, *, seconds: float, seed: int, tick: Callable[[], Any]) -> None:
        self.place, self.seconds, self.seed, self.tick = place, seconds, seed, tick
        self.texts = texts
        self._trainer: Trainer = trainer(texts.characters, "all")

    def run(self) -> dict[str, Any]:
        """Measures the capacity, then every scenario."""
        capacity = self.place.row("capacity", self._capacity)["capacity"]
        rows: list[dict[str, Any]] = []
        for scenario in SCENARIOS:
            name = scenario.label.replace(" ", "-").replace(",", "")

            def make(scenario: Scenario = scenario) -> dict[str, Any]:
                return self.scenario(scenario, capacity)

            rows.append(self.place.row(name, make))
        return {
            "seconds": self.seconds,
            "samples_an_update": MOST,
            "queue_capacity": CAPACITY,
            "characters_a_sample": CONTEXT,
            "capacity": capacity,
            "rows": rows,
        }

    def scenario(self, scenario: Scenario, capacity: float) -> dict[str, Any]:
        """One rate and policy."""
        rate = scenario.share * capacity
        queue = BoundedQueue(CAPACITY, scenario.policy)
        result = self._serve(queue, rate)
        self.tick()
        return {"label": scenario.label, "share": scenario.share, "policy": scenario.policy, "rate": rate, **result}

    def _capacity(self) -> dict[str, Any]:
        """Samples a second when a full micro-batch always waits.

        From the median time of a round, so that moments in which the machine is busy do not count.
        """
        queue = BoundedQueue(CAPACITY, "slow down")
        state = self._warm()
        samples = self._samples()
        times = [queue.clock()]
        while times[-1] - times[0] < self.seconds:
            for _ in range(MOST):
                queue.put(next(samples))
            state, _ = self._update(state, queue.take(MOST))
            times.append(queue.clock())
        self.tick()
        return {"capacity": MOST / float(np.median(np.diff(times)))}

    def _warm(self) -> TrainState:
        """The state at the start, when everything is compiled."""
        self._update(self._trainer.init(), [])
        return self._trainer.init(model(self.texts.characters, self.seed))

    def _update(self, state: TrainState, arrivals: list[Arrival]) -> tuple[TrainState, float]:
        state, losses, _ = self._trainer.advance(state, _padded(arrivals), PRETRAINING_RATE, WARM_UP)
        return state, float(losses[0])

    def _serve(self, queue: BoundedQueue, rate: float) -> dict[str, Any]:
        state = self._warm()
        clock = queue.clock
        source = threading.Thread(target=produce, args=(queue, self._samples(), rate, self.seconds))
        latencies: list[NDArray[np.float64]] = []
        updates: list[float] = []
        losses: list[float] = []
        sizes: list[int] = []
        start = clock()
        source.start()
        try:
            while arrivals := queue.take(MOST):
                begin = clock()
                state, loss = self._update(state, arrivals)
                end = clock()
                updates.append(end - begin)
                latencies.append(end - np.array([arrival.time for arrival in arrivals]))
                losses.append(loss / NATS)
                sizes.append(len(arrivals))
        finally:
            queue.close()
            source.join()
        elapsed = clock() - start
        counts = queue.counts
        late = np.concatenate(latencies)
        return {
            "samples_a_second": counts.taken / elapsed,
            "updates": len(updates),
            "samples_an_update": float(np.mean(sizes)),
            "latency_ms": _percentiles(late),
            "update_ms": _percentiles(np.array(updates)),
            "offered": counts.offered,
            "taken": counts.taken,
            "dropped": counts.dropped,
            "refused": counts.refused,
            "evicted": counts.evicted,
            "blocked_seconds": counts.blocked,
            "longest": counts.longest,
            "elapsed": elapsed,
            "stream_mean": float(np.average(losses, weights=sizes)),
        }

    def _samples(self) -> Iterator[Any]:
        """Windows of the text in their order, again and again."""
        windows = itertools.islice(pipelines.text_stream(self.texts.first, CONTEXT), MOST_SAMPLES)
        return itertools.cycle([(inputs[0], targets[0]) for inputs, targets, _ in windows])


MOST_SAMPLES = 4096


def _padded(arrivals: list[Arrival]) -> Any:
    """A stack of one micro-batch of `MOST` windows; those beyond the samples have weight 0."""
    inputs, targets = np.zeros((2, 1, MOST, CONTEXT), np.int32)
    weights = np.zeros((1, MOST, CONTEXT), np.float32)
    for row, arrival in enumerate(arrivals):
        inputs[0, row], targets[0, row] = arrival.sample
        weights[0, row] = 1
    return jax.device_put((inputs, targets, weights))


def _percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    p50, p99 = np.percentile(1e3 * seconds, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}
