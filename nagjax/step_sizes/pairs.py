"""What step-size rules and adaptive methods share: the last query point, steps of trees, values of functions."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nagjax import checks, trees
from nagjax.mapped import AxisName
from nagjax.proximal.prox import Prox
from nagjax.proximal.transform import check_prox
from nagjax.reductions import inner_product, squared_norm
from nagjax.scalars import as_scalar, scalar_dtype
from nagjax.storage import full
from nagjax.transform import check_floating, decode_checked
from nagjax.types import PyTree

_BUFFER = full()
_NOISE = 10.0  # |g - g'| below this many units of rounding of |g| says nothing


class Memory(NamedTuple):
    """The last query point and its gradient; structure of the parameters, at least 32 bits each."""

    query: PyTree  # y'
    slope: PyTree  # g' = grad f(y')


class Pair(NamedTuple):
    """Two query points compared; scalars in `scalar_dtype()`."""

    squared_move: jax.Array  # a^2 = |y - y'|^2
    squared_change: jax.Array  # b^2 = |g - g'|^2
    product: jax.Array  # c = Re<y - y', g - g'>
    squared_gradient: jax.Array  # |g|^2
    slope: jax.Array  # Re<g, y - y'>

    def moved(self) -> jax.Array:
        """Whether the points differ and can be compared."""
        return (self.squared_move > 0) & jnp.isfinite(self.squared_move) & jnp.isfinite(self.squared_change)

    def lipschitz(self, unit: float) -> jax.Array:
        """b / a, or 0 where the gradients differ by no more than their rounding, or the points not at all."""
        move, change, size = (jnp.sqrt(x) for x in (self.squared_move, self.squared_change, self.squared_gradient))
        seen = self.moved() & (change > _NOISE * unit * size)
        return jnp.where(seen, change / jnp.where(move > 0, move, 1), 0)


def no_memory(function: str, params: PyTree) -> Memory:
    """Zeros, after checking that the parameters are floating-point."""
    return Memory(zero_buffer(function, params), zero_buffer(function, params))


def zero_buffer(function: str, params: PyTree) -> PyTree:
    """Zeros of the parameters' structure in at least 32 bits."""
    check_floating(function, params)
    return _BUFFER.init(trees.as_arrays(params))


def measure(
    function: str, memory: Memory, params: PyTree, gradient: PyTree, axis_name: AxisName | None
) -> tuple[Pair, Memory]:
    """The comparison with the last query point, and the memory of the present one.

    A leaf without gradient takes no part, and its memory stays.
    """
    slope = decode_checked(function, _BUFFER, memory.slope, gradient)
    query = _BUFFER.decode(memory.query, gradient)
    point, now = trees.wide(gradient, params), trees.wide(gradient, gradient)
    move, change = trees.difference(point, query), trees.difference(now, slope)
    pair = Pair(
        squared_norm(move, axis_name),
        squared_norm(change, axis_name),
        inner_product(move, change, axis_name),
        squared_norm(now, axis_name),
        inner_product(now, move, axis_name),
    )
    return pair, Memory(_BUFFER.encode(point, memory.query), _BUFFER.encode(now, memory.slope))


def read(function: str, stored: PyTree, gradient: PyTree) -> PyTree:
    """A buffer of `zero_buffer`, after checking that the gradient has its structure and shapes."""
    return decode_checked(function, _BUFFER, stored, gradient)


def write(new: PyTree, stored: PyTree) -> PyTree:
    """The buffer with new contents; where those are absent the old ones stay."""
    return _BUFFER.encode(new, stored)


def forward(prox: Prox | None, point: PyTree, gradient: PyTree, step_size: jax.Array) -> PyTree:
    """prox_{s h}(point - s * gradient), in the dtypes of `point`; without a prox the gradient step."""
    one = jnp.ones_like(step_size)
    moved = trees.combine((one, point), (-step_size, gradient))
    return moved if prox is None else prox.prox(moved, step_size)


def step_of(prox: Prox | None, point: PyTree, gradient: PyTree, step_size: jax.Array) -> PyTree:
    """The step to `forward`; without a prox -s * gradient, which does not round to the size of `point`."""
    if prox is None:
        return trees.combine((-step_size, trees.wide(gradient, gradient)))
    return trees.difference(forward(prox, point, gradient, step_size), point)


def penalty(prox: Prox | None, params: PyTree) -> jax.Array:
    """h(params), or 0 without a prox."""
    return jnp.zeros((), scalar_dtype()) if prox is None else as_scalar(prox.value(params))


def check_optional_prox(function: str, prox: Prox | None) -> None:
    """Check that `prox` is a `Prox` or None."""
    if prox is not None:
        check_prox(function, prox)


def check_optional_step(function: str, initial: ArrayLike | None) -> None:
    """Check that a first step size is positive where it is given."""
    if initial is not None:
        checks.positive(function, "initial", initial, "leave it out to start with a small probe")


def required_params(function: str, params: PyTree | None) -> PyTree:
    """The parameters as arrays, or an error that asks for them."""
    if params is None:
        remedy = "it compares query points: call `update(gradients, state, params)`"
        checks.reject(function, "params", "passed to update", None, remedy)
    return trees.as_arrays(params)


def required_value(function: str, value: Any) -> jax.Array:
    """f(params) as an array in its own precision, or an error that asks for it."""
    if value is None:
        checks.reject(function, "value", "given to every update", None, "pass `value=f(params)` to `update`")
    if jnp.shape(value):
        checks.reject(function, "value", "a scalar", value, "pass the mean or the sum of the losses")
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else as_scalar(value)


def required_function(function: str, value_fn: Any, extra: dict[str, Any]) -> Callable[[PyTree], jax.Array]:
    """params -> f(params) in its own precision, or an error that asks for it.

    Like Optax's line searches this hands on the keyword arguments of `update` that `value_fn` has parameters for.
    """
    if not callable(value_fn):
        remedy = "pass `value_fn=f`, a function of the parameters, to `update`"
        checks.reject(function, "value_fn", "given to every update", value_fn, remedy)
    names = set(inspect.signature(value_fn).parameters) & set(extra)
    known = {name: extra[name] for name in names}

    def evaluate(params: PyTree) -> jax.Array:
        value = jnp.asarray(value_fn(params, **known))
        if value.shape:
            checks.reject(function, "value_fn", "a function that returns a scalar", value.shape, "return the mean loss")
        return value

    return evaluate


def rounding_unit(tree: PyTree) -> float:
    """The largest rounding unit (machine epsilon) among the leaves of a tree; that of `scalar_dtype()` at least."""
    dtypes = [jnp.result_type(leaf) for leaf in trees.leaves(tree) if not trees.is_absent(leaf)]
    return max(float(_finfo(dtype).eps) for dtype in (scalar_dtype(), *dtypes))


def limited(step_size: jax.Array) -> jax.Array:
    """The step size, at most the root of the largest number of its dtype, so that its products stay finite."""
    return jnp.minimum(step_size, float(_finfo(step_size.dtype).max) ** 0.5)


def _finfo(dtype: Any) -> Any:
    return cast("Any", jnp.finfo(dtype))
