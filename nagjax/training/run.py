"""One run of `fit`, from its start or a checkpoint to its end."""

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
from flax import nnx

from nagjax import checks
from nagjax.training.checkpoint import Checkpoints, differences
from nagjax.training.feeds import Call, Feed
from nagjax.training.functional import SKIPPED, Model
from nagjax.training.metrics import Metrics
from nagjax.training.progress import Progress
from nagjax.training.reports import Callback, Kind, Record
from nagjax.training.signals import Interrupts
from nagjax.training.state import Point, TrainState
from nagjax.training.step import TrainStep

EvalFn = Callable[[Model], Mapping[str, Any]]
COMPLETED = "completed"
NONFINITE = "nonfinite"
_IN_FLIGHT = 2  # calls that the device may be behind


class Evaluation(NamedTuple):
    """What is measured between epochs."""

    function: EvalFn
    every: int  # epochs
    at: Point


@dataclasses.dataclass
class Run:
    """State, place and reports of a run."""

    step: TrainStep
    feed: Feed
    state: TrainState
    epochs: int
    log_every: int
    checkpoint: Checkpoints | None
    config: Mapping[str, Any] | None
    callbacks: Sequence[Callback]
    done: int = 0  # batches handed to the device
    epoch: int = 0  # epochs completed
    of_epoch: int = 0  # batches of the present one
    status: str = ""  # how the run ends, once that is known
    compile_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    history: list[Record] = dataclasses.field(default_factory=list[Record])
    _first: int = 0  # `done` when this process began
    _before: float = 0.0  # seconds of the parts before this one
    _start: float = dataclasses.field(default_factory=time.perf_counter)
    _metrics: Metrics | None = None  # of the steps since the last record
    _logged: int = 0  # `done` at the last record
    _pending: list[tuple[Record, Metrics]] = dataclasses.field(default_factory=list[tuple[Record, Metrics]])
    _in_flight: collections.deque[jax.Array] = dataclasses.field(default_factory=collections.deque[jax.Array])
    _compiled: bool = False

    @property
    def total(self) -> int | None:
        """Batches of the whole run, where that is known."""
        return None if self.feed.batches is None else self.epochs * self.feed.batches

    def rate(self) -> float:
        """Steps a second of this process, without compilation and evaluation."""
        busy = time.perf_counter() - self._start - self.compile_seconds - self.evaluation_seconds
        return (self.done - self._first) / max(busy, 1e-9)

    def seconds(self) -> float:
        """Of training so far."""
        return self._before + time.perf_counter() - self._start

    def resume(self) -> None:
        """Continues from the last checkpoint, if there is one, and tells the callbacks where the run is."""
        if self.checkpoint is None or self.checkpoint.latest() is None:
            self._tell(self._record("start"))
            return
        restored = self.checkpoint.restore(self.state, config=self.config)
        self.state, cursor = restored.state, restored.cursor
        if lines := differences.difference(
            differences.entries(cursor["data"]), differences.entries(self.feed.describe())
        ):
            remedy = "give the data as before, or choose another folder"
            checks.reject("fit", "data", "those of the checkpoint", "; ".join(lines), remedy)
        self.done, self.epoch, self.of_epoch = cursor["done"], cursor["epoch"], cursor["of_epoch"]
        self._first, self._before = self.done, cursor["seconds"]
        self._logged, self._metrics = cursor["logged"], Metrics.restored(cursor["metrics"])
        self.feed.restore(cursor["feed"])
        self._tell(self._record("resume"))
        for fields in cursor["evaluations"]:
            self._tell(Record(**fields | {"replayed": True}))

    def train(self, evaluation: Evaluation | None, interrupts: Interrupts, shown: Progress) -> None:
        """All that is left, or all before a callback, a gradient that is not finite, or a signal ends it."""
        while self.epoch < self.epochs and not self.status:
            finished = self._train_epoch(interrupts, shown)
            if not finished:
                break
            with shown.pause():
                began = time.perf_counter()
                metrics = self._evaluate(evaluation)
                self.evaluation_seconds += time.perf_counter() - began
            shown.epoch(self.epoch, self.done, self.history)
            interrupts.agree()
            if self.checkpoint is not None:
                wanted = self.checkpoint.best is not None and self.checkpoint.best in metrics
                if wanted or self.checkpoint.due(self.done):
                    self._save(metrics)
            self._heed(interrupts)
        self._fetch()
        self.status = self.status or COMPLETED
        self._tell(self._record("end"))
        if self.checkpoint is not None:
            self._save({})

    def _train_epoch(self, interrupts: Interrupts, shown: Progress) -> bool:
        """The rest of an epoch; whether it was completed."""
        for count, call in self.feed.calls(self.of_epoch, self._room):
            self._call(count, call)
            shown.advance(self.epoch, self.done)
            if self.of_epoch == self.feed.steps_per_epoch:
                break  # what is due now waits for the evaluation
            if self.done - self._logged >= self.log_every:
                self._log()
                self._fetch(leave=1)
                interrupts.agree()
            self._heed(interrupts)
            if self.checkpoint is not None and self.checkpoint.due(self.done):
                self._save({})
            if self.status:
                return False
        self.epoch, self.of_epoch = self.epoch + 1, 0
        self._log()
        self._fetch()
        return True

    def _room(self) -> int:
        """Steps until metrics or a checkpoint are due."""
        room = self.log_every - (self.done - self._logged)
        if self.checkpoint is not None and self.checkpoint.every is not None:
            room = min(room, self.checkpoint.every - self.done % self.checkpoint.every)
        return max(1, room)

    def _call(self, count: int, call: Call) -> None:
        began = time.perf_counter()
        self.state, self._metrics = call(self.state, self._metrics)
        if not self._compiled:  # the first call waits for the compiler, later ones for nothing
            self._compiled = True
            self.compile_seconds = time.perf_counter() - began
        self.done, self.of_epoch = self.done + count, self.of_epoch + count
        self._in_flight.append(self._metrics.steps)
        if len(self._in_flight) > _IN_FLIGHT:
            self._in_flight.popleft().block_until_ready()

    def _evaluate(self, evaluation: Evaluation | None) -> dict[str, float]:
        last = self.epoch == self.epochs or bool(self.status)
        if evaluation is None or not (last or self.epoch % evaluation.every == 0):
            return {}
        model = self.step.model(self.state, evaluation.at)
        if isinstance(model, nnx.Module):
            model.eval()
        found: Any = evaluation.function(model)
        if not isinstance(found, Mapping):
            remedy = "return {'loss': loss}, say"
            checks.reject("fit", "eval_fn", "a function that returns a dictionary of scalars", found, remedy, TypeError)
        metrics = {str(name): float(value) for name, value in cast("Mapping[str, Any]", found).items()}
        self._tell(self._record("eval", metrics))
        return metrics

    def _log(self) -> None:
        """Hands the metrics so far over for fetching, and begins new ones."""
        if self._metrics is None:
            return
        for leaf in jax.tree.leaves(self._metrics):
            leaf.copy_to_host_async()
        self._pending.append((self._record("train"), self._metrics))
        self._metrics, self._logged = None, self.done

    def _fetch(self, leave: int = 0) -> None:
        """Tells what was handed over, but for the last `leave`, which the device may still be computing."""
        while len(self._pending) > leave:
            record, metrics = self._pending.pop(0)
            record = record._replace(metrics=metrics.means())
            if self.step.nonfinite == "stop" and SKIPPED in record.metrics:
                self.status = self.status or NONFINITE
            self._tell(record)

    def _heed(self, interrupts: Interrupts) -> None:
        if interrupts.received is None:
            return
        if self.checkpoint is not None:
            self._save({})
        interrupts.leave()

    def _save(self, metrics: Mapping[str, float]) -> None:
        assert self.checkpoint is not None
        self._fetch()
        cursor = {
            "done": self.done,
            "epoch": self.epoch,
            "of_epoch": self.of_epoch,
            "seconds": self.seconds(),
            "logged": self._logged,
            "metrics": None if self._metrics is None else self._metrics.on_host(),
            "data": self.feed.describe(),
            "feed": self.feed.cursor(),
            "evaluations": [record._asdict() for record in self.history if record.kind == "eval"],
        }
        self.checkpoint.save(self.done, self.state, cursor=cursor, config=self.config, metrics=metrics)

    def _record(self, kind: Kind, metrics: dict[str, float] | None = None) -> Record:
        return Record(kind, self.done, self.epoch, self.seconds(), metrics or {})

    def _tell(self, record: Record) -> None:
        if record.kind in ("train", "eval"):
            self.history.append(record)
        for callback in self.callbacks:
            reason = callback(record)
            if reason is not None:
                self.status = self.status or f"stopped: {reason}"
