"""The training that `scaling` repeats on any number of devices: one network, one optimizer, one sequence of batches."""

from __future__ import annotations

import itertools
import time
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType
from numpy.typing import NDArray

import nagjax
from experiments import hlo
from experiments.scaling_rows import LAYOUTS, SIZES
from nagjax import restart
from nagjax.training import TrainStep, distributed, sharding

RATE, MOMENTUM, LARGEST_NORM = 0.05, 0.9, 0.5
Batch = tuple[NDArray[np.float32], NDArray[np.int32]]


def parameters() -> list[dict[str, NDArray[np.float32]]]:
    """The weights at the start, which are the same in every process."""
    rng = np.random.default_rng(0)
    layers = []
    for a, b in itertools.pairwise(SIZES):
        weights, biases = rng.normal(0, (2 / a) ** 0.5, (a, b)), rng.uniform(-(a**-0.5), a**-0.5, b)
        layers.append({"w": weights.astype(np.float32), "b": biases.astype(np.float32)})
    return layers


def batch_of(step: int, examples: int) -> Batch:
    """Batch number `step`: digits-like images, the class of each being the largest of ten fixed projections."""
    projections = np.random.default_rng(1).normal(size=(SIZES[0], SIZES[-1]))
    rng = np.random.default_rng((2, step))
    inputs = rng.uniform(size=(examples, SIZES[0])).astype(np.float32)
    return inputs, np.argmax((inputs - 0.5) @ projections, axis=1).astype(np.int32)


def loss(params: Any, batch: Any) -> jax.Array:
    """The mean cross-entropy of the network."""
    hidden, labels = batch
    for number, layer in enumerate(params):
        hidden = hidden @ layer["w"] + layer["b"]
        if number < len(params) - 1:
            hidden = jax.nn.relu(hidden)
    return optax.softmax_cross_entropy_with_integer_labels(hidden, labels).mean()


def make_step() -> TrainStep:
    """Nesterov's method with a bound on the gradient's norm and the gradient restart: two global scalars a step."""
    clip = getattr(nagjax, "clip_by_global_norm", optax.clip_by_global_norm)
    optimizer = optax.chain(
        clip(LARGEST_NORM),
        nagjax.nesterov(RATE, MOMENTUM, restart=restart.gradient()),
    )
    return TrainStep(jax.tree.map(jax.numpy.asarray, parameters()), loss, optimizer)


class Program:
    """A compiled step over all devices of the run.

    Args:
        layout: One of `LAYOUTS`.
        examples: Examples of a batch, over all devices.
    """

    def __init__(self, layout: str, examples: int) -> None:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        makers = {"data parallel": sharding.data_parallel, "ZeRO-1": sharding.zero1, "FSDP": sharding.fsdp}
        if set(makers) != set(LAYOUTS):
            raise AssertionError("scaling_rows.LAYOUTS names other layouts.")
        self.layout, self.examples = makers[layout](mesh), examples
        self.step = make_step()
        self.state = self.layout.init(self.step)
        compiled = jax.jit(
            self.step, donate_argnums=0, out_shardings=(self.layout.of(self.step), {"loss": self.layout.whole})
        )
        self.batch = self.put(0)
        self.program = compiled.lower(self.state, self.batch).compile()

    def put(self, number: int) -> Any:
        """A batch on the devices; each process gives its own rows."""
        rows = self.examples // jax.process_count()
        mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
        return distributed.global_batch(
            tuple(part[mine] for part in batch_of(number, self.examples)), self.layout.batch
        )

    def train(self, steps: int) -> list[NDArray[np.float32]]:
        """Trains from the start and returns the parameters, whole."""
        self.state = self.layout.init(self.step)
        for number in range(steps):
            self.state, _ = self.program(self.state, self.put(number))
        whole = jax.jit(lambda tree: tree, out_shardings=self.layout.whole)(self.state.params)
        return [np.asarray(leaf.addressable_data(0)) for leaf in jax.tree.leaves(whole)]

    def seconds(self, steps: int) -> list[float]:
        """The time of each of some steps on one batch."""
        found = []
        for _ in range(steps):
            start = time.perf_counter()
            self.state, _ = jax.block_until_ready(self.program(self.state, self.batch))
            found.append(time.perf_counter() - start)
        return found

    def inspect(self) -> dict[str, Any]:
        """What the compiled program sends, by kind, and what each device holds; all in bytes."""
        found = hlo.collectives(self.program.as_text())
        kinds: dict[str, float] = {}
        for one in found:
            kinds[one.kind] = kinds.get(one.kind, 0.0) + hlo.sent_bytes([one])
        leaves = jax.tree.leaves(self.state.params)
        return {
            "sent_bytes": hlo.sent_bytes(found),
            "kinds": kinds,
            "parameter_bytes": sharding.bytes_per_device(self.state.params),
            "optimizer_bytes": sharding.bytes_per_device(self.state.opt_state),
            "whole": sharding.replicated(self.state.opt_state),
            "leaf_bytes": [leaf.nbytes for leaf in leaves],
        }
