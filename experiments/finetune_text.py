"""The text part of `pretrain_finetune`: one pass through a first text, then fine-tuning on a second one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from experiments import data, pipelines
from experiments import finetune_optimizers as optimizers
from experiments.finetune_optimizers import GROUPS, SLOW, Layers
from experiments.finetune_place import Place
from experiments.finetune_training import Trainer, one_pass, stacked
from experiments.output import UsageError
from nagjax.models import CharTransformer
from nagjax.training import TrainState

CONTEXT, WIDTH, BLOCKS, HEADS = 64, 64, 2, 4
BATCH = 8  # windows of an update, each from a place of its own in the text
CALL = 25  # updates a call
WARM_UP = 50
PRETRAINING_RATE = 0.2
RATES = (0.06, 0.2, 0.6)  # that tuning tries for fine-tuning; the first one where nothing is tuned
TUNING_SEED = 1000
POINTS = 8  # evaluations along fine-tuning
EARLY = 50  # updates in which momentum can matter
NATS = float(np.log(2))  # of a bit


@dataclass(frozen=True)
class Texts:
    """Two texts in one alphabet."""

    first: NDArray[np.uint8]  # pretraining
    second: NDArray[np.uint8]  # fine-tuning, 90 % of the second text
    held_out: Any  # windows of its last 10 %: inputs, targets, weights
    characters: int  # of the alphabet
    fingerprint: str


@dataclass(frozen=True)
class Variant:
    """One way to fine-tune."""

    name: str
    label: str
    layers: Layers
    momentum: str  # "reset", "kept" or "rescaled"
    pretrained: bool = True


VARIANTS = (
    Variant("scratch", "from scratch", "all", "reset", pretrained=False),
    Variant("all", "all layers", "all", "reset"),
    Variant("frozen", "lower layers frozen", "frozen", "reset"),
    Variant("slow", f"lower layers at {SLOW:g} of the rate", "slow", "reset"),
    Variant("reset", "all layers, momentum reset", "all", "reset"),
    Variant("kept", "all layers, momentum kept", "all", "kept"),
    Variant("rescaled", "all layers, momentum rescaled", "all", "rescaled"),
)
TUNED = ("scratch", "all", "frozen", "slow")


def encode(first: str, second: str, windows: int = 256) -> Texts:
    """Returns the texts as numbers of their characters, 90 % of the second one for training."""
    parts = [np.frombuffer(text.encode("ascii"), np.uint8) for text in (first, second)]
    alphabet = np.unique(np.concatenate(parts))
    one, two = (np.searchsorted(alphabet, part).astype(np.uint8) for part in parts)
    cut = int(0.9 * len(two))
    held_out = itertools.islice(pipelines.text_stream(two[cut:], CONTEXT), windows)
    both = data.fingerprint(first) + data.fingerprint(second)
    return Texts(one, two[:cut], _joined(*held_out), len(alphabet), both)


class Lanes(Iterator[Any]):
    """One pass through a text that is read at several places at once, so that a batch mixes them.

    Lane i is the i-th of equal parts. Each token but the first of a lane's part is predicted once, and so is the first,
    as the last target of the lane before. What a lane's length leaves over at the end of the text is left out.
    """

    def __init__(self, tokens: NDArray[np.uint8], lanes: int, context: int) -> None:
        length = (len(tokens) - 1) // lanes // context * context
        self._lanes = [
            iter(pipelines.text_stream(tokens[lane * length : (lane + 1) * length + 1], context))
            for lane in range(lanes)
        ]

    def __next__(self) -> Any:
        """(inputs, targets, weights), each of shape (lanes, context)."""
        return _joined(*[next(lane) for lane in self._lanes])

    def get_state(self) -> list[Any]:
        """The places of all lanes, JSON."""
        return [lane.get_state() for lane in self._lanes]

    def set_state(self, states: Sequence[Any]) -> None:
        """Goes on after the batch at which `get_state` gave these places."""
        for lane, state in zip(self._lanes, states, strict=True):
            lane.set_state(state)


def loss(model: CharTransformer, batch: Any) -> jax.Array:
    """Mean loss in nats a character, each character with its weight."""
    inputs, targets, weights = batch
    losses = optax.softmax_cross_entropy_with_integer_labels(model(inputs), targets)
    return jnp.sum(weights * losses) / jnp.sum(weights)


def is_lower(path: tuple[str, ...]) -> bool:
    """Whether parameters belong to the lower layers: embeddings and the first block."""
    return path[0] in ("tokens", "positions") or path[:2] == ("blocks", "0")


LABELS = optimizers.labels(is_lower)


def model(characters: int, seed: int) -> CharTransformer:
    """A new model."""
    return CharTransformer(
        characters, context=CONTEXT, width=WIDTH, layers=BLOCKS, heads=HEADS, rngs=nnx.Rngs(params=seed)
    )


def trainer(characters: int, layers: Layers) -> Trainer:
    """The compiled updates for one kind of layers."""
    return Trainer(model(characters, 0), loss, lambda rate, warm_up: optimizers.grouped(layers, LABELS, rate, warm_up))


def updates_of(tokens: NDArray[np.uint8], characters: int) -> int:
    """Updates of one pass through so many characters, at most those of the text, in whole calls."""
    size = BATCH * CONTEXT * CALL
    most = (len(tokens) - 1) // size
    if not most:
        raise UsageError(f"pretrain_finetune needs texts of more than {size:,} characters, got {len(tokens):,}.")
    return min(max(characters // size, 1), most) * CALL


def segment(tokens: NDArray[np.uint8], updates: int, seed: int) -> NDArray[np.uint8]:
    """The part of a text that a seed trains on: as many characters as the updates need, from a place of its own."""
    length = updates * BATCH * CONTEXT + 1
    start = int(np.random.default_rng(seed).integers(0, len(tokens) - length + 1))
    return tokens[start : start + length]


class TextPart:
    """Pretraining and fine-tuning of all seeds."""

    def __init__(
        self, texts: Texts, place: Place, *, characters: int, tuned_characters: int, every: int, tick: Callable[[], Any]
    ) -> None:
        self.texts, self.place, self.every, self.tick = texts, place, every, tick
        self.updates = updates_of(texts.first, characters)
        self.tuned_updates = updates_of(texts.second, tuned_characters)
        kinds: tuple[Layers, ...] = ("all", "frozen", "slow")
        self._trainers = {layers: trainer(texts.characters, layers) for layers in kinds}
        self._evaluate = nnx.jit(loss)
        self._held_out = jax.device_put(texts.held_out)

    def pretrain(self, seed: int) -> tuple[TrainState, NDArray[np.float64]]:
        """One pass through the first text; returns the end and the test-then-train losses."""
        trainer = self._trainers["all"]
        done = one_pass(
            trainer,
            trainer.init(model(self.texts.characters, seed)),
            Lanes(segment(self.texts.first, self.updates, seed), BATCH, CONTEXT),
            self.updates,
            self.place.checkpoints(f"pretraining-{seed}"),
            rate=PRETRAINING_RATE,
            warm_up=WARM_UP,
            call=CALL,
            every=self.every,
            tick=self.tick,
        )
        return done.state, done.losses

    def fine_tune(self, variant: Variant, rate: float, seed: int, pretrained: TrainState) -> dict[str, Any]:
        """One pass through a part of the second text; returns its losses in bits a character."""
        trainer = self._trainers[variant.layers]
        if variant.pretrained:
            fresh = trainer.init()
            factor = {"reset": 0.0, "kept": 1.0, "rescaled": rate / PRETRAINING_RATE}[variant.momentum]
            state = optimizers.switched(pretrained, fresh, variant.layers, LABELS, dict.fromkeys(GROUPS, factor))
            state = jax.tree.map(jnp.copy, state)  # the pretrained one is needed again
        else:
            state = trainer.init(model(self.texts.characters, seed))
        batches = Lanes(segment(self.texts.second, self.tuned_updates, seed), BATCH, CONTEXT)
        losses: list[float] = []
        points = [self._point(trainer, state, 0)]
        marks = {round(part * self.tuned_updates / CALL / POINTS) * CALL for part in range(1, POINTS + 1)}
        while len(losses) < self.tuned_updates:
            stack = stacked(itertools.islice(batches, CALL))
            state, new, _ = trainer.advance(state, stack, rate, 1.0 if variant.pretrained else WARM_UP)
            losses.extend(new.tolist())
            if len(losses) in marks:
                points.append(self._point(trainer, state, len(losses)))
        self.tick()
        stream = np.array(losses) / NATS
        return {
            "variant": variant.name,
            "rate": rate,
            "seed": seed,
            "validation": points,
            "final": points[-1][1],
            "stream": stream,
            "stream_mean": stream.mean(),
            "early": stream[:EARLY].mean(),
        }

    def run(self, seeds: Sequence[int], rates: Sequence[float]) -> dict[str, Any]:
        """Everything, or what an earlier run has left to do."""
        curves: dict[int, Any] = {}
        pretrained: dict[int, TrainState] = {}
        for seed in seeds if len(rates) == 1 else (TUNING_SEED, *seeds):
            pretrained[seed], curves[seed] = self.pretrain(seed)
        tuned: dict[str, list[dict[str, float]]] = {}
        chosen: dict[str, float] = {}
        for variant in VARIANTS:
            if variant.name not in TUNED:
                # Where the rate stays as it was, rescaling would be keeping.
                chosen[variant.name] = RATES[0]
                continue
            chosen[variant.name] = rates[0]
            if len(rates) > 1:
                trials = [self._row(variant, rate, TUNING_SEED, pretrained) for rate in rates]
                tuned[variant.name] = [{"rate": trial["rate"], "final": trial["final"]} for trial in trials]
                chosen[variant.name] = min(trials, key=lambda trial: _finite(trial["final"]))["rate"]
        rows = [self._row(one, chosen[one.name], seed, pretrained) for one in VARIANTS for seed in seeds]
        return {
            "updates": self.updates,
            "fine_tuning_updates": self.tuned_updates,
            "characters_an_update": BATCH * CONTEXT,
            "held_out": int(self.texts.held_out[2].sum()),
            "pretraining_rate": PRETRAINING_RATE,
            "pretraining": [{"seed": seed, "stream": curves[seed] / NATS} for seed in seeds],
            "tuning": tuned,
            "rates": chosen,
            "rows": rows,
        }

    def _row(self, variant: Variant, rate: float, seed: int, pretrained: dict[int, TrainState]) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            return self.fine_tune(variant, rate, seed, pretrained[seed])

        return self.place.row(f"{variant.name}-{rate:g}-{seed}", make)

    def _point(self, trainer: Trainer, state: TrainState, updates: int) -> tuple[int, float]:
        return updates, float(self._evaluate(trainer.model(state), self._held_out)) / NATS


def _joined(*batches: Any) -> Any:
    return jax.tree.map(lambda *rows: np.concatenate(rows), *batches)


def _finite(value: float | None) -> float:
    return value if value is not None and np.isfinite(value) else float("inf")
