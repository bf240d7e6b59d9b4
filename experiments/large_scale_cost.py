"""The cost part of `large_scale`: the time and the memory of one compiled step against the number of parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nagjax
from nagjax.training import TrainStep

BATCH = 16
FLOAT = 4  # bytes
# What an optimizer keeps, in numbers a parameter, beside the parameter and its gradient.
OPTIMIZERS: dict[str, tuple[str, int, Callable[[], optax.GradientTransformation]]] = {
    "sgd": ("SGD", 0, lambda: optax.sgd(1e-3)),
    "nesterov": ("Nesterov", 1, lambda: nagjax.nesterov(1e-3, 0.9)),
    "adam": ("Adam", 2, lambda: optax.adam(1e-3)),
}


@dataclass(frozen=True)
class Cost:
    """One step of one optimizer; memory as XLA plans it, the donated state counted once."""

    name: str
    label: str
    parameters: int
    step_seconds: float  # median
    batch_seconds: float  # of forward and backward pass alone, median
    planned_bytes: int  # arguments and temporary buffers
    expected_bytes: int  # parameters, gradients and optimizer state, counted by hand
    compile_seconds: float

    @property
    def ratio(self) -> float:
        """Planned over expected memory; below 1 where XLA uses a gradient without storing it."""
        return self.planned_bytes / self.expected_bytes


def widths(size: int) -> tuple[int, int]:
    """The shape of two square-like layers with about `size` weights in all."""
    width = max(2, round((size / 2) ** 0.5))
    return width, max(1, round(size / (2 * width)))


def measure(name: str, size: int, repeats: int) -> Cost:
    """Compiles a donated step of a perceptron with about `size` weights and times it."""
    label, state_numbers, make = OPTIMIZERS[name]
    width, hidden = widths(size)

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        return jnp.mean((jax.nn.relu(batch @ params["in"]) @ params["out"] - batch) ** 2)

    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"in": (width, hidden), "out": (hidden, width)}
    batch = jax.random.normal(keys[2], (BATCH, width), jnp.float32)
    # Small integers spread over the range cost a fraction of normal numbers.
    params = {
        part: jax.jit(lambda shape=shape: (jax.lax.iota(jnp.int32, shape[0])[:, None] * 7
                      + jax.lax.iota(jnp.int32, shape[1])[None, :] * 13) % 17 * jnp.float32(0.01 / width**0.5))()
        for part, shape in shapes.items()
    }  # fmt: skip
    step = TrainStep(params, loss, make())
    state = step.init()
    del params
    start = time.perf_counter()
    program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    gradient = jax.jit(jax.grad(loss)).lower(state.params, batch).compile()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    passes = [_timed(lambda: gradient(state.params, batch)) for _ in range(repeats + 1)][1:]
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, batch))
        times.append(time.perf_counter() - begin)
    return Cost(
        name,
        label,
        count,
        float(np.median(times[1:])),
        float(np.median(passes)),
        memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        FLOAT * count * (2 + state_numbers),
        compile_seconds,
    )


def sweep(sizes: Sequence[int], each: Callable[[Cost], None]) -> list[Cost]:
    """All optimizers at all sizes; fewer repeats where a step is long."""
    found = []
    for size in sizes:
        for name in OPTIMIZERS:
            found.append(measure(name, size, repeats=30 if size <= 1_000_000 else 5))
            each(found[-1])
    return found


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
