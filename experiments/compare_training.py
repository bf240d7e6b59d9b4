"""One optimizer's training run on a workload as one compiled program; hyper-parameters and seed are its arguments."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

import nagjax

WARM_UP = 0.05


@dataclass(frozen=True)
class Plan:
    """What is fixed when a program is compiled."""

    steps: int
    batch: int
    every: int  # steps from one measurement to the next, a divisor of `steps`

    @property
    def measured(self) -> NDArray[np.int64]:
        """The updates after which a run is measured; 0 is the start."""
        return np.arange(0, self.steps + 1, self.every)

    @property
    def warm_up(self) -> int:
        """Steps in which the learning rate rises."""
        return max(1, round(WARM_UP * self.steps))

    def cosine(self, peak: Any) -> Callable[[Any], jax.Array]:
        """A linear warm-up to the peak, then a cosine to 0 at the end. The first step has the rate peak/warm_up."""

        def rate(count: Any) -> jax.Array:
            now = jnp.asarray(count).astype(jnp.float32)
            gone = jnp.clip((now - self.warm_up) / max(1, self.steps - self.warm_up), 0, 1)
            return peak * jnp.minimum((now + 1) / self.warm_up, (1 + jnp.cos(jnp.pi * gone)) / 2)

        return rate

    def constant(self, peak: Any) -> Callable[[Any], jax.Array]:
        """The same warm-up, then the peak."""

        def rate(count: Any) -> jax.Array:
            return peak * jnp.minimum((jnp.asarray(count).astype(jnp.float32) + 1) / self.warm_up, 1)

        return rate


Setting = Mapping[str, Any]
Build = Callable[[Setting, Plan], optax.GradientTransformation]


@dataclass(frozen=True)
class Workload:
    """Data, a model and what is minimized; `objective(model, part, deterministic)` gives loss and accuracy.

    `order(key)` draws the batches of a run, int32 of shape (steps, batch); `take(train, indices)` makes one batch.
    """

    name: str
    title: str
    loss_label: str
    fingerprint: str  # of the data
    definition: str  # what else changes the numbers: sizes of the model, regularization, ...
    plan: Plan
    train: Any
    measured: Any  # the part that the loss is measured on
    test: Any
    model: Callable[[nnx.Rngs], nnx.Module]
    objective: Callable[[Any, Any, bool], tuple[jax.Array, jax.Array]]
    order: Callable[[jax.Array], jax.Array]
    take: Callable[[Any, jax.Array], Any]
    decay: bool = True  # whether weight decay is tuned
    near: float = 1.2  # losses of at most this many times the lowest count as near it


class Curve(NamedTuple):
    """What a run measures at the answer, dropout off: at each of `Plan.measured`, and on the test data at the end."""

    loss: jax.Array  # shape (measurements,)
    accuracy: jax.Array  # shape (measurements,)
    test_loss: jax.Array
    test_accuracy: jax.Array


@dataclass
class Program:
    """Traced and compiled once for a workload and an optimizer, when first called."""

    workload: Workload
    build: Build
    has_answer: bool  # whether the optimizer has an answer of its own, `nagjax.eval_params`
    traces: int = field(default=0, init=False)
    compile_seconds: float = field(default=0.0, init=False)
    _compiled: Any = field(default=None, init=False)

    def run(self, setting: Mapping[str, float], seed: int) -> Curve:
        """Trains once and waits for the end."""
        arguments = self._arguments(setting, seed)
        if self._compiled is None:
            self.compile(setting)
        return Curve(*(np.asarray(value) for value in jax.block_until_ready(self._compiled(*arguments))))

    def compile(self, setting: Mapping[str, float]) -> None:
        """Traces and compiles for settings with these names."""
        start = time.perf_counter()
        lowered = jax.jit(self._train).lower(*self._arguments(setting, 0))
        # Kernels of this size lose more by handing work to other threads than they gain; runs go side by side.
        options = {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else None
        self._compiled = lowered.compile(compiler_options=options)
        self.compile_seconds = time.perf_counter() - start

    def _arguments(self, setting: Mapping[str, float], seed: int) -> tuple[Any, ...]:
        work = self.workload
        numbers = {name: jnp.float32(value) for name, value in setting.items()}
        return work.train, work.measured, work.test, jax.random.key(seed), numbers

    def _train(self, train: Any, measured: Any, test: Any, key: jax.Array, setting: Setting) -> Curve:
        self.traces += 1
        work, plan = self.workload, self.workload.plan
        init_key, dropout_key, order_key = jax.random.split(key, 3)
        model = work.model(nnx.Rngs(params=init_key, dropout=dropout_key))
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        optimizer = optax.with_extra_args_support(self.build(setting, plan))
        state = optimizer.init(params)

        def loss(params: Any, rest: Any, batch: Any) -> tuple[jax.Array, Any]:
            # A copy, because Flax refuses to count dropout masks across the levels of scan and grad.
            network = nnx.merge(graph, params, rest, copy=True)
            value, _ = work.objective(network, batch, False)
            return value, nnx.state(network, nnx.Not(nnx.Param))

        def step(carry: Any, indices: jax.Array) -> tuple[Any, None]:
            params, rest, state = carry
            grads, rest = jax.grad(loss, has_aux=True)(params, rest, work.take(train, indices))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), rest, state), None

        def measure(params: Any, rest: Any, state: Any, part: Any) -> tuple[jax.Array, jax.Array]:
            answer = nagjax.eval_params(params, state) if self.has_answer else params
            return work.objective(nnx.merge(graph, answer, rest, copy=True), part, True)

        def stretch(carry: Any, indices: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            carry, _ = jax.lax.scan(step, carry, indices)
            return carry, measure(*carry, measured)

        carry = (params, rest, state)
        start = measure(*carry, measured)
        order = work.order(order_key).reshape(-1, plan.every, plan.batch)
        carry, along = jax.lax.scan(stretch, carry, order)
        losses, accuracies = (jnp.concatenate([first[None], rest]) for first, rest in zip(start, along, strict=True))
        return Curve(losses, accuracies, *measure(*carry, test))
