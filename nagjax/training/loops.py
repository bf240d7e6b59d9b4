"""Repetition of a step: a scan inside one program, or one program called again where a scan would be slow."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from nagjax.types import PyTree

Body = Callable[[PyTree, Any, PyTree], PyTree]  # (carry, index, operands) -> carry
Prepare = Callable[[PyTree, PyTree], PyTree]  # (donated, operands) -> operands of the body


def slow_in_scan(jaxpr: Any) -> bool:
    """Whether a computation must not be repeated by `lax.scan`: on CPU, one with convolutions.

    XLA's CPU backend computes the convolutions of a loop's body by a naive kernel, 10 to 20 times slower (jax-ml/jax
    issue 12868; figures in BUILD_NOTES.md).
    """
    return jax.default_backend() == "cpu" and _convolves(jaxpr)


def repeated(
    body: Body, count: int, *, prepare: Prepare | None, in_scan: bool, donate: bool
) -> Callable[[PyTree, PyTree, PyTree], PyTree]:
    """A compiled function of (donated, kept, operands) that calls `body` with the indices 0 to count - 1.

    The carry of `body` is (donated, kept), and so is the result.
    """

    def scanned(first: PyTree, second: PyTree, operands: PyTree) -> PyTree:
        operands = operands if prepare is None else prepare(first, operands)

        def one(carry: PyTree, index: jax.Array) -> tuple[PyTree, None]:
            return body(carry, index, operands), None

        return jax.lax.scan(one, (first, second), jnp.arange(count, dtype=jnp.int32))[0]

    def once(first: PyTree, second: PyTree, index: Any, operands: PyTree) -> PyTree:
        return body((first, second), index, operands)

    donated = (0,) if donate else ()
    if in_scan:
        return cast("Any", jax.jit(scanned, donate_argnums=donated))
    prepared: Any = None if prepare is None else jax.jit(prepare)
    program: Any = jax.jit(once, donate_argnums=donated)

    def calls(first: PyTree, second: PyTree, operands: PyTree) -> PyTree:
        operands = operands if prepared is None else prepared(first, operands)
        for index in range(count):
            first, second = program(first, second, np.int32(index), operands)
        return first, second

    return calls


def _convolves(jaxpr: Any) -> bool:
    """Whether a jaxpr, closed or not, has a convolution at any depth."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = jax.tree.leaves(equation.params, is_leaf=_is_jaxpr)
        if equation.primitive.name == "conv_general_dilated" or any(map(_convolves, filter(_is_jaxpr, inner))):
            return True
    return False


def _is_jaxpr(part: object) -> bool:
    return hasattr(part, "eqns") or hasattr(part, "jaxpr")
