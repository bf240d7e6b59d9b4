"""Checks of what `minimize` gets, with messages for people."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks, proximal, trees
from nagjax.proximal.transform import check_prox
from nagjax.scalars import as_scalar
from nagjax.solve.composite import Composite
from nagjax.solve.method import Method
from nagjax.types import PyTree

NAME = "solve.minimize"


def check_numbers(tol: ArrayLike, step_size: ArrayLike | None) -> None:
    """Refuse a negative tolerance and a step size that is not positive."""
    checks.nonnegative(NAME, "tol", tol, "typical values are 1e-3 to 1e-9; 0 never stops early")
    if step_size is not None:
        checks.positive(NAME, "step_size", step_size, "leave it out, or give about 1 / L")


def check_method(method: Any, step_size: ArrayLike | None, names: Mapping[str, Method]) -> None:
    """Refuse what is no method, and a step size beside a chain, which has its own."""
    known = ", ".join(names)
    if not isinstance(method, str | Method | optax.GradientTransformation):
        call = "call it, " if callable(method) else ""
        remedy = f"{call}give one of {known}, an Optax chain or a solve.Method"
        checks.reject(NAME, "method", "a method", method, remedy, TypeError)
    if isinstance(method, str) and method not in names:
        checks.reject(NAME, "method", f"one of {known}", method, "or pass an Optax chain such as nagjax.ogm(L)")
    if step_size is not None and isinstance(method, optax.GradientTransformation):
        checks.reject(NAME, "step_size", "None for an Optax chain", step_size, "the chain has its own")


def check_iterations(max_iters: Any, history: bool) -> int | None:
    """The length of the history, None without one, after refusing a `max_iters` that is no count."""
    if checks.is_known(max_iters):
        remedy = "give the most steps to make"
        try:
            count = None if isinstance(max_iters, bool) else operator.index(max_iters)
        except TypeError:
            count = None
        if count is None:
            checks.reject(NAME, "max_iters", "an integer of at least 0", max_iters, remedy, TypeError)
        checks.whole(NAME, "max_iters", count, 0, remedy)
        return count if history else None
    if not jnp.issubdtype(max_iters.dtype, jnp.integer):
        checks.reject(NAME, "max_iters", "an integer", max_iters.dtype, "cast it to int32", TypeError)
    if history:
        remedy = "its arrays need a length: pass an integer, or history=False"
        checks.reject(NAME, "max_iters", "known when history is asked for", max_iters, remedy)
    return None


def check_problem(
    fun: Callable[..., Any],
    args: Any,
    prox: proximal.Prox | None,
    has_aux: bool,
    duality_gap: Callable[..., ArrayLike] | None,
) -> Composite:
    """The problem, after refusing parts of a wrong type."""
    if not callable(fun):
        checks.reject(NAME, "fun", "a function of the parameters", fun, "pass fun(params, *args)", TypeError)
    if not isinstance(args, tuple):
        remedy = "write args=(data,) for one argument"
        checks.reject(NAME, "args", "a tuple", type(args).__name__, remedy, TypeError)
    if duality_gap is not None and not callable(duality_gap):
        remedy = "give a function (params, value, gradient), such as solve.least_squares_gap(...)"
        checks.reject(NAME, "duality_gap", "a function", duality_gap, remedy, TypeError)
    chosen = proximal.zero() if prox is None else prox
    check_prox(NAME, chosen)
    return Composite(fun, chosen, cast("tuple[Any, ...]", args), has_aux, duality_gap)


def check_shapes(composite: Composite, params: PyTree) -> None:
    """Refuse a function that does not return a real scalar, and a prox that does not return what it gets."""
    found: Any = cast("Any", jax.eval_shape)(composite.fun, params, *composite.args)
    if composite.has_aux:
        parts = list(cast("Any", found)) if isinstance(found, tuple) else []
        if len(parts) != 2:
            remedy = "return (value, aux), or leave has_aux out"
            checks.reject(NAME, "fun", "a function that returns a pair", cast("object", found), remedy, TypeError)
        found = parts[0]
    if not hasattr(found, "dtype") or found.shape or not jnp.issubdtype(found.dtype, jnp.floating):
        remedy = "sum over examples; with a pair (value, aux) pass has_aux=True"
        checks.reject(NAME, "fun", "a function that returns a real scalar", found, remedy)
    penalty: Any = cast("Any", jax.eval_shape)(composite.prox.value, params)
    if getattr(penalty, "shape", ()):
        checks.reject(NAME, "prox", "a Prox whose value is a scalar", penalty, "sum over the parameters")
    returned: Any = cast("Any", jax.eval_shape)(composite.prox.prox, params, as_scalar(1.0))
    same = trees.structure(returned) == trees.structure(params)
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (returned, params)]
    if not same or shapes[0] != shapes[1]:
        remedy = "its operator has to return what it gets"
        checks.reject(NAME, "prox", "a Prox for parameters of this structure", returned, remedy)
