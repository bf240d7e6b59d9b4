"""The problem that a solver sees: F = f + h, with f through values and gradients and h through its `Prox`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nagjax import proximal, trees
from nagjax.scalars import as_scalar, scalar_dtype
from nagjax.types import PyTree

FLOOR = 0.1  # of the rounding of parameters, below which a step is not known


class Evaluation(NamedTuple):
    """The smooth part at one point."""

    value: jax.Array  # f, scalar
    gradient: PyTree  # the ascent direction: conjugated for complex parameters
    aux: PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Composite:
    """F(x) = fun(x, *args) + prox.value(x).

    Attributes:
        fun: `fun(params, *args) -> f`, or `(f, aux)` with `has_aux`; f is a real scalar.
        prox: h; the zero function by default.
        args: Data of `fun`; a pytree.
        has_aux: Whether `fun` returns a pair.
        duality_gap: `duality_gap(params, value, gradient)`, an upper bound of F(params) - min F, or None.
    """

    fun: Callable[..., Any]
    prox: proximal.Prox = dataclasses.field(default_factory=lambda: proximal.zero())
    args: tuple[Any, ...] = ()
    has_aux: bool = dataclasses.field(default=False, metadata={"static": True})
    duality_gap: Callable[..., Any] | None = None

    @property
    def is_smooth(self) -> bool:
        """Whether h is `proximal.zero()`."""
        return cast("Any", self.prox.prox).func is cast("Any", proximal.zero().prox).func

    def __post_init__(self) -> None:
        for name in ("fun", "duality_gap"):
            function: Any = getattr(self, name)
            if callable(function) and jax.tree_util.all_leaves([function]):
                object.__setattr__(self, name, Partial(function))

    def evaluate(self, params: PyTree) -> Evaluation:
        """Value and gradient of the smooth part, in one pass."""
        result, gradient = cast("Any", jax.value_and_grad(self.fun, has_aux=self.has_aux)(params, *self.args))
        value, aux = result if self.has_aux else (result, None)
        return Evaluation(as_scalar(value), trees.map_present(jnp.conj, gradient), aux)

    def smooth(self, params: PyTree) -> jax.Array:
        """The value of the smooth part."""
        result = self.fun(params, *self.args)
        return as_scalar(result[0] if self.has_aux else result)

    def objective(self, params: PyTree) -> jax.Array:
        """F at a point."""
        return self.smooth(params) + as_scalar(self.prox.value(params))

    def residual(
        self, slope: jax.Array, length: jax.Array, size: jax.Array, step_size: jax.Array, unit: float
    ) -> jax.Array:
        """|y - z| / s for z = prox_{s h}(y - s g), from |g|, |y - z|^2 and |z|^2; |g| where h = 0.

        Where steps are tiny, y - z is 0 in rounding, which is no residual.
        """
        if self.is_smooth:
            return slope
        rounding = unit * jnp.sqrt(size)
        lost = (slope > 0) & (step_size * slope <= rounding)
        return jnp.where(lost, jnp.maximum(jnp.sqrt(length), FLOOR * rounding), jnp.sqrt(length)) / step_size

    def nonsmooth(self, proposal: PyTree) -> jax.Array:
        """h at a point that its operator has returned."""
        return as_scalar(0.0) if self.prox.constraint else as_scalar(self.prox.value(proposal))

    def forward_backward(self, params: PyTree, gradient: PyTree, step_size: jax.Array) -> PyTree:
        """prox_{s h}(params - s * gradient)."""
        one = jnp.ones_like(step_size)
        return self.prox.prox(trees.combine((one, params), (-step_size, gradient)), step_size)

    def error(
        self, params: PyTree, evaluation: Evaluation, residual: jax.Array, scale: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What stops a run, and what it is relative to: the residual, or the duality gap where there is one."""
        if self.duality_gap is None:
            return residual, scale
        objective = evaluation.value + as_scalar(self.prox.value(params))
        return as_scalar(self.duality_gap(params, evaluation.value, evaluation.gradient)), jnp.abs(objective)


def hoisted(composite: Composite, params: PyTree) -> Composite:
    """The same problem, with values under differentiation that its functions close over made leaves of it."""

    def convert(function: Any, *example: Any) -> Any:
        if jax.tree.leaves(function):
            return function  # an operator of nagjax, whose numbers are leaves
        converted, closed_over = cast("Any", jax.closure_convert(function.func, *example))
        return Partial(_ClosedOverFirst(converted, len(closed_over)), *closed_over) if closed_over else function

    prox = composite.prox
    return dataclasses.replace(
        composite,
        fun=convert(composite.fun, params, *composite.args),
        prox=dataclasses.replace(
            prox, value=convert(prox.value, params), prox=convert(prox.prox, params, np.ones((), scalar_dtype()))
        ),
    )


@dataclasses.dataclass(frozen=True)
class _ClosedOverFirst:
    """A converted closure, which takes what it closed over last, in the order in which a `Partial` gives it."""

    function: Callable[..., Any]
    count: int

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments[self.count :], *arguments[: self.count])
