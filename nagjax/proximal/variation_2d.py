"""Total variation of images; its proximal operator is computed to a stated accuracy."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from nagjax import checks
from nagjax.proximal.parameters import bind, check_weights, leafwise, norm, thresholds, total
from nagjax.proximal.prox import Prox
from nagjax.types import PyTree

# A certificate costs as much as an iteration.
_ITERATIONS_PER_CHECK = 10
# Differences below this fraction of the threshold count as 0 in the derivative, and the solver of its linear
# equations stops at the same accuracy as they are stated.
_FLAT = 1e-3


def total_variation_2d(
    weight: PyTree = 1.0, *, isotropic: bool = True, tol: float = 1e-4, max_iterations: int = 5000
) -> Prox:
    """The total variation of images, weight sum |D x|, over the last two axes of each leaf; real parameters.

    D x holds the differences to the lower and to the right neighbor; |.| is the Euclidean norm of the pair where
    `isotropic`, else the sum of the moduli. A leaf of shape (..., m, n) is a batch of images, whose variations add up.

    Args:
        weight: At least 0: one number, or a tree of numbers that matches the parameters or their top. An array of
            the batch shape (..., 1, 1) gives each image its weight.
        isotropic: Which of the two.
        tol: Accuracy of the operator, in (0, 1).
        max_iterations: Limit on its inner iterations, an integer of at least 1; each applies D and its adjoint once.

    Returns:
        A `Prox` whose leaves are the weights. The derivative of the operator solves a linear system by conjugate
        gradients; differences below 1e-3 s weight count as flat in it, which makes it accurate to about 1 percent.

    Guarantee:
        The operator returns z with |z - prox(x)| <= tol |x - mean(x)| for each image, certified by the duality gap,
        or the iterate after `max_iterations`. Roundoff limits tol: 1e-3 is safe in float32.

    Raises:
        TypeError: A weight is not a number or an array, `max_iterations` not an integer; parameters are complex.
        ValueError: A weight is negative or not finite, `tol` not in (0, 1); when traced, a leaf has less than two
            axes.

    Source:
        A. Beck and M. Teboulle, "Fast gradient-based algorithms for constrained total variation image denoising and
        deblurring problems", 2009, section 4 (FGP); with the restart of B. O'Donoghue and E. Candes, 2015.
    """
    function = "proximal.total_variation_2d"
    check_weights(function, "weight", weight)
    checks.fraction(function, "tol", tol, "1e-4 is usual")
    checks.positive(function, "tol", tol, "1e-4 is usual")
    checks.whole(function, "max_iterations", max_iterations, 1, "5000 is usual")
    static = {"isotropic": bool(isotropic), "tol": float(tol), "max_iterations": int(max_iterations)}
    return Prox(bind(_value, weight, isotropic=bool(isotropic)), bind(_prox, weight, **static))


def _batch_shape(x: jax.Array) -> tuple[int, ...]:
    if x.ndim < 2:
        remedy = "use total_variation for sequences"
        checks.reject("proximal.total_variation_2d", "params", "of shape (..., m, n)", f"shape {x.shape}", remedy)
    return (*x.shape[:-2], 1, 1)


def _differences(x: jax.Array) -> jax.Array:
    """D x, of shape (..., m, n, 2), with 0 at the last row and column."""
    down = jnp.concatenate([jnp.diff(x, axis=-2), jnp.zeros_like(x[..., :1, :])], axis=-2)
    right = jnp.concatenate([jnp.diff(x, axis=-1), jnp.zeros_like(x[..., :1])], axis=-1)
    return jnp.stack([down, right], axis=-1)


def _adjoint(u: jax.Array) -> jax.Array:
    """D^T u."""
    down, right = u[..., :-1, :, 0], u[..., :-1, 1]
    row, column = jnp.zeros_like(u[..., :1, :, 0]), jnp.zeros_like(u[..., :1, 1])
    rows = jnp.concatenate([row, down], axis=-2) - jnp.concatenate([down, row], axis=-2)
    return rows + jnp.concatenate([column, right], axis=-1) - jnp.concatenate([right, column], axis=-1)


def _sizes(g: jax.Array, isotropic: bool) -> jax.Array:
    return norm(g, -1) if isotropic else jnp.abs(g)


def _value(weight: PyTree, params: PyTree, *, isotropic: bool) -> jax.Array:
    def value(x: jax.Array, w: jax.Array) -> jax.Array:
        return w.astype(x.dtype) * jnp.sum(_sizes(_differences(x), isotropic), axis=-1)

    return total("proximal.total_variation_2d", value, params, real=True, shape=_batch_shape, weight=weight)


def _prox(
    weight: PyTree, params: PyTree, step_size: Any, *, isotropic: bool, tol: float, max_iterations: int
) -> PyTree:
    def operator(x: jax.Array, w: jax.Array) -> jax.Array:
        if not x.size:
            return x
        t = jnp.broadcast_to(thresholds(step_size, w, x), _batch_shape(x)).reshape(-1)
        images = x.reshape(-1, *x.shape[-2:])

        def denoise(y: jax.Array, t: jax.Array) -> jax.Array:
            return _denoise(y, t, isotropic, tol, max_iterations)

        return jax.vmap(denoise)(images, t).reshape(x.shape)

    return leafwise("proximal.total_variation_2d", operator, params, real=True, shape=_batch_shape, weight=weight)


def _search(y: jax.Array, t: jax.Array, isotropic: bool, tol: float, max_iterations: int) -> jax.Array:
    """x = y - D^T u for the u with |u| <= t of least |y - D^T u|, by accelerated projected gradient steps of 1/8."""
    centered = y - jnp.mean(y)
    # |x - prox|^2 <= 2 gap.
    allowed = tol**2 * jnp.sum(centered**2) / 2

    def project(u: jax.Array) -> jax.Array:
        sizes = _sizes(u, isotropic)
        return jnp.where(sizes > t, u * (t / jnp.where(sizes > t, sizes, 1)), u)

    def gap(u: jax.Array) -> jax.Array:
        g = _differences(centered - _adjoint(u))
        # Every summand is at least 0 before rounding.
        return t * jnp.sum(_sizes(g, isotropic)) - jnp.sum(u * g)

    def iterate(_: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        u, query, age = carry
        following = project(query + _differences(centered - _adjoint(query)) / 8)
        move = following - u
        restart = jnp.sum((query - following) * move) > 0
        age = jnp.where(restart, 0, age + 1)
        return following, following + (age / (age + 3)) * move, age

    def going(carry: tuple[Any, ...]) -> jax.Array:
        count, _, excess = carry
        return (count < max_iterations) & (excess > allowed)

    def several(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, inner, _ = carry
        length = min(_ITERATIONS_PER_CHECK, max_iterations)
        following = cast("tuple[jax.Array, ...]", jax.lax.fori_loop(0, length, iterate, inner))
        return count + length, following, gap(following[0])

    u = jnp.zeros((*y.shape, 2), y.dtype)
    start = (jnp.int32(0), (u, u, jnp.zeros((), y.dtype)), gap(u))
    _, (u, _, _), _ = jax.lax.while_loop(going, several, start)
    return y - _adjoint(u)


def _conjugate_gradients(matvec: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
    """The solution of a positive definite system, to a relative residual of `_FLAT**1.5` or 500 iterations."""
    goal = _FLAT**3 * jnp.sum(b**2)

    def going(carry: tuple[jax.Array, ...]) -> jax.Array:
        count, _, residual, _ = carry
        return (count < 500) & (jnp.sum(residual**2) > goal)

    def iterate(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        count, x, residual, direction = carry
        image, square = matvec(direction), jnp.sum(residual**2)
        length = square / jnp.sum(direction * image)
        following = residual - length * image
        ahead = following + jnp.sum(following**2) / square * direction
        return count + 1, x + length * direction, following, ahead

    return jax.lax.while_loop(going, iterate, (jnp.int32(0), jnp.zeros_like(b), b, b))[1]


_denoise: Any = jax.custom_jvp(_search, nondiff_argnums=(2, 3, 4))


@_denoise.defjvp
def _denoise_jvp(
    isotropic: bool,
    tol: float,
    max_iterations: int,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    # (I + D^T W D) dx = dy - (y - x)/t dt with W the second derivative of t |.|, and t/width where D x is flat.
    y, t = primals
    dy, dt = tangents
    x: jax.Array = _denoise(y, t, isotropic, tol, max_iterations)
    g = _differences(x)
    sizes = _sizes(g, isotropic)
    width = _FLAT * t
    flat = sizes <= width
    stiffness = jnp.where(flat, 1 / _FLAT, t / jnp.where(flat, 1, sizes))

    def weighted(v: jax.Array) -> jax.Array:
        if not isotropic:
            return jnp.where(flat, stiffness * v, 0)
        direction = g / jnp.where(flat, 1, sizes)
        return stiffness * (v - jnp.where(flat, 0, direction * jnp.sum(direction * v, axis=-1, keepdims=True)))

    def curvature(v: jax.Array) -> jax.Array:
        return v + jnp.where(t > 0, _adjoint(weighted(_differences(v))), 0)

    pull = (y - x) / jnp.where(t > 0, t, 1)
    right: jax.Array = dy - dt * pull
    # Symmetric, so that reverse mode solves the same system.
    return x, jax.lax.custom_linear_solve(curvature, right, _conjugate_gradients, symmetric=True)
