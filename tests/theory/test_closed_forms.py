"""The engine against closed forms: `params` is the query point y, `eval_params` the answer x.

Every coordinate of a run is a quadratic mode of its own, so that one run covers all regimes of the roots.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, from_table, run

import nagjax
from nagjax.theory import convex_loops, polynomials, responses, state_space, trajectories

STEPS = 60
T = np.arange(STEPS + 1)
RATE = 0.1
# About STEPS roundings of iterates of size 1 on either side.
TOLERANCE = 2e-13


def modes(curvatures, offsets=0.0):
    """The gradient of a separable quadratic."""
    curvatures, offsets = jnp.asarray(curvatures), jnp.asarray(offsets)
    return lambda y, k: curvatures * y - offsets


def regimes(critical):
    """Curvatures on both sides of the critical ones, of the one that a step annihilates, and beyond."""
    near = [point * (1 + shift) for point in critical for shift in (-1e-4, -1e-12, 0.0, 1e-12, 1e-4)]
    return np.array([0.0, 1e-6, *near, 3.0, 9.0, 10 * (1 - 1e-12), 10.0, 10 * (1 + 1e-12), 11.0, 13.0])


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_nesterov_has_its_closed_form_in_every_regime_at_both_points(momentum):
    curvatures = regimes([((1 - momentum) / (1 + momentum)) ** 2 / RATE])
    found = run(nagjax.nesterov(RATE, momentum), modes(curvatures), np.ones_like(curvatures), STEPS)
    for index, curvature in enumerate(curvatures):
        assert_close(found.queries[:, index], trajectories.nesterov_queries(T, RATE, momentum, curvature), TOLERANCE)
        assert_close(found.answers[:, index], trajectories.nesterov_answers(T, RATE, momentum, curvature), TOLERANCE)


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
def test_heavy_ball_has_its_closed_form_in_every_regime_and_is_its_own_answer(momentum):
    root = np.sqrt(momentum)
    curvatures = regimes([(1 - root) ** 2 / RATE, (1 + root) ** 2 / RATE])
    optimizer = optax.chain(optax.scale(-RATE), nagjax.accelerate(nagjax.momentum.heavy_ball(momentum)))
    found = run(optimizer, modes(curvatures), np.ones_like(curvatures), STEPS)
    np.testing.assert_array_equal(found.answers, found.queries)
    for index, curvature in enumerate(curvatures):
        assert_close(found.queries[:, index], trajectories.heavy_ball(T, RATE, momentum, curvature), TOLERANCE)


@pytest.mark.parametrize("kappa", [4.0, 100.0, 1e4])
def test_the_strongly_convex_rule_damps_critically_and_annihilates_the_largest_curvature(kappa):
    optimizer = optax.chain(optax.scale(-1 / kappa), nagjax.accelerate(nagjax.momentum.strongly_convex(kappa)))
    found = run(optimizer, modes([1.0, kappa]), [1.0, 1.0], STEPS)
    assert_close(found.answers[:, 0], trajectories.critical_answers(T, kappa), TOLERANCE)
    assert_close(found.queries[:, 0], trajectories.critical_answers(T + 1, kappa) / (1 - 1 / kappa), TOLERANCE)
    assert_close(found.answers[:, 1], T == 0, TOLERANCE)


def test_polyaks_tuning_damps_both_ends_critically():
    kappa = 25.0
    rate, momentum = trajectories.polyak_tuning(kappa, 1.0)
    optimizer = optax.chain(optax.scale(-rate), nagjax.accelerate(nagjax.momentum.heavy_ball(momentum)))
    found = run(optimizer, modes([1.0, kappa]), [1.0, 1.0], STEPS)
    for index, (curvature, root) in enumerate([(1.0, np.sqrt(momentum)), (kappa, -np.sqrt(momentum))]):
        expected = root**T * (1 + T * ((1 - rate * curvature) / root - 1))
        assert_close(found.queries[:, index], expected, TOLERANCE)


def test_schedules_of_rate_and_momentum_enter_with_two_indices():
    rates, momenta = 0.02 + 0.1 * np.cos(np.arange(STEPS)) ** 2, np.sin(np.arange(STEPS + 1)) ** 2
    curvatures, start = np.array([0.3, 2.0, 7.0]), np.array([1.0, -2.0, 0.5])
    found = run(nagjax.nesterov(from_table(rates), from_table(momenta)), modes(curvatures), start, STEPS)
    theta, v = start, np.zeros(3)
    for t in range(STEPS):
        g = curvatures * theta
        v = momenta[t] * v - rates[t] * g
        answer, theta = theta - rates[t] * g, theta - rates[t] * g + momenta[t + 1] * v
        assert_close(found.queries[t + 1], theta, TOLERANCE)
        assert_close(found.answers[t + 1], answer, TOLERANCE)
    textbook = convex_loops.nesterov(lambda y: curvatures * y, start, rates, momenta)
    assert_close(found.queries, textbook.queries, TOLERANCE)


def test_one_index_in_both_places_is_another_method_by_the_stated_amount():
    before, after, change = 0.9, 0.5, 12
    momenta = [before] * change + [after]
    two = run(nagjax.nesterov(RATE, from_table(momenta)), modes([2.0]), [1.0], change).queries[:, 0]
    one, m = [1.0], 0.0
    for t in range(change):
        g = 2.0 * one[-1]
        m = g + momenta[t] * m
        one.append(one[-1] - RATE * (g + momenta[t] * m))
    assert_close(one[:change], two[:change], TOLERANCE)
    assert one[change] - two[change] == pytest.approx(-RATE * (before - after) * m, rel=1e-10)
    assert abs(m) > 0.1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_coupled_weight_decay_adds_to_the_curvature(momentum):
    curvatures, offsets, decay = np.array([0.0, 0.5, 3.0, 8.0]), np.array([0.2, 0.7, -1.0, 3.0]), 0.3
    fixed_point = offsets / (curvatures + decay)
    start = np.array([1.3, -0.4, 2.0, 0.1])
    found = run(nagjax.nesterov(RATE, momentum, weight_decay=decay), modes(curvatures, offsets), start, STEPS)
    for index, curvature in enumerate(curvatures + decay):
        error = start[index] - fixed_point[index]
        queries = trajectories.nesterov_queries(T, RATE, momentum, curvature)
        answers = trajectories.nesterov_answers(T, RATE, momentum, curvature)
        assert_close(found.queries[:, index], fixed_point[index] + error * queries, TOLERANCE)
        assert_close(found.answers[:, index], fixed_point[index] + error * answers, TOLERANCE)


def test_decoupled_weight_decay_after_the_momentum_is_its_matrix():
    momentum, decay = 0.9, 0.4
    curvatures, offsets = np.array([0.5, 3.0, 8.0]), np.array([0.7, -1.0, 3.0])
    optimizer = optax.chain(optax.scale(-RATE), nagjax.accelerate(momentum), optax.add_decayed_weights(-RATE * decay))
    found = run(optimizer, modes(curvatures, offsets), np.ones(3), STEPS)
    for index, (curvature, offset) in enumerate(zip(curvatures, offsets, strict=True)):
        step = state_space.gradient_unit_nesterov(RATE, momentum, curvature, linear=offset, decoupled_decay=decay)
        assert_close(found.queries[:, index], state_space.orbit(T, step, [1.0, 0.0])[:, 0], TOLERANCE)


def test_a_drifting_minimizer_is_followed_with_the_steady_lag():
    momentum, curvature, speed = 0.9, 2.0, 0.05
    found = run(nagjax.nesterov(RATE, momentum), lambda y, k: curvature * y - speed * k.astype(y.dtype), [1.0], 400)
    step = state_space.gradient_unit_nesterov(RATE, momentum, curvature, linear_drift=speed)
    expected = state_space.orbit(np.arange(401), step, [1.0, 0.0])[:, 0]
    assert_close(found.queries[:, 0], expected, TOLERANCE)
    lag = found.queries[-1, 0] - speed * 400 / curvature
    assert lag == pytest.approx(-(1 - momentum) * speed / (RATE * curvature**2), rel=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "form"),
    [
        (nagjax.conventions.pytorch_sgd, state_space.gradient_unit_nesterov),
        (nagjax.conventions.keras_sgd, state_space.step_unit),
    ],
    ids=["pytorch", "keras"],
)
def test_a_change_of_the_rate_follows_each_frameworks_matrix(optimizer, form):
    momentum, change, rates = 0.9, 20, np.where(np.arange(STEPS) < 20, 0.02, 0.15)
    curvatures = np.array([0.4, 2.0, 6.0])
    chosen = optimizer(from_table(rates), momentum=momentum, nesterov=True)
    found = run(chosen, modes(curvatures), np.ones(3), STEPS)
    for index, curvature in enumerate(curvatures):
        first, second = form(0.02, momentum, curvature), form(0.15, momentum, curvature)
        for end in (change, change + 1, STEPS):
            expected = state_space.piecewise_orbit([(change, first), (end - change, second)], [1.0, 0.0])[0]
            assert_close(found.queries[end, index], expected, TOLERANCE)


STREAM = np.cos(np.arange(STEPS) ** 2.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_stream_of_gradients_is_answered_by_the_impulse_response(momentum, nesterov):
    rule = nagjax.momentum.constant(momentum) if nesterov else nagjax.momentum.heavy_ball(momentum)
    optimizer = optax.chain(optax.scale(-RATE), nagjax.accelerate(rule))
    feed = from_table(STREAM)
    found = run(optimizer, lambda y, k: feed(k) * jnp.ones_like(y), [0.0], STEPS).queries[:, 0]
    assert_close(np.diff(found), responses.stream_updates(STREAM, RATE, momentum, nesterov=nesterov), TOLERANCE)
    if nesterov:
        assert_close(found[-1], responses.stream_displacement(STREAM, RATE, momentum), TOLERANCE)
    impulse = run(optimizer, lambda y, k: jnp.where(k == 0, jnp.ones_like(y), 0), [0.0], STEPS).queries[:, 0]
    assert_close(np.diff(impulse), -RATE * responses.impulse_response(STEPS, momentum, nesterov=nesterov), TOLERANCE)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_constant_gradient_moves_parameters_by_its_closed_form(momentum, nesterov):
    slope = 0.7
    rule = nagjax.momentum.constant(momentum) if nesterov else nagjax.momentum.heavy_ball(momentum)
    optimizer = optax.chain(optax.scale(-RATE), nagjax.accelerate(rule))
    found = run(optimizer, lambda y, k: jnp.full_like(y, slope), [0.0], STEPS).queries[:, 0]
    closed = responses.constant_gradient_displacement(T, RATE, momentum, slope, nesterov=nesterov)
    assert_close(found, closed, TOLERANCE)


def test_a_warm_up_moves_pytorchs_parameters_by_its_closed_form():
    slope, momentum = 0.7, 0.9
    rates = 0.01 * (np.arange(STEPS) + 1)
    optimizer = nagjax.conventions.pytorch_sgd(from_table(rates), momentum=momentum, nesterov=True)
    found = run(optimizer, lambda y, k: jnp.full_like(y, slope), [0.0], STEPS).queries[:, 0]
    assert_close(found, responses.warm_up_displacement(T, 0.01, momentum, slope), TOLERANCE)
    updates = responses.constant_gradient_updates(np.arange(STEPS), rates, momentum, slope)
    assert_close(np.diff(found), updates, TOLERANCE)


CONTRACTIONS = np.array([-0.6, -0.1, 0.0, 1e-8, 0.3, 0.9, 0.9999, 1.0])


@pytest.mark.parametrize("a", [2.0, 3.0, 4.5])
def test_polynomial_momentum_is_a_gegenbauer_polynomial_at_both_points(a):
    found = run(nagjax.nesterov(1.0, nagjax.momentum.polynomial(a)), modes(1 - CONTRACTIONS), np.ones(8), STEPS)
    assert_close(found.answers, [polynomials.polynomial_answer(k, CONTRACTIONS, a) for k in T], TOLERANCE)
    assert_close(found.queries, [polynomials.polynomial_query(k, CONTRACTIONS, a) for k in T], TOLERANCE)


@pytest.mark.parametrize("b", [2.0, 3.0])
def test_shifted_momentum_is_a_gegenbauer_polynomial_at_both_points(b):
    found = run(nagjax.nesterov(1.0, lambda k: k / (k + b)), modes(1 - CONTRACTIONS), np.ones(8), STEPS)
    assert_close(found.answers, [polynomials.shifted_answer(k, CONTRACTIONS, b) for k in T], TOLERANCE)
    assert_close(found.queries, [polynomials.shifted_query(k, CONTRACTIONS, b) for k in T], TOLERANCE)


def test_nesterovs_momentum_is_a_legendre_polynomial():
    u = CONTRACTIONS[:-2]
    found = run(nagjax.nesterov(1.0, nagjax.momentum.polynomial()), modes(1 - u), np.ones_like(u), STEPS)
    assert_close(found.answers[1:], [polynomials.legendre_answer(k, u) for k in T[1:]], TOLERANCE)


def test_nesterovs_flow_is_the_limit_to_first_order_and_bessels_form_to_second():
    inverse_roots = np.array([20, 40, 80, 160])
    optimizer = nagjax.nesterov(1.0, nagjax.momentum.polynomial())
    found = run(optimizer, modes(1.0 / inverse_roots**2), np.ones(4), 1600)
    first, second = [], []
    for index, inverse_root in enumerate(inverse_roots):
        k = np.arange(1, 10 * inverse_root + 1)
        answers = found.answers[k, index]
        flow = polynomials.polynomial_flow(k / inverse_root, 1.0)
        first.append(np.max(np.abs(answers - flow)))
        second.append(np.max(np.abs(answers - polynomials.bessel_answer(k, 1 - 1 / inverse_root**2))))
    assert [f"{error:.2e}" for error in first] == ["3.73e-02", "1.88e-02", "9.41e-03", "4.71e-03"]
    assert [f"{error:.1e}" for error in second] == ["7.0e-04", "1.8e-04", "4.4e-05", "1.1e-05"]


def test_the_strongly_convex_flow_is_the_limit_to_first_order():
    curvatures, strong_convexity, errors = np.array([0.04, 0.5, 3.0]), 0.04, []
    for inverse_root in (40, 80):
        step_size = 1 / inverse_root**2
        rule = nagjax.momentum.strongly_convex(1 / (strong_convexity * step_size))
        found = run(nagjax.nesterov(step_size, rule), modes(curvatures), np.ones(3), 10 * inverse_root)
        time = np.arange(10 * inverse_root + 1) / inverse_root
        flows = [polynomials.strongly_convex_flow(time, curvature, strong_convexity) for curvature in curvatures]
        errors.append(np.max(np.abs(found.answers - np.array(flows).T), axis=0))
    assert np.all(errors[-1] < 0.04)
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.1)
