"""Test problems are what they say: their minimizers, minima, smoothness and strong convexity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nagjax import problems
from nagjax.theory import bounds, convex_loops, sequences

FEATURES = np.random.default_rng(0).standard_normal((60, 5)) * [3, 1, 1, 0.3, 0.1]
LABELS = np.sign(FEATURES @ [1.0, -2.0, 0.5, 1.0, 0.0] + np.random.default_rng(1).standard_normal(60))

FACTORIES = {
    "quadratic": lambda dtype: problems.quadratic(
        [1e-3, 0.1, 1.0, 5.0], seed=3, minimizer=[1.0, -2.0, 0.5, 4.0], dtype=dtype
    ),
    "diagonal quadratic": lambda dtype: problems.quadratic([1e-3, 0.1, 5.0], dtype=dtype),
    "singular quadratic": lambda dtype: problems.quadratic([0.0, 0.1, 5.0], seed=1, dtype=dtype),
    "nesterov chain": lambda dtype: problems.nesterov_chain(12, 3.0, dtype=dtype),
    "strongly convex nesterov chain": lambda dtype: problems.nesterov_chain(12, 3.0, 0.1, dtype=dtype),
    "huber": lambda dtype: problems.huber(0.5, smoothness=2.0, minimizer=[1.0, -1.0, 0.3], dtype=dtype),
    "scalar huber": lambda dtype: problems.huber(0.5, smoothness=2.0, strong_convexity=0.1, dtype=dtype),
    "log-cosh": lambda dtype: problems.log_cosh([0.01, 1.0, 4.0], scale=0.7, minimizer=[1.0, 2.0, -1.0], dtype=dtype),
    "strongly convex log-cosh": lambda dtype: problems.log_cosh(
        [0.01, 1.0, 4.0], strong_convexity=0.2, seed=5, dtype=dtype
    ),
    "logistic": lambda dtype: problems.logistic(FEATURES, LABELS, 0.01, dtype=dtype),
    "log-sum-exp": lambda dtype: problems.log_sum_exp(
        20, 4, seed=2, temperature=0.5, minimizer=[1.0, 0.0, -1.0, 2.0], dtype=dtype
    ),
}
every_problem = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


@every_problem
def test_the_gradient_vanishes_at_the_minimizer_and_the_minimum_is_taken_there(factory):
    problem = factory(None)
    # One rounding of each coordinate of the minimizer, seen through the largest curvature.
    rounding = 16 * np.finfo(np.float64).eps * problem.smoothness * (1 + float(jnp.linalg.norm(problem.minimizer)))
    gradient = jax.jit(jax.grad(problem.value))(problem.minimizer)
    assert float(jnp.max(jnp.abs(gradient))) <= rounding
    assert float(problem.value(problem.minimizer)) == pytest.approx(problem.minimum, abs=1e-14)


@every_problem
def test_curvature_lies_between_strong_convexity_and_smoothness_on_random_pairs(factory):
    problem = factory(None)
    gradient = jax.jit(jax.vmap(jax.grad(problem.value)))
    generator = np.random.default_rng(0)
    shape = (400, *problem.minimizer.shape)
    scales = (10.0 ** generator.uniform(-3, 1.5, 400)).reshape(400, *[1] * problem.minimizer.ndim)
    first = np.asarray(problem.minimizer) + scales * generator.standard_normal(shape)
    second = first + scales[::-1] * generator.standard_normal(shape)
    moved = (second - first).reshape(400, -1)
    turned = np.asarray(gradient(jnp.asarray(second)) - gradient(jnp.asarray(first))).reshape(400, -1)
    square, turned_square = np.sum(moved**2, axis=1), np.sum(turned**2, axis=1)
    product = np.sum(moved * turned, axis=1)
    # Gradients are rounded relative to the distance from the minimizer, up to 1e5 times that of the pair.
    allowance = 1e-10 * (problem.smoothness * square + turned_square / problem.smoothness)
    # Cocoercivity is what smooth convex functions have beyond a Lipschitz gradient.
    assert np.all(product >= turned_square / problem.smoothness - allowance)
    assert np.all(product >= problem.strong_convexity * square - allowance)
    values = np.asarray(jax.vmap(problem.value)(jnp.asarray(first)))
    assert np.all(values >= problem.minimum - 1e-12 * (1 + np.abs(values)))


@pytest.mark.parametrize(
    "name", ["quadratic", "diagonal quadratic", "scalar huber", "huber", "strongly convex log-cosh", "log-cosh"]
)
def test_smoothness_is_the_curvature_at_the_minimizer(name):
    problem = FACTORIES[name](None)
    hessian = np.atleast_2d(jax.hessian(problem.value)(problem.minimizer))
    assert np.linalg.eigvalsh(hessian)[-1] == pytest.approx(problem.smoothness, rel=1e-12)


@every_problem
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_problem_computes_in_its_dtype(factory, dtype):
    problem = factory(dtype)
    assert problem.minimizer.dtype == dtype
    value, gradient = jax.value_and_grad(problem.value)(problem.minimizer)
    assert value.dtype == gradient.dtype == dtype
    assert value.shape == ()
    assert isinstance(problem.minimum, float)


@pytest.mark.usefixtures("single_precision")
def test_the_default_dtype_is_that_of_jax():
    assert problems.quadratic([1.0, 2.0]).minimizer.dtype == jnp.float32


@every_problem
def test_gradients_are_finite_at_the_minimizer_with_nan_checks_on(factory):
    problem = factory(None)
    with jax.debug_nans(True):
        assert bool(jnp.all(jnp.isfinite(jax.grad(problem.value)(problem.minimizer))))


def test_a_quadratic_has_the_spectrum_that_was_asked_for():
    spectrum = [0.5, 1.0, 3.0, 7.0]
    hessian = jax.hessian(problems.quadratic(spectrum, seed=11).value)(jnp.zeros(4))
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), spectrum, rtol=1e-13)
    assert np.max(np.abs(np.asarray(hessian) - np.diag(np.diag(hessian)))) > 0.1
    np.testing.assert_array_equal(jax.hessian(problems.quadratic(spectrum).value)(jnp.zeros(4)), np.diag(spectrum))


def test_the_chain_has_nesterovs_printed_minimizer_and_minimum():
    n = 9
    problem = problems.nesterov_chain(n, 8.0)
    np.testing.assert_allclose(problem.minimizer, 1 - np.arange(1, n + 1) / (n + 1), rtol=1e-13)
    assert problem.minimum == pytest.approx(8.0 / 8 * (-1 + 1 / (n + 1)), rel=1e-13)


def test_each_gradient_on_the_chain_reveals_one_more_coordinate():
    problem = problems.nesterov_chain(10)
    loop = convex_loops.fista(lambda x: np.asarray(jax.grad(problem.value)(jnp.asarray(x))), np.zeros(10), 1.0, 6)
    for k, x in enumerate(loop.answers):
        assert np.flatnonzero(x).tolist() == list(range(k))


def test_fista_reaches_its_worst_case_on_huber_in_every_direction():
    steps, minimizer = 12, np.array([0.3, -0.4, 1.0])
    travel = sequences.momentum_travel(sequences.fista_momenta(steps))
    problem = problems.huber(bounds.huber_threshold(travel, 2.0), smoothness=3.0, minimizer=minimizer)
    start = minimizer + 2.0 * np.array([2.0, -1.0, 2.0]) / 3
    loop = convex_loops.fista(lambda x: np.asarray(jax.grad(problem.value)(jnp.asarray(x))), start, 1 / 3.0, steps)
    found = float(problem.value(jnp.asarray(loop.answers[-1])))
    assert found == pytest.approx(bounds.huber_worst_case(travel, 3.0, 2.0), rel=1e-12)


def test_log_cosh_keeps_its_digits_near_the_minimizer_and_is_linear_far_away():
    problem = problems.log_cosh([2.0], scale=0.5)
    assert float(problem.value(jnp.array([1e-6]))) == pytest.approx(1e-12, rel=1e-11)
    assert float(jax.grad(problem.value)(jnp.array([1e4]))[0]) == pytest.approx(1.0, rel=1e-15)
    assert np.isfinite(problem.value(jnp.array([1e6])))


def test_logistic_separable_data_have_a_minimizer_by_the_ridge():
    features = np.array([[1.0, 50.0], [2.0, 80.0], [-1.0, -40.0]])
    problem = problems.logistic(features, [1, 1, -1], 1e-6)
    assert float(jnp.max(jnp.abs(jax.grad(problem.value)(problem.minimizer)))) < 1e-14


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: problems.quadratic([1.0, -1.0]),
            ValueError,
            r"quadratic: spectrum must be at least 0, got -1.0;",
        ),
        (
            lambda: problems.quadratic(3.0),
            ValueError,
            r"quadratic: spectrum must be a finite, non-empty array of rank 1",
        ),
        (lambda: problems.quadratic([]), ValueError, r"quadratic: spectrum must be a finite, non-empty"),
        (lambda: problems.quadratic([1.0], minimizer=[1.0, 2.0]), ValueError, r"minimizer must be of length 1, got 2;"),
        (lambda: problems.nesterov_chain(0), ValueError, r"nesterov_chain: dimension must be an integer of at least 1"),
        (
            lambda: problems.nesterov_chain(3, 1.0, 1.0),
            ValueError,
            r"strong_convexity must be at least 0 and less",
        ),
        (lambda: problems.huber(0.0), ValueError, r"huber: threshold must be positive and finite, got 0.0;"),
        (lambda: problems.huber("1"), TypeError, r"huber: threshold must be positive and finite, got '1';"),
        (
            lambda: problems.huber(1.0, strong_convexity=2.0),
            ValueError,
            r"huber: strong_convexity must be at least 0",
        ),
        (lambda: problems.log_cosh([1.0], scale=-1.0), ValueError, r"log_cosh: scale must be positive and finite"),
        (lambda: problems.logistic(FEATURES, LABELS, 0.0), ValueError, r"logistic: ridge must be positive and finite"),
        (lambda: problems.logistic(FEATURES, LABELS[1:], 0.1), ValueError, r"labels must be of length 60, got 59;"),
        (lambda: problems.logistic([[1.0]], [0.0], 0.1), ValueError, r"labels must be -1 or 1, got \[0.0\]; map"),
        (lambda: problems.log_sum_exp(3, 3, seed=0), ValueError, r"log_sum_exp: rows must be an integer of at least 4"),
    ],
)
def test_wrong_arguments_are_refused_with_a_remedy(build, error, message):
    with pytest.raises(error, match=message):
        build()
