"""Closed forms of constant-momentum methods against the recursions that they solve."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from nagjax.theory import convex_loops, responses, state_space, training_loops, trajectories

STEPS = 60
T = np.arange(STEPS + 1)
# Recursion and closed form each round about STEPS times on iterates of size 1.
TOLERANCE = 1e-13


def critical(momentum):
    return ((1 - momentum) / (1 + momentum)) ** 2


# (rate, momentum, curvature): every regime of the roots, for Nesterov's method.
REGIMES = {
    "real": (0.1, 0.5, 0.2),
    "real, slow": (0.1, 0.9, 1e-6),
    "below critical by 1e-4": (1.0, 0.9, critical(0.9) * (1 - 1e-4)),
    "below critical by 1e-12": (1.0, 0.9, critical(0.9) * (1 - 1e-12)),
    "critical": (1.0, 0.6, 0.0625),
    "above critical by 1e-12": (1.0, 0.9, critical(0.9) * (1 + 1e-12)),
    "above critical by 1e-4": (1.0, 0.9, critical(0.9) * (1 + 1e-4)),
    "complex": (0.1, 0.9, 3.0),
    "complex, slow": (0.1, 0.99, 0.5),
    "one below": (0.5, 0.9, 2 * (1 - 1e-12)),
    "one": (0.5, 0.9, 2.0),
    "one above": (0.5, 0.9, 2 * (1 + 1e-12)),
    "opposite signs": (0.1, 0.7, 11.0),
    "unstable": (0.1, 0.9, 14.5),
    "no momentum": (0.1, 0.0, 3.0),
    "no momentum, one": (0.5, 0.0, 2.0),
    "no momentum, negative": (0.1, 0.0, 15.0),
    "no curvature": (0.1, 0.9, 0.0),
}
# Heavy ball has its own critical curvatures, at both ends.
HEAVY_BALL_REGIMES = {
    "real": (0.1, 0.2, 1.0),
    "critical, positive root": (1.0, 0.25, 0.25),
    "near the positive one": (1.0, 0.25, 0.25 * (1 + 1e-12)),
    "complex": (0.1, 0.9, 3.0),
    "critical, negative root": (1.0, 0.25, 2.25),
    "near the negative one": (1.0, 0.25, 2.25 * (1 - 1e-12)),
    "real negative": (1.0, 0.25, 2.4),
    "no momentum": (0.1, 0.0, 3.0),
    "trace zero": (1.0, 0.5, 1.5),
}


def exact(rate, momentum, curvature, *, heavy_ball=False, steps=STEPS):
    """Query points and answers by the textbook scheme in 50 digits."""
    with localcontext() as context:
        context.prec = 50
        alpha, beta, lam = Decimal(rate), Decimal(momentum), Decimal(curvature)
        x = y = Decimal(1)
        queries, answers = [y], [x]
        for _ in range(steps):
            previous = x
            if heavy_ball:
                x = x - alpha * lam * x + (beta * (x - answers[-2]) if len(answers) > 1 else 0)
                y = x
            else:
                x = y - alpha * lam * y
                y = x + beta * (x - previous)
            queries.append(y)
            answers.append(x)
        return np.array(queries, float), np.array(answers, float)


def assert_close(actual, expected, tolerance=TOLERANCE):
    scale = max(1.0, float(np.max(np.abs(expected))))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("regime", REGIMES)
def test_both_sequences_of_nesterov_have_their_closed_form_in_every_regime(regime):
    rate, momentum, curvature = REGIMES[regime]
    queries, answers = exact(rate, momentum, curvature)
    assert_close(trajectories.nesterov_queries(T, rate, momentum, curvature), queries)
    assert_close(trajectories.nesterov_answers(T, rate, momentum, curvature), answers)


@pytest.mark.parametrize("regime", HEAVY_BALL_REGIMES)
def test_heavy_ball_has_its_closed_form_in_every_regime(regime):
    rate, momentum, curvature = HEAVY_BALL_REGIMES[regime]
    queries, _ = exact(rate, momentum, curvature, heavy_ball=True)
    assert_close(trajectories.heavy_ball(T, rate, momentum, curvature), queries)


@pytest.mark.parametrize(
    ("rate", "momentum", "curvature"), [(0.1, 0.99, 1e-6), (1.0, 0.998, 1e-6 * (1 + 1e-9)), (1e-3, 0.999, 1e-4)]
)
def test_slow_modes_keep_their_digits_over_thousands_of_steps(rate, momentum, curvature):
    expected, _ = exact(rate, momentum, curvature, steps=3000)
    assert_close(trajectories.nesterov_queries(np.arange(3001), rate, momentum, curvature), expected, 1e-12)


def test_regimes_are_the_ones_their_names_say():
    def discriminant(rate, momentum, curvature):
        u = 1 - rate * curvature
        return ((1 + momentum) * u / 2) ** 2 - momentum * u

    assert discriminant(*REGIMES["real"]) > 0.01
    assert 0 < discriminant(*REGIMES["below critical by 1e-4"]) < 1e-5
    assert abs(discriminant(*REGIMES["critical"])) < 1e-16
    assert -1e-5 < discriminant(*REGIMES["above critical by 1e-4"]) < 0
    assert discriminant(*REGIMES["complex"]) < -0.01
    assert 1 - REGIMES["one"][0] * REGIMES["one"][2] == 0
    assert discriminant(*REGIMES["opposite signs"]) > 0 > 1 - 0.1 * 11.0


def test_the_textbook_formula_for_distinct_roots_loses_digits_where_ours_does_not():
    rate, momentum, curvature = REGIMES["below critical by 1e-12"]
    u = 1 - rate * curvature
    larger, smaller = trajectories.characteristic_roots((1 + momentum) * u, momentum * u).real
    first = 1 - (1 + momentum) * rate * curvature
    textbook = ((first - smaller) * larger**T - (first - larger) * smaller**T) / (larger - smaller)
    expected, _ = exact(rate, momentum, curvature)
    assert np.max(np.abs(textbook - expected)) > 1e-12
    assert np.max(np.abs(trajectories.nesterov_queries(T, rate, momentum, curvature) - expected)) < 1e-14


def test_when_rate_times_curvature_is_one_answers_end_after_one_step_and_queries_after_two():
    np.testing.assert_array_equal(trajectories.nesterov_answers(np.arange(5), 0.5, 0.9, 2.0), [1, 0, 0, 0, 0])
    np.testing.assert_allclose(
        trajectories.nesterov_queries(np.arange(5), 0.5, 0.9, 2.0), [1, -0.9, 0, 0, 0], atol=1e-16
    )


@pytest.mark.parametrize(
    ("trace", "determinant"), [(3.0, 1.0), (-3.0, 2.0), (1.0, 0.25), (0.5, 0.7), (0.0, -1.0), (0.0, 0.0)]
)
def test_characteristic_roots_have_the_given_sum_and_product(trace, determinant):
    roots = trajectories.characteristic_roots(trace, determinant)
    assert abs(roots.sum() - trace) < 1e-15
    assert abs(roots.prod() - determinant) < 1e-15
    assert abs(roots[0]) >= abs(roots[1])


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.99])
def test_a_root_crosses_the_unit_circle_at_the_largest_stable_rate(momentum, nesterov):
    def radius(rate):
        u = 1 - 2.5 * rate
        trace, product = ((1 + momentum) * u, momentum * u) if nesterov else (momentum + u, momentum)
        return abs(trajectories.characteristic_roots(trace, product)[0])

    limit = trajectories.largest_stable_rate(momentum, 2.5, nesterov=nesterov)
    assert radius(limit * (1 - 1e-9)) < 1 < radius(limit * (1 + 1e-9))


@pytest.mark.parametrize("kappa", [4.0, 100.0, 1e4])
def test_strongly_convex_tuning_damps_the_smallest_curvature_critically(kappa):
    rate, momentum = trajectories.strongly_convex_tuning(kappa, 1.0)
    assert momentum == pytest.approx((np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1), rel=1e-15)
    expected = trajectories.critical_answers(T, kappa)
    assert_close(trajectories.nesterov_answers(T, rate, momentum, 1.0), expected)
    after = trajectories.critical_answers(T + 1, kappa)
    assert_close(trajectories.nesterov_queries(T, rate, momentum, 1.0), after / (1 - 1 / kappa))
    assert_close(trajectories.nesterov_answers(T, rate, momentum, kappa), T == 0)


@pytest.mark.parametrize("kappa", [4.0, 100.0])
def test_polyak_tuning_damps_both_ends_critically(kappa):
    rate, momentum = trajectories.polyak_tuning(kappa, 1.0)
    for curvature, sign in ((1.0, 1), (kappa, -1)):
        root = sign * np.sqrt(momentum)
        expected = root**T * (1 + T * ((1 - rate * curvature) / root - 1))
        assert_close(trajectories.heavy_ball(T, rate, momentum, curvature), expected)


def rows(step, start, count):
    """Explicit updates of a pair of numbers."""
    states = [np.asarray(start, float)]
    for t in range(count):
        states.append(step.matrix @ states[-1] + step.forcing + t * step.drift)
    return np.array(states)


STEP_FORMS = {
    "nesterov": state_space.gradient_unit_nesterov(0.1, 0.9, 2.0, linear=0.7, linear_drift=0.05, decoupled_decay=0.03),
    "heavy ball": state_space.gradient_unit_heavy_ball(
        0.1, 0.9, 2.0, linear=0.7, linear_drift=0.05, decoupled_decay=0.03, dampening=0.4
    ),
    "keras": state_space.step_unit(0.1, 0.9, 2.0, linear=0.7, linear_drift=0.05),
    "keras heavy ball": state_space.step_unit(0.1, 0.9, 2.0, linear=0.7, linear_drift=0.05, nesterov=False),
}


@pytest.mark.parametrize("form", STEP_FORMS)
def test_orbits_equal_repeated_updates_from_any_state(form):
    step = STEP_FORMS[form]
    assert_close(state_space.orbit(T, step, [1.5, -0.8]), rows(step, [1.5, -0.8], STEPS))


def test_piecewise_orbits_equal_repeated_updates_with_drift():
    first, second = STEP_FORMS["nesterov"], STEP_FORMS["heavy ball"]
    state = rows(first, [1.0, 0.2], 17)[-1]
    for t in range(17, 40):
        state = second.matrix @ state + second.forcing + t * second.drift
    assert_close(state_space.piecewise_orbit([(17, first), (23, second)], [1.0, 0.2]), state)


def affine(curvature, linear):
    return lambda theta: curvature * theta - linear


@pytest.mark.parametrize("nesterov", [True, False])
def test_pytorch_matrix_is_the_pytorch_loop_with_coupled_decay_and_bias(nesterov):
    rate, momentum, curvature, linear, decay = 0.1, 0.9, 2.0, 0.7, 0.25
    loop = training_loops.pytorch_sgd(
        affine(curvature, linear), [1.3], [rate] * STEPS, momentum=momentum, weight_decay=decay, nesterov=nesterov
    )
    form = state_space.gradient_unit_nesterov if nesterov else state_space.gradient_unit_heavy_ball
    step = form(rate, momentum, curvature + decay, linear=linear)
    assert_close(state_space.orbit(T, step, [1.3, 0.0])[:, 0], loop[:, 0])


def test_dampened_pytorch_loop_is_the_matrix_started_from_the_undamped_momentum():
    rate, momentum, curvature, linear, dampening = 0.1, 0.9, 2.0, 0.7, 0.4
    gradient = affine(curvature, linear)
    loop = training_loops.pytorch_sgd(gradient, [1.3], [rate] * STEPS, momentum=momentum, dampening=dampening)
    step = state_space.gradient_unit_heavy_ball(rate, momentum, curvature, linear=linear, dampening=dampening)
    start = state_space.undamped_start(gradient(1.3), momentum, dampening)
    assert_close(state_space.orbit(T, step, [1.3, start])[:, 0], loop[:, 0])


@pytest.mark.parametrize("nesterov", [True, False])
def test_keras_matrix_is_the_keras_loop(nesterov):
    loop = training_loops.keras_sgd(affine(2.0, 0.7), [1.3], [0.1] * STEPS, momentum=0.9, nesterov=nesterov)
    step = state_space.step_unit(0.1, 0.9, 2.0, linear=0.7, nesterov=nesterov)
    assert_close(state_space.orbit(T, step, [1.3, 0.0])[:, 0], loop[:, 0])


def test_a_change_of_rate_separates_pytorch_from_keras_by_the_rescaled_momentum():
    momentum, curvature, change, first, second = 0.9, 2.0, 12, 0.05, 0.2
    rates = [first] * change + [second] * 20
    torch = training_loops.pytorch_sgd(affine(curvature, 0.0), [1.0], rates, momentum=momentum, nesterov=True)[:, 0]
    keras = training_loops.keras_sgd(affine(curvature, 0.0), [1.0], rates, momentum=momentum, nesterov=True)[:, 0]
    segments = {
        name: [(change, form(first, momentum, curvature)), (20, form(second, momentum, curvature))]
        for name, form in (("torch", state_space.gradient_unit_nesterov), ("keras", state_space.step_unit))
    }
    assert_close(state_space.piecewise_orbit(segments["torch"], [1.0, 0.0])[0], torch[-1])
    assert_close(state_space.piecewise_orbit(segments["keras"], [1.0, 0.0])[0], keras[-1])
    buffer = state_space.orbit(change, segments["torch"][0][1], [1.0, 0.0])[1]
    assert_close(torch[: change + 1], keras[: change + 1])
    assert_close(torch[change + 1] - keras[change + 1], -(second - first) * momentum**2 * buffer)
    assert np.max(np.abs(torch - keras)) > 0.01


def test_nesterov_lags_behind_a_drifting_minimizer_by_its_steady_lag():
    rate, momentum, curvature, speed = 0.1, 0.9, 2.0, 0.05
    step = state_space.gradient_unit_nesterov(rate, momentum, curvature, linear_drift=speed)
    late = 2000
    lag = state_space.orbit(late, step, [1.0, 0.0])[0] - speed * late / curvature
    assert lag == pytest.approx(-(1 - momentum) * speed / (rate * curvature**2), rel=1e-10)


def test_the_answer_and_the_velocity_are_read_from_the_gradient_unit_state():
    rate, momentum, curvature = 0.1, 0.9, 2.0
    state = state_space.orbit(T, state_space.gradient_unit_nesterov(rate, momentum, curvature), [1.0, 0.0])
    answers = state[:, 0] + rate * momentum * state[:, 1]
    assert_close(answers, trajectories.nesterov_answers(T, rate, momentum, curvature))
    assert_close(-rate * state[1:, 1], np.diff(answers))


def test_sutskever_form_is_the_textbook_form_for_any_schedules():
    rates, momenta = np.linspace(0.02, 0.2, STEPS), np.linspace(0.95, 0.1, STEPS + 1)

    def gradient(x):
        return np.array([2.0, 0.3]) * x + np.sin(x)

    textbook = convex_loops.nesterov(gradient, [1.0, -2.0], rates, momenta)
    sutskever = training_loops.sutskever(gradient, [1.0, -2.0], rates, momenta)
    assert_close(sutskever.queries, textbook.queries)
    assert_close(sutskever.answers, textbook.answers)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("nesterov", [True, False])
def test_responses_to_streams_and_constant_gradients_equal_the_loop(momentum, nesterov):
    stream = np.cos(np.arange(STEPS) ** 2.0)
    rates = np.linspace(0.3, 0.05, STEPS)

    def run(gradients, step_sizes):
        feed = iter(gradients)
        loop = training_loops.pytorch_sgd(
            lambda theta: np.array([next(feed)]), [0.0], step_sizes, momentum=momentum, nesterov=nesterov
        )
        return loop[:, 0]

    assert_close(responses.stream_updates(stream, rates, momentum, nesterov=nesterov), np.diff(run(stream, rates)))
    constant = run(np.full(STEPS, 0.7), np.full(STEPS, 0.1))
    closed = responses.constant_gradient_displacement(T, 0.1, momentum, 0.7, nesterov=nesterov)
    assert_close(closed, constant)
    scheduled = run(np.full(STEPS, 0.7), rates)
    updates = responses.constant_gradient_updates(np.arange(STEPS), rates, momentum, 0.7, nesterov=nesterov)
    assert_close(updates, np.diff(scheduled))
    if nesterov:
        assert_close(responses.stream_displacement(stream, 0.1, momentum), run(stream, np.full(STEPS, 0.1))[-1])
        warm = run(np.full(STEPS, 0.7), 0.01 * (np.arange(STEPS) + 1))
        assert_close(responses.warm_up_displacement(T, 0.01, momentum, 0.7), warm)


def test_the_impulse_response_starts_with_one_plus_momentum():
    np.testing.assert_allclose(responses.impulse_response(4, 0.5), [1.5, 0.25, 0.125, 0.0625])
    np.testing.assert_allclose(responses.impulse_response(4, 0.5, nesterov=False), [1, 0.5, 0.25, 0.125])
