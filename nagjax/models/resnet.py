"""A small residual network with batch normalization, in the pre-activation form."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from nagjax import checks


class ResidualBlock(nnx.Module):
    """Pre-activation block: h + conv(relu(norm(conv(relu(norm(h)))))), with 3x3 convolutions.

    Where the shape changes, a 1x1 convolution of relu(norm(h)) takes the place of h. The last convolution starts at 0,
    so that the block starts as its shortcut, which is the identity where the shape stays.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: 1 keeps height and width, 2 halves them (rounded up).
        rngs: Stream `params` for the initial weights.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, rngs: nnx.Rngs) -> None:
        zero = nnx.initializers.zeros
        self.norms = nnx.List([nnx.BatchNorm(size, rngs=rngs) for size in (inputs, outputs)])
        self.expand = nnx.Conv(inputs, outputs, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.contract = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, kernel_init=zero, rngs=rngs)
        changes = inputs != outputs or stride != 1
        self.shortcut = nnx.data(
            nnx.Conv(inputs, outputs, (1, 1), strides=stride, use_bias=False, rngs=rngs) if changes else None
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """The features, shape (batch, height, width, outputs), of features (batch, height, width, inputs)."""
        first, second = self.norms
        active = nnx.relu(first(hidden))
        kept = hidden if self.shortcut is None else self.shortcut(active)
        return kept + self.contract(nnx.relu(second(self.expand(active))))


class ResNet(nnx.Module):
    """A residual classifier of images of any size: 3x3 convolution, stages of blocks, mean over the image, logits.

    Stage i has `blocks[i]` pre-activation blocks of `width` 2^i channels; every stage but the first starts by halving
    height and width. `train()` and `eval()` of the model choose between the statistics of the batch and the running
    ones; for an accelerated answer see `nagjax.training.recompute_batch_statistics`.

    Args:
        channels: Of the images: 1 for grayscale, 3 for color.
        classes: Number of logits, at least 1.
        width: Channels of the first stage, at least 1.
        blocks: Blocks of each stage, at least one stage.
        rngs: Stream `params` for the initial weights.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is less than 1, or there is no stage.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = ResNet(1, 10, width=8, rngs=nnx.Rngs(params=0))
        >>> model(jnp.ones((4, 8, 8, 1), jnp.float32)).shape == (4, 10)
        True

    Source:
        K. He, X. Zhang, S. Ren and J. Sun, "Identity mappings in deep residual networks", 2016, figure 1(b) and
        section 4 (full pre-activation), with three stages by default and zeros in the last convolution of a block.
    """

    def __init__(
        self, channels: int, classes: int, *, width: int = 16, blocks: Sequence[int] = (1, 1, 1), rngs: nnx.Rngs
    ) -> None:
        if not len(blocks):
            checks.reject("ResNet", "blocks", "at least one stage", tuple(blocks), "(1, 1, 1) has three")
        sizes = [("channels", channels), ("classes", classes), ("width", width), *(("blocks", n) for n in blocks)]
        for argument, size in sizes:
            checks.whole("ResNet", argument, size, 1, "ResNet(1, 10, width=16, blocks=(1, 1, 1)) is a small model")
        self.channels = channels
        self.stem = nnx.Conv(channels, width, (3, 3), use_bias=False, rngs=rngs)
        stages = [[width * 2**stage] * count for stage, count in enumerate(blocks)]
        outputs = [width, *itertools.chain.from_iterable(stages)]
        # The first block of a stage has twice the channels of the block before it, but for the first stage's.
        self.blocks = nnx.List([ResidualBlock(a, b, stride=b // a, rngs=rngs) for a, b in itertools.pairwise(outputs)])
        self.norm = nnx.BatchNorm(outputs[-1], rngs=rngs)
        self.logits = nnx.Linear(outputs[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits, shape (batch, classes), in the dtype of the weights.

        Args:
            images: Shape (batch, height, width, channels), of any real dtype; they are cast to that of the weights.

        Raises:
            ValueError: The images have another number of channels or of axes.
        """
        if images.ndim != 4 or images.shape[-1] != self.channels:
            condition = f"of shape (batch, height, width, {self.channels})"
            checks.reject("ResNet", "images", condition, images.shape, "channels come last")
        hidden = self.stem(images.astype(self.logits.kernel[...].dtype))
        for block in self.blocks:
            hidden = block(hidden)
        return self.logits(nnx.relu(self.norm(hidden)).mean(axis=(1, 2)))
