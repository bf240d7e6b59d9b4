"""The image part of `pretrain_finetune`: a classifier pretrained on one set of images, fine-tuned on another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from experiments import finetune_optimizers as optimizers
from experiments import pipelines
from experiments.data import Images, Split
from experiments.finetune_optimizers import GROUPS, Layers
from experiments.finetune_place import Place
from experiments.finetune_text import TUNED, TUNING_SEED, VARIANTS, Variant
from experiments.finetune_training import Trainer, one_pass, stacked
from nagjax.models import CNN
from nagjax.training import TrainState

CLASSES = 10
BATCH = 128
FEWEST_UPDATES = 8  # of an epoch: with few examples batches are smaller
PRETRAINING_RATE = 0.05
SHARE = 0.25  # of the text's rates
WARM_UP = 20
EVALUATED = 1000  # images a call
TESTED = 2000  # images of an official test part
ROWS = tuple(variant for variant in VARIANTS if variant.name in TUNED)


@dataclass(frozen=True)
class ImageSets:
    """Two sets of images, shape (n, height, width, 1), with their classes."""

    names: tuple[str, str]
    first: Images  # pretraining
    first_test: Images
    second: Images  # the pool from which fine-tuning draws its examples
    second_test: Images

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.first.inputs.shape[1:]
        return height, width, channels


def two_halves_of_digits(digits: Images) -> ImageSets:
    """Digits 0 to 4 for pretraining, 5 to 9 for fine-tuning; a third of each is held out."""
    images = _square(digits)
    order = np.random.default_rng(0).permutation(len(images.labels))
    parts: list[Images] = []
    for low in (True, False):
        rows = order[(images.labels[order] < 5) == low]
        cut = 2 * len(rows) // 3
        parts += [_rows(images, rows[:cut]), _rows(images, rows[cut:])]
    return ImageSets(("digits 0-4", "digits 5-9"), *parts)


def two_sets(names: tuple[str, str], first: Split, second: Split, rows: int | None) -> ImageSets:
    """The official parts of two sets: the first `rows` of each for training, the first `TESTED` for the test."""
    counts = (rows, TESTED, rows, TESTED)
    parts = (_rows(_square(part), np.s_[:count]) for part, count in zip((*first, *second), counts, strict=True))
    return ImageSets(names, *parts)


def loss(model: CNN, batch: Any) -> jax.Array:
    """Mean loss of images and classes."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def is_lower(path: tuple[str, ...]) -> bool:
    """Whether parameters belong to the convolutions."""
    return path[0] == "convolutions"


LABELS = optimizers.labels(is_lower)


