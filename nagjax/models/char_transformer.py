"""A small decoder-only transformer over characters."""

import jax
import jax.numpy as jnp
from flax import nnx

from nagjax import checks


class Block(nnx.Module):
    """Causal self-attention and a perceptron, each after a layer norm and added to its input.

    Args:
        width: Features d of a position.
        heads: Attention heads, a divisor of `width`.
        rngs: Stream `params` for the initial weights.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.queries_keys_values = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.attention_output = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.perceptron_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """The features, shape (..., length, width), of features of that shape."""
        hidden = hidden + self._attend(self.attention_norm(hidden))
        return hidden + self.contract(nnx.gelu(self.expand(self.perceptron_norm(hidden))))

    def _attend(self, hidden: jax.Array) -> jax.Array:
        *batch, length, width = hidden.shape
        split = self.queries_keys_values(hidden).reshape(*batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = (split[..., part, :, :] for part in range(3))
        scores = jnp.einsum("...qhd,...khd->...hqk", queries, keys) * (width // self.heads) ** -0.5
        past = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), scores.shape)
        weights = jax.nn.softmax(scores, axis=-1, where=past)
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights, values)
        return self.attention_output(mixed.reshape(*batch, length, width))


class CharTransformer(nnx.Module):
    """A decoder-only transformer that predicts the next of V characters, with learned positions.

    Tokens of shape (..., length), length at most `context`, become features of shape (..., length, width), pass
    `layers` blocks of pre-norm causal attention and perceptron, and become logits of shape (..., length, V). The logit
    at a position depends on the tokens up to it.

    Args:
        vocabulary: V, the number of characters, at least 1.
        context: Longest sequence, at least 1.
        width: Features d of a position, a multiple of `heads`.
        layers: Number of blocks, at least 1.
        heads: Attention heads of a block, at least 1.
        rngs: Stream `params` for the initial weights.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is less than 1, or `width` is no multiple of `heads`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = CharTransformer(96, context=32, width=48, layers=2, heads=3, rngs=nnx.Rngs(params=0))
        >>> model(jnp.zeros((16, 32), jnp.int32)).shape == (16, 32, 96)
        True

    Source:
        A. Radford, J. Wu, R. Child, D. Luan, D. Amodei and I. Sutskever, "Language models are unsupervised multitask
        learners", 2019, section 2.3.
    """

    def __init__(self, vocabulary: int, *, context: int, width: int, layers: int, heads: int, rngs: nnx.Rngs) -> None:
        sizes = {"vocabulary": vocabulary, "context": context, "width": width, "layers": layers, "heads": heads}
        for argument, size in sizes.items():
            checks.whole("CharTransformer", argument, size, 1, "(96, 32, 48, 2, 3) is a small model")
        if width % heads:
            remedy = "each head takes width / heads features"
            checks.reject("CharTransformer", "width", f"a multiple of heads = {heads}", width, remedy)
        # Small embeddings: the first logits are close to uniform.
        small = nnx.initializers.normal(0.02)
        self.context = context
        self.tokens = nnx.Embed(vocabulary, width, embedding_init=small, rngs=rngs)
        self.positions = nnx.Embed(context, width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.logits = nnx.Linear(width, vocabulary, use_bias=False, kernel_init=small, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The logits, shape (..., length, V), of the characters that follow the tokens.

        Args:
            tokens: Integers in [0, V), shape (..., length).

        Raises:
            ValueError: The sequence is longer than `context`.
        """
        length = tokens.shape[-1]
        if length > self.context:
            remedy = "cut the text into shorter pieces"
            checks.reject("CharTransformer", "tokens", f"at most {self.context} long", tokens.shape, remedy)
        embedded = self.tokens(tokens)
        positions = self.positions(jnp.arange(length, dtype=jnp.int32))
        hidden = embedded + jnp.broadcast_to(positions, embedded.shape)
        for block in self.blocks:
            hidden = block(hidden)
        return self.logits(self.norm(hidden))
