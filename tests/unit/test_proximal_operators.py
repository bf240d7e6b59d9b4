"""Proximal operators minimize what they say, have the right derivatives, and keep the contracts of trees and dtypes."""

import functools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from nagjax import proximal

LABELS = np.array([0, 2, 0, 1, 2, 2])
# For vectors of 6 entries; the functions that are convex and finite everywhere, or a barrier.
CONVEX = {
    "zero": lambda w: proximal.zero(),
    "l1": proximal.l1,
    "weighted l1": lambda w: proximal.l1(w * jnp.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])),
    "squared l2": proximal.squared_l2,
    "elastic net": lambda w: proximal.elastic_net(w, 0.7 * w),
    "huber": lambda w: proximal.huber(w, 0.4),
    "log barrier": proximal.log_barrier,
    "l2": proximal.l2,
    "linf": proximal.linf,
    "groups along an axis": lambda w: proximal.group_lasso(w, axis=-1),
    "groups of 2": lambda w: proximal.group_lasso(w * jnp.array([1.0, 2.0, 0.0]), group_size=2),
    "labeled groups": lambda w: proximal.group_lasso(w, groups=LABELS),
    "sparse groups": lambda w: proximal.sparse_group_lasso(0.5 * w, w, groups=LABELS),
    "total variation": proximal.total_variation,
    "scaled": lambda w: proximal.scale(proximal.l1(0.5), w),
    "translated": lambda w: proximal.translate(proximal.l2(w), jnp.arange(6.0) / 3),
    "conjugate": lambda w: proximal.conjugate(proximal.huber(w, 0.4)),
}
MATRICES = {"nuclear": proximal.nuclear, "image": lambda w: proximal.total_variation_2d(w, tol=1e-8)}
COMPLEX = ["l1", "squared l2", "elastic net", "huber", "l2", "linf", "groups of 2", "labeled groups", "sparse groups"]
finite = st.floats(-4, 4, allow_subnormal=False)
vectors = hnp.arrays(np.float64, 6, elements=finite)
inexact = hypothesis.settings(max_examples=15)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@functools.cache
def compiled(name):
    """The operator of weight 0.6, which the tests share."""
    return jax.jit(CONVEX[name](0.6).prox)


def objective(h, y, s, z):
    return float(h.value(z)) + float(jnp.sum(jnp.abs(z - y) ** 2)) / (2 * s)


@pytest.mark.parametrize("name", [name for name in CONVEX if name != "conjugate"])
def test_no_point_nearby_or_far_is_better_than_the_operator(name):
    h = CONVEX[name](0.6)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def value(z, y, s):
        return h.value(z) + jnp.sum((z - y) ** 2) / (2 * s)

    generator = np.random.default_rng(1)
    for seed in range(5):
        y, s = 1.5 * normal(6, seed=seed), 0.3 + 0.4 * seed
        z = compiled(name)(y, s)
        least = objective(h, y, s, z)
        directions = jnp.asarray(generator.standard_normal((400, 6)))
        # The objective is strongly convex: at a distance d from its minimizer it is larger by d^2/(2 s) at least.
        for size in (1e-4, 1e-2, 1.0):
            above = value(z[None] + size * directions, y, s) - least
            bound = size**2 * jnp.sum(directions**2, axis=1) / (2 * s)
            assert float(jnp.min(above - bound)) >= -1e-12 * (1 + abs(least))


@pytest.mark.parametrize("name", ["l1", "elastic net", "huber", "log barrier", "squared l2"])
@pytest.mark.parametrize("y", [-3.0, -0.2, 0.0, 0.37, 2.5])
def test_functions_of_one_entry_agree_with_a_scalar_search(name, y):
    h, s = CONVEX[name](0.6), 0.8
    low = 1e-12 if name == "log barrier" else -5.0
    found = scipy.optimize.minimize_scalar(
        lambda z: objective(h, y, s, jnp.array([z])), bounds=(low, 5.0), method="bounded", options={"xatol": 1e-11}
    )
    # A search by values of a smooth function sees the minimizer to sqrt(eps) alone.
    assert float(h.prox(jnp.array([y]), s)[0]) == pytest.approx(found.x, abs=2e-7)


