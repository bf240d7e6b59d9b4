"""Problems on which no constant of the solver was chosen; that of a9a needs a folder of data."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.convex_problems import Array, Problem, autoregressive
from nagjax import proximal

A9A = "a9a.gz"
FEATURES = 123


def _grouped(x: jax.Array, matrix: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((matrix @ x.reshape(-1) - target) ** 2) / (2 * target.shape[0])


def group_lasso(*, rows: int = 600, groups: int = 200, size: int = 5) -> Problem:
    """|A x - b|^2 / (2 samples) + w sum over groups |x_g|, the columns AR(0.9)."""
    rng = np.random.default_rng(1)
    matrix = autoregressive(rng, rows, groups * size, 0.9)
    true = np.where(rng.random((groups, 1)) < 0.1, rng.standard_normal((groups, size)), 0.0)
    target = matrix @ true.ravel()
    target += 0.1 * np.std(target) * rng.standard_normal(rows)
    correlations = (matrix.T @ target).reshape(groups, size) / rows
    weight = 0.05 * float(np.linalg.norm(correlations, axis=1).max())
    return Problem(
        "group_lasso", f"group lasso {rows} x {groups * size}, groups of {size}", _grouped,
        (jnp.asarray(matrix), jnp.asarray(target)), jnp.zeros((groups, size)),
        float(np.linalg.norm(matrix, 2)) ** 2 / rows, proximal.group_lasso(weight, axis=-1),
    )  # fmt: skip


def _huber(x: jax.Array, matrix: jax.Array, target: jax.Array) -> jax.Array:
    size = jnp.abs(matrix @ x - target)
    return jnp.mean(jnp.where(size <= 1, 0.5 * size**2, size - 0.5))


def huber_elastic_net(*, rows: int = 1500, columns: int = 800) -> Problem:
    """Huber regression with an elastic net; the columns' scales spread over a factor of 10."""
    rng = np.random.default_rng(2)
    scales = 10 ** rng.uniform(-0.5, 0.5, columns)
    matrix = rng.standard_normal((rows, columns)) * scales
    true = np.where(rng.random(columns) < 0.1, rng.standard_normal(columns), 0.0)
    target = matrix @ true + rng.standard_t(2, rows)
    return Problem(
        "huber", f"Huber + elastic net {rows} x {columns}, uneven columns", _huber,
        (jnp.asarray(matrix), jnp.asarray(target)), jnp.zeros(columns),
        float(np.linalg.norm(matrix, 2)) ** 2 / rows, proximal.elastic_net(1e-2, 1e-3),
    )  # fmt: skip


def _total_variation(u: jax.Array, signal: jax.Array) -> jax.Array:
    """|y - D^T u|^2 / 2, where (D x)_i = x_{i+1} - x_i."""
    zero = jnp.zeros(1, u.dtype)
    return 0.5 * jnp.sum((signal - (jnp.concatenate([zero, u]) - jnp.concatenate([u, zero]))) ** 2)


def total_variation_dual(*, length: int = 1000, weight: float = 2.0) -> Problem:
    """The dual of denoising a piecewise constant signal by total variation, |u| <= w."""
    rng = np.random.default_rng(3)
    signal = np.repeat(rng.standard_normal(10) * 2, length // 10) + 0.5 * rng.standard_normal(length)
    return Problem(
        "tv_dual", f"1D total variation, dual, n = {length}", _total_variation, (jnp.asarray(signal),),
        jnp.zeros(length - 1), 4.0, proximal.box(-weight, weight), facts={"signal": signal, "weight": weight},
    )  # fmt: skip


def _observed(matrix: jax.Array, mask: jax.Array, entries: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((mask * matrix - entries) ** 2)


def matrix_completion(*, rows: int = 100, columns: int = 80, rank: int = 4) -> Problem:
    """|observed entries of X - Y|^2 / 2 + w |X|_*."""
    rng = np.random.default_rng(4)
    low_rank = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / np.sqrt(rank)
    mask = (rng.random((rows, columns)) < 0.4).astype(np.float64)
    entries = mask * (low_rank + 0.1 * rng.standard_normal((rows, columns)))
    return Problem(
        "completion", f"matrix completion {rows} x {columns}, nuclear norm", _observed,
        (jnp.asarray(mask), jnp.asarray(entries)), jnp.zeros((rows, columns)), 1.0, proximal.nuclear(0.5),
    )  # fmt: skip


def _poisson(x: jax.Array, matrix: jax.Array, counts: jax.Array) -> jax.Array:
    scores = matrix @ x
    return jnp.mean(jnp.exp(scores) - counts * scores)


def poisson_regression(*, rows: int = 800, columns: int = 300) -> Problem:
    """Mean of exp(a^T x) - count a^T x over x >= 0; F* is negative and f is not globally smooth."""
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((rows, columns)) / np.sqrt(columns)
    true = np.where(rng.random(columns) < 0.3, 2 * rng.random(columns), 0.0)
    counts = rng.poisson(np.exp(matrix @ true)).astype(np.float64)
    return Problem(
        "poisson", f"Poisson regression {rows} x {columns}, x >= 0", _poisson,
        (jnp.asarray(matrix), jnp.asarray(counts)), jnp.zeros(columns), float("nan"), proximal.nonnegative(),
    )  # fmt: skip


def _margins(x: jax.Array, signed: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.softplus(-(signed @ x)))


def read_a9a(folder: Path, rows: int) -> tuple[Array, Array]:
    """The first rows of a9a as a dense matrix, and the labels -1 and 1.

    Raises:
        ValueError: the folder holds no a9a.gz.
    """
    path = next((p for p in (folder / A9A, folder / "a9a" / A9A) if p.is_file()), None)
    if path is None:
        raise ValueError(f"--data {folder} holds no {A9A}; give the folder of the LIBSVM data set a9a, gzipped.")
    matrix, labels = np.zeros((rows, FEATURES)), np.zeros(rows)
    with gzip.open(path, "rt", encoding="ascii") as lines:
        for row, line in zip(range(rows), lines, strict=False):
            label, *entries = line.split()
            labels[row] = float(label)
            matrix[row, [int(entry.partition(":")[0]) - 1 for entry in entries]] = 1.0
    return matrix, labels


def a9a(folder: Path, *, rows: int = 12_000) -> Problem:
    """Logistic regression with an l1 penalty on the census data a9a."""
    matrix, labels = read_a9a(folder, rows)
    signed = labels[:, None] * matrix
    weight = 1e-3 * float(np.max(np.abs(signed.sum(axis=0)))) / (2 * rows)
    return Problem(
        "a9a", f"a9a logistic + l1 {rows} x {FEATURES}", _margins, (jnp.asarray(signed),), jnp.zeros(FEATURES),
        float(np.linalg.norm(matrix, 2)) ** 2 / (4 * rows), proximal.l1(weight), "logistic_l1",
        {"matrix": matrix, "labels": labels, "weight": weight},
    )  # fmt: skip


HELD_OUT: dict[str, Callable[[], Problem]] = {
    "group_lasso": group_lasso,
    "huber": huber_elastic_net,
    "tv_dual": total_variation_dual,
    "completion": matrix_completion,
    "poisson": poisson_regression,
}
