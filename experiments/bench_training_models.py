"""The networks of `bench_training` in Flax nnx, their losses and their data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from nagjax import models

RATE, MOMENTUM = 0.05, 0.9
DROPOUT = 0.2
VOCABULARY = 64
HEADS = 2
LAYERS = {"transformer100": 6, "transformer388": 24}  # 16 arrays a layer and 4 more

Batch = tuple[Any, Any]


class Block(nnx.Module):
    """Pre-norm causal attention and a perceptron, every part with arrays of its own and biases: 16 arrays."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.queries = nnx.Linear(width, width, rngs=rngs)
        self.keys = nnx.Linear(width, width, rngs=rngs)
        self.values = nnx.Linear(width, width, rngs=rngs)
        self.attention_output = nnx.Linear(width, width, rngs=rngs)
        self.perceptron_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """The features, shape (batch, length, width), of features of that shape."""
        batch, length, width = hidden.shape
        normed = self.attention_norm(hidden)
        queries, keys, values = (
            part(normed).reshape(batch, length, HEADS, width // HEADS)
            for part in (self.queries, self.keys, self.values)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) * (width // HEADS) ** -0.5
        past = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), scores.shape)
        weights = jax.nn.softmax(scores, axis=-1, where=past)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values).reshape(batch, length, width)
        hidden = hidden + self.attention_output(mixed)
        return hidden + self.contract(nnx.gelu(self.expand(self.perceptron_norm(hidden))))


class Transformer(nnx.Module):
    """A decoder over characters whose logits share the embedding; 16 arrays a layer and 4 more."""

    def __init__(self, width: int, length: int, layers: int, rngs: nnx.Rngs) -> None:
        small = nnx.initializers.normal(0.02)
        self.tokens = nnx.Embed(VOCABULARY, width, embedding_init=small, rngs=rngs)
        self.positions = nnx.Embed(length, width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The logits, shape (batch, length, vocabulary), of tokens of shape (batch, length)."""
        embedded = self.tokens(tokens)
        positions = self.positions(jnp.arange(tokens.shape[1], dtype=jnp.int32))
        hidden = embedded + jnp.broadcast_to(positions, embedded.shape)
        for block in self.blocks:
            hidden = block(hidden)
        return self.tokens.attend(self.norm(hidden))


def cross_entropy(model: Any, batch: Batch) -> jax.Array:
    """The mean over examples, or characters, of the negative log-likelihood."""
    inputs, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels).mean()


@dataclass(frozen=True)
class Problem:
    """A network and the examples that it learns."""

    build: Callable[[], Any]  # a new nnx module, the same each time
    inputs: np.ndarray
    labels: np.ndarray
    batch: int
    rate: float = RATE
    dropout: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one pass."""
        return len(self.inputs) // self.batch

    def batches(self, steps: int, stack: int = 1) -> Iterator[Batch]:
        """NumPy batches in a new order each epoch, stacked where a call takes several."""
        order = np.random.default_rng(0)
        rows = np.zeros(0, np.int64)
        taken = 0
        while taken < steps:
            if len(rows) < stack * self.batch:
                rows = np.concatenate([rows, order.permutation(len(self.inputs))])
            now, rows = rows[: stack * self.batch], rows[stack * self.batch :]
            if stack > 1:
                now = now.reshape(stack, self.batch)
            yield self.inputs[now], self.labels[now]
            taken += stack


def digits(dropout: float = DROPOUT) -> Problem:
    """The 1,437 training images of the 8x8 digits that remain of 1,797 after a fifth is held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    kept = np.random.default_rng(0).permutation(len(images))[:1437]

    def build() -> models.MLP:
        return models.MLP((64, 128, 10), dropout=dropout, rngs=nnx.Rngs(params=0, dropout=1))

    return Problem(build, (images[kept] / 16).astype(np.float32), labels[kept].astype(np.int32), 32, dropout=dropout)


def cnn(batch: int = 128) -> Problem:
    """Four batches of random images of 28x28."""
    random = np.random.default_rng(0)
    images = random.standard_normal((4 * batch, 28, 28, 1), dtype=np.float32)
    labels = random.integers(0, 10, 4 * batch).astype(np.int32)
    return Problem(lambda: models.CNN(rngs=nnx.Rngs(params=0)), images, labels, batch, rate=0.01)


def transformer(layers: int, width: int, batch: int, length: int) -> Problem:
    """Sixteen batches of random characters, each to predict the next."""
    text = np.random.default_rng(0).integers(0, VOCABULARY, (16 * batch, length + 1)).astype(np.int32)

    def build() -> Transformer:
        return Transformer(width, length, layers, nnx.Rngs(params=0))

    return Problem(build, text[:, :-1], text[:, 1:], batch)