def test_l0_is_the_best_of_all_supports():
    h, s = proximal.l0(jnp.array([0.1, 0.5, 1.0, 2.0])), 0.9
    y = jnp.array([0.5, 1.2, 1.1, -1.5])
    supports = [jnp.array([b >> i & 1 for i in range(4)], jnp.float64) for b in range(16)]
    best = min((y * keep for keep in supports), key=lambda z: objective(h, y, s, z))
    chex.assert_trees_all_equal(h.prox(y, s), best)
    assert float(h.value(jnp.array([1.0, 0.0, 2.0, 0.0]))) == pytest.approx(1.1)


@pytest.mark.parametrize("name", CONVEX)
def test_operators_are_firmly_nonexpansive(name):
    prox = compiled(name)

    @hypothesis.given(x=vectors, y=vectors, s=st.floats(0.1, 5))
    def holds(x, y, s):
        difference = np.asarray(prox(x, s)) - np.asarray(prox(y, s))
        assert np.sum(difference**2) <= np.vdot(difference, x - y) + 1e-12

    holds()


CONJUGATES = {
    "l1": (proximal.l1(0.6), proximal.linf_ball(0.6)),
    "l2": (proximal.l2(0.6), proximal.l2_ball(0.6)),
    "linf": (proximal.linf(0.6), proximal.l1_ball(0.6)),
    "squared l2": (proximal.squared_l2(0.6), proximal.squared_l2(1 / 0.6)),
    "zero": (proximal.zero(), proximal.box(0.0, 0.0)),
    "nonnegative": (proximal.nonnegative(), proximal.box(-jnp.inf, 0.0)),
    "huber": (proximal.huber(0.6, 0.5), None),
}


@pytest.mark.parametrize("name", CONJUGATES)
@inexact
@hypothesis.given(x=vectors, s=st.floats(0.1, 5))
def test_moreaus_identity_holds_with_the_conjugates_known_in_closed_form(name, x, s):
    h, dual = CONJUGATES[name]
    x = jnp.asarray(x)
    # The conjugate of the Huber function: |y|^2/(2 w) on the box |y| <= w delta.
    expected = jnp.clip(x / (1 + s / 0.6), -0.3, 0.3) if dual is None else dual.prox(x, s)
    chex.assert_trees_all_close(proximal.conjugate(h).prox(x, s), expected, atol=1e-12)
    chex.assert_trees_all_close(h.prox(x, 1 / s) + expected_part(h, dual, x, s), x, atol=1e-12)


def expected_part(h, dual, x, s):
    """prox_{h*/t}(x/t) t with t = 1/s."""
    t = 1 / s
    if dual is None:
        return t * jnp.clip((x / t) / (1 + (1 / t) / 0.6), -0.3, 0.3)
    return t * dual.prox(x / t, 1 / t)


@pytest.mark.parametrize("name", [name for name in CONVEX if name not in ("zero", "conjugate")])
def test_derivatives_by_parameters_step_and_weight_are_those_of_finite_differences(name):
    @jax.jit
    def operator(y, s, w):
        return CONVEX[name](w).prox(y, s)

    at = (1.5 * normal(6, seed=3), jnp.array(0.7), jnp.array(0.6))
    jax.test_util.check_grads(operator, at, order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-7)


@pytest.mark.parametrize("name", [*CONVEX, *MATRICES])
def test_no_derivative_is_nan_at_zero(name):
    h = {**CONVEX, **MATRICES}[name]
    x = jnp.zeros((3, 3)) if name in MATRICES else jnp.zeros(6)

    def operator(y, s, w):
        return jnp.sum(h(w).prox(y, s))

    def value(y, w):
        return h(w).value(y)

    # The scale is positive, and the conjugate of the Huber function of weight 0 is at 0 alone.
    weights = [0.6] if name in ("scaled", "conjugate") else [0.0, 0.6]
    slopes, slope = jax.jit(jax.grad(operator, argnums=(0, 1, 2))), jax.jit(jax.grad(value))
    for weight in weights:
        gradients = slopes(x, jnp.array(0.7), jnp.array(weight))
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)
        if name != "conjugate":
            assert bool(jnp.all(jnp.isfinite(slope(x, jnp.array(weight)))))


