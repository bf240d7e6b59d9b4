"""Scalars: coefficients, counts, and the values of users' schedules."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from nagjax import checks

Schedule = Callable[[ArrayLike], ArrayLike]


def scalar_dtype() -> jnp.dtype:
    """The dtype of coefficients and of global sums: float32, or float64 under `jax_enable_x64`."""
    return jnp.dtype(jnp.result_type(float))


def as_scalar(value: ArrayLike) -> jax.Array:
    """`value` in the dtype of coefficients, so that 1 - b is never computed in the dtype of the parameters."""
    return jnp.asarray(value).astype(scalar_dtype())


def number(value: ArrayLike) -> Any:
    """`value` for arithmetic when a rule is built: a Python float, which needs no device yet, or a wide array."""
    return as_scalar(value) if isinstance(value, jax.Array) else float(cast("float", value))


def increment(count: jax.Array) -> jax.Array:
    """The next count, which stays at the largest integer instead of wrapping round to negative ones."""
    return jnp.asarray(optax.safe_increment(count))


def evaluate(function: str, fn: Schedule, count: jax.Array) -> jax.Array:
    """The value of a user's schedule as a scalar of `scalar_dtype()`."""
    # Optax's schedules, and most of those that people write, mix dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        value = jnp.asarray(fn(count))
    if value.shape or not jnp.issubdtype(value.dtype, jnp.number) or jnp.iscomplexobj(value):
        found = f"{value.dtype}{list(value.shape)}"
        checks.reject(function, "the schedule", "a function that returns one real number", found, "return a scalar")
    return value.astype(scalar_dtype())


def value_at(function: str, parameter: ArrayLike | Schedule, count: jax.Array) -> jax.Array:
    """A number, or a user's schedule of it at `count`, as a scalar of `scalar_dtype()`."""
    return evaluate(function, parameter, count) if callable(parameter) else as_scalar(parameter)
