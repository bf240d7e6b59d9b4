"""Projections land in their set, at the point nearest to where they started."""

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

MATRIX = np.array([[1.0, 2.0, 0.0, -1.0, 0.5, 0.0], [0.0, 1.0, 1.0, 1.0, 0.0, 2.0], [1.0, 3.0, 1.0, 0.0, 0.5, 2.0]])
OFFSET = np.array([1.0, -1.0, 0.0])  # in the range of the matrix, whose rank is 2
NORMAL = np.array([1.0, -2.0, 0.5, 0.0, 1.0, 3.0])
SETS = {
    "box": proximal.box(np.array([-1.0, -np.inf, 0.0, 1.0, -2.0, 0.0]), np.array([1.0, 0.5, np.inf, 1.0, 2.0, 0.1])),
    "nonnegative": proximal.nonnegative(),
    "simplex": proximal.simplex(1.5),
    "l1 ball": proximal.l1_ball(1.5),
    "l2 ball": proximal.l2_ball(1.5),
    "linf ball": proximal.linf_ball(0.7),
    "hyperplane": proximal.hyperplane(NORMAL, 1.0),
    "half-space": proximal.half_space(NORMAL, -1.0),
    "affine": proximal.affine(MATRIX, OFFSET),
}
vectors = hnp.arrays(np.float64, 6, elements=st.floats(-4, 4, allow_subnormal=False))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("name", SETS)
def test_a_projection_is_feasible_idempotent_and_meets_the_variational_inequality(name):
    h = SETS[name]
    project, value = jax.jit(h.prox), jax.jit(h.value)

    @hypothesis.settings(max_examples=60)
    @hypothesis.given(x=vectors, other=vectors)
    def holds(x, other):
        p, q = (np.asarray(project(v, 0.3)) for v in (x, other))
        assert value(p) == 0
        assert np.max(np.abs(np.asarray(project(p, 1.0)) - p)) <= 1e-13
        # <x - p, q - p> <= 0 for every q of the set, which also makes p the nearest point.
        assert np.vdot(x - p, q - p) <= 1e-12

    holds()


@pytest.mark.parametrize("name", SETS)
def test_the_value_is_infinite_outside_and_the_step_size_does_not_matter(name):
    h, x = SETS[name], 3 + jnp.abs(normal(6))
    z = h.prox(x, 1.0)
    chex.assert_trees_all_equal(z, h.prox(x, 1e-3))
    outside = z - 1e-3 if name in ("nonnegative", "box") else z + 1e-3 * (x - z)
    if name == "nonnegative":
        outside = -z
    assert h.value(z) == 0
    assert h.value(outside) == np.inf


def test_sets_are_reached_from_every_dtype_up_to_its_rounding():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        for name, h in SETS.items():
            z = jax.jit(h.prox)((3 * normal(6)).astype(dtype), 1.0)
            assert z.dtype == dtype
            assert h.value(z) == 0, (name, dtype)


@pytest.mark.parametrize("name", ["simplex", "l1 ball"])
def test_projections_agree_with_a_solver_for_quadratic_programs(name):
    y = np.asarray(1.5 * normal(6, seed=4))
    if name == "simplex":
        constraint = {"type": "eq", "fun": lambda z: np.sum(z) - 1.5, "jac": lambda z: np.ones(6)}
        found = scipy.optimize.minimize(
            lambda z: np.sum((z - y) ** 2) / 2,
            np.full(6, 0.25),
            jac=lambda z: z - y,
            bounds=[(0, None)] * 6,
            constraints=constraint,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        ).x
    else:
        # The positive and negative parts of z.
        constraint = {"type": "ineq", "fun": lambda z: 1.5 - np.sum(z), "jac": lambda z: -np.ones(12)}
        parts = scipy.optimize.minimize(
            lambda z: np.sum((z[:6] - z[6:] - y) ** 2) / 2,
            np.full(12, 0.1),
            jac=lambda z: np.concatenate([z[:6] - z[6:] - y, y - z[:6] + z[6:]]),
            bounds=[(0, None)] * 12,
            constraints=constraint,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        ).x
        found = parts[:6] - parts[6:]
    chex.assert_trees_all_close(SETS[name].prox(jnp.asarray(y), 1.0), found, atol=1e-7)