@pytest.mark.parametrize("name", COMPLEX)
def test_a_complex_operator_turns_with_its_argument_and_is_the_real_one_on_the_real_axis(name):
    h, y = CONVEX[name](0.6), jax.lax.complex(normal(6), normal(6, seed=1))
    if name == "groups of 2":
        y = y.at[0].set(0)
    phase = jnp.exp(0.8j)
    chex.assert_trees_all_close(h.prox(phase * y, 0.7), phase * h.prox(y, 0.7), atol=1e-14)
    chex.assert_trees_all_close(h.prox(y.real.astype(y.dtype), 0.7).real, h.prox(y.real, 0.7), atol=1e-14)
    assert float(h.value(phase * y)) == pytest.approx(float(h.value(y)), rel=1e-14)
    least = objective(h, y, 0.7, h.prox(y, 0.7))
    for seed in range(20):
        d = 1e-3 * jax.lax.complex(normal(6, seed=seed + 2), normal(6, seed=seed + 40))
        assert objective(h, y, 0.7, h.prox(y, 0.7) + d) - least >= float(jnp.sum(jnp.abs(d) ** 2)) / 1.4 - 1e-13


def test_per_leaf_weights_and_arrays_of_weights_reach_their_entries():
    params = {"a": jnp.array([1.0, 2.0]), "b": {"c": jnp.array([[3.0], [4.0]]), "d": jnp.array(5.0)}}
    z = proximal.l1({"a": np.array([0.5, 1.0]), "b": 2.0}).prox(params, 1.0)
    chex.assert_trees_all_equal(
        z, {"a": jnp.array([0.5, 1.0]), "b": {"c": jnp.array([[1.0], [2.0]]), "d": jnp.array(3.0)}}
    )
    assert float(proximal.l1({"a": 1.0, "b": 0.5}).value(params)) == 3 + 0.5 * 12


def test_new_weights_do_not_compile_again_and_equal_groups_are_equal():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(h, x, s):
        return h.prox(x, s), h.value(x)

    for w in (0.1, 0.5):
        x = {"a": normal(6), "b": (normal(6), normal(2))}
        groups = proximal.sparse_group_lasso(w, w, groups=LABELS.copy())
        parts = (proximal.box(-w, w), proximal.per_leaf(proximal.simplex(w, axis=-1)))
        apply(proximal.separable_sum({"a": groups, "b": parts}), x, w)
    with pytest.raises(AssertionError):
        apply(proximal.separable_sum({"a": proximal.group_lasso(w, group_size=3), "b": parts}), x, w)


