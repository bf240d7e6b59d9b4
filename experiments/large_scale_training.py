"""The runs of `large_scale`: a CNN trained for a number of epochs or of seconds, timed without its evaluations."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from experiments import data
from experiments.large_scale_methods import Clip, Method, RateSetter, build, clipped_shares, with_settings
from nagjax.models import CNN
from nagjax.training import DeviceData, TrainState, TrainStep, compiled

EVALUATED_AT_ONCE = 1000
UNCLIPPED = Clip()
ORDERS_OF_A_SEED = 10_000  # epochs, of which a seed has its own orders


@dataclass(frozen=True)
class Task:
    """Images in [0, 1] of shape (n, height, width, 1) and labels; tuning trains on a part and measures on the other."""

    title: str
    train: data.Images
    test: data.Images
    tune_train: data.Images
    tune_validation: data.Images

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image."""
        return self.train.inputs.shape[1:]


def load(name: str, folder: Path | None) -> Task:
    """Reads a data set; the digits have no official test part, so a stratified fifth is one, the same for all seeds."""
    found = data.load(name, folder)
    if isinstance(found, data.Split):
        train, test = found
        validation = 5_000
    else:
        assert isinstance(found, data.Images)
        from sklearn.model_selection import train_test_split

        rows = np.arange(len(found.labels))
        rest, held = train_test_split(rows, test_size=0.2, stratify=found.labels, random_state=0)
        train, test = (data.Images(found.inputs[part], found.labels[part]) for part in (rest, held))
        validation = 240
    side = round(train.inputs.shape[1] ** 0.5)
    train, test = (part._replace(inputs=part.inputs.reshape(-1, side, side, 1)) for part in (train, test))
    order = np.random.default_rng(0).permutation(len(train.labels))
    parts = [data.Images(*(array[rows] for array in train)) for rows in (order[validation:], order[:validation])]
    return Task(data.DATA_SETS[name].title, train, test, *parts)


@dataclass
class Curve:
    """A run: what was measured at the answer after each epoch (L-BFGS: after some iterations), index 0 at the start."""

    seed: int
    rate: float
    clip: Clip
    seconds: list[float] = field(default_factory=list)  # of training, without compilation and evaluation
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    clipped_steps: float = 0.0
    clipped_elements: float = 0.0

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def add(self, seconds: float, steps: int, measured: tuple[float, float]) -> None:
        self.seconds.append(seconds)
        self.steps.append(steps)
        self.losses.append(measured[0])
        self.accuracies.append(measured[1])


@functools.cache
def maker(kind: Callable[..., CNN], shape: tuple[int, ...], classes: int) -> Callable[[int], CNN]:
    """Makes the network of a seed; one compiled program for all seeds and optimizers."""
    make = nnx.jit(lambda key: kind(shape, classes, rngs=nnx.Rngs(params=key)))
    return lambda seed: make(jax.random.key(seed))