def test_the_affine_projection_solves_the_optimality_system():
    y = normal(6, seed=2)
    expected = y - MATRIX.T @ np.linalg.lstsq(MATRIX @ MATRIX.T, MATRIX @ np.asarray(y) - OFFSET, rcond=1e-12)[0]
    chex.assert_trees_all_close(SETS["affine"].prox(y, 1.0), expected, atol=1e-13)
    tree = {"a": y[:2].reshape(2, 1), "b": y[2:]}
    z = SETS["affine"].prox(tree, 1.0)
    chex.assert_trees_all_close(jnp.concatenate([z["a"].reshape(-1), z["b"]]), expected, atol=1e-13)
    traced = jax.jit(lambda a, b: proximal.affine(a, b).prox(y, 1.0))(MATRIX[:2], OFFSET[:2])
    chex.assert_trees_all_close(traced, expected, atol=1e-13)


@pytest.mark.parametrize("name", SETS)
def test_derivatives_are_those_of_finite_differences_and_never_nan_at_zero(name):
    prox = jax.jit(SETS[name].prox)
    jax.test_util.check_grads(
        lambda y: prox(y, 1.0), (1.5 * normal(6, seed=7),), 1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-7
    )
    assert bool(jnp.all(jnp.isfinite(jax.jit(jax.jacobian(lambda y: prox(y, 1.0)))(jnp.zeros(6)))))


