"""Eager checks of arguments; traced values pass, so that factories work under `jit`, `vmap` and injection."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.core import Tracer

_SLACK = 1e-5  # relative: one of two numbers may have been computed in float32
_NUMBERS: Any = (numbers.Real, np.ndarray, np.generic, jax.Array)


def is_known(value: object) -> bool:
    """Whether a value can be looked at now, which that of a tracer cannot."""
    return not isinstance(value, Tracer)


def reject(
    function: str, argument: str, condition: str, value: object, remedy: str, error: type[Exception] = ValueError
) -> NoReturn:
    """Raise `error` with the one form of message that nagjax uses."""
    raise error(f"{function}: {argument} must be {condition}, got {value!r}; {remedy}.")


def scalar(
    function: str, argument: str, value: Any, condition: str, holds: Callable[[float], bool], remedy: str
) -> None:
    """Check that `value` is a real scalar for which `holds`; raise TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        reject(function, argument, condition, value, remedy, TypeError)
    if np.shape(value) or np.iscomplexobj(value):
        reject(function, argument, f"a real scalar that is {condition}", value, remedy)
    if is_known(value) and not holds(float(value)):
        reject(function, argument, condition, float(value), remedy)


def positive(function: str, argument: str, value: Any, remedy: str) -> None:
    """Check that `value` is positive and finite."""
    scalar(function, argument, value, "positive and finite", lambda v: 0 < v < math.inf, remedy)


def nonnegative(function: str, argument: str, value: Any, remedy: str) -> None:
    """Check that `value` is finite and not negative."""
    scalar(function, argument, value, "at least 0 and finite", lambda v: 0 <= v < math.inf, remedy)


def fraction(function: str, argument: str, value: Any, remedy: str) -> None:
    """Check that `value` lies in [0, 1)."""
    scalar(function, argument, value, "in [0, 1)", lambda v: 0 <= v < 1, remedy)


def whole(function: str, argument: str, value: Any, least: int, remedy: str) -> None:
    """Check that `value` is a static integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        reject(function, argument, f"an integer of at least {least}", value, remedy, TypeError)
    if value < least:
        reject(function, argument, f"an integer of at least {least}", value, remedy)


def count(function: str, argument: str, value: Any, least: int, remedy: str) -> None:
    """Check that `value` is an integer of at least `least`; a JAX array may be traced, and of a floating dtype."""
    if isinstance(value, jax.Array):
        scalar(
            function, argument, value, f"an integer of at least {least}", lambda v: v >= least and v % 1 == 0, remedy
        )
    else:
        whole(function, argument, value, least, remedy)


def at_most(function: str, argument: str, value: Any, name: str, bound: Any, remedy: str) -> None:
    """Check that one number is at most another, where both are known; `name` says what `bound` is."""
    if is_known(value) and is_known(bound) and float(value) > float(bound) * (1 + _SLACK):
        reject(function, argument, f"at most {name} = {float(bound)}", float(value), remedy)


def is_python_zero(value: object) -> bool:
    """Whether a value is 0 for good: a Python number, which neither injection nor tracing can change."""
    return isinstance(value, int | float) and value == 0


def transformation(function: str, argument: str, value: Any, remedy: str) -> None:
    """Check that `value` is an Optax transformation."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        reject(function, argument, "an Optax gradient transformation", value, remedy, TypeError)
