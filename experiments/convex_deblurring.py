"""Deblurring a photograph; the unknowns are its coefficients in an orthonormal wavelet, few of which are large."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.convex_problems import Problem
from nagjax import proximal

SIZE = 256
LEVELS = 4
BLUR = 2.0  # standard deviation of the Gaussian in pixels
NOISE = 1e-3  # standard deviation in gray values, which lie in [0, 1]
WEIGHT = 1e-5

# Daubechies' wavelet with two vanishing moments; the high-pass filter is (LOW[3], -LOW[2], LOW[1], -LOW[0]).
LOW = tuple(float(v) for v in np.array([1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5]) / 32**0.5)


def photograph(size: int = SIZE) -> NDArray[np.float64]:
    """A square crop of a photograph that scikit-learn ships, in gray values."""
    from sklearn.datasets import load_sample_image

    image = load_sample_image("flower.jpg").astype(np.float64) / 255
    gray = image @ np.array([0.299, 0.587, 0.114])
    return gray[80 : 80 + size, 200 : 200 + size]


def _merge(low: jax.Array, high: jax.Array) -> jax.Array:
    """One level of synthesis along the first axis, which closes to a ring."""
    a, b, c, d = LOW
    low_before, high_before = jnp.roll(low, 1, axis=0), jnp.roll(high, 1, axis=0)
    even = a * low + d * high + c * low_before + b * high_before
    odd = b * low - c * high + d * low_before - a * high_before
    return jnp.stack([even, odd], axis=1).reshape(2 * low.shape[0], low.shape[1])


def synthesize(coefficients: jax.Array, levels: int = LEVELS) -> jax.Array:
    """The image of the wavelet coefficients, an orthonormal map; averages stand in the upper left corner."""
    image = coefficients
    for level in reversed(range(levels)):
        size = coefficients.shape[0] >> level
        half, block = size // 2, image[:size, :size]
        columns = _merge(block[:half], block[half:])
        image = image.at[:size, :size].set(_merge(columns.T[:half], columns.T[half:]).T)
    return image


def analyze(image: jax.Array, levels: int = LEVELS) -> jax.Array:
    """The wavelet coefficients of an image: the transpose of `synthesize`, which is its inverse."""
    (coefficients,) = jax.linear_transpose(lambda x: synthesize(x, levels), image)(image)
    return coefficients


def blur_matrix(size: int, deviation: float = BLUR) -> NDArray[np.float64]:
    """A Gaussian blur along one axis, the image reflected at its borders; symmetric with eigenvalues in [0, 1]."""
    radius = int(np.ceil(4 * deviation))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / deviation) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros((size, size))
    for offset, weight in zip(offsets, kernel, strict=True):
        source = np.arange(size) + offset
        source = np.where(source < 0, -1 - source, np.where(source >= size, 2 * size - 1 - source, source))
        np.add.at(matrix, (np.arange(size), source), weight)
    return matrix


def _misfit(coefficients: jax.Array, blur: jax.Array, observed: jax.Array) -> jax.Array:
    """|B W^T x B - b|^2 / 2 for coefficients x."""
    return 0.5 * jnp.sum((blur @ synthesize(coefficients) @ blur - observed) ** 2)


def problem(size: int = SIZE) -> Problem:
    """|B W^T x B - b|^2 / 2 + w |x|_1, from the coefficients of the blurred image."""
    original, blur = photograph(size), blur_matrix(size)
    noise = NOISE * np.random.default_rng(0).standard_normal(original.shape)
    observed = blur @ original @ blur + noise
    facts = {"weight": WEIGHT, "original": original, "observed": observed}
    return Problem(
        "deblur", f"deblurring {size} x {size}, wavelet l1", _misfit, (jnp.asarray(blur), jnp.asarray(observed)),
        analyze(jnp.asarray(observed)), 1.0, proximal.l1(WEIGHT), "wavelet", facts,
    )  # fmt: skip


def peak_signal_to_noise(image: NDArray[np.float64], original: NDArray[np.float64]) -> float:
    """PSNR in decibels for gray values in [0, 1]."""
    return float(-10 * np.log10(np.mean((image - original) ** 2)))
