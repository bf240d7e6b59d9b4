"""The training loops of `bench_training` in JAX, and how one is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import nagjax
from experiments.bench_training_models import MOMENTUM, Problem, cross_entropy
from experiments.bench_training_packed import packed_step
from nagjax import training


@dataclass
class Loop:
    """A training that goes on from measurement to measurement."""

    name: str
    call: Callable[[Any], Any]  # one call of the compiled program, with one item of `batches`
    batches: Callable[[], Iterable[Any]]  # of one measurement
    wait: Callable[[], Any]  # for all that was called
    steps: int  # of one measurement
    first_call_seconds: float = 0.0  # CPU time of tracing, compiling and running it once
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)  # of all threads; those that wait in a loop count too

    def start(self) -> None:
        """The first call, which compiles."""
        start = time.process_time()
        self.call(next(iter(self.batches())))
        self.wait()
        self.first_call_seconds = time.process_time() - start

    def measure(self) -> None:
        """One measurement."""
        start, used = time.perf_counter(), time.process_time()
        for batch in self.batches():
            self.call(batch)
        self.wait()
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - used)

    def times(self) -> dict[str, list[float]]:
        """All measurements."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}


@dataclass
class FitLoop(Loop):
    """`fit` compiles anew in every call; the time of that is left out, as it is for the others."""

    def measure(self) -> None:
        """One call."""
        fit = self.call(None)
        self.seconds.append(fit.seconds - fit.compile_seconds)
        self.cpu_seconds.append(float("nan"))


def optimizer(problem: Problem) -> optax.GradientTransformation:
    """Nesterov's method, the same for every loop."""
    return nagjax.nesterov(problem.rate, MOMENTUM)


def nnx_loop(problem: Problem, steps: int, name: str = "nnx loop") -> Loop:
    """`nnx.jit` over model and optimizer, as Flax's documentation has it."""
    model = problem.build()
    state = nnx.Optimizer(model, optimizer(problem), wrt=nnx.Param)

    @nnx.jit
    def train_step(model: nnx.Module, state: nnx.Optimizer, batch: Any) -> jax.Array:
        loss, gradients = nnx.value_and_grad(cross_entropy)(model, batch)
        state.update(model, gradients)
        return loss

    def wait() -> Any:
        return jax.block_until_ready(nnx.state(model))

    return Loop(name, lambda batch: train_step(model, state, batch), lambda: problem.batches(steps), wait, steps)


def tree_step(problem: Problem) -> training.TrainStep:
    """The step of the library, whose state is a tree of arrays."""
    return training.TrainStep(problem.build(), cross_entropy, optimizer(problem))


def step_loop(
    problem: Problem, steps: int, step: training.TrainStep, name: str = "one step a call", per_call: int = 1
) -> Loop:
    """`training.compiled`: one dispatch a step, or `per_call` steps a dispatch."""
    train = training.compiled(step, steps_per_call=per_call)
    return _going_on(name, step.init(), train, lambda: problem.batches(steps, per_call), steps)


def packed_loop(problem: Problem, steps: int, name: str = "packed, one step a call") -> Loop:
    """One dispatch a step, with all parameters in one vector."""
    return step_loop(problem, steps, packed_step(problem.build(), cross_entropy, optimizer(problem)), name)


def epoch_loop(
    problem: Problem, steps: int, step: training.TrainStep | None = None, name: str = "compiled epoch"
) -> Loop:
    """`training.compiled_epoch` over data on the device."""
    data = training.DeviceData((problem.inputs, problem.labels), problem.batch)
    step = step or tree_step(problem)
    per_call = min(steps, data.steps_per_epoch)
    epoch = training.compiled_epoch(step, data, steps=per_call)

    def call(state: Any, _: None, metrics: Any) -> Any:
        return epoch(state, metrics)

    return _going_on(name, step.init(), call, lambda: [None] * (steps // per_call), steps // per_call * per_call)


def fit_loop(problem: Problem, epochs: int) -> Loop:
    """`training.fit`, with a record each epoch."""
    data = training.DeviceData((problem.inputs, problem.labels), problem.batch)
    steps = problem.steps_per_epoch

    def call(_: None) -> training.Fit:
        return training.fit(
            problem.build(), cross_entropy, optimizer(problem), data, epochs=epochs, progress=False, log_every=steps
        )

    return FitLoop("fit", call, lambda: [None], lambda: None, epochs * steps)


def _going_on(
    name: str, state: Any, call: Callable[[Any, Any, Any], Any], batches: Callable[[], Iterable[Any]], steps: int
) -> Loop:
    """A loop that owns its state; metrics are summed over a measurement and fetched at its end."""
    carry: list[Any] = [state, None]

    def one(batch: Any) -> None:
        carry[:] = call(carry[0], batch, carry[1])

    def wait() -> None:
        state, metrics = carry
        if not np.isfinite(metrics.means()["loss"]):
            raise FloatingPointError(f"bench_training: {name} diverged; lower the rate.")
        jax.block_until_ready(state)
        carry[1] = None

    return Loop(name, one, batches, wait, steps)