class ImagePart:
    """Pretraining and fine-tuning of all seeds."""

    def __init__(
        self, sets: ImageSets, place: Place, *, epochs: int, examples: Sequence[int], tick: Callable[[], Any]
    ) -> None:
        self.sets, self.place, self.epochs, self.tick = sets, place, epochs, tick
        self.examples = tuple(sorted({min(count, len(sets.second.labels)) for count in examples}))
        kinds: tuple[Layers, ...] = ("all", "frozen", "slow")
        self._trainers = {layers: self._trainer(layers) for layers in kinds}
        self._predict = nnx.jit(lambda model, images: model(images).argmax(axis=-1))

    def pretrain(self, seed: int) -> tuple[TrainState, dict[str, Any]]:
        """Epochs on the first set."""
        trainer = self._trainers["all"]
        images, labels = self.sets.first
        batch = min(BATCH, len(labels))
        call = len(labels) // batch
        done = one_pass(
            trainer,
            trainer.init(self._model(seed)),
            iter(pipelines.image_batches(images, labels, batch, seed)),
            self.epochs * call,
            self.place.checkpoints(f"pretraining-{seed}"),
            rate=PRETRAINING_RATE,
            warm_up=WARM_UP,
            call=call,
            every=call,
            tick=self.tick,
        )
        accuracy = self.accuracy(trainer, done.state, self.sets.first_test)
        return done.state, {"seed": seed, "accuracy": accuracy, "losses": done.losses.reshape(self.epochs, -1).mean(1)}

    def fine_tune(self, variant: Variant, rate: float, count: int, seed: int, pretrained: TrainState) -> dict[str, Any]:
        """Epochs on a few examples of the second set, with a new last layer."""
        trainer = self._trainers[variant.layers]
        new = trainer.init(self._model(1 + seed + TUNING_SEED))
        state = new
        if variant.pretrained:
            state = optimizers.switched(pretrained, new, variant.layers, LABELS, dict.fromkeys(GROUPS, 0.0))
            # The classes are others, and so is the layer that names them; a reset state has nothing of the old one.
            state = jax.tree.map(jnp.copy, state._replace(params=_with_new_head(state.params, new.params)))
        rows = np.random.default_rng(seed).permutation(len(self.sets.second.labels))[:count]
        images, labels = _rows(self.sets.second, rows)
        batch = max(min(BATCH, count // FEWEST_UPDATES), 1)
        batches = iter(pipelines.image_batches(images, labels, batch, seed))
        accuracies: list[float] = []
        for _ in range(self.epochs):
            stack = stacked(itertools.islice(batches, count // batch))
            state, _, _ = trainer.advance(state, stack, rate, 1.0 if variant.pretrained else WARM_UP)
            accuracies.append(self.accuracy(trainer, state, self.sets.second_test))
        self.tick()
        return {
            "variant": variant.name,
            "rate": rate,
            "examples": count,
            "seed": seed,
            "accuracies": accuracies,
            "final": accuracies[-1],
            "updates": self.epochs * (count // batch),
        }

    def run(self, seeds: Sequence[int], rates: Sequence[float]) -> dict[str, Any]:
        """Everything, or what an earlier run has left to do."""
        rates = [SHARE * rate for rate in rates]
        ends: dict[int, TrainState] = {}
        records: dict[int, Any] = {}
        for seed in seeds if len(rates) == 1 else (TUNING_SEED, *seeds):
            ends[seed], records[seed] = self.pretrain(seed)

        def row(variant: Variant, rate: float, count: int, seed: int) -> dict[str, Any]:
            name = f"{variant.name}-{rate:g}-{count}-{seed}"
            return self.place.row(name, lambda: self.fine_tune(variant, rate, count, seed, ends[seed]))

        tuned: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        for count, variant in itertools.product(self.examples, ROWS):
            rate = rates[0]
            if len(rates) > 1:
                trials = [row(variant, rate, count, TUNING_SEED) for rate in rates]
                tuned[f"{variant.name}-{count}"] = [{"rate": one["rate"], "final": one["final"]} for one in trials]
                rate = max(trials, key=lambda trial: trial["final"])["rate"]
            rows += [row(variant, rate, count, seed) for seed in seeds]
        return {
            "sets": self.sets.names,
            "epochs": self.epochs,
            "batch": BATCH,
            "examples": self.examples,
            "images": {"pretraining": len(self.sets.first.labels), "test": len(self.sets.second_test.labels)},
            "pretraining_rate": PRETRAINING_RATE,
            "pretraining": [records[seed] for seed in seeds],
            "tuning": tuned,
            "rows": rows,
        }

    def accuracy(self, trainer: Trainer, state: TrainState, images: Images) -> float:
        """Share of right classes at the answer."""
        model = trainer.model(state)
        starts = range(0, len(images.labels), EVALUATED)
        found = [np.asarray(self._predict(model, images.inputs[start : start + EVALUATED])) for start in starts]
        return float((np.concatenate(found) == images.labels).mean())

    def _model(self, seed: int) -> CNN:
        return CNN(self.sets.shape, CLASSES, rngs=nnx.Rngs(params=seed))

    def _trainer(self, layers: Layers) -> Trainer:
        def optimizer(rate: Any, warm_up: Any) -> optax.GradientTransformation:
            return optimizers.grouped(layers, LABELS, rate, warm_up)

        return Trainer(self._model(0), loss, optimizer, looped=False)


def _with_new_head(params: Any, new: Any) -> Any:
    def choose(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
        return new if path[0].key == "logits" else old

    return jax.tree_util.tree_map_with_path(choose, params, new)


def _square(images: Images) -> Images:
    side = round(images.inputs.shape[1] ** 0.5)
    return Images(images.inputs.reshape(-1, side, side, 1), images.labels)


def _rows(images: Images, rows: NDArray[Any] | slice) -> Images:
    return Images(images.inputs[rows], images.labels[rows])
