"""The four parts of an accelerated transformation, and the symbols that its documentation uses.

Glossary:
    y        the query point: `params`, where the gradient is taken
    x        the answer: what `eval_params` returns, and what most theorems are about
    u        the step that the chain so far proposes: a scaled negative gradient, an Adam direction, ...
    w        the velocity: the one buffer, in units of the parameters
    k        the number of updates since the last restart, from 0 (the `age` of a state)
    b_k      the momentum that forms y_k
    L, mu    smoothness (largest curvature) and strong convexity (smallest)
    kappa    condition number L / mu; q is its inverse
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.typing import ArrayLike

PyTree = Any
Carry = Any


class Coefficients(NamedTuple):
    """The four numbers of one update.

    With the velocity w, the proposed step u and the query point y::

        w'     = decay * w + u
        y'     = y + direct * u + gain * w'
        answer = y' - readout * w'
    """

    decay: ArrayLike
    direct: ArrayLike
    gain: ArrayLike
    readout: ArrayLike


class Momentum(NamedTuple):
    """A rule for the coefficients: `init() -> carry` and `next(carry, **extra) -> (Coefficients, carry)`.

    The carry is a pytree of scalars (`()` where the rule needs none); after a restart the rule starts again from
    `init()`. `extra` holds the keyword arguments of `update`. `nesterov` says that every update has direct = 1 and
    gain = readout, so that the velocity is the difference of successive answers.
    """

    init: Callable[[], Carry]
    next: Callable[..., tuple[Coefficients, Carry]]
    nesterov: bool = False


class Restart(NamedTuple):
    """A restart test: `init() -> carry` and `test(carry, step=u, velocity=w', **extra) -> (bool, carry)`.

    `step` and `velocity` are trees; `velocity` is the one that this update has just formed. `extra` holds the
    keyword arguments of `update`. `needs_nesterov` says that the test reads the velocity as the difference of
    successive answers, and so is valid for rules with `Momentum.nesterov` alone.
    """

    init: Callable[[], Carry]
    test: Callable[..., tuple[jax.Array, Carry]]
    needs_nesterov: bool = False


class Storage(NamedTuple):
    """How the velocity is kept between updates.

    `init(params) -> stored` is zero velocity. `decode(stored, like) -> velocity` is a tree with the structure of
    `like` and leaves of at least 32 bits (see `trees.compute_dtype`). `encode(velocity, stored) -> stored` rounds;
    where a leaf of `velocity` is None or `optax.MaskedNode` the old stored leaf stays as it was.

    A stored form is a tree of arrays with the structure of the parameters, or a `StoredBuffer`, which can be read
    without this object: `eval_params` sees states alone.
    """

    init: Callable[[PyTree], PyTree]
    decode: Callable[[PyTree, PyTree], PyTree]
    encode: Callable[[PyTree, PyTree], PyTree]


@runtime_checkable
class StoredBuffer(Protocol):
    """A stored velocity that is not simply a tree of arrays."""

    def decode(self, like: PyTree | None = None) -> PyTree:
        """The velocity as a tree; complex leaves need `like`, else they are pairs in a trailing axis of 2."""
        ...

    def where(self, keep: ArrayLike) -> PyTree:
        """Itself where the scalar `keep` is true, zero velocity elsewhere; counters of noise go on."""
        ...

    def scaled(self, factors: list[jax.Array]) -> PyTree:
        """Itself times one scalar a leaf, in flattened order."""
        ...


class HasAnswer(Protocol):
    """A state whose answer differs from `params`."""

    def answer(self, params: PyTree) -> PyTree:
        """The point x that belongs to the query point `params`."""
        ...


class HasMomentum(Protocol):
    """A state that holds a velocity."""

    def buffers(self) -> PyTree:
        """The velocity, as a tree of arrays."""
        ...

    def reset(self) -> "HasMomentum":
        """The same state with zero velocity, readout and age."""
        ...


class HasScalableMomentum(HasMomentum, Protocol):
    """A state whose velocity may be changed leaf by leaf."""

    def scaled(self, factors: list[jax.Array]) -> "HasScalableMomentum":
        """The same state with its velocity times one scalar a leaf, in flattened order; 0 clears a leaf."""
        ...
