"""`Prox`, a function that is not smooth, given by its value and its proximal operator."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nagjax.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prox:
    """A function h of a tree of arrays, by its value and its proximal operator.

    A `Prox` is a pytree: its leaves are the numbers and arrays that parametrize h (weights, bounds, radii), so it
    passes through `jit`, `vmap` and `grad` as an argument, and new weights do not compile again. Functions given as
    plain callables are static.

    Attributes:
        value: `value(params) -> h(params)`, a real scalar; infinity outside of a constraint set, up to rounding.
        prox: `prox(params, step_size) -> argmin_z h(z) + |z - params|^2 / (2 step_size)`, with the structure, shapes
            and dtypes of `params`; `step_size` is a positive scalar.
        separable: Whether h is a sum over single (real) coordinates, so that the derivative of the operator is
            diagonal. `solve.minimize(method="boosted")` makes use of it.
        constraint: Whether h is 0 on a set and infinite elsewhere, so that its value need not be taken after its
            operator.
    """

    value: Callable[[PyTree], jax.Array]
    prox: Callable[[PyTree, ArrayLike], PyTree]
    separable: bool = dataclasses.field(default=False, metadata={"static": True})
    constraint: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        for name in ("value", "prox"):
            function: Any = getattr(self, name)
            if callable(function) and jax.tree_util.all_leaves([function]):
                object.__setattr__(self, name, Partial(function))