def test_a_batch_of_weights_is_a_batch_of_operators():
    x, weights = normal(6), jnp.array([0.1, 0.5, 2.0])
    batch = jax.vmap(lambda w: proximal.l1(w))(weights)
    z = jax.vmap(lambda h: h.prox(x, 0.5))(batch)
    for i, w in enumerate(weights):
        chex.assert_trees_all_close(z[i], proximal.l1(float(w)).prox(x, 0.5))
    gradient = jax.grad(lambda h: jnp.sum(h.prox(jnp.array([2.0, -3.0, 0.1]), 0.5)))(proximal.l1(jnp.array(0.4)))
    assert float(jax.tree.leaves(gradient)[1]) == pytest.approx(0.0)
    weighted = jax.grad(lambda h: jnp.sum(h.prox(jnp.array([2.0, 3.0, 0.1]), 0.5)))(proximal.l1(jnp.array(0.4)))
    assert float(jax.tree.leaves(weighted)[1]) == pytest.approx(-1.0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", CONVEX)
def test_dtypes_are_kept_and_rounded_once(name, dtype):
    prox, y = compiled(name), (1.5 * normal(6)).astype(dtype)
    z = prox(y, 0.7)
    assert z.dtype == dtype
    exact = prox(y.astype(jnp.float64), 0.7)
    # One rounding of the result beside those of the computation in 32 bits or more.
    unit = max(float(jnp.finfo(dtype).eps) / 2, 8 * min(float(jnp.finfo(dtype).eps), 2.0**-23))
    assert float(jnp.max(jnp.abs(z.astype(jnp.float64) - exact))) <= 1.01 * unit * float(jnp.max(jnp.abs(y)))


@pytest.mark.parametrize("name", CONVEX)
def test_operators_work_in_single_precision(name, single_precision):
    y = jnp.asarray(np.random.default_rng(0).standard_normal(6), jnp.float32)
    h = CONVEX[name](0.6)
    assert jax.jit(h.prox)(y, 0.5).dtype == jnp.float32
    if name != "conjugate":
        assert jax.jit(h.value)(y).dtype == jnp.float32


@pytest.mark.parametrize("factory", [proximal.l1, proximal.l2, proximal.linf, proximal.l1_ball, proximal.simplex])
def test_absent_leaves_stay_absent_and_count_as_nothing(factory):
    params = {"a": normal(3), "b": None, "c": optax.MaskedNode(), "d": normal(2, 2, seed=1)}
    z, alone = factory(0.5).prox(params, 0.7), factory(0.5).prox((params["a"], params["d"]), 0.7)
    assert z["b"] is None
    assert isinstance(z["c"], optax.MaskedNode)
    chex.assert_trees_all_equal((z["a"], z["d"]), alone)
    chex.assert_trees_all_equal(factory(0.5).value(params), factory(0.5).value((params["a"], params["d"])))


def test_norms_of_a_tree_are_those_of_one_vector_and_per_leaf_takes_leaves_alone():
    tree = {"a": normal(2, 2), "b": normal(3, seed=1).astype(jnp.float32)}
    flat = jnp.concatenate([tree["a"].reshape(-1), tree["b"].astype(jnp.float64)])
    for factory in (proximal.l2, proximal.linf):
        z = factory(0.5).prox(tree, 0.7)
        joined = jnp.concatenate([z["a"].reshape(-1), z["b"].astype(jnp.float64)])
        chex.assert_trees_all_close(joined, factory(0.5).prox(flat, 0.7), atol=1e-6)
        each = proximal.per_leaf(factory(0.5))
        chex.assert_trees_all_equal(each.prox(tree, 0.7)["a"], factory(0.5).prox(tree["a"], 0.7))
        expected = factory(0.5).value(tree["a"]) + factory(0.5).value(tree["b"])
        chex.assert_trees_all_close(each.value(tree), expected)


def test_a_sum_over_parts_differs_from_per_leaf_where_a_part_has_several_leaves():
    tree = {"w": (normal(3), normal(2, seed=1)), "b": normal(2, seed=2)}
    parts = {"w": proximal.l2(0.5), "b": proximal.zero()}
    whole, single = proximal.separable_sum(parts), proximal.per_leaf(parts)
    chex.assert_trees_all_equal(whole.prox(tree, 1.0)["w"], proximal.l2(0.5).prox(tree["w"], 1.0))
    chex.assert_trees_all_equal(single.prox(tree, 1.0)["w"][0], proximal.l2(0.5).prox(tree["w"][0], 1.0))
    assert float(single.value(tree)) > float(whole.value(tree)) > 0
    assert proximal.separable_sum({"w": proximal.l1(), "b": proximal.zero()}).separable
    assert not whole.separable


@pytest.mark.parametrize("name", CONVEX)
def test_a_separable_function_has_a_diagonal_derivative(name):
    h = CONVEX[name](0.6)
    jacobian = jax.jit(jax.jacobian(lambda y: h.prox(y, 0.7)))(2 * normal(6, seed=5))
    off = float(jnp.max(jnp.abs(jacobian - jnp.diag(jnp.diag(jacobian)))))
    assert (off == 0) == h.separable


def test_nan_and_large_numbers_are_not_hidden():
    for name, factory in CONVEX.items():
        if name not in ("total variation", "log barrier", "linf"):
            z = factory(0.6).prox(jnp.array([jnp.nan, 1.0, 2.0, 3.0, 4.0, 5.0]), 0.5)
            assert bool(jnp.isnan(z[0])), name
    huge = jnp.array([3e30, 4e30], jnp.float32)
    chex.assert_trees_all_close(proximal.l2(2e30).prox(huge, 1.0), 0.6 * huge, rtol=1e-6)
    small = jnp.array([6e-5, 8e-5], jnp.float16)
    assert float(proximal.l2(1.0).value(small)) == pytest.approx(1e-4, rel=1e-3)


SHAPE = "broadcasts to"
BAD = [
    (lambda: proximal.l1(-1.0), ValueError, r"proximal.l1: weight must be at least 0 and finite, got -1.0; "),
    (lambda: proximal.l1({"a": np.array([1.0, np.inf])}), ValueError, "proximal.l1: weight must be at least 0"),
    (lambda: proximal.l1("much"), TypeError, "proximal.l1: weight must be at least 0 and finite, got 'much'"),
    (lambda: proximal.l2(float("nan")), ValueError, "proximal.l2: weight must be"),
    (lambda: proximal.elastic_net(1.0, -2.0), ValueError, "proximal.elastic_net: l2_weight must be"),
    (lambda: proximal.huber(1.0, 0.0), ValueError, "proximal.huber: delta must be positive"),
    (lambda: proximal.group_lasso(1.0), ValueError, "given by one of axis, group_size and groups"),
    (lambda: proximal.group_lasso(1.0, axis=0, group_size=2), ValueError, "given by one of"),
    (lambda: proximal.group_lasso(1.0, axis=0.5), TypeError, "proximal.group_lasso: axis must be an integer"),
    (lambda: proximal.group_lasso(1.0, groups=[0, -1]), ValueError, "groups must be a vector of integers"),
    (lambda: proximal.group_lasso(1.0, groups=np.ones(2)), TypeError, "groups must be a vector of known integers"),
    (lambda: proximal.group_lasso(1.0, group_size=4).prox(normal(6), 1.0), ValueError, "divisor of the last axis"),
    (lambda: proximal.group_lasso(1.0, groups=[0, 1]).prox(normal(6), 1.0), ValueError, "as long as the last axis"),
    (lambda: proximal.group_lasso(1.0, axis=1).prox(normal(6), 1.0), ValueError, "axis must be an axis of a leaf"),
    (lambda: proximal.scale(proximal.l1(), 0.0), ValueError, "proximal.scale: factor must be positive"),
    (lambda: proximal.translate(proximal.l1(), np.nan), ValueError, "proximal.translate: offset must be finite"),
    (lambda: proximal.conjugate(3.0), TypeError, "proximal.conjugate: prox must be a nagjax.proximal.Prox"),
    (lambda: proximal.conjugate(proximal.l1()).value(normal(2)), ValueError, "value must be given"),
    (lambda: proximal.separable_sum({"a": 1.0}), TypeError, "proximal.separable_sum: prox must be"),
    (lambda: proximal.separable_sum({"a": proximal.l1()}).prox(normal(2), 1.0), ValueError, "matches the top"),
    (lambda: proximal.per_leaf({"a": None}).value({"a": normal(2)}), ValueError, "a Prox wherever the parameters are"),
    (lambda: proximal.l1({"a": 1.0}).prox({"b": normal(2)}, 1.0), ValueError, r"got PyTreeDef\(\{'a': \*\}\)"),
    (lambda: proximal.l1({"a": None}).prox({"a": normal(2)}, 1.0), ValueError, "present wherever the parameters are"),
    (lambda: proximal.l1(np.ones(2)).prox((normal(2), normal(2)), 1.0), ValueError, "one array goes with"),
    (lambda: proximal.l1(np.ones(3)).prox(normal(2), 1.0), ValueError, SHAPE),
    (lambda: proximal.l1(np.ones((2, 1))).prox(normal(2), 1.0), ValueError, SHAPE),
    (lambda: proximal.l1().prox(jnp.arange(3), 1.0), TypeError, "params must be floating or complex"),
    (lambda: proximal.log_barrier().prox(normal(2).astype(complex), 1.0), TypeError, "params must be real"),
    (lambda: proximal.nuclear().prox(normal(2), 1.0), ValueError, r"of shape \(..., m, n\)"),
    (lambda: proximal.total_variation_2d(tol=0.0), ValueError, "tol must be positive"),
    (lambda: proximal.total_variation_2d(max_iterations=0), ValueError, "max_iterations must be"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_refused_with_a_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()
