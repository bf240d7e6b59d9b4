"""The default method of `solve.minimize`: the recipe, its stopping, and answers known from elsewhere."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import Lasso, LogisticRegression

from nagjax import proximal, solve
from nagjax.solve import Composite, Status
from tests.theory.default_method_loop import Problem, run

GENERATOR = np.random.default_rng(3)
MATRIX = GENERATOR.standard_normal((60, 30)) * np.geomspace(1, 20, 30)
TARGET = 5 * GENERATOR.standard_normal(60)
FEATURES = GENERATOR.standard_normal((80, 12)) * np.geomspace(0.3, 5, 12)
LABELS = np.sign(FEATURES @ GENERATOR.standard_normal(12) + GENERATOR.standard_normal(80))
WEIGHT = 0.05 * float(np.max(np.abs(MATRIX.T @ TARGET)))


def squares(x, matrix, target, factor):
    return factor * jnp.sum((matrix @ x - target) ** 2) / 2


def logistic(x, features, labels):
    return jnp.sum(jnp.logaddexp(jnp.zeros(labels.shape, x.dtype), -labels * (features @ x)))


def soft(v, limit):
    return np.sign(v) * np.maximum(np.abs(v) - limit, 0)


def least_squares(prox, nonsmooth=lambda x: 0.0):
    return Problem(
        lambda x: float(np.sum((MATRIX @ x - TARGET) ** 2)) / 2,
        lambda x: MATRIX.T @ (MATRIX @ x - TARGET),
        nonsmooth,
        prox,
    )


class Case(NamedTuple):
    loop: Problem
    composite: Composite
    size: int


def data(*arrays):
    return tuple(jnp.asarray(array) for array in arrays)


def cases():
    squares_of = data(MATRIX, TARGET, 1.0)
    shrink = least_squares(lambda v, s: soft(v, s * WEIGHT), lambda x: WEIGHT * float(np.sum(np.abs(x))))
    logit = Problem(
        lambda x: float(np.sum(np.logaddexp(0, -LABELS * (FEATURES @ x)))),
        lambda x: -FEATURES.T @ (LABELS / (1 + np.exp(LABELS * (FEATURES @ x)))),
        lambda x: float(x @ x) / 2,
        lambda v, s: v / (1 + s),
    )
    return {
        "lasso": Case(shrink, Composite(squares, proximal.l1(WEIGHT), squares_of), 30),
        "nnls": Case(
            least_squares(lambda v, s: np.maximum(v, 0)), Composite(squares, proximal.nonnegative(), squares_of), 30
        ),
        "logistic": Case(logit, Composite(logistic, proximal.squared_l2(1.0), data(FEATURES, LABELS)), 12),
    }


@pytest.mark.parametrize("name", ["lasso", "nnls", "logistic"])
def test_every_step_of_the_default_is_that_of_an_independent_loop(name):
    loop, composite, size = cases()[name]
    expected = run(loop, np.zeros(size), 40)
    assert expected.margin > 1e-7  # no decision is near enough to its threshold for rounding to turn it
    method = solve.default()
    step, state = jax.jit(method.step), method.start(composite, jnp.zeros(size))
    scale = np.max(np.abs(expected.answers[-1]))
    for k in range(40):
        state = step(composite, state)
        np.testing.assert_allclose(state.params, expected.answers[k], rtol=0, atol=1e-10 * scale)
        assert float(state.report.step_size) == pytest.approx(expected.step_sizes[k], rel=1e-9)
        assert int(state.report.restarts) == expected.restarts[k]


def test_the_guard_goes_back_to_the_start_of_a_cycle_as_the_loop_does():
    loop, composite, size = cases()["lasso"]
    too_large = 40 / np.linalg.norm(MATRIX, 2) ** 2
    expected = run(loop, np.ones(size), 40, too_large)
    assert expected.reverts > 0
    solution = solve.minimize(
        composite.fun,
        jnp.ones(size),
        args=composite.args,
        prox=composite.prox,
        step_size=too_large,
        tol=0.0,
        max_iters=40,
    )
    np.testing.assert_allclose(solution.params, expected.answers[-1], rtol=0, atol=1e-9)


def plain_lasso():
    generator = np.random.default_rng(0)
    matrix, truth = generator.standard_normal((300, 100)), np.zeros(100)
    truth[:10] = generator.standard_normal(10)
    target = matrix @ truth + 0.1 * generator.standard_normal(300)
    return matrix, target, 0.1 * float(np.max(np.abs(matrix.T @ target)))


@pytest.mark.parametrize(("method", "budgets"), [("default", (11, 17, 26)), ("boosted", (9, 13, 17))])
def test_the_number_of_steps_does_not_depend_on_the_scale_of_the_objective(method, budgets):
    matrix, target, weight = plain_lasso()
    for tol, budget in zip((1e-3, 1e-6, 1e-10), budgets, strict=True):
        counts = set()
        for factor in (1e-8, 1e-4, 1.0, 1e4, 1e8):
            solution = solve.minimize(
                squares,
                jnp.zeros(100),
                args=data(matrix, target, factor),
                prox=proximal.l1(weight * factor),
                method=method,
                tol=tol,
            )
            assert int(solution.status) == Status.CONVERGED
            counts.add(int(solution.iterations))
        assert max(counts) <= budget
        # Quasi-Newton steps amplify rounding: near it their count may differ by a step or two.
        assert len(counts) == 1 or (method == "boosted" and tol < 1e-9 and max(counts) - min(counts) <= 3)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_single_precision_reaches_1e_6(factor, single_precision):
    matrix, target, weight = plain_lasso()
    args = tuple(jnp.asarray(array, jnp.float32) for array in (matrix, target, factor))
    solution = solve.minimize(squares, jnp.zeros(100), args=args, prox=proximal.l1(weight * factor), tol=1e-6)
    assert solution.params.dtype == solution.value.dtype == jnp.float32
    assert int(solution.status) == Status.CONVERGED
    assert int(solution.iterations) <= 24


def residual(x, step_size):
    moved = soft(x - step_size * (MATRIX.T @ (MATRIX @ x - TARGET)), step_size * WEIGHT)
    return float(np.linalg.norm(x - moved)) / step_size


@pytest.mark.parametrize("method", ["default", "boosted", "fista"])
@pytest.mark.parametrize(("tol", "max_iters"), [(1e-3, 5000), (1e-8, 5000), (0.0, 30)])
def test_the_residual_is_that_of_the_returned_point_relative_to_the_start(method, tol, max_iters):
    solution = solve.minimize(
        squares,
        jnp.zeros(30),
        args=data(MATRIX, TARGET, 1.0),
        prox=proximal.l1(WEIGHT),
        method=method,
        tol=tol,
        max_iters=max_iters,
    )
    report = solution.state.report
    absolute = residual(np.asarray(solution.params), float(report.step_size))
    assert float(solution.residual) == pytest.approx(absolute / float(report.scale), rel=1e-6)
    # The residual decreases in the step size, and lies between |subgradient| at steps 0 and the one of the scale.
    slope = np.linalg.norm(soft(MATRIX.T @ TARGET, WEIGHT))
    assert slope / 100 <= float(report.scale) <= 2 * slope
    if tol:
        assert bool(solution.converged)
        assert float(solution.residual) <= tol
    else:
        assert int(solution.iterations) == max_iters
    objective = np.sum((MATRIX @ solution.params - TARGET) ** 2) / 2 + WEIGHT * np.sum(np.abs(solution.params))
    assert float(solution.value) == pytest.approx(float(objective), rel=1e-12)


@pytest.mark.parametrize("method", ["default", "boosted", "fista"])
def test_evaluations_is_what_a_counter_on_the_host_counts(method):
    gradients, values = [], []

    @jax.custom_jvp
    def counted(x):
        jax.debug.callback(lambda: values.append(1))
        return squares(x, *data(MATRIX, TARGET, 1.0))

    @counted.defjvp
    def _(primals, tangents):
        (x,), (v,) = primals, tangents
        jax.debug.callback(lambda: gradients.append(1))
        error = jnp.asarray(MATRIX) @ x - jnp.asarray(TARGET)
        return jnp.sum(error**2) / 2, jnp.sum((jnp.asarray(MATRIX).T @ error) * v)

    solution = solve.minimize(counted, jnp.zeros(30), prox=proximal.l1(WEIGHT), method=method, tol=1e-4)
    jax.effects_barrier()
    assert bool(solution.converged)
    assert len(gradients) == int(solution.iterations) + 1
    assert len(gradients) + len(values) == int(solution.evaluations)
    assert (len(values) == 0) == (method != "fista")


def exact_lasso():
    generator = np.random.default_rng(5)
    matrix, answer = generator.standard_normal((40, 12)), np.zeros(12)
    answer[::2] = generator.standard_normal(6) + 2
    signs = np.where(answer != 0, np.sign(answer), generator.uniform(-0.7, 0.7, 12))
    target = matrix @ answer + 0.5 * matrix @ np.linalg.solve(matrix.T @ matrix, signs)
    return matrix, target, answer


@pytest.mark.parametrize("method", ["default", "boosted", "fista"])
def test_a_lasso_with_a_known_solution_is_solved_and_its_zeros_are_exact(method):
    matrix, target, answer = exact_lasso()
    solution = solve.minimize(
        squares, jnp.ones(12), args=data(matrix, target, 1.0), prox=proximal.l1(0.5), method=method, tol=1e-11
    )
    np.testing.assert_allclose(solution.params, answer, rtol=0, atol=1e-9)
    assert np.array_equal(np.asarray(solution.params) == 0, answer == 0)


def test_the_lasso_agrees_with_scikit_learn():
    matrix, target, weight = plain_lasso()
    peer = Lasso(alpha=weight / 300, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(matrix, target)
    solution = solve.minimize(
        squares, jnp.zeros(100), args=data(matrix, target, 1.0), prox=proximal.l1(weight), tol=1e-10
    )
    np.testing.assert_allclose(solution.params, peer.coef_, rtol=0, atol=1e-8)


def test_logistic_regression_agrees_with_scikit_learn():
    peer = LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-12).fit(FEATURES, LABELS)
    solution = solve.minimize(
        logistic, jnp.zeros(12), args=data(FEATURES, LABELS), prox=proximal.squared_l2(1.0), tol=1e-11
    )
    np.testing.assert_allclose(solution.params, peer.coef_[0], rtol=0, atol=1e-8)


def test_non_negative_least_squares_agrees_with_scipy():
    expected, _ = scipy.optimize.nnls(MATRIX, TARGET)
    solution = solve.minimize(
        squares, jnp.zeros(30), args=data(MATRIX, TARGET, 1.0), prox=proximal.nonnegative(), tol=1e-11
    )
    np.testing.assert_allclose(solution.params, expected, rtol=0, atol=1e-8)
    assert np.array_equal(np.asarray(solution.params) == 0, expected == 0)


def test_ridge_regression_has_its_closed_form():
    expected = np.linalg.solve(MATRIX.T @ MATRIX + 2 * np.eye(30), MATRIX.T @ TARGET)
    for prox, extra in ((proximal.squared_l2(2.0), 0.0), (None, 1.0)):

        def ridge(x, extra=extra):
            return squares(x, *data(MATRIX, TARGET, 1.0)) + extra * jnp.sum(x**2)

        solution = solve.minimize(ridge, jnp.zeros(30), prox=prox, tol=1e-11)
        np.testing.assert_allclose(solution.params, expected, rtol=0, atol=1e-9)
