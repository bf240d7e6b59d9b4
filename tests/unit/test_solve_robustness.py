"""Problems on which an earlier version of the solver failed: far, flat, steep, tiny and exactly solved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nagjax
from nagjax import proximal, solve
from nagjax.solve import Status

METHODS = ("default", "boosted")


def barrier(w):
    return -jnp.sum(jnp.log(1 - w)) - 3 * jnp.sum(jnp.log(w))


def exponential(w):
    return jnp.sum(jnp.exp(w) - 2 * w)


def poisson(w, features, counts):
    return jnp.sum(jnp.exp(0.3 * features @ w) - counts * (features @ w))


@pytest.mark.parametrize("method", METHODS)
def test_steps_that_a_spike_of_curvature_made_short_grow_again(method):
    rng = np.random.default_rng(7)
    features = rng.standard_normal((16, 20, 12)) * np.exp(rng.uniform(-2, 2, (16, 1, 12)))
    counts = np.abs(rng.standard_normal((16, 20))) * 3

    def run(features, counts):
        solution = solve.minimize(
            poisson, jnp.full(12, 0.05), args=(features, counts), prox=proximal.l1(1.0), method=method, max_iters=3000
        )  # fmt: skip
        return solution.status, solution.residual

    status, residual = jax.jit(jax.vmap(run))(features, counts)
    assert np.all(status == Status.CONVERGED)
    assert np.all(residual <= 1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fun", "start", "minimizer"),
    [(barrier, 0.01, 0.75), (exponential, -300.0, np.log(2)), (exponential, 5.0, np.log(2))],
)
@pytest.mark.usefixtures("single_precision")
def test_flat_and_steep_starts_come_to_the_minimizer_in_single_precision(fun, start, minimizer, method):
    solution = solve.minimize(fun, jnp.full(5, start), method=method, max_iters=1000)
    assert int(solution.status) == Status.CONVERGED
    # The residual is relative to a start that may be steep: e^5 here.
    np.testing.assert_allclose(solution.params, minimizer, rtol=2e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e25])
@pytest.mark.usefixtures("single_precision")
def test_objectives_whose_squared_gradient_is_no_number_are_minimized(factor, method):
    solution = solve.minimize(lambda x: jnp.float32(factor) * jnp.sum((x - 3) ** 2), jnp.zeros(3), method=method)
    assert int(solution.status) == Status.CONVERGED
    np.testing.assert_allclose(solution.params, 3, rtol=1e-6)


@pytest.mark.usefixtures("single_precision")
def test_momentum_is_kept_below_the_rounding_of_the_parameters():
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((60, 40)))[0]
    right = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    matrix = ((left * np.logspace(0, -3, 40)) @ right.T).astype(np.float32)
    target = (matrix @ (400 * rng.standard_normal(40))).astype(np.float32)
    solution = solve.minimize(lambda x, a, b: jnp.sum((a @ x - b) ** 2) / 2, jnp.zeros(40), args=(matrix, target))
    exact = matrix.astype(np.float64) @ np.asarray(solution.params, np.float64) - target
    assert np.sum(exact**2) <= 1e-7 * np.sum(target.astype(np.float64) ** 2)


@pytest.mark.parametrize("method", METHODS)
def test_an_infeasible_start_of_a_constant_function_is_projected(method):
    solution = solve.minimize(lambda x: jnp.ones(()), -jnp.ones(3), prox=proximal.nonnegative(), method=method)
    assert int(solution.status) == Status.CONVERGED
    assert np.all(np.asarray(solution.params) >= 0)


@pytest.mark.parametrize("method", [*METHODS, "fista"])
def test_a_tree_without_leaves_is_its_own_solution(method):
    solution = solve.minimize(lambda params: jnp.zeros(()), {}, method=method)
    assert solution.params == {}
    assert int(solution.status) == Status.CONVERGED


def test_a_chain_with_a_prox_needs_it_in_minimize_too():
    with pytest.raises(ValueError, match="prox must be given for a chain with a proximal step"):
        solve.minimize(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(3), method=nagjax.fista(0.5, proximal.l1(0.1)))


@pytest.mark.parametrize(
    "chain", [optax.adam(0.1), optax.lbfgs(), optax.sgd(0.3, momentum=0.5)], ids=["adam", "lbfgs", "sgd"]
)
@pytest.mark.usefixtures("standard_promotion", "single_precision")
def test_chains_of_optax_are_methods(chain):
    solution = solve.minimize(lambda x: jnp.sum((x - 1) ** 2) / 2, jnp.zeros(3), method=chain, tol=1e-4)
    assert int(solution.status) == Status.CONVERGED
    np.testing.assert_allclose(solution.params, 1, atol=1e-3)


def test_a_second_path_and_a_warm_start_do_not_trace_again():
    traces = []

    def fun(x, target):
        traces.append(None)
        return jnp.sum((x - target) ** 2) / 2

    target, strengths = jnp.array([3.0, -0.2, 1.0]), jnp.array([1.0, 0.5])
    solve.path(fun, jnp.zeros(3), strengths, proximal.l1, args=(target,))
    solution = solve.minimize(fun, jnp.zeros(3), args=(target,), prox=proximal.l1(0.5))
    first = len(traces)
    paths = solve.path(fun, jnp.zeros(3), 2 * strengths, proximal.l1, args=(target,))
    solve.minimize(fun, solution, args=(target,), prox=proximal.l1(0.5), tol=1e-3, max_iters=7)
    assert len(traces) == first
    np.testing.assert_allclose(paths.params, [[1, 0, 0], [2, 0, 0]], atol=1e-9)
