"""The training run of `digits` as one compiled program, and the data it runs on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import nagjax
from nagjax.models import MLP

TEST_SPLIT = 0.2
VALIDATION_SPLIT = 0.1
SIZES = (64, 128, 10)
DROPOUT = 0.2


class Data(NamedTuple):
    """Images in [0, 1], shape (n, 64), and labels, shape (n,)."""

    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


class History(NamedTuple):
    """What a run measures at the answer after every epoch, each of shape (epochs,); dropout is off."""

    train_loss: jax.Array
    validation_loss: jax.Array
    validation_accuracy: jax.Array
    test_loss: jax.Array
    test_accuracy: jax.Array
    ran: jax.Array  # false for the epochs after a stop by patience, which repeat the last values


def load(seed: int) -> Data:
    """Returns the data of one seed: a fifth as test set, the same for all seeds; then the seed's validation split.

    Both splits are stratified by class. The test set takes part in no choice.
    """
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32)
    labels = labels.astype(np.int32)
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST_SPLIT, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=VALIDATION_SPLIT, stratify=labels[rest], random_state=seed + 1)
    return Data(*((jnp.asarray(images[part]), jnp.asarray(labels[part])) for part in (train, validation, test)))


@dataclass(frozen=True)
class Plan:
    """What is fixed when the program is compiled."""

    epochs: int
    batch: int
    steps: int  # batches of one epoch; the images left over are other ones in every epoch

    @property
    def total_steps(self) -> int:
        """Updates of a whole run."""
        return self.epochs * self.steps


Build = Callable[[Any, Any, Plan], optax.GradientTransformation]


@dataclass
class Program:
    """One optimizer's training run: traced and compiled once, called for every seed and every trial."""

    build: Build
    plan: Plan
    accelerated: bool  # whether the optimizer has an answer of its own, `nagjax.eval_params`
    traces: int = field(default=0, init=False)
    compile_seconds: float = field(default=0.0, init=False)
    program_bytes: int = field(default=0, init=False)  # arguments, results and temporary buffers, as XLA plans them
    state_bytes: int = field(default=0, init=False)
    parameters: int = field(default=0, init=False)
    _compiled: Any = field(default=None, init=False)

    def compile(self, data: Data) -> None:
        """Traces and compiles for data of these shapes."""
        start = time.perf_counter()
        self._compiled = jax.jit(self._train).lower(*_arguments(data, 0, 0.0, 0.0, 0)).compile()
        self.compile_seconds = time.perf_counter() - start
        memory = self._compiled.memory_analysis()
        if memory is not None:
            self.program_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    def run(self, data: Data, seed: int, learning_rate: float, second: float, patience: int = 0) -> History:
        """Trains once and waits for the end; patience 0 never stops early."""
        if self._compiled is None:
            self.compile(data)
        return jax.block_until_ready(self._compiled(*_arguments(data, seed, learning_rate, second, patience)))

    def _train(
        self, data: Data, key: jax.Array, learning_rate: jax.Array, second: jax.Array, patience: jax.Array
    ) -> History:
        self.traces += 1
        plan = self.plan
        init_key, dropout_key, shuffle_key = jax.random.split(key, 3)
        model = MLP(SIZES, dropout=DROPOUT, rngs=nnx.Rngs(params=init_key, dropout=dropout_key))
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        optimizer = optax.with_extra_args_support(self.build(learning_rate, second, plan))
        state = optimizer.init(params)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

        def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
            # A copy, because Flax refuses to count dropout masks across the levels of scan and grad.
            network = nnx.merge(graph, params, rest, copy=True)
            value = optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()
            return value, nnx.state(network, nnx.Not(nnx.Param))

        def step(carry: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            params, rest, state = carry
            grads, rest = jax.grad(loss, has_aux=True)(params, rest, *batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), rest, state), None

        def measure(answer: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = nnx.merge(graph, answer, rest, copy=True)(images, deterministic=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits.argmax(axis=-1) == labels).mean(dtype=jnp.float32)

        def train_epoch(carry: Any, key: jax.Array) -> tuple[Any, History]:
            order = jax.random.permutation(key, len(data.train[1]))[: plan.steps * plan.batch]
            order = order.reshape(plan.steps, plan.batch)
            carry, _ = jax.lax.scan(step, carry, tuple(part[order] for part in data.train))
            params, _, state = carry
            answer = nagjax.eval_params(params, state) if self.accelerated else params
            train_loss, _ = measure(answer, *data.train)
            return carry, History(train_loss, *measure(answer, *data.validation), *measure(answer, *data.test), True)

        def epoch(carry: Any, key: jax.Array) -> tuple[Any, History]:
            training, last, best, waited = carry
            running = (patience == 0) | (waited < patience)
            training, now = jax.lax.cond(
                running, lambda: train_epoch(training, key), lambda: (training, last._replace(ran=False))
            )
            waited = jnp.where(now.validation_loss < best, 0, waited + 1)
            return (training, now, jnp.minimum(best, now.validation_loss), waited), now

        nothing = History(*(jnp.float32(jnp.nan) for _ in range(5)), True)
        carry = ((params, rest, state), nothing, jnp.float32(jnp.inf), jnp.int32(0))
        _, history = jax.lax.scan(epoch, carry, jax.random.split(shuffle_key, plan.epochs))
        return history


def _arguments(data: Data, seed: int, learning_rate: float, second: float, patience: int) -> tuple[Any, ...]:
    return data, jax.random.key(seed), jnp.float32(learning_rate), jnp.float32(second), jnp.int32(patience)
