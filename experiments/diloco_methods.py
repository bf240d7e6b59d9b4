"""What `diloco` compares: outer steps with their grids, the inner optimizer, and the bytes that each way sends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import optax

import nagjax

PARALLEL = "data_parallel"
BATCH = 32  # for which the rates of data parallel stand below
RATES = 5  # inner rates of a grid, each twice the one before
Inner = Callable[[Any], optax.GradientTransformation]


def adamw(rate: Any) -> optax.GradientTransformation:
    """The inner optimizer, as in the papers."""
    return optax.adamw(rate, b1=0.9, b2=0.99)


class Grid(NamedTuple):
    """Outer settings, and the lowest inner rate that is tried with them: the larger their gain, the lower."""

    outer_rate: float
    outer_momentum: float
    lowest: float

    def rates(self) -> list[float]:
        """The inner rates that are tried."""
        return [self.lowest * 2**power for power in range(RATES)]


@dataclass(frozen=True)
class Method:
    """One outer step, with equally many grids for all."""

    label: str
    build: Callable[[Any, Any], optax.GradientTransformation]
    grids: tuple[Grid, Grid]


def _heavy_ball(rate: Any, momentum: Any) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_learning_rate(rate), nagjax.accelerate(nagjax.momentum.heavy_ball(momentum)))


METHODS = {
    "averaging": Method(
        "averaging (SGD)", lambda rate, momentum: optax.sgd(rate), (Grid(1.0, 0.0, 2e-3), Grid(0.7, 0.0, 2e-3))
    ),
    "heavy_ball": Method("heavy ball", _heavy_ball, (Grid(0.7, 0.9, 5e-4), Grid(0.7, 0.5, 2e-3))),
    "nesterov": Method("Nesterov", nagjax.nesterov, (Grid(0.7, 0.9, 5e-4), Grid(0.7, 0.5, 1e-3))),
    "adam": Method(
        "Adam",
        lambda rate, momentum: optax.adam(rate, b1=momentum, b2=0.95),
        (Grid(0.01, 0.9, 2e-3), Grid(0.01, 0.5, 2e-3)),
    ),
}


def grids(method: str, batch: int) -> tuple[Grid, Grid]:
    """The two grids of a method; those of data parallel lie in each other and follow the root of the batch."""
    if method != PARALLEL:
        return METHODS[method].grids
    lowest = 1e-3 * math.sqrt(batch / BATCH)
    return Grid(1.0, 0.0, lowest), Grid(1.0, 0.0, math.sqrt(2) * lowest)


def sent_bytes(parameters: int, workers: int, synchronizations: int) -> float:
    """Bytes that each worker sends in ring all-reduces of float32: 2 (M - 1) / M parts of the parameters in each."""
    return 4 * parameters * 2 * (workers - 1) / workers * synchronizations
