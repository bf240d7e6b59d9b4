"""Eager checks of arguments; traced values pass, so that factories work under `jit`, `vmap` and injection."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.core import Tracer

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


def transformation(function: str, argument: str, value: Any, remedy: str) -> None:
    """Check that `value` is an Optax transformation."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        reject(function, argument, "an Optax gradient transformation", value, remedy, TypeError)
