"""Calculus of proximal operators: scaling, translation, the conjugate, and sums over the parts of a tree."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp

from nagjax import checks, trees
from nagjax.proximal.parameters import bind, check, leafwise, widened
from nagjax.proximal.prox import Prox
from nagjax.scalars import as_scalar, scalar_dtype
from nagjax.types import PyTree


def _check_prox(function: str, prox: object) -> None:
    if not isinstance(prox, Prox):
        remedy = "take one from nagjax.proximal, or write Prox(value, prox)"
        checks.reject(function, "prox", "a nagjax.proximal.Prox", prox, remedy, TypeError)


def scale(prox: Prox, factor: Any) -> Prox:
    """The function factor h, whose operator is that of h with the step size s factor.

    Args:
        prox: h.
        factor: Positive, a scalar.

    Returns:
        A `Prox`, separable where h is.

    Raises:
        TypeError: `prox` is not a `Prox` or `factor` not a number.
        ValueError: `factor` is not positive and finite.
    """
    _check_prox("proximal.scale", prox)
    checks.positive("proximal.scale", "factor", factor, "use zero() for no penalty")
    return Prox(
        bind(_scale_value, prox, factor),
        bind(_scale_prox, prox, factor),
        separable=prox.separable,
        constraint=prox.constraint,
    )


def _scale_value(prox: Prox, factor: Any, params: PyTree) -> jax.Array:
    return as_scalar(factor) * prox.value(params)


def _scale_prox(prox: Prox, factor: Any, params: PyTree, step_size: Any) -> PyTree:
    return prox.prox(params, as_scalar(step_size) * as_scalar(factor))


def translate(prox: Prox, offset: PyTree) -> Prox:
    """The function h(x - offset), whose operator is offset + prox(x - offset).

    Args:
        prox: h.
        offset: One finite number; an array that broadcasts to the parameters (one array); or a tree of these that
            matches the parameters or their top.

    Returns:
        A `Prox`, separable where h is.

    Raises:
        TypeError: `prox` is not a `Prox`, or an offset not a number or an array.
        ValueError: An offset is not finite; when traced, a tree or shape does not match.
    """
    _check_prox("proximal.translate", prox)
    remedy = "give the point that takes the place of 0"
    check("proximal.translate", "offset", offset, "finite", lambda v: abs(v) < float("inf"), remedy)
    return Prox(
        bind(_translate_value, prox, offset),
        bind(_translate_prox, prox, offset),
        separable=prox.separable,
        constraint=prox.constraint,
    )


def _shifted(offset: PyTree, params: PyTree, sign: int) -> PyTree:
    def shift(x: jax.Array, c: jax.Array) -> jax.Array:
        return x + (sign * c).astype(x.dtype)

    return leafwise("proximal.translate", shift, params, offset=offset)


def _translate_value(prox: Prox, offset: PyTree, params: PyTree) -> jax.Array:
    return prox.value(_shifted(offset, widened("proximal.translate", params), -1))


def _translate_prox(prox: Prox, offset: PyTree, params: PyTree, step_size: Any) -> PyTree:
    wide = _shifted(offset, widened("proximal.translate", params), -1)
    return trees.like(params, _shifted(offset, prox.prox(wide, step_size), 1))


def conjugate(prox: Prox, value: Any = None) -> Prox:
    """The convex conjugate h*(y) = sup_x Re<x, y> - h(x) of a convex h, by Moreau's identity.

    prox_{s h*}(y) = y - s prox_{h/s}(y/s). The value of h* does not follow from the operator of h, so it is given,
    or unknown.

    Args:
        prox: h, convex.
        value: The function `params -> h*(params)`, where it is needed.

    Returns:
        A `Prox`, separable where h is.

    Raises:
        TypeError: `prox` is not a `Prox`, or `value` cannot be called.
        ValueError: The value is asked for and was not given.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal
        >>> y = jnp.array([3.0, -0.5])
        >>> ball = proximal.linf_ball(2.0)
        >>> bool(jnp.allclose(proximal.conjugate(proximal.l1(2.0)).prox(y, 0.7), ball.prox(y, 0.7)))
        True

    Source:
        J. Moreau, "Proximite et dualite dans un espace hilbertien", 1965.
    """
    _check_prox("proximal.conjugate", prox)
    if value is not None and not callable(value):
        checks.reject("proximal.conjugate", "value", "a function of the parameters", value, "leave it out", TypeError)
    known: Any = bind(_unknown_value) if value is None else value
    return Prox(known, bind(_conjugate_prox, prox), separable=prox.separable)


def _unknown_value(params: PyTree) -> jax.Array:
    del params
    remedy = "the operator of h does not give the value of its conjugate: pass conjugate(prox, value)"
    checks.reject("proximal.conjugate", "value", "given where it is needed", None, remedy)


def _conjugate_prox(prox: Prox, params: PyTree, step_size: Any) -> PyTree:
    s = as_scalar(step_size)
    wide = widened("proximal.conjugate", params)
    inner = prox.prox(trees.map_present(functools.partial(trees.scaled, 1 / s), wide), 1 / s)

    def rest(y: jax.Array, z: jax.Array) -> jax.Array:
        return y - trees.scaled(s, z)

    return trees.like(params, trees.map_present(rest, wide, inner))


def _is_part(node: object) -> bool:
    return isinstance(node, Prox) or trees.is_absent(node)


def separable_sum(parts: PyTree) -> Prox:
    """The sum of a function for each part of the parameters: a tree of `Prox` that matches the top of their tree.

    Each `Prox` takes the subtree at its place as one: `separable_sum({"w": l2(1.0), "b": zero()})` is the norm of
    all of "w". `per_leaf` takes its leaves one by one.

    Args:
        parts: A tree whose leaves are `Prox`; None where the parameters are absent.

    Returns:
        A `Prox`, separable where all parts are; its leaves are those of its parts.

    Raises:
        TypeError: A leaf of `parts` is not a `Prox`.
        ValueError: When traced, the tree does not match the top of the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from nagjax import proximal
        >>> h = proximal.separable_sum({"w": proximal.l1(1.0), "b": proximal.zero()})
        >>> z = h.prox({"w": jnp.array([3.0, 0.5]), "b": jnp.array(0.5)}, 1.0)
        >>> bool(jnp.array_equal(z["w"], jnp.array([2.0, 0.0])) and z["b"] == 0.5)
        True
    """
    return _sum_of("proximal.separable_sum", parts, _sum_value, _sum_prox)


def per_leaf(prox: PyTree) -> Prox:
    """The sum over leaves of functions of one leaf each: norms, balls and simplices of each leaf on its own.

    `per_leaf(l2(1.0))` is the sum of the norms of all leaves. A tree of `Prox` that matches the top of the
    parameters gives each part its function, as `separable_sum`, and applies it to each leaf of the part on its own.

    Args:
        prox: h, or a tree of them; None where the parameters are absent.

    Returns:
        A `Prox`, separable where all parts are; its leaves are those of its parts.

    Raises:
        TypeError: A leaf of `prox` is not a `Prox`.
        ValueError: When traced, the tree does not match the top of the parameters.
    """
    return _sum_of("proximal.per_leaf", prox, _leaves_value, _leaves_prox)


def _sum_of(function: str, parts: PyTree, value: Any, prox: Any) -> Prox:
    found = [part for part in jax.tree.leaves(parts, is_leaf=_is_part) if not trees.is_absent(part)]
    for part in found:
        _check_prox(function, part)
    separable, constraint = all(part.separable for part in found), all(part.constraint for part in found)
    return Prox(bind(value, parts), bind(prox, parts), separable, constraint)


def _zip(function: str, parts: PyTree, params: PyTree) -> tuple[Any, list[Any], list[Any]]:
    """The structure of `parts`, its leaves, and the subtree of `params` at the place of each."""
    structure = cast("Any", jax.tree.structure(parts, is_leaf=_is_part))
    try:
        below: list[Any] = structure.flatten_up_to(params)
    except (ValueError, TypeError):
        condition = f"a tree of Prox that matches the top of the parameters {trees.structure(params)}"
        checks.reject(function, "parts", condition, structure, "give one Prox for each part")
    proxes = jax.tree.leaves(parts, is_leaf=_is_part)
    for part, subtree in zip(proxes, below, strict=True):
        if trees.is_absent(part) and not trees.is_absent(subtree):
            checks.reject(function, "parts", "a Prox wherever the parameters are", part, "use zero() for no penalty")
    return structure, proxes, below


def _add(values: list[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack([jnp.zeros((), scalar_dtype()), *(as_scalar(value) for value in values)]))


def _sum_value(parts: PyTree, params: PyTree) -> jax.Array:
    _, proxes, below = _zip("proximal.separable_sum", parts, params)
    return _add([part.value(x) for part, x in zip(proxes, below, strict=True) if not trees.is_absent(x)])


def _sum_prox(parts: PyTree, params: PyTree, step_size: Any) -> PyTree:
    structure, proxes, below = _zip("proximal.separable_sum", parts, params)
    results = [x if trees.is_absent(x) else part.prox(x, step_size) for part, x in zip(proxes, below, strict=True)]
    return structure.unflatten(results)


def _leaves_value(parts: PyTree, params: PyTree) -> jax.Array:
    _, proxes, below = _zip("proximal.per_leaf", parts, params)
    pairs = [(part, leaf) for part, x in zip(proxes, below, strict=True) for leaf in trees.leaves(x)]
    return _add([part.value(leaf) for part, leaf in pairs if not trees.is_absent(leaf)])


def _leaves_prox(parts: PyTree, params: PyTree, step_size: Any) -> PyTree:
    structure, proxes, below = _zip("proximal.per_leaf", parts, params)

    def apply(part: Any, subtree: PyTree) -> PyTree:
        def one(leaf: Any) -> Any:
            return part.prox(leaf, step_size)

        return trees.map_present(one, subtree)

    return structure.unflatten([apply(part, x) for part, x in zip(proxes, below, strict=True)])
