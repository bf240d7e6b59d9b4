"""Functions of singular values and eigenvalues: the nuclear norm and the positive semidefinite cone."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from nagjax import checks, trees
from nagjax.proximal.parameters import bind, check_weights, indicator, largest, leafwise, norm, ratio, thresholds, total
from nagjax.proximal.prox import Prox
from nagjax.types import PyTree


def nuclear(weight: PyTree = 1.0) -> Prox:
    """The nuclear norm, weight times the sum of singular values, of each leaf; its operator lowers the rank.

    A leaf of shape (..., m, n) is a batch of matrices, whose norms add up.

    Args:
        weight: At least 0: one number, or a tree of numbers that matches the parameters or their top. An array of
            the batch shape (..., 1, 1) gives each matrix its weight.

    Returns:
        A `Prox` whose leaves are the weights. The operator takes one SVD of each matrix; its derivative is that of a
        spectral function, finite also at equal or zero singular values.

    Raises:
        TypeError: A weight is not a number or an array.
        ValueError: A weight is negative or not finite; when traced, a leaf has less than two axes.

    Source:
        J.-F. Cai, E. Candes and Z. Shen, "A singular value thresholding algorithm for matrix completion", 2010,
        Theorem 2.1.
    """
    check_weights("proximal.nuclear", "weight", weight)
    return Prox(bind(_nuclear_value, weight), bind(_nuclear_prox, weight))


def _matrix_shape(x: jax.Array) -> tuple[int, ...]:
    if x.ndim < 2:
        remedy = "use separable_sum with another operator for this leaf"
        checks.reject("proximal.nuclear", "params", "of shape (..., m, n)", f"shape {x.shape}", remedy)
    return (*x.shape[:-2], 1, 1)


def _nuclear_value(weight: PyTree, params: PyTree) -> jax.Array:
    def value(x: jax.Array, w: jax.Array) -> jax.Array:
        norms = jnp.sum(_singular_values(x), axis=-1)
        return (w[..., 0, 0] if w.ndim else w).astype(norms.dtype) * norms

    return total("proximal.nuclear", value, params, shape=_matrix_shape, weight=weight)


@jax.custom_jvp
def _singular_values(x: jax.Array) -> jax.Array:
    return jnp.linalg.svd(x, compute_uv=False)


@_singular_values.defjvp
def _singular_values_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Finite also at equal or zero singular values, where the part U V^H of the derivative is not unique.
    u, s, vh = _svd(primals[0])
    core = jnp.conj(u.mT) @ tangents[0] @ jnp.conj(vh.mT)
    return s, jnp.where(s > 0, jnp.einsum("...ii->...i", core).real, 0)


def _nuclear_prox(weight: PyTree, params: PyTree, step_size: Any) -> PyTree:
    def operator(x: jax.Array, w: jax.Array) -> jax.Array:
        t = thresholds(step_size, w, x)
        return _threshold_singular(x, jnp.broadcast_to(t, _matrix_shape(x)))

    return leafwise("proximal.nuclear", operator, params, shape=_matrix_shape, weight=weight)


def _svd(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return cast("Any", jnp.linalg.svd(x, full_matrices=False))


def _eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return cast("Any", jnp.linalg.eigh(x))


def _decompose(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    u, s, vh = _svd(x)
    return u, s, vh, jnp.maximum(s - t[..., 0], 0)


@jax.custom_jvp
def _threshold_singular(x: jax.Array, t: jax.Array) -> jax.Array:
    u, _, vh, kept = _decompose(x, t)
    return trees.scaled(kept[..., None, :], u) @ vh


@_threshold_singular.defjvp
def _threshold_singular_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # F(X) = U f(S) V^H has the derivative U [A * H + B * K] V^H with H and K the Hermitian and skew parts of
    # U^H dX V, the divided differences A of f and B = (f_i + f_j)/(s_i + s_j), and f/s on the complement.
    x, t = primals
    dx, dt = tangents
    u, s, vh, kept = _decompose(x, t)
    uh, v = jnp.conj(u.mT), jnp.conj(vh.mT)
    active = s >= t[..., 0]
    core = uh @ dx @ v
    hermitian, skew = (core + jnp.conj(core.mT)) / 2, (core - jnp.conj(core.mT)) / 2
    slopes = _divided_differences(s - t[..., 0], active)
    # At threshold 0 the operator is the identity, also on zero singular values.
    still = (t == 0).astype(s.dtype)
    sums = s[..., :, None] + s[..., None, :]
    means = jnp.where(sums == 0, still, ratio(kept[..., :, None] + kept[..., None, :], sums))
    rates = jnp.where(s == 0, still[..., 0], ratio(kept, s))
    inner = trees.scaled(slopes, hermitian) + trees.scaled(means, skew)
    rest_left, rest_right = dx @ v - u @ core, uh @ dx - core @ vh
    tangent = u @ inner @ vh + trees.scaled(rates[..., None, :], rest_left) @ vh
    tangent = tangent + u @ trees.scaled(rates[..., :, None], rest_right)
    moved = trees.scaled(active[..., None, :].astype(s.dtype), u) @ vh
    return trees.scaled(kept[..., None, :], u) @ vh, tangent - trees.scaled(dt, moved)


def _divided_differences(excess: jax.Array, active: jax.Array) -> jax.Array:
    """(f(a) - f(b)) / (a - b) of f(a) = max(a, 0) for all pairs, and its derivative on the diagonal."""
    high = jnp.maximum(excess[..., :, None], excess[..., None, :])
    low = jnp.minimum(excess[..., :, None], excess[..., None, :])
    both = active[..., :, None] & active[..., None, :]
    one = active[..., :, None] | active[..., None, :]
    return jnp.where(both, 1, jnp.where(one, ratio(high, high - low), 0))


def psd_cone() -> Prox:
    """The cone of symmetric (Hermitian) positive semidefinite matrices, for each leaf of shape (..., n, n).

    Returns:
        A `Prox` without leaves. Its value is 0 where neither the asymmetry nor a negative eigenvalue exceeds
        sqrt(eps) times the largest entry, or eigenvalue, with eps of the coarsest dtype; infinity elsewhere. Its
        operator takes the Hermitian part and drops the negative eigenvalues; its derivative is finite also at equal
        eigenvalues.

    Source:
        N. Higham, "Computing a nearest symmetric positive semidefinite matrix", 1988, Theorem 2.1.
    """
    return Prox(bind(_psd_value), bind(_psd_prox), constraint=True)


def _hermitian(x: jax.Array) -> jax.Array:
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        remedy = "use separable_sum with another operator for this leaf"
        checks.reject("proximal.psd_cone", "params", "of shape (..., n, n)", f"shape {x.shape}", remedy)
    return (x + jnp.conj(x.mT)) / 2


def _psd_value(params: PyTree) -> jax.Array:
    def below(x: jax.Array) -> jax.Array:
        return -_eigh(jax.lax.stop_gradient(_hermitian(x)))[0]

    def asymmetry(x: jax.Array) -> jax.Array:
        return jnp.abs(x - _hermitian(x))

    def size(x: jax.Array) -> jax.Array:
        return norm(x, (-2, -1))

    violation = jnp.maximum(
        largest("proximal.psd_cone", below, params), largest("proximal.psd_cone", asymmetry, params)
    )
    return indicator(violation, largest("proximal.psd_cone", size, params), params)


def _psd_prox(params: PyTree, step_size: Any) -> PyTree:
    del step_size

    def operator(x: jax.Array) -> jax.Array:
        return _keep_positive(_hermitian(x))

    return leafwise("proximal.psd_cone", operator, params)


@jax.custom_jvp
def _keep_positive(x: jax.Array) -> jax.Array:
    values, vectors = _eigh(x)
    return trees.scaled(jnp.maximum(values, 0)[..., None, :], vectors) @ jnp.conj(vectors.mT)


@_keep_positive.defjvp
def _keep_positive_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    values, vectors = _eigh(primals[0])
    adjoint = jnp.conj(vectors.mT)
    slopes = _divided_differences(values, values >= 0)
    tangent = vectors @ trees.scaled(slopes, adjoint @ tangents[0] @ vectors) @ adjoint
    return trees.scaled(jnp.maximum(values, 0)[..., None, :], vectors) @ adjoint, tangent
