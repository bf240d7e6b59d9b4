"""The runs of `diloco`: a character model, workers as a mapped axis, several runs in one compiled program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import nagjax
from experiments.diloco_methods import METHODS, PARALLEL, Inner, adamw
from nagjax import outer

WORKERS = "workers"
CONTEXT, EMBEDDING, HIDDEN = 8, 12, 40
DRAWN = 10  # inner steps whose batches are drawn at once
HELD_OUT = 8192  # windows of each of the two evaluations
WARM_UP, LAST = 0.05, 0.05  # share of the steps in which the rate rises, and the share of it that is left at the end


class Setting(NamedTuple):
    """What distinguishes the runs of one compiled program."""

    seed: int
    rate: float  # of the inner optimizer, its peak
    outer_rate: float = 1.0
    outer_momentum: float = 0.0


class Text(NamedTuple):
    """A text as numbers of its characters."""

    train: NDArray[np.uint8]  # 90 %
    held_out: NDArray[np.int32]  # windows of the rest: its first half for tuning, its second one for reports
    characters: int  # of the alphabet


class Losses(NamedTuple):
    """At the answer, nats a character."""

    tuning: float
    reported: float


def encode(text: str) -> Text:
    """Returns the text with the last tenth held out, in windows whose last character is predicted from the others."""
    alphabet, tokens = np.unique(np.frombuffer(text.encode("ascii"), np.uint8), return_inverse=True)
    tokens = tokens.astype(np.uint8)
    cut = int(0.9 * len(tokens))
    middle = (cut + len(tokens)) // 2
    halves: list[NDArray[np.int32]] = []
    for part in (tokens[cut:middle], tokens[middle:]):
        windows = np.lib.stride_tricks.sliding_window_view(part, CONTEXT + 1)
        halves.append(windows[:: -(-len(windows) // HELD_OUT)].astype(np.int32))
    shortest = min(map(len, halves))
    return Text(tokens[:cut], np.stack([half[:shortest] for half in halves]), len(alphabet))


def initial(key: jax.Array, characters: int) -> dict[str, jax.Array]:
    """Weights of the model: an embedding, one hidden layer, the logits."""
    embed, hidden, logits = jax.random.split(key, 3)
    fan_in = CONTEXT * EMBEDDING
    return {
        "embed": jax.random.normal(embed, (characters, EMBEDDING)),
        "hidden": jax.random.normal(hidden, (fan_in, HIDDEN)) / fan_in**0.5,
        "hidden_bias": jnp.zeros(HIDDEN),
        "logits": jax.random.normal(logits, (HIDDEN, characters)) / HIDDEN**0.5,
        "logits_bias": jnp.zeros(characters),
    }


def loss(params: dict[str, jax.Array], windows: jax.Array) -> jax.Array:
    """Cross-entropy of the last character of windows of shape (n, CONTEXT + 1), given the others; nats."""
    inputs = params["embed"][windows[:, :-1]].reshape(len(windows), -1)
    hidden = jnp.tanh(inputs @ params["hidden"] + params["hidden_bias"][None])
    logits = hidden @ params["logits"] + params["logits_bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()


def size(characters: int) -> int:
    """Number of parameters."""
    shapes = jax.eval_shape(partial(initial, characters=characters), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def rate_at(step: jax.Array, peak: Any, steps: Any) -> jax.Array:
    """A linear warm-up and a cosine decay to `LAST` of the peak."""
    gone = (step + 1.0) / steps
    cosine = LAST + (1 - LAST) * (1 + jnp.cos(jnp.pi * jnp.minimum(gone, 1.0))) / 2
    return peak * cosine * jnp.minimum(gone / WARM_UP, 1.0)


@dataclass(frozen=True)
class Plan:
    """What is compiled: a method for a number of workers that share a batch, for several runs at once."""

    method: str  # a name of `METHODS`, or `PARALLEL`, which averages gradients in place of parameters
    workers: int
    batch: int  # windows of a step, of all workers together
    lanes: int = 5
    share: int = 1  # of the batch, how many such parts there are; only the first is used: a worker alone

    def __post_init__(self) -> None:
        """The batch has to be divisible."""
        assert self.batch % (self.workers * self.share) == 0


class Program:
    """Runs of one plan, compiled once for any period, number of steps and settings.

    The batch of a step depends on the seed and the step only: all methods and numbers of workers see the same windows
    in the same step. Worker i takes the i-th part.
    """

    def __init__(self, plan: Plan, text: Text, inner: Inner = adamw) -> None:
        self.plan, self.text, self.inner = plan, text, inner
        self.traces = 0
        # The axis of runs is outside: what workers share is computed once a run, and synchronizing stays a conditional.
        mapped = jax.vmap(self._worker, in_axes=(0, *[None] * 5), out_axes=None, axis_name=WORKERS)
        mapped = jax.vmap(mapped, in_axes=(None, 0, None, None, None, None))
        self._run = jax.jit(mapped)

    def run(self, settings: Sequence[Setting], period: int, steps: int) -> list[Losses]:
        """Returns the losses of one run for each setting; `steps` is a multiple of `period` and of `DRAWN`."""
        assert steps % period == 0
        assert steps % DRAWN == 0
        found: list[Losses] = []
        train, held_out = jnp.asarray(self.text.train), jnp.asarray(self.text.held_out)
        for first in range(0, len(settings), self.plan.lanes):
            chosen = list(settings[first : first + self.plan.lanes])
            filled = chosen + [chosen[-1]] * (self.plan.lanes - len(chosen))
            columns = Setting(*(jnp.asarray(column) for column in zip(*filled, strict=True)))
            counts = jnp.asarray(period, jnp.int32), jnp.asarray(steps, jnp.int32)
            losses = self._run(jnp.arange(self.plan.workers), columns, *counts, train, held_out)
            found += [Losses(*map(float, row)) for row in np.asarray(losses)[: len(chosen)]]
        return found

    def _worker(
        self, index: jax.Array, setting: Any, period: jax.Array, steps: jax.Array, train: jax.Array, held_out: jax.Array
    ) -> jax.Array:
        """The whole run as one worker does it."""
        self.traces += 1
        params, state = self.train(index, setting, period, steps, train)
        answer = params if self.plan.method == PARALLEL else nagjax.eval_params(params, state)
        return jax.lax.map(partial(loss, answer), held_out)

    def train(
        self, index: jax.Array, setting: Any, period: jax.Array, steps: jax.Array, train: jax.Array
    ) -> tuple[Any, Any]:
        """Returns parameters and state of this worker after `steps` inner steps."""
        plan, key = self.plan, jax.random.key(setting.seed)
        inner = self.inner(lambda count: rate_at(count, setting.rate, steps))
        parallel = plan.method == PARALLEL
        if parallel:
            optimizer = optax.with_extra_args_support(inner)
        else:
            outside = METHODS[plan.method].build(setting.outer_rate, setting.outer_momentum)
            optimizer = outer.diloco(inner, outside, period, WORKERS)
        params = initial(jax.random.fold_in(key, 0), self.text.characters)
        own = plan.batch // (plan.workers * plan.share)

        def step(at: jax.Array, carry: tuple[Any, Any], places: jax.Array) -> tuple[Any, Any]:
            params, state = carry
            mine = jax.lax.dynamic_slice(places, (at, index * own), (1, own))[0]
            windows = train[mine[:, None] + jnp.arange(CONTEXT + 1)[None]].astype(jnp.int32)
            gradient = jax.grad(loss)(params, windows)
            if parallel:
                gradient = jax.lax.pmean(gradient, WORKERS)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        def several(chunk: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            drawn = jax.random.fold_in(jax.random.fold_in(key, 1), chunk)
            places = jax.random.randint(drawn, (DRAWN, plan.batch), 0, len(train) - CONTEXT)
            return jax.lax.fori_loop(0, DRAWN, lambda at, carry: step(at, carry, places), carry)

        return jax.lax.fori_loop(0, steps // DRAWN, several, (params, optimizer.init(params)))
