"""What `scaling` compares, and what each layout should send and hold by formula. Imports no JAX."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

LAYOUTS = ("data parallel", "ZeRO-1", "FSDP")
SIZES = (64, 240, 240, 240, 10)
FLOAT = 4  # bytes
SHAPES = tuple(shape for a, b in itertools.pairwise(SIZES) for shape in ((b,), (a, b)))


@dataclass(frozen=True)
class Expected:
    """Bytes of one step and one device, by formula; scalars (loss, norm, restart) are left out."""

    sent: float  # as XLA compiles it for CPU, which keeps all-reduces of gradients whole
    best: float  # with gradients reduce-scattered where the parameters are cut, as backends with that pass do
    parameters: int
    velocity: int


def size(shape: Sequence[int]) -> int:
    """Numbers in an array."""
    count = 1
    for length in shape:
        count *= length
    return count


def divided(shape: Sequence[int], devices: int) -> bool:
    """Whether some axis of an array can be cut over the devices."""
    return any(length % devices == 0 for length in shape)


def expected(layout: str, devices: int, shapes: Sequence[Sequence[int]] = SHAPES) -> Expected:
    """The formulas, for P numbers of which P' lie in arrays that the n devices divide.

    Gradients are all-reduced: 2 (n-1)/n P. ZeRO-1 gathers the parameters that it updated in parts, FSDP those that it
    holds in parts (XLA keeps them from the forward to the backward pass): (n-1)/n P'. Where a backend makes a
    reduce-scatter of an all-reduce of which each device needs one part, the gradients of P' cost (n-1)/n.
    """
    total = sum(size(shape) for shape in shapes)
    cut = sum(size(shape) for shape in shapes if divided(shape, devices))
    ring = (devices - 1) / devices * FLOAT
    part = FLOAT * (total - cut + cut // devices)
    whole = FLOAT * total
    if layout == "data parallel":
        return Expected(2 * ring * total, 2 * ring * total, whole, whole)
    best = ring * (2 * (total - cut) + 2 * cut)
    return Expected(ring * (2 * total + cut), best, part if layout == "FSDP" else whole, part)