def loss(model: CNN, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross-entropy."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


class Evaluation:
    """Loss and accuracy of a model on images, in parts; `merge` makes the model from what is evaluated."""

    def __init__(self, merge: Callable[[Any], Any], images: data.Images) -> None:
        def measure(state: Any, inputs: jax.Array, labels: jax.Array, fresh: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = merge(state)(inputs)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            right = (logits.argmax(axis=-1) == labels) & fresh
            return jnp.where(fresh, losses, 0).sum(), right.sum(dtype=jnp.int32)

        self._measure = jax.jit(measure)
        self._set(images)

    def on(self, images: data.Images) -> Evaluation:
        """The same program on other images."""
        other = copy.copy(self)
        other._set(images)
        return other

    def __call__(self, state: Any) -> tuple[float, float]:
        sums = [self._measure(state, *part) for part in self._parts]
        total, right = (sum(float(one[i]) for one in sums) for i in range(2))
        return total / self._count, right / self._count

    def _set(self, images: data.Images) -> None:
        self._count = count = len(images.labels)
        size = min(EVALUATED_AT_ONCE, count)
        self._parts = []
        done = 0
        # The last part overlaps the one before where the size does not divide the number; `fresh` counts rows once.
        for start in [*range(0, count - size, size), count - size]:
            fresh = np.arange(start, start + size) >= done
            part = (images.inputs[start : start + size], images.labels[start : start + size], fresh)
            self._parts.append(tuple(jnp.asarray(array) for array in part))
            done = start + size


class Trainer:
    """One optimizer on one set of training images, compiled once.

    Steps are called one by one: XLA:CPU runs the gradients of convolutions some 20 times slower inside a compiled loop
    (jax-ml/jax issue 12868). The batches are those of `DeviceData`, gathered on the device.
    """

    def __init__(
        self, name: str, setter: RateSetter, momentum: float, train: data.Images, measured: data.Images, batch: int
    ) -> None:
        self.name = name
        self.transformation = build(name, setter, momentum)
        self._shape, self._classes = train.inputs.shape[1:], int(train.labels.max()) + 1
        self.step = self._step(0)
        self._train = compiled(self.step)
        self._evaluate = Evaluation(self.step.model, measured)
        self._set(train, batch)
        start = time.perf_counter()
        state, metrics = self._train(self._start(0, 0.0, 1, UNCLIPPED), self._batch(next(self._rows(0, 0))))
        metrics.means()
        self._evaluate(state)
        self.compile_seconds = time.perf_counter() - start

    def on(self, train: data.Images, measured: data.Images) -> Trainer:
        """The same compiled step over other images."""
        other = copy.copy(self)
        other._evaluate = self._evaluate.on(measured)
        other._set(train, self._data.batch_size)
        return other

    @property
    def steps_per_epoch(self) -> int:
        return self._data.steps_per_epoch

    def epoch_seconds(self, steps: int = 40) -> float:
        """What an epoch takes, from the median of some steps."""
        state, rows = self._start(0, 0.0, 1, UNCLIPPED), self._rows(0, 0)
        times = []
        for _ in range(min(steps, self.steps_per_epoch)):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(self._train(state, self._batch(next(rows))))
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * self.steps_per_epoch

    def run(
        self,
        seed: int,
        rate: float,
        epochs: int,
        clip: Clip = UNCLIPPED,
        *,
        each: Callable[[Curve], None] | None = None,
        checkpoints: Any = None,
    ) -> Curve:
        """Trains for so many epochs; `each` is called after every one, with the curve so far."""
        state = self._start(seed, rate, epochs * self.steps_per_epoch, clip)
        curve, first = Curve(seed, rate, clip), 0
        # A checkpoint serves the run of the same settings alone, and no other has its name.
        config = {"optimizer": self.name, "seed": seed, "rate": rate, "epochs": epochs, "clip": clip.label}
        if checkpoints is not None and checkpoints.latest() is not None:
            restored = checkpoints.restore(state, config=config)
            state, first = restored.state, restored.cursor["epoch"]
            curve = dataclasses.replace(Curve(**json.loads(restored.cursor["curve"])), clip=clip)
        else:
            curve.add(0.0, 0, self._evaluate(state))
        for epoch in range(first, epochs):
            start = time.perf_counter()
            metrics = None
            for rows in self._rows(seed, epoch):
                state, metrics = self._train(state, self._batch(rows), metrics)
            jax.block_until_ready(state)
            seconds = curve.seconds[-1] + time.perf_counter() - start
            curve.add(seconds, (epoch + 1) * self.steps_per_epoch, self._evaluate(state))
            curve.clipped_steps, curve.clipped_elements = clipped_shares(state.opt_state)
            if checkpoints is not None:
                cursor = {"epoch": epoch + 1, "curve": json.dumps(curve.record() | {"clip": None})}
                checkpoints.save(epoch + 1, state, cursor=cursor, config=config)
            if each is not None:
                each(curve)
        return curve

    def _set(self, train: data.Images, batch: int) -> None:
        self._data = DeviceData(tuple(train), min(batch, len(train.labels)))
        self._order = jax.jit(self._data.order)
        self._gather = jax.jit(lambda arrays, rows: self._data.batch(arrays, rows, jnp.int32(0)))

    def _step(self, seed: int) -> TrainStep:
        model = maker(CNN, self._shape, self._classes)(seed)
        return TrainStep(model, loss, self.transformation)

    def _start(self, seed: int, rate: float, steps: int, clip: Clip) -> TrainState:
        state = self._step(seed).init()
        return state._replace(opt_state=with_settings(state.opt_state, rate, steps, clip))

    def _rows(self, seed: int, epoch: int) -> Iterator[NDArray[np.int32]]:
        return iter(np.asarray(self._order(jnp.int32(seed * ORDERS_OF_A_SEED + epoch))))

    def _batch(self, rows: NDArray[np.int32]) -> Any:
        return self._gather(self._data.arrays, rows)


def tune(trainer: Trainer, method: Method, trials: int, seeds: tuple[int, ...], epochs: int) -> list[dict[str, Any]]:
    """The mean validation loss over the seeds for every rate of the grid, with the seconds of an epoch."""
    found = []
    for rate in method.grid(trials):
        curves = [trainer.run(seed, rate, epochs) for seed in seeds]
        losses = [curve.losses[-1] for curve in curves]
        seconds = float(np.median([curve.seconds[-1] / epochs for curve in curves]))
        mean = float(np.mean(losses))
        found.append({"rate": rate, "loss": mean if np.isfinite(mean) else float("inf"), "epoch_seconds": seconds})
    return found
