"""L-BFGS for `large_scale`: Optax's, with its zoom line search, timed like the other runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import data, large_scale_training
from experiments.large_scale_methods import LBFGS
from experiments.large_scale_training import UNCLIPPED, Curve, Evaluation, loss
from nagjax.models import CNN


def multiplied_patches(images: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """A 3x3 convolution with zeros outside as one matrix product of the nine shifted images."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class QuasiNewton:
    """Optax's L-BFGS with its zoom line search, on one fixed batch: all training images, or the first `examples`.

    Its line search is a compiled loop, so its convolutions are matrix products, which lose nothing there (a gradient
    takes about a third longer than the convolution outside loops).
    """

    name = LBFGS

    def __init__(self, train: data.Images, measured: data.Images, examples: int, memory: int) -> None:
        self.examples = min(examples, len(train.labels))
        self._batch = tuple(jnp.asarray(array[: self.examples]) for array in train)
        self._shape, self._classes = train.inputs.shape[1:], int(train.labels.max()) + 1
        self._optimizer = optax.lbfgs(memory_size=memory)
        self._graph, params = nnx.split(self._model(0))
        self._train = jax.jit(self._update, donate_argnums=(0, 1))
        self._evaluate = Evaluation(lambda params: nnx.merge(self._graph, params), measured)
        start = time.perf_counter()
        jax.block_until_ready(self._train(*self._start(0), self._batch))
        self._evaluate(params)
        self.compile_seconds = time.perf_counter() - start

    def run(self, seed: int, budget: float, *, each: Callable[[Curve], None] | None = None, points: int = 30) -> Curve:
        """Trains until the budget of seconds is used up; measures about `points` times."""
        params, state = self._start(seed)
        curve = Curve(seed, float("nan"), UNCLIPPED)
        curve.add(0.0, 0, self._evaluate(params))
        seconds, steps = 0.0, 0
        while seconds < budget:
            start = time.perf_counter()
            params, state = self._train(params, state, self._batch)
            jax.block_until_ready(params)
            seconds, steps = seconds + time.perf_counter() - start, steps + 1
            if seconds - curve.seconds[-1] >= budget / points or seconds >= budget:
                curve.add(seconds, steps, self._evaluate(params))
                if each is not None:
                    each(curve)
        return curve

    def _start(self, seed: int) -> tuple[Any, Any]:
        params = nnx.split(self._model(seed))[1]
        # Copies, because the state holds the parameters, and a buffer is donated once.
        return params, jax.tree.map(jnp.copy, _strong(self._optimizer.init(params)))

    def _model(self, seed: int) -> CNN:
        model = large_scale_training.maker(large_scale_training.CNN, self._shape, self._classes)(seed)
        for layer in model.convolutions:
            layer.conv_general_dilated = multiplied_patches
        return model

    def _update(self, params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        def value(params: Any) -> jax.Array:
            return loss(nnx.merge(self._graph, params), batch)

        found, grads = optax.value_and_grad_from_state(value)(params, state=state)
        updates, state = self._optimizer.update(grads, state, params, value=found, grad=grads, value_fn=value)
        return optax.apply_updates(params, updates), _strong(state)


def _strong(state: Any) -> Any:
    """The state without the weak types of Optax's numbers, which would make the second step compile again."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=jnp.asarray(leaf).dtype), state)
