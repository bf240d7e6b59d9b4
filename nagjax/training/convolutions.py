"""Computations that XLA's CPU backend repeats slowly."""

from typing import Any

import jax


def slow_in_loops(jaxpr: Any) -> bool:
    """Whether a computation must not stand in the body of a loop: on CPU, one with convolutions.

    XLA's CPU backend computes the convolutions of a loop's body by a naive kernel, 10 to 20 times slower (jax-ml/jax
    issue 12868; figures in BUILD_NOTES.md).
    """
    return jax.default_backend() == "cpu" and _convolves(jaxpr)


def _convolves(jaxpr: Any) -> bool:
    """Whether a jaxpr, closed or not, has a convolution at any depth."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = jax.tree.leaves(equation.params, is_leaf=_is_jaxpr)
        if equation.primitive.name == "conv_general_dilated" or any(map(_convolves, filter(_is_jaxpr, inner))):
            return True
    return False


def _is_jaxpr(part: object) -> bool:
    return hasattr(part, "eqns") or hasattr(part, "jaxpr")
