"""Equalities between methods that are published under different names."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_same_trajectory, from_table, run

import nagjax
from nagjax import momentum
from nagjax.theory import sequences

STEPS = 60
TOLERANCE = 1e-12
MATRIX = np.random.default_rng(0).standard_normal((7, 4)) * [1.0, 0.7, 0.4, 0.1]
START = np.array([2.0, -1.0, 3.0, 0.5])
SMOOTHNESS = float(np.linalg.norm(MATRIX, 2)) ** 2
RATE = 0.5 / SMOOTHNESS
QUADRATIC = np.array([0.01, 0.3, 1.0, 1.7])


def smooth(x, k):
    """The gradient of a function that is neither quadratic nor separable."""
    return jnp.asarray(MATRIX.T) @ jnp.tanh(jnp.asarray(MATRIX) @ x - 0.3) + 0.02 * x


def quadratic(x, k):
    return jnp.asarray(QUADRATIC) * x


def follow(rule, rate=RATE, gradient=smooth, steps=STEPS):
    optimizer = optax.chain(optax.scale(-rate), nagjax.accelerate(rule))
    return run(optimizer, gradient, START, steps)


def coefficients(rule, steps=STEPS):
    """The four numbers of each update, shape (steps, 4)."""
    carry, rows = rule.init(), []
    for _ in range(steps):
        four, carry = rule.next(carry)
        rows.append([float(number) for number in four])
    return np.array(rows)


def test_answers_of_the_shifted_sequence_are_queries_of_nesterovs_on_quadratics():
    nesterov = follow(momentum.polynomial(2.0), 1.0, quadratic)
    shifted = follow(momentum.schedule(lambda k: k / (k + 3.0)), 1.0, quadratic)
    assert_close(shifted.answers, nesterov.queries, TOLERANCE)
    assert np.max(np.abs(shifted.queries - nesterov.queries)) > 0.1


def test_chambolle_and_dossals_sequence_with_two_is_nesterovs():
    table = np.maximum(np.arange(STEPS + 1) - 1, 0) / (np.arange(STEPS + 1) + 2)
    assert_same_trajectory(follow(momentum.polynomial(2.0)), follow(momentum.schedule(from_table(table))), TOLERANCE)


def test_fista_is_a_schedule_of_its_momenta():
    table = sequences.fista_momenta(STEPS + 1)
    assert_same_trajectory(follow(momentum.fista()), follow(momentum.schedule(from_table(table))), TOLERANCE)


@pytest.mark.parametrize("kappa", [4.0, 100.0])
def test_item_tends_to_triple_momentum(kappa):
    late_item = coefficients(momentum.item(kappa), 400)[-1]
    decay, direct, gain, readout = coefficients(momentum.triple_momentum(kappa), 1)[0]
    # Triple momentum takes steps that are 1 + rho times as long, so its velocity is so many times as large.
    stretch = 2 - 1 / np.sqrt(kappa)
    expected = [decay, direct * stretch, gain * stretch, readout * stretch]
    np.testing.assert_allclose(late_item, expected, rtol=1e-10)


def test_item_without_strong_convexity_is_ogm():
    kappa = 1e12
    item, ogm = coefficients(momentum.item(kappa), 40), coefficients(momentum.ogm(), 40)
    np.testing.assert_allclose(item[:, :3], ogm[:, :3], rtol=1e-8, atol=1e-8)
    found = follow(momentum.item(kappa), 1 / SMOOTHNESS, smooth, 40)
    assert_close(found.queries, follow(momentum.ogm(), 1 / SMOOTHNESS, smooth, 40).queries, 1e-8)
    carry, rule = momentum.item(kappa).init(), momentum.item(kappa)
    a = []
    for _ in range(40):
        a.append(float(carry.a))
        _, carry = rule.next(carry)
    np.testing.assert_allclose(a, 4 * sequences.fista_t(39) ** 2, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_primal_averaging_with_equal_parameters_is_nesterovs_method(m):
    averaged = follow(momentum.primal_averaging(m, m), RATE / (1 - m))
    assert_same_trajectory(averaged, follow(momentum.constant(m)), TOLERANCE)


@pytest.mark.parametrize("b", [0.0, 0.5, 0.9])
def test_quasi_hyperbolic_momentum_with_equal_parameters_is_nesterovs_method(b):
    nesterov = follow(momentum.constant(b))
    assert_close(follow(momentum.quasi_hyperbolic(b, b), RATE / (1 - b)).queries, nesterov.queries, TOLERANCE)


@pytest.mark.parametrize("b", [0.0, 0.5, 0.9])
def test_quasi_hyperbolic_momentum_with_weight_one_is_the_damped_heavy_ball(b):
    assert_same_trajectory(
        follow(momentum.quasi_hyperbolic(b, 1.0), RATE / (1 - b)), follow(momentum.heavy_ball(b)), TOLERANCE
    )


@pytest.mark.parametrize("b", [0.0, 0.7, 0.95, 1.0])
def test_schedule_free_is_primal_averaging_with_the_weights_of_a_mean(b):
    free = follow(momentum.schedule_free(b), 2 * RATE)
    averaged = follow(momentum.primal_averaging(lambda k: 1 - 1 / (k + 1.0), b), 2 * RATE)
    assert_same_trajectory(free, averaged, TOLERANCE)
    np.testing.assert_allclose(
        coefficients(momentum.schedule_free(b))[1:],
        coefficients(momentum.primal_averaging(lambda k: 1 - 1 / (k + 1.0), b))[1:],
        atol=1e-14,
    )


def test_schedule_free_at_the_fast_point_is_gradient_descent_with_averaged_answers():
    free, descent = follow(momentum.schedule_free(0.0)), follow(momentum.constant(0.0))
    assert_close(free.queries, descent.queries, TOLERANCE)
    means = np.cumsum(descent.queries[1:], axis=0) / np.arange(1, STEPS + 1)[:, None]
    assert_close(free.answers[1:], means, TOLERANCE)


@pytest.mark.parametrize("m", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("nesterov", [True, False])
def test_nesterov_and_heavy_ball_are_optax_sgd_with_a_constant_rate(m, nesterov):
    # Optax's own states have no answer.
    optax_sgd = run(optax.sgd(RATE, m, nesterov=nesterov), smooth, START, STEPS, answer=lambda params, state: params)
    rule = momentum.constant(m) if nesterov else momentum.heavy_ball(m)
    assert_close(follow(rule).queries, optax_sgd.queries, TOLERANCE)


@pytest.mark.parametrize("m", [0.5, 0.9])
def test_pytorchs_and_keras_nesterov_have_the_same_answers_while_the_rate_is_constant(m):
    nesterov = follow(momentum.constant(m))
    for optimizer in (nagjax.conventions.pytorch_sgd, nagjax.conventions.keras_sgd):
        found = run(optimizer(RATE, momentum=m, nesterov=True), smooth, START, STEPS)
        assert_same_trajectory(found, nesterov, TOLERANCE)