FACTORIES = [
    proximal.simplex,
    proximal.l1_ball,
    proximal.l2_ball,
    proximal.linf_ball,
    lambda r: proximal.box(-r, 2 * r),
    lambda r: proximal.hyperplane(NORMAL * jnp.ones(6) * r, r),
    lambda r: proximal.half_space(1.0, -r),
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_derivatives_by_radii_bounds_and_normals_are_those_of_finite_differences(factory):
    y = 2 * normal(6, seed=7)
    jax.test_util.check_grads(
        jax.jit(lambda r: factory(r).prox(y, 1.0)),
        (jnp.array(0.8),),
        1,
        modes=("fwd", "rev"),
        atol=1e-6,
        rtol=1e-6,
        eps=1e-7,
    )


def test_a_simplex_in_each_row_and_a_simplex_of_the_whole_tree():
    x = normal(3, 4)
    rows = proximal.simplex(2.0, axis=-1).prox(x, 1.0)
    for i in range(3):
        chex.assert_trees_all_close(rows[i], proximal.simplex(2.0).prox(x[i], 1.0), atol=1e-15)
    columns = proximal.simplex(2.0, axis=0)
    chex.assert_trees_all_close(jnp.sum(columns.prox(x, 1.0), axis=0), 2 * jnp.ones(4), atol=1e-14)
    assert columns.value(columns.prox(x, 1.0)) == 0
    assert columns.value(rows) == np.inf
    tree = proximal.simplex(2.0).prox((x[0], x[1:]), 1.0)
    chex.assert_trees_all_close(jnp.sum(tree[0]) + jnp.sum(tree[1]), 2.0, atol=1e-14)


def test_a_large_common_shift_does_not_move_the_projection_onto_the_simplex():
    v = normal(1000).astype(jnp.float32)
    # 2^12 is added without rounding to the multiples of 2^-10.
    v = jnp.round(v * 1024) / 1024
    chex.assert_trees_all_equal(proximal.simplex().prox(v + 4096, 1.0), proximal.simplex().prox(v, 1.0))


def test_complex_projections_keep_arguments_and_planes_take_real_parts():
    y = jax.lax.complex(2 * normal(6), 2 * normal(6, seed=1))
    for h in (proximal.l1_ball(1.5), proximal.l2_ball(1.5), proximal.linf_ball(0.7)):
        z = h.prox(y, 1.0)
        chex.assert_trees_all_close(jnp.abs(z), h.prox(jnp.abs(y), 1.0), atol=1e-14)
        kept = jnp.abs(z) > 0
        chex.assert_trees_all_close(jnp.where(kept, jnp.angle(z), 0), jnp.where(kept, jnp.angle(y), 0), atol=1e-13)
        assert h.value(z) == 0
    a = jax.lax.complex(normal(6, seed=2), normal(6, seed=3))
    z = proximal.hyperplane(a, 0.5).prox(y, 1.0)
    assert float(jnp.vdot(a, z).real) == pytest.approx(0.5)
    chex.assert_trees_all_close((y - z) / a, ((y - z) / a)[0] * jnp.ones_like(a), atol=1e-13)
    matrix = np.array([[1.0, 1j, 0, 2, 0, 1], [0, 1, 1 - 1j, 0, 1, 0]])
    z = proximal.affine(matrix, np.array([1.0, 2j])).prox(y, 1.0)
    chex.assert_trees_all_close(matrix @ np.asarray(z), np.array([1.0, 2j]), atol=1e-13)


BAD = [
    (lambda: proximal.box(1.0, 0.0), ValueError, "proximal.box: lower must be at most upper = 0.0, got 1.0; "),
    (lambda: proximal.box({"a": 0.0, "b": 2.0}, 1.0), ValueError, "proximal.box: lower must be at most upper"),
    (lambda: proximal.box(0.0, np.array([1.0, -1.0])), ValueError, "proximal.box: lower must be at most upper"),
    (lambda: proximal.box(np.nan, 1.0), ValueError, "proximal.box: lower must be less than infinity"),
    (lambda: proximal.box(-np.inf, -np.inf), ValueError, "proximal.box: upper must be more than minus infinity"),
    (lambda: proximal.simplex(0.0), ValueError, "proximal.simplex: radius must be positive and finite, got 0.0"),
    (lambda: proximal.simplex(axis=0.5), TypeError, "proximal.simplex: axis must be None or an integer"),
    (lambda: proximal.simplex(axis=1).prox(normal(2), 1.0), ValueError, "an axis of a leaf of shape"),
    (lambda: proximal.simplex().prox(normal(2).astype(complex), 1.0), TypeError, "params must be real"),
    (lambda: proximal.l1_ball(-1.0), ValueError, "proximal.l1_ball: radius must be at least 0"),
    (lambda: proximal.l2_ball(np.inf), ValueError, "proximal.l2_ball: radius must be at least 0 and finite"),
    (lambda: proximal.linf_ball({"a": -1.0}), ValueError, "proximal.linf_ball: radius must be at least 0"),
    (lambda: proximal.hyperplane(np.zeros(3)), ValueError, "proximal.hyperplane: normal must be finite and not 0"),
    (lambda: proximal.half_space(1.0, np.nan), ValueError, "proximal.half_space: offset must be finite"),
    (lambda: proximal.hyperplane(np.ones(2)).prox(normal(3), 1.0), ValueError, "broadcasts to"),
    (lambda: proximal.affine(np.ones((2, 3)), np.ones(3)), ValueError, r"of shapes \(m, n\) and \(m,\)"),
    (lambda: proximal.affine(np.ones((2, 3)), np.array([1.0, 2.0])), ValueError, "in the range of the matrix"),
    (lambda: proximal.affine("A", np.ones(3)), TypeError, "proximal.affine: matrix must be an array"),
    (lambda: proximal.affine(np.ones((1, 3)), np.ones(1)).prox(normal(2), 1.0), ValueError, "for n parameters"),
    (lambda: proximal.psd_cone().prox(normal(2, 3), 1.0), ValueError, r"of shape \(..., n, n\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_refused_with_a_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()
