"""Parameter trees of the sizes that people train, filled with float32 numbers."""

from __future__ import annotations

import jax
import numpy as np

Shapes = list[tuple[int, ...]]


def one_leaf() -> Shapes:
    """One leaf of 25 million parameters."""
    return [(25_000_000,)]


def resnet50() -> Shapes:
    """The 161 leaves of ResNet-50: 53 convolutions, scale and bias of 53 normalizations, the classifier."""
    convolutions: Shapes = [(7, 7, 3, 64)]
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            convolutions += [(1, 1, channels, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                convolutions.append((1, 1, channels, 4 * width))
            channels = 4 * width
    normalizations: Shapes = [(shape[-1],) for shape in convolutions for _ in range(2)]
    return [*convolutions, *normalizations, (2048, 1000), (1000,)]


def many_leaves() -> Shapes:
    """2,000 leaves of 1,000 parameters."""
    return [(1000,)] * 2000


def digits_network() -> Shapes:
    """The network of the digits experiment, 64-128-10."""
    return [(64, 128), (128,), (128, 10), (10,)]


def filled(shapes: Shapes, seed: int) -> list[jax.Array]:
    """Standard normal numbers in these shapes."""
    generator = np.random.default_rng(seed)
    return [jax.numpy.asarray(generator.standard_normal(shape, np.float32)) for shape in shapes]
