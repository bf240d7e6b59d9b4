"""Operators of matrices, sequences and images against decompositions, quadratic programs and certificates."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from nagjax import proximal


def normal(*shape, seed=0, dtype=np.float64):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape)
    return jnp.asarray(x + 1j * generator.standard_normal(shape) if np.issubdtype(dtype, np.complexfloating) else x)


# An operator is a pytree with its weights as leaves, so that every structure and shape is compiled once for all tests.
@jax.jit
def prox(h, x, s):
    return h.prox(x, s)


@jax.jit
def value(h, x):
    return h.value(x)


@jax.jit
def moved(h, x, s, dx, ds):
    """The change of the operator along (dx, ds)."""
    return jax.jvp(h.prox, (x, s), (dx, ds))[1]


def by_quadratic_program(y, t):
    """y - D^T u for the u in [-t, t] of least |y - D^T u|, by an active-set method."""
    differences = np.diff(np.eye(len(y)), axis=0)
    dual = scipy.optimize.lsq_linear(differences.T, y, bounds=(-t, t), method="bvls", tol=1e-15)
    return y - differences.T @ dual.x


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    y=hnp.arrays(np.float64, 12, elements=st.floats(-4, 4).map(lambda v: round(v, 3))), t=st.floats(0.01, 3)
)
def test_total_variation_is_the_solution_of_its_quadratic_program(y, t):
    found = prox(proximal.total_variation(1.0), jnp.asarray(y), t)
    chex.assert_trees_all_close(np.asarray(found), by_quadratic_program(y, t), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 300])
def test_total_variation_meets_its_optimality_conditions(n):
    y, t = jnp.cumsum(normal(n)), 1.3
    z = np.asarray(prox(proximal.total_variation(t), y, 1.0))
    # u_i = sum of the first i residuals lies in [-t, t], and is t sign(z_{i+1} - z_i) where these differ.
    u = -np.cumsum(np.asarray(y) - z)[:-1]
    assert np.all(np.abs(u) <= t + 1e-12)
    step = np.diff(z)
    chex.assert_trees_all_close(u[step != 0], t * np.sign(step[step != 0]), atol=1e-12)
    assert float(np.sum(z)) == pytest.approx(float(jnp.sum(y)), abs=1e-11)


def test_total_variation_has_its_known_limits():
    y = normal(9)
    h = proximal.total_variation(1.0)
    chex.assert_trees_all_equal(prox(h, y, 0.0), y)
    chex.assert_trees_all_close(prox(h, y, 1e3), jnp.full(9, jnp.mean(y)), atol=1e-14)
    chex.assert_trees_all_close(prox(h, jnp.array([0.0, 4.0]), 1.0), jnp.array([1.0, 3.0]))
    assert float(proximal.total_variation(2.0).value(jnp.array([1.0, 4.0, 2.0]))) == 10.0
    batch = normal(2, 3, 9, seed=1)
    z = prox(proximal.total_variation(jnp.array([[[0.5]], [[1.0]]])), batch, 0.4)
    for i, w in enumerate((0.5, 1.0)):
        chex.assert_trees_all_close(z[i, 1], prox(proximal.total_variation(w), batch[i, 1], 0.4), atol=1e-14)


def test_the_derivative_of_total_variation_is_the_average_over_segments():
    y = normal(12)
    h = proximal.total_variation(0.6)
    z, jacobian = prox(h, y, 1.0), jax.jit(jax.jacobian(lambda y: h.prox(y, 1.0)))(y)
    same = np.cumsum(np.concatenate([[0], np.diff(np.asarray(z)) != 0]))
    expected = (same[:, None] == same[None]) / np.sum(same[:, None] == same[None], axis=1, keepdims=True)
    assert 1 < same[-1] < 10
    chex.assert_trees_all_close(np.asarray(jacobian), expected, atol=1e-15)


@pytest.mark.parametrize("isotropic", [True, False])
def test_total_variation_of_images_is_as_near_as_it_says(isotropic):
    y = normal(7, 6)
    exact = prox(proximal.total_variation_2d(0.4, isotropic=isotropic, tol=1e-10, max_iterations=200_000), y, 1.0)
    spread = float(jnp.linalg.norm(y - jnp.mean(y)))
    for tol in (1e-2, 1e-4, 1e-6):
        h = proximal.total_variation_2d(0.4, isotropic=isotropic, tol=tol)
        assert float(jnp.linalg.norm(prox(h, y, 1.0) - exact)) <= tol * spread
    # The subgradient inequality of h at the solution, in random directions.
    for seed in range(20):
        d = normal(7, 6, seed=seed + 1)
        rise = float(value(h, exact + 0.1 * d) - value(h, exact))
        assert rise >= float(jnp.vdot(y - exact, 0.1 * d)) - 1e-7


@pytest.mark.parametrize("isotropic", [True, False])
def test_an_image_of_one_row_is_a_sequence_and_a_flat_one_stays(isotropic):
    h = proximal.total_variation_2d(0.7, isotropic=isotropic, tol=1e-9, max_iterations=100_000)
    y = normal(15)
    expected = prox(proximal.total_variation(0.7), y, 1.0)
    chex.assert_trees_all_close(prox(h, y[None], 1.0)[0], expected, atol=1e-7)
    chex.assert_trees_all_close(prox(h, y[:, None], 1.0)[:, 0], expected, atol=1e-7)
    chex.assert_trees_all_equal(prox(h, jnp.full((4, 5), 3.0), 1.0), jnp.full((4, 5), 3.0))
    pair = jnp.array([[0.0, 3.0], [4.0, 0.0]])
    assert float(h.value(pair)) == pytest.approx(0.7 * ((5 if isotropic else 7) + 4 + 3), rel=1e-14)


@pytest.mark.parametrize("isotropic", [True, False])
def test_derivatives_of_the_image_operator_are_right_to_one_percent(isotropic):
    h = proximal.total_variation_2d(0.3, isotropic=isotropic, tol=1e-9, max_iterations=100_000)
    y, d, eps = normal(5, 6), normal(5, 6, seed=1), 1e-5
    finite = (prox(h, y + eps * d, 1 + eps) - prox(h, y - eps * d, 1 - eps)) / (2 * eps)
    tangent = moved(h, y, 1.0, d, 1.0)
    assert float(jnp.linalg.norm(finite - tangent)) <= 0.01 * float(jnp.linalg.norm(finite))
    back = jax.jit(jax.grad(lambda y: jnp.vdot(d, h.prox(y, 1.0))))(y)
    forward = moved(h, y, 1.0, d, 0.0)
    assert float(jnp.linalg.norm(back - forward)) <= 1e-3 * float(jnp.linalg.norm(back))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 2)])
def test_nuclear_soft_thresholds_singular_values_with_the_right_derivative(shape, dtype):
    x = normal(*shape, dtype=dtype)
    u, s, vh = np.linalg.svd(np.asarray(x), full_matrices=False)
    t = float(np.mean(s[:2]) / 2 + s[-1] / 2)
    h, one = proximal.nuclear(2 * t), proximal.nuclear(1.0)
    chex.assert_trees_all_close(prox(h, x, 0.5), (u * np.maximum(s - t, 0)) @ vh, atol=1e-13)
    assert float(value(proximal.nuclear(2.0), x)) == pytest.approx(2 * float(np.sum(s)))
    d = normal(*shape, seed=1, dtype=dtype)
    finite = (prox(h, x + 1e-6 * d, 0.5) - prox(h, x - 1e-6 * d, 0.5)) / 2e-6
    chex.assert_trees_all_close(moved(h, x, 0.5, d, 0.0), finite, atol=1e-7)
    rise = (value(one, x + 1e-6 * d) - value(one, x - 1e-6 * d)) / 2e-6
    chex.assert_trees_all_close(jax.jit(lambda x: jax.jvp(one.value, (x,), (d,))[1])(x), rise, atol=1e-7)
    by_step = (prox(h, x, 0.5 + 1e-6) - prox(h, x, 0.5 - 1e-6)) / 2e-6
    chex.assert_trees_all_close(moved(h, x, 0.5, 0 * d, 1.0), by_step, atol=1e-7)


def test_the_nuclear_derivative_is_finite_and_right_at_equal_and_zero_singular_values():
    d = normal(3, 3)
    h = proximal.nuclear(1.0)
    x = jnp.diag(jnp.array([3.0, 3.0, 0.0]))
    finite = (prox(h, x + 1e-6 * d, 1.0) - prox(h, x - 1e-6 * d, 1.0)) / 2e-6
    chex.assert_trees_all_close(moved(h, x, 1.0, d, 0.0), finite, atol=1e-7)
    still = moved(proximal.nuclear(0.0), jnp.zeros((3, 2)), 1.0, d[:, :2], 0.0)
    chex.assert_trees_all_close(still, d[:, :2], atol=1e-14)
    batch = normal(2, 3, 4, seed=3)
    z = prox(proximal.nuclear(np.array([0.5, 1.5]).reshape(2, 1, 1)), batch, 1.0)
    for i, w in enumerate((0.5, 1.5)):
        chex.assert_trees_all_close(z[i], prox(proximal.nuclear(w), batch[i], 1.0), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_the_nearest_semidefinite_matrix_drops_negative_eigenvalues(dtype):
    h, x, d = proximal.psd_cone(), normal(2, 4, 4, dtype=dtype), normal(2, 4, 4, seed=1, dtype=dtype)
    z = prox(h, x, 1.0)
    part = (np.asarray(x) + np.conj(np.swapaxes(np.asarray(x), -1, -2))) / 2
    values, vectors = np.linalg.eigh(part)
    expected = np.einsum("bij,bj,bkj->bik", vectors, np.maximum(values, 0), vectors.conj())
    chex.assert_trees_all_close(z, expected, atol=1e-13)
    assert value(h, z) == 0
    assert value(h, x) == value(h, -z) == np.inf
    finite = (prox(h, x + 1e-6 * d, 1.0) - prox(h, x - 1e-6 * d, 1.0)) / 2e-6
    chex.assert_trees_all_close(moved(h, x, 1.0, d, 0.0), finite, atol=1e-7)


def test_the_derivative_of_the_nearest_semidefinite_matrix_is_right_at_equal_eigenvalues():
    eye = jnp.eye(3)
    found = jax.jit(jax.jacobian(lambda x: jnp.trace(proximal.psd_cone().prox(x, 1.0))))(eye)
    chex.assert_trees_all_close(found, eye, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_structured_operators_keep_narrow_dtypes(dtype):
    y = normal(6, 6).astype(dtype)
    for h in (
        proximal.nuclear(0.5),
        proximal.psd_cone(),
        proximal.total_variation(0.5),
        proximal.total_variation_2d(0.5, tol=1e-3),
    ):
        z = prox(h, y, 1.0)
        assert z.dtype == dtype
        exact = prox(h, y.astype(jnp.float64), 1.0)
        unit = max(float(jnp.finfo(dtype).eps), 5e-3)
        assert float(jnp.max(jnp.abs(z.astype(jnp.float64) - exact))) <= unit * float(jnp.max(jnp.abs(y)))


@pytest.mark.parametrize("factory", [proximal.nuclear, proximal.total_variation, proximal.total_variation_2d])
def test_structured_operators_are_firmly_nonexpansive(factory):
    h = factory(0.6)
    for seed in range(20):
        x, y = normal(4, 5, seed=seed), normal(4, 5, seed=seed + 100)
        difference = prox(h, x, 0.9) - prox(h, y, 0.9)
        slack = 2e-3 if factory is proximal.total_variation_2d else 1e-12
        assert float(jnp.sum(difference**2)) <= float(jnp.vdot(difference, x - y)) + slack
