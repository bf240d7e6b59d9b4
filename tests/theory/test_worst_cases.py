"""Exact worst cases are attained, and guarantees hold at every iterate, at the answers that `eval_params` returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import from_table, run

import nagjax
from nagjax import problems
from nagjax.theory import bounds, sequences, strong_bounds

STEPS = 50
N = np.arange(1, STEPS + 1)
RADIUS, SMOOTHNESS = 3.0, 2.5


def momenta(kind, steps):
    k = np.arange(steps + 1)
    return {
        "fista": sequences.fista_momenta(steps),
        "(k-1)/(k+2)": (k - 1) / (k + 2),
        "(k-1)/(k+4.5)": (k - 1) / (k + 4.5),
        "k/(k+3)": k / (k + 3),
        "gradient descent": np.zeros(steps + 1),
    }[kind]


RULES = {
    "fista": nagjax.momentum.fista(),
    "(k-1)/(k+2)": nagjax.momentum.polynomial(),
    "(k-1)/(k+4.5)": nagjax.momentum.polynomial(4.5),
    "k/(k+3)": nagjax.momentum.schedule(lambda k: k / (k + 3.0)),
    "gradient descent": nagjax.momentum.constant(0.0),
}
OPTIMIZERS = {name: nagjax.nesterov(1 / SMOOTHNESS, rule) for name, rule in RULES.items()}


def on_hubers(optimizer, thresholds):
    """f(x_N) on the N-th of many one-dimensional Huber functions, which run side by side as coordinates."""
    kinks = jnp.asarray(thresholds)
    start = np.full_like(thresholds, RADIUS)
    found = run(optimizer, lambda y, k: SMOOTHNESS * jnp.clip(y, -kinks, kinks), start, STEPS)
    distance = np.abs(found.answers[N, N - 1])
    flat = np.where(distance <= thresholds, distance**2 / 2, thresholds * distance - thresholds**2 / 2)
    return SMOOTHNESS * flat


@pytest.mark.parametrize("name", RULES)
def test_nesterov_methods_attain_their_worst_case_on_huber_at_every_horizon(name):
    travels = [sequences.momentum_travel(momenta(name, n)) for n in N]
    found = on_hubers(OPTIMIZERS[name], np.array([bounds.huber_threshold(h, RADIUS) for h in travels]))
    np.testing.assert_allclose(found, [bounds.huber_worst_case(h, SMOOTHNESS, RADIUS) for h in travels], rtol=1e-9)


def test_the_worst_cases_are_the_printed_ones():
    square = SMOOTHNESS * RADIUS**2
    for name, printed in (
        ("gradient descent", square / (4 * N + 2)),
        ("(k-1)/(k+2)", 2 * square / ((N + 2) * (N + 3))),
        ("k/(k+3)", 2 * square / (N**2 + 7 * N + 4)),
    ):
        travels = [sequences.momentum_travel(momenta(name, n)) for n in N]
        worst = [bounds.huber_worst_case(h, SMOOTHNESS, RADIUS) for h in travels]
        np.testing.assert_allclose(worst, printed, rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_nesterov_methods_attain_their_composite_worst_case_on_the_absolute_value(name):
    travels = np.array([sequences.momentum_travel(momenta(name, n)) for n in N])
    slopes = np.array([bounds.composite_slope(h, SMOOTHNESS, RADIUS) for h in travels])
    shrink = jnp.asarray(slopes / SMOOTHNESS)

    def gradient_mapping(y, k):
        # With f = 0 the proximal step is soft thresholding.
        return SMOOTHNESS * (y - jnp.sign(y) * jnp.maximum(jnp.abs(y) - shrink, 0))

    found = run(OPTIMIZERS[name], gradient_mapping, np.full(STEPS, RADIUS), STEPS)
    values = slopes * np.abs(found.answers[N, N - 1])
    worst = [bounds.composite_worst_case(h, SMOOTHNESS, RADIUS) for h in travels]
    np.testing.assert_allclose(values, worst, rtol=1e-9)


def test_ogm_attains_its_worst_case_on_huber_and_on_the_quadratic_at_every_horizon():
    optimizer = nagjax.ogm(SMOOTHNESS)
    travels = np.array([(sequences.ogm_theta(n)[-1] ** 2 - 1) / 2 for n in N])
    worst = np.array([bounds.ogm_worst_case(n, SMOOTHNESS, RADIUS) for n in N])
    found = on_hubers(optimizer, RADIUS / (2 * travels + 1))
    np.testing.assert_allclose(found, worst, rtol=1e-9)
    quadratic = run(optimizer, lambda y, k: SMOOTHNESS * y, [RADIUS], STEPS).answers[N, 0]
    np.testing.assert_allclose(SMOOTHNESS * quadratic**2 / 2, worst, rtol=1e-9)
    assert np.all(np.sign(quadratic) == (-1.0) ** N)


@pytest.mark.parametrize("kappa", [1.5, 10.0, 1000.0])
def test_triple_momentum_attains_its_worst_case_on_the_quadratic_at_every_horizon(kappa):
    mu = SMOOTHNESS / kappa
    found = run(nagjax.triple_momentum(SMOOTHNESS, mu), lambda y, k: SMOOTHNESS * y, [RADIUS], STEPS)
    worst = [strong_bounds.triple_momentum_worst_case(n, SMOOTHNESS, mu, RADIUS) for n in N]
    np.testing.assert_allclose(SMOOTHNESS * found.answers[N, 0] ** 2 / 2, worst, rtol=1e-9)


@pytest.mark.parametrize("q", [0.1, 0.01, 0.001])
def test_item_attains_its_worst_case_on_both_quadratics_at_every_horizon(q):
    mu = q * SMOOTHNESS
    curvatures = jnp.array([mu, SMOOTHNESS])
    found = run(nagjax.item(SMOOTHNESS, mu), lambda y, k: curvatures * y, [RADIUS, RADIUS], STEPS)
    worst = np.array([strong_bounds.item_worst_case(n, q, RADIUS) for n in N])
    np.testing.assert_allclose(found.answers[N] ** 2, np.stack([worst, worst], axis=1), rtol=1e-9)


def test_constant_momentum_attains_its_worst_case_on_the_strongly_convex_huber():
    q, steps = 0.1, 10
    horizons = np.arange(1, steps + 1)
    kinks = np.array([strong_bounds.nesterov_worst_threshold(n, 1.0, q) for n in horizons])
    kink, slope = jnp.asarray(kinks), 1 - q
    optimizer = nagjax.nesterov(1.0, nagjax.momentum.strongly_convex(1 / q))
    found = run(optimizer, lambda y, k: q * y + slope * jnp.clip(y, -kink, kink), np.ones(steps), steps)
    x = found.answers[horizons, horizons - 1]
    value = q * x**2 / 2 + slope * (kinks * x - kinks**2 / 2)
    start = q / 2 + slope * (kinks - kinks**2 / 2)
    worst = [strong_bounds.nesterov_worst_case(n, 1.0, q) for n in horizons]
    np.testing.assert_allclose(value / (start + q / 2), worst, rtol=1e-9)


# Guarantees on problems that are not the worst ones.

DIMENSION = 8
CENTER = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -1.0, 0.2, 0.7])
OFFSET = np.array([0.5, 1.0, -1.5, 2.0, -0.3, 0.8, 1.0, -1.0])
FEATURES = np.random.default_rng(0).standard_normal((50, DIMENSION))
LABELS = np.sign(FEATURES @ np.linspace(-1, 1, DIMENSION) + 0.1)

CONVEX = {
    "quadratic": lambda dtype: problems.quadratic(
        np.geomspace(1e-4, 1.0, DIMENSION), seed=0, minimizer=CENTER, dtype=dtype
    ),
    "chain": lambda dtype: problems.nesterov_chain(101, 4.0, dtype=dtype),
    "huber": lambda dtype: problems.huber(0.01, smoothness=2.0, minimizer=CENTER, dtype=dtype),
    "log-cosh": lambda dtype: problems.log_cosh(
        np.geomspace(0.01, 3.0, DIMENSION), scale=0.3, seed=1, minimizer=CENTER, dtype=dtype
    ),
    "log-sum-exp": lambda dtype: problems.log_sum_exp(
        30, DIMENSION, seed=3, temperature=0.3, minimizer=CENTER, dtype=dtype
    ),
}
STRONGLY_CONVEX = {
    "quadratic": lambda dtype: problems.quadratic(
        np.geomspace(0.01, 1.0, DIMENSION), seed=0, minimizer=CENTER, dtype=dtype
    ),
    "chain": lambda dtype: problems.nesterov_chain(101, 4.0, 0.08, dtype=dtype),
    "huber": lambda dtype: problems.huber(0.2, smoothness=2.0, strong_convexity=0.02, minimizer=CENTER, dtype=dtype),
    "log-cosh": lambda dtype: problems.log_cosh(
        np.geomspace(0.01, 3.0, DIMENSION), strong_convexity=0.05, seed=1, minimizer=CENTER, dtype=dtype
    ),
    "logistic": lambda dtype: problems.logistic(FEATURES, LABELS, 0.02, dtype=dtype),
}
STARTS = {"chain": np.zeros(101)}
HORIZONS = np.arange(1, 101)


def convex_methods(problem):
    smoothness = problem.smoothness
    k = np.arange(len(HORIZONS) + 1)
    return {
        "fista": (nagjax.fista(1 / smoothness), lambda n, r: bounds.fista_guarantee(n, smoothness, r)),
        "polynomial": (
            nagjax.nesterov(1 / smoothness, nagjax.momentum.polynomial(3.0)),
            lambda n, r: bounds.chambolle_dossal_guarantee(n, 3.0, smoothness, r),
        ),
        "(k-1)/(k+2)": (
            nagjax.nesterov(1 / smoothness, from_table(np.maximum(k - 1, 0) / (k + 2))),
            lambda n, r: bounds.chambolle_dossal_guarantee(n, 2.0, smoothness, r),
        ),
        "ogm": (nagjax.ogm(smoothness), lambda n, r: bounds.ogm_worst_case(n, smoothness, r)),
    }


PRECISIONS = {"float32": (False, jnp.float32), "float64": (True, jnp.float64)}


def gaps_and_distances(build, optimizer_of, precision, start):
    """f(x_N) - f* and |x_N - x*| of a run in `precision`, evaluated in float64; gaps within its rounding are 0."""
    x64, dtype = PRECISIONS[precision]
    exact = build(jnp.float64)
    with jax.enable_x64(x64):
        problem = build(dtype)
        gradient = jax.grad(problem.value)
        found = run(optimizer_of(exact), lambda y, k: gradient(y), np.asarray(start, dtype), len(HORIZONS))
    assert found.answers.dtype == dtype
    answers = jnp.asarray(found.answers[HORIZONS], jnp.float64)
    gaps = np.asarray(jax.vmap(exact.value)(answers)) - exact.minimum
    gaps = np.maximum(gaps - 16 * np.finfo(np.float64).eps * (1 + abs(exact.minimum)), 0)
    return gaps, np.linalg.norm(np.asarray(answers) - np.asarray(exact.minimizer), axis=1)


def radius_and_rounding(problem, start, precision):
    """R, and the length by which roundings move the query point in one step.

    Eight operations of a step round numbers of size up to R + |x*|. On a quadratic such displacements e add up to at
    most N e sqrt(L / lambda) in the mode of curvature lambda, and to sqrt(kappa L / lambda) e in the strongly convex
    case, because |s_j| of `trajectories.lucas` does: so they add at most N e or sqrt(kappa) e to sqrt(2 gap / L).
    """
    center = np.asarray(problem.minimizer)
    radius = float(np.linalg.norm(start - center))
    return radius, 8 * np.finfo(precision).eps * (radius + float(np.linalg.norm(center)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", ["fista", "polynomial", "(k-1)/(k+2)", "ogm"])
@pytest.mark.parametrize("name", CONVEX)
def test_convex_guarantees_hold_at_every_iterate(name, method, precision):
    exact = CONVEX[name](jnp.float64)
    start = STARTS.get(name, CENTER + OFFSET)
    radius, displacement = radius_and_rounding(exact, start, precision)
    gaps, _ = gaps_and_distances(CONVEX[name], lambda p: convex_methods(p)[method][0], precision, start)
    guarantee = np.sqrt([convex_methods(exact)[method][1](n, radius) for n in HORIZONS])
    allowance = np.sqrt(exact.smoothness / 2) * HORIZONS * displacement
    assert np.all(allowance <= 0.03 * guarantee)
    assert np.all(np.sqrt(gaps) <= guarantee + allowance)


def strongly_convex_methods(problem):
    smoothness, mu = problem.smoothness, problem.strong_convexity
    return {
        "strongly convex": nagjax.nesterov(1 / smoothness, nagjax.momentum.strongly_convex(smoothness / mu)),
        "triple momentum": nagjax.triple_momentum(smoothness, mu),
        "item": nagjax.item(smoothness, mu),
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", ["strongly convex", "triple momentum", "item"])
@pytest.mark.parametrize("name", STRONGLY_CONVEX)
def test_strongly_convex_guarantees_hold_at_every_iterate(name, method, precision):
    exact = STRONGLY_CONVEX[name](jnp.float64)
    smoothness, mu = exact.smoothness, exact.strong_convexity
    start = STARTS.get(name, CENTER + OFFSET)
    radius, displacement = radius_and_rounding(exact, start, precision)
    gaps, distances = gaps_and_distances(
        STRONGLY_CONVEX[name], lambda p: strongly_convex_methods(p)[method], precision, start
    )
    if method == "item":
        guarantee = np.sqrt([strong_bounds.item_worst_case(n, mu / smoothness, radius) for n in HORIZONS])
        # A gap of L d^2 / 2 is a distance of up to sqrt(kappa) d.
        assert np.all(distances <= guarantee + smoothness / mu * displacement)
        return
    if method == "triple momentum":
        guarantee = [strong_bounds.triple_momentum_worst_case(n, smoothness, mu, radius) for n in HORIZONS]
    else:
        initial_gap = float(exact.value(jnp.asarray(start))) - exact.minimum
        guarantee = [strong_bounds.nesterov_guarantee(n, smoothness, mu, initial_gap, radius) for n in HORIZONS]
    allowance = np.sqrt(smoothness / 2 * smoothness / mu) * displacement
    assert np.all(np.sqrt(gaps) <= np.sqrt(guarantee) + allowance)
