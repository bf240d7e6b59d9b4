"""What tuning tries: ranges of hyper-parameters, and the points in them that are the same for every optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A coordinate belongs to a hyper-parameter, not to a place in the list of one optimizer: in trial i every optimizer
# with a momentum has the same momentum, whatever else it tunes.
COORDINATES = {"learning_rate": 0, "distance": 0, "momentum": 1, "gamma": 1, "weight_decay": 2}
OTHER = 3
BASES = (2, 3, 5, 7)
EDGE = 0.05


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, evenly spread in the logarithm of the value, or of 1 - value."""

    low: float
    high: float
    complement: bool = False

    def at(self, fraction: float) -> float:
        """The value at a fraction in [0, 1] of the way from `low` to `high`."""
        if self.complement:
            return 1 - math.exp(_between(math.log(1 - self.low), math.log(1 - self.high), fraction))
        return math.exp(_between(math.log(self.low), math.log(self.high), fraction))

    def fraction(self, value: float) -> float:
        """The inverse of `at`."""
        if self.complement:
            return math.log((1 - value) / (1 - self.low)) / math.log((1 - self.high) / (1 - self.low))
        return math.log(value / self.low) / math.log(self.high / self.low)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, log-uniform{' in 1 - value' if self.complement else ''}"


Space = Mapping[str, Range]


def points(count: int, seed: int) -> NDArray[np.float64]:
    """The first `count` points of Halton's sequence in the unit cube, shifted at random, shape (count, 4).

    A larger count only adds points. Where a trial stands in one coordinate says little about the others, and any run of
    points covers each range: random search without its gaps.

    Source:
        J. Halton, "On the efficiency of certain quasi-random sequences of points", 1960; the shift of R. Cranley and
        T. Patterson, "Randomization of number theoretic methods for multiple integration", 1976.
    """
    shift = np.random.default_rng(seed).random(len(BASES))
    plain = [[_radical_inverse(index + 1, base) for base in BASES] for index in range(count)]
    return (np.array(plain).reshape(count, len(BASES)) + shift) % 1.0


def trials(space: Space, count: int, seed: int) -> list[dict[str, float]]:
    """The settings that tuning tries for an optimizer with this space."""
    return [
        {name: rounded(span.at(point[_coordinate(name)])) for name, span in space.items()}
        for point in points(count, seed)
    ]


def sweep(space: Space, tuned: Mapping[str, float], count: int) -> list[dict[str, float]]:
    """`count` settings over the whole range of the learning rate; everything else is as tuned."""
    name = swept(space)
    span = space[name]
    fractions = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    return [{**tuned, name: rounded(span.at(fraction))} for fraction in fractions]


def swept(space: Space) -> str:
    """The hyper-parameter that is, or takes the place of, the learning rate."""
    return next(name for name in space if _coordinate(name) == 0)


def edges(space: Space, setting: Mapping[str, float]) -> list[str]:
    """The hyper-parameters that lie within 5 % of the end of their range: a wider range might do better."""
    return [name for name, span in space.items() if not EDGE <= span.fraction(setting[name]) <= 1 - EDGE]


def middle(values: Sequence[float]) -> int:
    """The index of the (lower) median; values that are not finite come last."""
    order = sorted(range(len(values)), key=lambda index: (not math.isfinite(values[index]), values[index], index))
    return order[(len(order) - 1) // 2]


def rounded(value: float) -> float:
    """Four significant digits: what a table shows is what ran."""
    return float(f"{value:.4g}")


def _coordinate(name: str) -> int:
    return COORDINATES.get(name, OTHER)


def _between(start: float, end: float, fraction: float) -> float:
    return start + fraction * (end - start)


def _radical_inverse(index: int, base: int) -> float:
    """The digits of the index behind the point, in reverse."""
    value, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * scale
        scale /= base
    return value
