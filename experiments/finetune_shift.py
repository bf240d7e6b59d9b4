"""The rate part of `pretrain_finetune`: a rate that follows the gradient, on a stream whose text changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

import nagjax
from experiments.finetune_optimizers import LARGEST_GRADIENT, MOMENTUM, AdaptiveRateState, adaptive_rate
from experiments.finetune_place import Place
from experiments.finetune_text import (
    BATCH,
    CALL,
    CONTEXT,
    NATS,
    TUNING_SEED,
    WARM_UP,
    Lanes,
    Texts,
    loss,
    model,
    segment,
    updates_of,
)
from experiments.finetune_training import Trainer, stacked
from nagjax.scalars import as_scalar

RATES = (0.06, 0.12, 0.25, 0.5, 1.0)
RIVALS: dict[str, tuple[str, Callable[[], optax.GradientTransformation]]] = {
    "fixed": ("fixed rate", optax.identity),
    "clipped": (
        f"fixed rate, gradient clipped to {LARGEST_GRADIENT:g}",
        lambda: optax.clip_by_global_norm(LARGEST_GRADIENT),
    ),
    "adaptive": ("rate that follows the gradient", adaptive_rate),
}


class ShiftPart:
    """Test-then-train on a part of the first text, then of the second, with every rival."""

    def __init__(self, texts: Texts, place: Place, *, characters: int, tick: Callable[[], Any]) -> None:
        self.texts, self.place, self.tick = texts, place, tick
        self.updates = min(updates_of(text, characters) for text in (texts.first, texts.second))  # of each text
        self._trainers = {name: self._trainer(make) for name, (_, make) in RIVALS.items()}

    def stream(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        """One pass; returns the loss of each batch before the update on it, in bits a character."""
        trainer = self._trainers[name]
        state = trainer.init(model(self.texts.characters, seed))
        losses: list[NDArray[np.float64]] = []
        factors: list[NDArray[np.float64]] = []
        for text in (self.texts.first, self.texts.second):
            batches = Lanes(segment(text, self.updates, seed), BATCH, CONTEXT)
            for _ in range(self.updates // CALL):
                stack = stacked(itertools.islice(batches, CALL))
                state, new, factor = trainer.advance(state, stack, rate, WARM_UP)
                losses.append(new)
                factors.append(factor)
        self.tick()
        bits = np.concatenate(losses) / NATS
        return {
            "rival": name,
            "rate": rate,
            "seed": seed,
            "stream": bits,
            "mean": bits.mean(),
            "after_shift": bits[self.updates : self.updates + self.updates // 4].mean(),
            "factors": np.concatenate(factors),
        }

    def run(self, seeds: Sequence[int], rates: Sequence[float]) -> dict[str, Any]:
        """The same number of trials for each rival on a seed of their own, then the seeds that are reported."""
        tuned: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        for name in RIVALS:
            trials = [self._row(name, rate, TUNING_SEED) for rate in rates]
            tuned[name] = [{"rate": trial["rate"], "mean": trial["mean"]} for trial in trials]
            best = min(trials, key=lambda trial: float("inf") if trial["mean"] is None else trial["mean"])
            rows += [self._row(name, best["rate"], seed) for seed in seeds]
        return {
            "updates": 2 * self.updates,
            "shift": self.updates,
            "characters_an_update": BATCH * CONTEXT,
            "labels": {name: label for name, (label, _) in RIVALS.items()},
            "tuning": tuned,
            "rows": rows,
        }

    def _row(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        return self.place.row(f"{name}-{rate:g}-{seed}", lambda: self.stream(name, rate, seed))

    def _trainer(self, make: Callable[[], optax.GradientTransformation]) -> Trainer:
        def optimizer(rate: Any, warm_up: Any) -> optax.GradientTransformation:
            def schedule(count: Any) -> jax.Array:
                return as_scalar(rate) * jax.numpy.minimum((count + 1) / as_scalar(warm_up), 1)

            return optax.chain(make(), nagjax.nesterov(schedule, MOMENTUM))

        return Trainer(new_model(self.texts), loss, optimizer, watch=factor_of)


def new_model(texts: Texts) -> nnx.Module:
    """A model of the shapes that are trained."""
    return model(texts.characters, 0)


def factor_of(opt_state: Any) -> Any:
    """The factor of an adaptive rate, 1 for others."""
    return opt_state[0].factor if isinstance(opt_state[0], AdaptiveRateState) else np.float32(1)
