"""A multilayer perceptron with dropout."""

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from nagjax import checks


class MLP(nnx.Module):
    """Linear layers with an activation and dropout after each but the last.

    Args:
        sizes: Widths from input to output, at least two positive integers; (64, 128, 10) has one hidden layer.
        dropout: Probability in [0, 1) that a hidden unit is set to zero in training.
        activation: Function of the hidden layers, elementwise.
        rngs: Streams `params` for the initial weights and `dropout` for the masks.

    Raises:
        TypeError: A width is not an integer.
        ValueError: There are fewer than two widths, a width is less than 1, or `dropout` is outside [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = MLP((64, 128, 10), dropout=0.2, rngs=nnx.Rngs(params=0, dropout=1))
        >>> model(jnp.ones((32, 64), jnp.float32), deterministic=True).shape == (32, 10)
        True
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        dropout: float = 0.0,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        rngs: nnx.Rngs,
    ) -> None:
        if len(sizes) < 2:
            checks.reject("MLP", "sizes", "at least two widths", tuple(sizes), "give (inputs, ..., outputs)")
        for width in sizes:
            checks.whole("MLP", "sizes", width, 1, "give (inputs, ..., outputs)")
        checks.fraction("MLP", "dropout", dropout, "0 switches dropout off")
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.activation = activation

    def __call__(self, inputs: jax.Array, *, deterministic: bool | None = None) -> jax.Array:
        """The outputs, shape (..., sizes[-1]), of inputs of shape (..., sizes[0]).

        Args:
            inputs: Floating-point, shape (..., sizes[0]).
            deterministic: Whether dropout is off; by default as `model.train()` or `model.eval()` said last.
        """
        hidden = inputs
        for layer in self.layers[:-1]:
            hidden = self.dropout(self.activation(layer(hidden)), deterministic=deterministic)
        return self.layers[-1](hidden)
